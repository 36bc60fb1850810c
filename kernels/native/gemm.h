/* Small matrix products that stay in the caches: what Winograd's and pointwise convolutions are made of. */

#ifndef CONVOY_GEMM_H
#define CONVOY_GEMM_H

#include "vectors.h"

#define PANEL (2 * WIDTH) /* columns of the second factor that lie side by side */
#define DEPTH 512         /* products summed before a panel would leave the second cache */
#define LINE 16           /* floats of a line of the caches */

static inline int panels(int columns) { return (columns + PANEL - 1) / PANEL; }

/* A matrix where it lies: `row` floats from a row to the next, `deep` from a column to the next. */
struct matrix {
  const float *at;
  size_t row, deep;
};

/* Where the products of some rows with a panel go, and from what the sums start: what is there already (`add`), else a
   number for each row, a vector for each column, or nothing. `columns` of them are stored; `past`: past the caches. */
struct place {
  float *at;
  size_t row;
  const float *of_rows, *of_columns;
  int columns, add, past;
};

INLINE vec begin_sum(const struct place *c, size_t row, int half) {
  if (c->add) return load(c->at + row * c->row + half * WIDTH);
  if (c->of_rows) return splat(c->of_rows[row]);
  return c->of_columns ? load(c->of_columns + half * WIDTH) : (vec){0};
}

INLINE void end_sum(const struct place *c, size_t row, int half, vec sum) {
  float *to = c->at + row * c->row + half * WIDTH;
  if (c->columns - half * WIDTH < WIDTH)
    store_part(to, sum, c->columns - half * WIDTH);
  else if (c->past)
    STREAM(to, sum);
  else
    store(to, sum);
}

/* Some rows of a (`many`, known to the compiler) by a panel of `halves` vectors, b[depth][b_row]. A line at `next` is
   fetched each step. Six rows of two vectors are twelve sums: enough to hide the latency of a fused multiply and
   addition, and AVX2 has no registers for more. */
INLINE void multiply_few(int many, int halves, const struct matrix *a, const float *b, size_t b_row, int depth,
                         const struct place *c, const float *next) {
  vec sum[8][2];
  const float *at = a->at;
  const size_t row = a->row, deep = a->deep;
  UNROLL for (int r = 0; r < many; r++)
    UNROLL for (int half = 0; half < halves; half++) sum[r][half] = begin_sum(c, (size_t)r, half);
  for (int k = 0; k < depth; k++, at += deep, b += b_row, next += LINE) {
    __builtin_prefetch(next, 0, 2);
    vec of_b[2];
    UNROLL for (int half = 0; half < halves; half++) of_b[half] = load(b + half * WIDTH);
    UNROLL for (int r = 0; r < many; r++) {
      const vec value = splat(at[(size_t)r * row]);
      UNROLL for (int half = 0; half < halves; half++) sum[r][half] += value * of_b[half];
    }
  }
  UNROLL for (int r = 0; r < many; r++)
    UNROLL for (int half = 0; half < halves; half++) end_sum(c, (size_t)r, half, sum[r][half]);
}

typedef void multiply(const struct matrix *, const float *, size_t, int, const struct place *, const float *);

#define MULTIPLY(MANY, HALVES)                                                                       \
  static void multiply_##MANY##_##HALVES(const struct matrix *a, const float *b, size_t b_row, int depth, \
                                         const struct place *c, const float *next) {                 \
    multiply_few(MANY, HALVES, a, b, b_row, depth, c, next);                                         \
  }
MULTIPLY(1, 2) MULTIPLY(2, 2) MULTIPLY(3, 2) MULTIPLY(4, 2) MULTIPLY(5, 2) MULTIPLY(6, 2)
MULTIPLY(1, 1) MULTIPLY(2, 1) MULTIPLY(3, 1) MULTIPLY(4, 1) MULTIPLY(5, 1) MULTIPLY(6, 1) MULTIPLY(7, 1) MULTIPLY(8, 1)

/* Rows that are multiplied at a time by so many columns of a panel. */
static inline int rows_for(int columns) { return columns > WIDTH ? 6 : 8; }

/* c (+)= a[rows][depth] by a panel b[depth][b_row], of at most rows_for(columns) rows. */
static inline void multiply_group(const struct matrix *a, int rows, const float *b, size_t b_row, int depth,
                                  const struct place *c, const float *next) {
  static multiply *const of[2][9] = {{NULL, multiply_1_1, multiply_2_1, multiply_3_1, multiply_4_1, multiply_5_1,
                                      multiply_6_1, multiply_7_1, multiply_8_1},
                                     {NULL, multiply_1_2, multiply_2_2, multiply_3_2, multiply_4_2, multiply_5_2,
                                      multiply_6_2}};
  of[c->columns > WIDTH][rows](a, b, b_row, depth, c, next);
}

/* c (+)= a[rows][depth] by a panel b[depth][b_row]; the panel at `next`, if any, is read after this one. */
static inline void multiply_rows(const struct matrix *a, int rows, const float *b, size_t b_row, int depth,
                                 const struct place *c, const float *next) {
  const int groups = (rows + rows_for(c->columns) - 1) / rows_for(c->columns);
  for (int g = 0; g < groups; g++) {
    const size_t first = (size_t)(rows * g / groups), end = (size_t)(rows * (g + 1) / groups);
    const struct matrix of = {a->at + first * a->row, a->row, a->deep};
    struct place to = *c;
    to.at += first * c->row;
    if (to.of_rows) to.of_rows += first;
    multiply_group(&of, (int)(end - first), b, b_row, depth, &to, next && g < 2 ? next + (size_t)(g * depth * LINE) : b);
  }
}

/* c[rows][PANEL] = a[rows][depth] times a panel b[depth][PANEL]; `next`: the panel that is read after this one. */
static inline void multiply_panel(const float *a, size_t lda, int rows, const float *b, int depth, float *c, size_t ldc,
                                  const float *next) {
  for (int from = 0; from < depth; from += DEPTH) {
    const int part = depth - from < DEPTH ? depth - from : DEPTH;
    const struct matrix of = {a + from, lda, 1};
    const struct place to = {.at = c, .row = ldc, .columns = PANEL, .add = from > 0};
    const size_t here = (size_t)from * PANEL;
    multiply_rows(&of, rows, b + here, PANEL, part, &to, next ? next + here : NULL);
  }
}

#endif
