/* What the kernels of this folder are written with: the compiler's vectors, WIDTH floats each (AVX-512, AVX2, or pairs
   of what else there is), 8 x 8 transposition, and memory to work in. */

#ifndef CONVOY_VECTORS_H
#define CONVOY_VECTORS_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define WIDTH 16
#else
#define WIDTH 8
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef float vec8 __attribute__((vector_size(32), aligned(4), may_alias));

enum { DONE = 0, NO_MEMORY = 1 };

INLINE vec load(const float *from) { return *(const vec *)from; }
INLINE void store(float *to, vec value) { *(vec *)to = value; }
INLINE vec splat(float value) { return value - (vec){0}; }

/* Past the caches, to a place that begins a vector. */
#if defined(__AVX512F__)
#define STREAM(to, value) _mm512_stream_ps(to, (__m512)(value))
#define FENCE() _mm_sfence()
#elif defined(__AVX__)
#define STREAM(to, value) _mm256_stream_ps(to, (__m256)(value))
#define FENCE() _mm_sfence()
#else
#define STREAM(to, value) store(to, value)
#define FENCE() (void)0
#endif

/* The first `many` floats, at most a vector of them; zeros behind. */
#if defined(__AVX512F__)
#define FIRST(many) ((__mmask16)((1u << (many)) - 1))
INLINE vec load_part(const float *from, int many) { return (vec)_mm512_maskz_loadu_ps(FIRST(many), from); }
INLINE void store_part(float *to, vec value, int many) { _mm512_mask_storeu_ps(to, FIRST(many), (__m512)value); }
#else
INLINE vec load_part(const float *from, int many) {
  vec value = {0};
  memcpy(&value, from, (size_t)many * sizeof(float));
  return value;
}
INLINE void store_part(float *to, vec value, int many) { memcpy(to, &value, (size_t)many * sizeof(float)); }
#endif

/* Floats from one plane to the next: not a multiple of 4 KiB, at which many would share one set of the cache. */
INLINE size_t apart(size_t floats) { return (floats + 15) / 16 * 16 + 16; }

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int mask8 __attribute__((vector_size(32)));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (mask8){__VA_ARGS__})
#endif

/* to[j * to_step + i] = from[i * from_step + j] for i, j < 8 */
INLINE void transpose_8x8(const float *from, size_t from_step, float *to, size_t to_step) {
  vec8 in[8], pairs[8], fours[8];
  for (size_t i = 0; i < 8; i++) in[i] = *(const vec8 *)(from + i * from_step);
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = SHUFFLE(in[i], in[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pairs[i + 1] = SHUFFLE(in[i], in[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; j++) {
      fours[i + 2 * j] = SHUFFLE(pairs[i + j], pairs[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      fours[i + 2 * j + 1] = SHUFFLE(pairs[i + j], pairs[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (size_t j = 0; j < 4; j++) {
    *(vec8 *)(to + j * to_step) = SHUFFLE(fours[j], fours[j + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    *(vec8 *)(to + (j + 4) * to_step) = SHUFFLE(fours[j], fours[j + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

/* to[j * to_step + i] = from[i * from_step + j] for i < rows, j < columns */
static void transpose(const float *from, size_t from_step, size_t rows, size_t columns, float *to, size_t to_step) {
  for (size_t i = 0; i < rows; i += 8) {
    size_t j = 0;
    for (; i + 8 <= rows && j + 8 <= columns; j += 8)
      transpose_8x8(from + i * from_step + j, from_step, to + j * to_step + i, to_step);
    for (size_t end = i + 8 < rows ? i + 8 : rows; j < columns; j++)
      for (size_t row = i; row < end; row++) to[j * to_step + row] = from[row * from_step + j];
  }
}

/* Ask for huge pages where a result is about to be written for the first time: a page of 4 KiB costs as much time as
   the kernel takes for what stands on it. Only from 32 MiB up, which the C library takes from the system each time;
   smaller results lie in its heap, whose pages are there already. */
static void prefer_huge(float *to, size_t floats) {
#if defined(MADV_HUGEPAGE)
  const uintptr_t huge = (uintptr_t)2 << 20, begin = ((uintptr_t)to + huge - 1) / huge * huge;
  const uintptr_t end = ((uintptr_t)to + floats * sizeof(float)) / huge * huge;
  if (floats * sizeof(float) >= (size_t)32 << 20 && begin < end)
    madvise((void *)begin, end - begin, MADV_HUGEPAGE);
#else
  (void)to, (void)floats;
#endif
}

/* Memory that was worked in, of all threads together, since it was last asked how much: for what an algorithm needs,
   not for what its threads have kept from other calls. */
static size_t used_bytes;
static int times_asked;

size_t convoy_scratch_bytes(void) {
  __atomic_add_fetch(&times_asked, 1, __ATOMIC_RELAXED);
  return __atomic_exchange_n(&used_bytes, 0, __ATOMIC_RELAXED);
}

static void note_used(int purpose, size_t bytes) {
  static _Thread_local size_t noted[3];
  static _Thread_local int when;
  const int now = __atomic_load_n(&times_asked, __ATOMIC_RELAXED);
  if (when != now) memset(noted, 0, sizeof noted);
  when = now;
  if (bytes > noted[purpose]) {
    __atomic_add_fetch(&used_bytes, bytes - noted[purpose], __ATOMIC_RELAXED);
    noted[purpose] = bytes;
  }
}

/* Memory that the calling thread keeps, on huge pages where there are any; NULL if there is none. */
static float *scratch(int purpose, size_t floats) {
  static _Thread_local float *kept[3];
  static _Thread_local size_t size[3];
  note_used(purpose, floats * sizeof(float));
  if (floats > size[purpose]) {
    const size_t huge = (size_t)2 << 20, bytes = (floats * sizeof(float) / huge + 1) * huge;
    free(kept[purpose]);
    kept[purpose] = aligned_alloc(huge, bytes);
    size[purpose] = kept[purpose] ? floats : 0;
#if defined(MADV_HUGEPAGE)
    if (kept[purpose]) madvise(kept[purpose], bytes, MADV_HUGEPAGE);
#endif
  }
  return kept[purpose];
}

#endif
