/* All passes of winograd.c over odd sizes, borders and threads, in buffers of the exact size, for the sanitizers to
   watch. Prints how many results there were and the largest error. */

#include "winograd.c"

#include "kernels_driver.h"

/* y += the definition; images NHWC, filters (k, c, 3, 3) */
static void definition(const float *x, const struct sizes *s, const float *w, double *y, const float *dy, double *dw) {
  for (int n = 0; n < s->n; n++)
    for (int i = 0; i < s->out_h; i++)
      for (int j = 0; j < s->out_w; j++)
        for (int r = 0; r < 9; r++) {
          int h = i + r / 3 - s->top, v = j + r % 3 - s->left;
          if (h < 0 || h >= s->h || v < 0 || v >= s->w) continue;
          for (int k = 0; k < s->k; k++)
            for (int c = 0; c < s->c; c++) {
              size_t in = (((size_t)n * s->h + h) * s->w + v) * s->c + c, filter = ((size_t)k * s->c + c) * 9 + r;
              size_t out = (((size_t)n * s->out_h + i) * s->out_w + j) * s->k + k;
              if (y) y[out] += (double)x[in] * w[filter];
              if (dw) dw[filter] += (double)x[in] * dy[out];
            }
        }
}

int main(void) {
  for (int number = 0; number < 60; number++) {
    struct sizes s = {.n = 1 + (int)draw(2), .h = 1 + (int)draw(14), .w = 1 + (int)draw(14), .c = 1 + (int)draw(40),
                      .top = (int)draw(4), .left = (int)draw(4), .k = 1 + (int)draw(40)};
    s.out_h = s.h + 2 * s.top - 2;
    s.out_w = s.w + 2 * s.left - 2;
    if (s.out_h < 1 || s.out_w < 1) continue;
    size_t inputs = (size_t)s.n * s.h * s.w * s.c, outputs = (size_t)s.n * s.out_h * s.out_w * s.k;
    size_t filters = (size_t)s.k * s.c * 9;
    float *x = numbers(inputs), *w = numbers(filters), *dy = numbers(outputs), *y = numbers(outputs);
    float *dw = numbers(filters);
    double *exact = calloc(outputs, sizeof(double)), *exact_dw = calloc(filters, sizeof(double));
    definition(x, &s, w, exact, dy, exact_dw);
    int threads = 1 + (int)draw(3), block = draw(2) ? 16 : 64;
    int failed = convoy_winograd(x, &s, w, 9L * s.c, 9, 0, y, block, threads);
    note(apart_from(y, exact, outputs, failed));
    failed = convoy_winograd_weight_gradient(x, &s, dy, dw, 128, threads);
    note(apart_from(dw, exact_dw, filters, failed));
    free(x), free(w), free(dy), free(y), free(dw), free(exact), free(exact_dw);
  }
  printf("%d results, largest error %g\n", cases, worst_of_all);
  return worst_of_all < 1e-4 ? 0 : 1;
}
