/* Random bits as a function of a key and an element's place, and stochastic rounding to bf16 by them.

   There is no state, so any thread may make any of them. The function is a bijection of 32 bits by two multiplications
   and shifted exclusive ors (Wellons 2018, "Prospecting for hash functions": lowbias32), with one half of the key before
   the first multiplication and the other behind it. */

#ifndef CONVOY_ROUNDING_H
#define CONVOY_ROUNDING_H

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define BLOCK 65536 /* elements that a thread works on at a time */
#define PIECE 128   /* of them that a loop works on */
#define STREAMS 4   /* places of a block that pieces are taken from by turns */
#define AHEAD 1024  /* bytes that a place is fetched ahead of its turn */
#define LINE 64

struct key {
  uint32_t first, second;
};

INLINE uint32_t random_bits(struct key key, uint32_t place) {
  uint32_t x = place ^ key.first;
  x ^= x >> 16;
  x *= 0x7feb352dU;
  x ^= x >> 15 ^ key.second;
  x *= 0x846ca68bU;
  return x ^ x >> 16;
}

/* 16 bits for each element of a piece. */
union halves {
  uint32_t pairs[PIECE / 2];
  uint16_t of[PIECE];
} __attribute__((aligned(LINE)));

/* Of places from `start` on, which is even. `count`: at most PIECE. */
INLINE void fill(union halves *random, struct key key, int64_t start, int count) {
  const uint32_t first = (uint32_t)(start / 2);
  const int pairs = (count + 1) / 2;
  for (int i = 0; i < pairs; i++) random->pairs[i] = random_bits(key, first + (uint32_t)i);
}

INLINE int up_to(int64_t start, int64_t count, int most) { return count - start < most ? (int)(count - start) : most; }

INLINE void fetch(const void *piece, int bytes) {
  for (int i = 0; i < bytes; i += LINE) __builtin_prefetch((const char *)piece + AHEAD + i, 1, 2);
}

/* CALL with the `start` of each piece of `count` elements, and how many are `here`. One thread has memory of several pages
   under way: the hardware's prefetch follows each of them, and ends where it ends. */
#define IN_PIECES(CALL)                                                                        \
  _Pragma("omp parallel for schedule(static) num_threads(threads) if (count > BLOCK)")         \
  for (int64_t block = 0; block < count; block += BLOCK) {                                     \
    const int pieces = (up_to(block, count, BLOCK) + PIECE - 1) / PIECE;                       \
    const int each = (pieces + STREAMS - 1) / STREAMS;                                         \
    for (int turn = 0; turn < each * STREAMS; turn++) {                                        \
      const int piece = turn % STREAMS * each + turn / STREAMS;                                \
      if (piece >= pieces) continue;                                                           \
      const int64_t start = block + piece * PIECE;                                             \
      const int here = up_to(start, count, PIECE);                                             \
      CALL;                                                                                    \
    }                                                                                          \
  }

INLINE uint32_t as_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

INLINE float as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

INLINE float from_bf16(uint16_t half) { return as_float((uint32_t)half << 16); }

/* Up with the probability of what is cut off; no finite number becomes infinite, and NaN stays NaN. */
INLINE uint16_t to_bf16(float x, uint16_t random) {
  const uint32_t bits = as_bits(x), size = bits & 0x7fffffffU, up = size + random;
  const uint32_t finite = up < 0x7f7fffffU ? up : 0x7f7fffffU;
  const uint32_t other = size > 0x7f800000U ? size | 0x400000U : size;
  return (uint16_t)(((size < 0x7f800000U ? finite : other) | (bits & 0x80000000U)) >> 16);
}

#endif
