/* Rounding of fp32 to a grid of fixed point, and to bf16; in place where `from` is `to`.

   What is random is a function of a key and of an element's place (rounding.h), so results do not depend on the number of
   threads. Loops are written for the compiler to make vectors of; 16 elements cost about 22 instructions of a vector of
   16, less than memory takes to bring them. Formulas and corner cases: kernels/rounding.py, which has the same in torch. */

#include <math.h>

#include "rounding.h"

/* One of the 2^23 odd multiples of 2^-24 below 1. */
INLINE float uniform(uint32_t bits) { return as_float(0x3f800000U | bits >> 9) - 0x1.fffffep-1f; }

/* The grid is the multiples of 1 / scale from low / scale to high / scale. NaN stays what it is. */
struct grid {
  float scale, low, high;
};

INLINE float on_grid(float x, struct grid grid, float threshold) {
  float y = x * grid.scale;
  y = grid.low > y ? grid.low : y;
  y = grid.high < y ? grid.high : y;
  const float below = floorf(y);
  return (below + (y - below > threshold ? 1.0f : 0.0f)) * (1.0f / grid.scale);
}

INLINE void fixed_piece(
    const float *from, float *to, int count, struct grid grid, int stochastic, struct key key, uint32_t place) {
  fetch(from, 4 * PIECE);
#pragma GCC ivdep
  for (int i = 0; i < count; i++)
    to[i] = on_grid(from[i], grid, stochastic ? uniform(random_bits(key, place + (uint32_t)i)) : 0.5f);
}

void convoy_round_fixed(
    const float *from, float *to, int64_t count, struct grid grid, int stochastic, struct key key, int threads) {
  if (stochastic) {
    IN_PIECES(fixed_piece(from + start, to + start, here, grid, 1, key, (uint32_t)start))
  } else {
    IN_PIECES(fixed_piece(from + start, to + start, here, grid, 0, key, 0))
  }
}

INLINE void bf16_piece(const float *from, uint16_t *to, int64_t start, int count, struct key key) {
  union halves random;
  fill(&random, key, start, count);
  fetch(from, 4 * PIECE);
#pragma GCC ivdep
  for (int i = 0; i < count; i++) to[i] = to_bf16(from[i], random.of[i]);
}

void convoy_round_bf16(const float *from, uint16_t *to, int64_t count, struct key key, int threads) {
  IN_PIECES(bf16_piece(from + start, to + start, start, here, key))
}
