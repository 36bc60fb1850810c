/* Random bits as a function of a key and an element's place, and stochastic rounding to bf16 by them.

   There is no state, so any thread may make any of them. The function is a bijection of 32 bits by two multiplications
   and three shifted exclusive ors (Wellons 2018, "Prospecting for hash functions": lowbias32), with one half of the key
   before the first multiplication and the other behind it. */

#ifndef CONVOY_ROUNDING_H
#define CONVOY_ROUNDING_H

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define BLOCK 16384 /* elements that a thread works on at a time */

struct key {
  uint32_t first, second;
};

INLINE uint32_t random_bits(struct key key, uint32_t place) {
  uint32_t x = place ^ key.first;
  x ^= x >> 16;
  x *= 0x7feb352dU;
  x ^= key.second;
  x ^= x >> 15;
  x *= 0x846ca68bU;
  return x ^ (x >> 16);
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
INLINE uint16_t to_bf16(float x, uint32_t random) {
  const uint32_t bits = as_bits(x), size = bits & 0x7fffffffU;
  uint32_t rounded = bits + (random >> 16);
  rounded = (rounded & 0x7fffffffU) >= 0x7f800000U ? (bits & 0x80000000U) | 0x7f7f0000U : rounded;
  rounded = size == 0x7f800000U ? bits : rounded;
  rounded = size > 0x7f800000U ? bits | 0x400000U : rounded;
  return (uint16_t)(rounded >> 16);
}

#endif
