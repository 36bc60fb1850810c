/* Small matrix products that stay in the caches: what Winograd's and pointwise convolutions are made of. */

#ifndef CONVOY_GEMM_H
#define CONVOY_GEMM_H

#include "vectors.h"

#define PANEL (2 * WIDTH) /* columns of the second factor that lie side by side */
#define DEPTH 512         /* products summed before a panel would leave the second cache */
#define LINE 16           /* floats of a line of the caches */

static inline int panels(int columns) { return (columns + PANEL - 1) / PANEL; }

/* What the sums of a product start from: nothing, what is in their place, a number a row, or a vector a column. */
enum start { NOTHING, PLACE, OF_ROWS, OF_COLUMNS };

/* c[rows][columns] = start + a[rows][depth] b[depth][columns] for at most PANEL columns: floats from a row to the next,
   and for the first factor from a column to the next. `fetch`: from a line that is fetched to the next. `past`: results
   go past the caches. */
struct product {
  size_t a_row, a_deep, b_row, c_row, fetch;
  int depth, columns, past;
  enum start start;
};

/* What to fetch where there is nothing to fetch: a line that the first cache has, or each step would wait for the
   second. */
#define AT_HAND(p) ((const float *)(p))

/* Some rows (`many`, known to the compiler) of a product of `halves` vectors; a line at `next` is fetched each step.
   Six rows of two vectors are twelve sums: enough to hide the latency of a fused multiply and addition, and AVX2 has no
   registers for more. */
INLINE void multiply_rows(size_t many, int halves, const struct product *p, const float *a, const float *b, float *c,
                          const float *start, const float *next) {
  vec sum[8][2];
  const size_t a_row = p->a_row, a_deep = p->a_deep, b_row = p->b_row, c_row = p->c_row, fetch = p->fetch;
  if (p->start == PLACE) {
    UNROLL for (size_t r = 0; r < many; r++)
      UNROLL for (int half = 0; half < halves; half++) sum[r][half] = load(c + r * c_row + half * WIDTH);
  } else if (p->start == OF_COLUMNS) {
    UNROLL for (size_t r = 0; r < many; r++)
      UNROLL for (int half = 0; half < halves; half++) sum[r][half] = load(start + half * WIDTH);
  } else {
    UNROLL for (size_t r = 0; r < many; r++)
      UNROLL for (int half = 0; half < halves; half++) sum[r][half] = p->start == OF_ROWS ? splat(start[r]) : (vec){0};
  }
  _Pragma("GCC unroll 2") for (int k = p->depth; k > 0; k--, a += a_deep, b += b_row, next += fetch) {
    __builtin_prefetch(next, 0, 2);
    vec of_b[2];
    UNROLL for (int half = 0; half < halves; half++) of_b[half] = load(b + half * WIDTH);
    UNROLL for (size_t r = 0; r < many; r++) {
      const vec value = splat(a[r * a_row]);
      UNROLL for (int half = 0; half < halves; half++) sum[r][half] += value * of_b[half];
    }
  }
  const int last = p->columns - (halves - 1) * WIDTH;
  if (last < WIDTH) {
    UNROLL for (size_t r = 0; r < many; r++, c += c_row) {
      if (halves > 1) store(c, sum[r][0]);
      store_part(c + (halves - 1) * WIDTH, sum[r][halves - 1], last);
    }
  } else if (p->past) {
    UNROLL for (size_t r = 0; r < many; r++, c += c_row)
      UNROLL for (int half = 0; half < halves; half++) STREAM(c + half * WIDTH, sum[r][half]);
  } else {
    UNROLL for (size_t r = 0; r < many; r++, c += c_row)
      UNROLL for (int half = 0; half < halves; half++) store(c + half * WIDTH, sum[r][half]);
  }
}

typedef void kernel(const struct product *, const float *, const float *, float *, const float *, const float *);

#define MULTIPLY(MANY, HALVES)                                                                                \
  static void multiply_##MANY##_##HALVES(const struct product *p, const float *a, const float *b, float *c,   \
                                         const float *start, const float *next) {                             \
    multiply_rows(MANY, HALVES, p, a, b, c, start, next);                                                     \
  }
MULTIPLY(1, 2) MULTIPLY(2, 2) MULTIPLY(3, 2) MULTIPLY(4, 2) MULTIPLY(5, 2) MULTIPLY(6, 2)
MULTIPLY(1, 1) MULTIPLY(2, 1) MULTIPLY(3, 1) MULTIPLY(4, 1) MULTIPLY(5, 1) MULTIPLY(6, 1) MULTIPLY(7, 1) MULTIPLY(8, 1)

/* Rows that are multiplied at a time by so many columns. */
static inline int rows_for(int columns) { return columns > WIDTH ? 6 : 8; }

/* At most rows_for(columns) rows. `start`: of the first row or column; `next`: lines that are read soon, one for
   each step. */
static inline void multiply_few(const struct product *p, int rows, const float *a, const float *b, float *c,
                                const float *start, const float *next) {
  static kernel *const of[2][9] = {{NULL, multiply_1_1, multiply_2_1, multiply_3_1, multiply_4_1, multiply_5_1,
                                      multiply_6_1, multiply_7_1, multiply_8_1},
                                     {NULL, multiply_1_2, multiply_2_2, multiply_3_2, multiply_4_2, multiply_5_2,
                                      multiply_6_2}};
  of[p->columns > WIDTH][rows](p, a, b, c, start, next);
}

/* Any number of rows, from nothing or from what is in their place; in groups as even as can be, since one row alone is
   slow. What lies at `next` is fetched from one group to the next. */
static inline void multiply_all(const struct product *p, int rows, const float *a, const float *b, float *c,
                                const float *next) {
  const int groups = (rows + rows_for(p->columns) - 1) / rows_for(p->columns);
  for (int g = 0, first = 0, end; g < groups; g++, first = end, next += (size_t)p->depth * p->fetch) {
    end = rows * (g + 1) / groups;
    multiply_few(p, end - first, a + (size_t)first * p->a_row, b, c + (size_t)first * p->c_row, NULL, next);
  }
}

/* c[rows][PANEL] = a[rows][depth] times a panel b[depth][PANEL], while the panel at `next` is fetched, which is read
   after this one. */
static inline void multiply_panel(const float *a, size_t lda, int rows, const float *b, int depth, float *c, size_t ldc,
                                  const float *next) {
  const size_t pace = PANEL * rows_for(PANEL) / (size_t)rows;
  for (int from = 0; from < depth; from += DEPTH) {
    const struct product p = {.a_row = lda, .a_deep = 1, .b_row = PANEL, .c_row = ldc, .fetch = pace > 1 ? pace : 1,
                              .depth = depth - from < DEPTH ? depth - from : DEPTH, .columns = PANEL,
                              .start = from > 0 ? PLACE : NOTHING};
    multiply_all(&p, rows, a + from, b + (size_t)from * PANEL, c, next + (size_t)from * PANEL);
  }
}

/* The same of panels one after the other in memory, and of `next` after the last. */
static inline void multiply(const float *a, size_t lda, int rows, const float *b, size_t step, int of_panels, int depth,
                            float *c, size_t ldc, const float *next) {
  for (int panel = 0; panel < of_panels; panel++, b += step)
    multiply_panel(a, lda, rows, b, depth, c + panel * PANEL, ldc, panel + 1 < of_panels ? b + step : next);
}

#endif
