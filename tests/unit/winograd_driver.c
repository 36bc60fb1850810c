/* All passes of winograd.c over odd sizes, borders, layouts and threads, in buffers of the exact size, for the
   sanitizers to watch. Prints how many results there were and the largest error. */

#include "winograd.c"

#include "kernels_driver.h"

static long at(const struct layout *by, int n, int c, int h, int w) { return n * by->n + c * by->c + h * by->h + w * by->w; }

static struct layout layout_of(int c, int h, int w) {
  const long pixels = (long)h * w;
  return draw(2) ? (struct layout){pixels * c, 1, (long)w * c, c} : (struct layout){pixels * c, pixels, w, 1};
}

/* y += the definition, or dw += its gradient; filters (k, c, TAPS) in their own layout, gradients in that order */
static void definition(const float *x, const struct sizes *s, const struct filters *w, double *y, const float *dy,
                       double *dw) {
  for (int n = 0; n < s->n; n++)
    for (int i = 0; i < s->out_h; i++)
      for (int j = 0; j < s->out_w; j++)
        for (int t = 0; t < TAPS; t++) {
          const int h = i + t / TAPS_W - s->top, v = j + t % TAPS_W - s->left;
          if (h < 0 || h >= s->h || v < 0 || v >= s->w) continue;
          for (int k = 0; k < s->k; k++)
            for (int c = 0; c < s->c; c++) {
              const double pixel = x[at(&s->x, n, c, h, v)];
              const long result = at(&s->y, n, k, i, j);
              y[result] += pixel * w->at[k * w->k + c * w->c + (w->rotated ? TAPS - 1 - t : t) * w->tap];
              dw[((long)k * s->c + c) * TAPS + t] += pixel * dy[result];
            }
        }
}

int main(void) {
  for (int number = 0; number < 60; number++) {
    struct sizes s = {.n = 1 + (int)draw(2), .h = 1 + (int)draw(14), .w = 1 + (int)draw(14), .c = 1 + (int)draw(40),
                      .top = (int)draw(TAPS_H + 1), .left = (int)draw(TAPS_W + 1), .k = 1 + (int)draw(40)};
    s.out_h = s.h + 2 * s.top - TAPS_H + 1;
    s.out_w = s.w + 2 * s.left - TAPS_W + 1;
    if (s.out_h < 1 || s.out_w < 1) continue;
    s.x = layout_of(s.c, s.h, s.w);
    s.y = layout_of(s.k, s.out_h, s.out_w);
    const size_t inputs = (size_t)(s.n * s.h * s.w * s.c), outputs = (size_t)(s.n * s.out_h * s.out_w * s.k);
    const size_t numbers_of_filters = (size_t)(s.k * s.c * TAPS);
    float *x = numbers(inputs), *w = numbers(numbers_of_filters), *dy = numbers(outputs), *y = numbers(outputs);
    float *dw = numbers(numbers_of_filters), *bias = numbers((size_t)s.k);
    struct filters filters = {w, (long)s.c * TAPS, TAPS, 1, (int)draw(2)};
    if (draw(2)) filters.c = 1, filters.tap = s.c;
    if (filters.rotated) { /* (c, k, taps) in memory */
      filters.k = filters.tap == 1 ? TAPS : 1, filters.c = (long)s.k * TAPS;
      if (filters.tap != 1) filters.tap = s.k;
    }
    double *exact = calloc(outputs, sizeof(double)), *exact_dw = calloc(numbers_of_filters, sizeof(double));
    definition(x, &s, &filters, exact, dy, exact_dw);
    const int threads = 1 + (int)draw(3), block = (int[]){0, 5, 16}[draw(3)];
    float *u = draw(2) ? malloc(convoy_winograd_room(s.k, s.c) * sizeof(float) + 64) : NULL, *even = u;
    while ((uintptr_t)even % 64) even++;
    if (u) convoy_winograd_filters(&filters, s.k, s.c, even, threads);
    int failed = convoy_winograd(x, &s, &filters, even, NULL, y, block, threads);
    note(apart_from(y, exact, outputs, failed));
    for (size_t i = 0; i < outputs; i++) exact[i] += bias[(long)i / s.y.c % s.k]; /* either layout */
    failed = convoy_winograd(x, &s, &filters, even, bias, y, block, threads);
    note(apart_from(y, exact, outputs, failed));
    failed = convoy_winograd_weight_gradient(x, &s, dy, dw, threads);
    note(apart_from(dw, exact_dw, numbers_of_filters, failed));
    free(x), free(w), free(dy), free(y), free(dw), free(bias), free(exact), free(exact_dw), free(u);
  }
  printf("%d results, largest error %g\n", cases, worst_of_all);
  return worst_of_all < 1e-4 ? 0 : 1;
}
