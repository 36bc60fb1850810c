/* Small matrix products that stay in the caches: what Winograd's and pointwise convolutions are made of. */

#ifndef CONVOY_GEMM_H
#define CONVOY_GEMM_H

#include "vectors.h"

#define PANEL (2 * WIDTH) /* columns of the second factor that lie side by side */
#define DEPTH 512         /* products summed before a panel would leave the second cache */

static inline int panels(int columns) { return (columns + PANEL - 1) / PANEL; }

/* c[ROWS][PANEL] (+)= a[ROWS][depth] times a panel b[depth][PANEL], while the panel at `next` is fetched. Six rows are
   twelve sums: enough to hide the latency of a fused multiply and addition, and AVX2 has no registers for more. */
#define PRODUCT(ROWS)                                                                                               \
  static void product_##ROWS(const float *a, size_t lda, const float *b, int depth, float *c, size_t ldc, int add, \
                             const float *next) {                                                                  \
    vec sum[ROWS][2];                                                                                              \
    for (size_t r = 0; r < ROWS; r++) {                                                                            \
      sum[r][0] = add ? load(c + r * ldc) : (vec){0};                                                              \
      sum[r][1] = add ? load(c + r * ldc + WIDTH) : (vec){0};                                                      \
    }                                                                                                              \
    for (int k = 0; k < depth; k++, a++, b += PANEL) {                                                             \
      if (next) {                                                                                                  \
        __builtin_prefetch(next, 0, 2);                                                                            \
        __builtin_prefetch(next + PANEL - 1, 0, 2);                                                                \
        next += PANEL;                                                                                             \
      }                                                                                                            \
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

/* c[rows][PANEL] = a[rows][depth] times a panel b[depth][PANEL]; `next`: the panel that is read after this one. */
static void multiply_panel(const float *a, size_t lda, int rows, const float *b, int depth, float *c, size_t ldc,
                           const float *next) {
  static void (*const last[])(const float *, size_t, const float *, int, float *, size_t, int, const float *) = {
      NULL, product_1, product_2, product_3, product_4, product_5};
  for (int from = 0; from < depth; from += DEPTH) {
    const int part = depth - from < DEPTH ? depth - from : DEPTH;
    const float *of_panel = b + (size_t)from * PANEL, *fetched = next ? next + (size_t)from * PANEL : NULL;
    int r = 0;
    for (; r + 6 <= rows; r += 6, fetched = NULL)
      product_6(a + (size_t)r * lda + from, lda, of_panel, part, c + (size_t)r * ldc, ldc, from > 0, fetched);
    if (r < rows)
      last[rows - r](a + (size_t)r * lda + from, lda, of_panel, part, c + (size_t)r * ldc, ldc, from > 0, fetched);
  }
}

#endif
