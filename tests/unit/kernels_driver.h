/* For the drivers of kernels: numbers, buffers of the exact size, and how far a result is from the definition's. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static unsigned draw(unsigned below) {
  static unsigned state = 1;
  state = state * 1664525u + 1013904223u;
  return (state >> 8) % below;
}

static float *numbers(size_t count) {
  float *values = malloc(count * sizeof(float));
  for (size_t i = 0; i < count; i++) values[i] = (float)draw(2001) / 1000.0f - 1.0f;
  return values;
}

/* The largest difference over the largest value, or 1 if the kernel says that it failed. */
static double apart_from(const float *got, const double *expected, size_t count, int failed) {
  double worst = 0, largest = 1e-30;
  for (size_t i = 0; i < count; i++) {
    worst = fmax(worst, fabs((double)got[i] - expected[i]));
    largest = fmax(largest, fabs(expected[i]));
  }
  return failed ? 1 : worst / largest;
}

static double worst_of_all = 0;
static int cases = 0;

static void note(double error) {
  worst_of_all = fmax(worst_of_all, error);
  cases++;
}
