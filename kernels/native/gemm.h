/* Small matrix products that stay in the caches: what Winograd's and pointwise convolutions are made of. */

#ifndef CONVOY_GEMM_H
#define CONVOY_GEMM_H

#include "vectors.h"

#define PANEL (2 * WIDTH) /* columns of the second factor that lie side by side */
#define DEPTH 512         /* products summed before a panel would leave the second cache */

static inline int panels(int columns) { return (columns + PANEL - 1) / PANEL; }

/* Rows of the first factor at a time: twelve sums are enough to hide the latency of a fused multiply and addition, and
   AVX2 has no registers for more. */
#define ROWS_TOGETHER 6

/* c[ROWS][PANEL] (+)= a[ROWS][depth] times a panel b[depth][PANEL], while what lies at `next`, `pace` floats for each of
   depth, is fetched. */
#define PRODUCT(ROWS)                                                                                               \
  static void product_##ROWS(const float *a, size_t lda, const float *b, int depth, float *c, size_t ldc, int add, \
                             const float *next, size_t pace) {                                                     \
    vec sum[ROWS][2];                                                                                              \
    for (size_t r = 0; r < ROWS; r++) {                                                                            \
      sum[r][0] = add ? load(c + r * ldc) : (vec){0};                                                              \
      sum[r][1] = add ? load(c + r * ldc + WIDTH) : (vec){0};                                                      \
    }                                                                                                              \
    for (int k = 0; k < depth; k++, a++, b += PANEL, next += pace) {                                               \
      __builtin_prefetch(next, 0, 2);                                                                              \
      const vec one = load(b), two = load(b + WIDTH);                                                              \
      _Pragma("GCC unroll 8") for (size_t r = 0; r < ROWS; r++) {                                                  \
        const vec value = splat(a[r * lda]);                                                                       \
        sum[r][0] += value * one;                                                                                  \
        sum[r][1] += value * two;                                                                                  \
      }                                                                                                            \
    }                                                                                                              \
    for (size_t r = 0; r < ROWS; r++) {                                                                            \
      store(c + r * ldc, sum[r][0]);                                                                               \
      store(c + r * ldc + WIDTH, sum[r][1]);                                                                       \
    }                                                                                                              \
  }
PRODUCT(6) PRODUCT(5) PRODUCT(4) PRODUCT(3) PRODUCT(2) PRODUCT(1)

/* c[rows][PANEL] = a[rows][depth] times a panel b[depth][PANEL], while the panel at `next` is fetched, which is read
   after this one. */
static void multiply_panel(const float *a, size_t lda, int rows, const float *b, int depth, float *c, size_t ldc,
                           const float *next) {
  static void (*const product[])(const float *, size_t, const float *, int, float *, size_t, int, const float *,
                                 size_t) = {NULL,      product_1, product_2, product_3,
                                            product_4, product_5, product_6};
  const int parts = (rows + ROWS_TOGETHER - 1) / ROWS_TOGETHER; /* as even as can be: one row alone is slow */
  const size_t pace = PANEL / parts > 1 ? (size_t)(PANEL / parts) : 1;
  for (int from = 0; from < depth; from += DEPTH) {
    const int here = depth - from < DEPTH ? depth - from : DEPTH;
    const size_t at = (size_t)from * PANEL;
    for (int part = 0; part < parts; part++) {
      const int r = rows * part / parts, many = rows * (part + 1) / parts - r;
      product[many](a + (size_t)r * lda + from, lda, b + at, here, c + (size_t)r * ldc, ldc, from > 0,
                    next + at + (size_t)(here * part) * pace, pace);
    }
  }
}

/* The same of panels one after the other in memory, and of `next` after the last. */
static void multiply(const float *a, size_t lda, int rows, const float *b, size_t step, int of_panels, int depth,
                     float *c, size_t ldc, const float *next) {
  for (int panel = 0; panel < of_panels; panel++, b += step)
    multiply_panel(a, lda, rows, b, depth, c + panel * PANEL, ldc, panel + 1 < of_panels ? b + step : next);
}

#endif
