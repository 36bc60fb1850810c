/* Convolution of signs: 32 channels a word, one bit each, multiplied by exclusive or and added up by counting bits.

   A product of two signs is 1 where their bits are alike, so a sum of K products is K - 2 * popcount(x ^ w) (Courbariaux
   et al. 2016, arXiv:1602.02830, section 1.3; Rastegari et al. 2016, arXiv:1603.05279, section 3.2). Sums are whole
   numbers, exact as long as fp32 holds them, that is up to 2^24.

   Packed images are [image][row][column][word], with the padding's pixels around them, whose bits are zero: that is -1,
   where a convolution has 0; what they add is taken back from results at borders, by the sums of the filters' signs.
   Packed filters are [16 filters][tap][word][16], so that a vector of results is one filter a lane; the sums of their
   signs are [16 filters][tap][16]. Channels that fill a last word are zero bits in both and add nothing.

   A thread takes rows of results. In a row, the words of 32 filters (18 KB for 3 x 3 x 512) stay in the first cache while
   all pixels pass; a word of PIXELS pixels meets two vectors of filters, in registers. Counting is VPOPCNTDQ where the CPU
   has it, asked at run time, else arithmetic on vectors. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "binary.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define LANES 16 /* filters side by side in memory */
#define WORD 32  /* bits */
#define SLACK 16 /* pixels behind packed images that may be read */

typedef uint32_t words16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t words8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef float floats16 __attribute__((vector_size(64), aligned(4), may_alias));

INLINE int words_of(const struct sizes *z) { return (z->c + WORD - 1) / WORD; }

/* Words of packed images. */
long convoy_binary_words(const struct sizes *z) {
  return ((long)z->n * rows_of(z) * columns_of(z) + SLACK * z->stride_w) * words_of(z);
}

/* ---- Packing ---- */

/* One pixel's channels side by side. */
INLINE void pack_pixel(const float *x, int channels, uint32_t *to) {
  for (int first = 0; first < channels; first += WORD) {
    const int many = smaller(WORD, channels - first);
    uint32_t bits = 0;
    for (int i = 0; i < many; i++) bits |= (uint32_t)(x[first + i] >= 0.0f) << i;
    to[first / WORD] = bits;
  }
}

#if defined(__AVX512F__)
static void pack_row_by_channels(const float *x, long step, int columns, int channels, uint32_t *to, int words) {
  const __m512 zero = _mm512_setzero_ps();
  for (int column = 0; column < columns; column++, x += step, to += words) {
    int first = 0;
    for (; first + WORD <= channels; first += WORD) {
      const uint32_t low = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + first), zero, _CMP_GE_OQ);
      const uint32_t high = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + first + 16), zero, _CMP_GE_OQ);
      to[first / WORD] = low | high << 16;
    }
    if (first < channels) pack_pixel(x + first, channels - first, to + first / WORD);
  }
}
#else
static void pack_row_by_channels(const float *x, long step, int columns, int channels, uint32_t *to, int words) {
  for (int column = 0; column < columns; column++) pack_pixel(x + column * step, channels, to + column * words);
}
#endif

/* Channels `step` apart, columns side by side: 16 columns at a time. */
static void pack_row_by_columns(const float *x, long step, int columns, int channels, uint32_t *to, int words) {
  for (int word = 0; word < words; word++) {
    const int first = word * WORD, many = smaller(WORD, channels - first);
    int column = 0;
    for (; column + 16 <= columns; column += 16) {
      words16 bits = {0};
      for (int i = 0; i < many; i++)
        bits |= (words16)(*(const floats16 *)(x + (first + i) * step + column) >= 0.0f) & (1U << i);
      for (int i = 0; i < 16; i++) to[(column + i) * words + word] = bits[i];
    }
    for (; column < columns; column++) {
      uint32_t bits = 0;
      for (int i = 0; i < many; i++) bits |= (uint32_t)(x[(first + i) * step + column] >= 0.0f) << i;
      to[column * words + word] = bits;
    }
  }
}

/* `at`: one of channels and columns is 1 apart. */
void convoy_binary_pack(const float *x, struct layout at, const struct sizes *z, uint32_t *packed, int threads) {
  const int words = words_of(z), rows = rows_of(z), columns = columns_of(z);
  const int there = larger(0, smaller(z->w, columns - z->left)); /* columns that results see */
  const int before = smaller(z->left, columns);
#pragma omp parallel for schedule(static) num_threads(threads) if (z->n * rows > 1)
  for (long number = 0; number < (long)z->n * rows; number++) {
    const int image = (int)(number / rows), row = (int)(number % rows) - z->top;
    uint32_t *to = packed + number * columns * words;
    if (row < 0 || row >= z->h || there == 0) {
      memset(to, 0, sizeof *to * columns * words);
      continue;
    }
    const float *from = x + image * at.n + row * at.h;
    memset(to, 0, sizeof *to * before * words);
    memset(to + (before + there) * words, 0, sizeof *to * (columns - before - there) * words);
    (at.c == 1 ? pack_row_by_channels : pack_row_by_columns)(
        from, at.c == 1 ? at.w : at.c, there, z->c, to + before * words, words);
  }
  memset(packed + (long)z->n * rows * columns * words, 0, sizeof *packed * SLACK * z->stride_w * words);
}

static void clear_filters(const struct sizes *z, uint32_t *packed, int32_t *sums) {
  const long many = (long)((z->k + LANES - 1) / LANES) * z->r * z->s * LANES;
  memset(packed, 0, sizeof *packed * many * words_of(z));
  memset(sums, 0, sizeof *sums * many);
}

/* Returns: how many signs are positive. */
INLINE int put_signs(const struct sizes *z, uint32_t *packed, int filter, int tap, int word, uint32_t signs) {
  const long at = (long)(filter / LANES) * z->r * z->s + tap;
  packed[(at * words_of(z) + word) * LANES + filter % LANES] = signs;
  return __builtin_popcount(signs);
}

/* Signs of numbers side by side, 32 a word; what fills the last word is zero. */
static void pack_line(const float *x, long count, uint32_t *to) {
  long first = 0;
#if defined(__AVX512F__)
  const __m512 zero = _mm512_setzero_ps();
  for (; first + WORD <= count; first += WORD) {
    const uint32_t low = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + first), zero, _CMP_GE_OQ);
    const uint32_t high = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + first + 16), zero, _CMP_GE_OQ);
    to[first / WORD] = low | high << 16;
  }
#endif
  for (; first < count; first += WORD) {
    uint32_t bits = 0;
    for (int i = 0; i < smaller(WORD, count - first); i++) bits |= (uint32_t)(x[first + i] >= 0.0f) << i;
    to[first / WORD] = bits;
  }
}

/* The bits of `from` where `mask` has one, side by side. */
#if defined(__BMI2__)
INLINE uint64_t extracted(uint64_t from, uint64_t mask) { return _pext_u64(from, mask); }
#else
INLINE uint64_t extracted(uint64_t from, uint64_t mask) {
  uint64_t found = 0;
  for (int place = 0; mask; place++, mask &= mask - 1) found |= (from >> __builtin_ctzll(mask) & 1) << place;
  return found;
}
#endif

/* weights: (k, c, r, s), in order. Returns: 1 without memory.

   The signs of a filter are packed as they lie, taps next to each other; then each tap's are drawn out, 32 channels from
   a stretch of 64-bit chunks with the same masks for all. */
int convoy_binary_pack_filters(const float *weights, const struct sizes *z, uint32_t *packed, int32_t *sums) {
  const int words = words_of(z), taps = z->r * z->s, chunks = (WORD * taps + 63) / 64;
  const long apart = (long)z->c * taps;
  uint32_t *line = calloc((size_t)words * taps + 2, sizeof *line);
  uint64_t *masks = calloc((size_t)taps * chunks, sizeof *masks);
  if (line && masks) {
    for (int tap = 0; tap < taps; tap++)
      for (int channel = 0; channel < WORD; channel++) {
        const int place = channel * taps + tap;
        masks[tap * chunks + place / 64] |= (uint64_t)1 << place % 64;
      }
    clear_filters(z, packed, sums);
    for (int filter = 0; filter < z->k; filter++) {
      pack_line(weights + filter * apart, apart, line);
      for (int tap = 0; tap < taps; tap++) {
        int positive = 0;
        for (int word = 0; word < words; word++) {
          uint64_t signs = 0;
          for (int chunk = 0, many = 0; chunk < chunks; chunk++) {
            const uint64_t mask = masks[tap * chunks + chunk];
            uint64_t from;
            memcpy(&from, line + (long)word * taps + 2 * chunk, sizeof from);
            signs |= extracted(from, mask) << many;
            many += __builtin_popcountll(mask);
          }
          positive += put_signs(z, packed, filter, tap, word, (uint32_t)signs);
        }
        sums[((long)(filter / LANES) * taps + tap) * LANES + filter % LANES] = 2 * positive - z->c;
      }
    }
  }
  const int failed = !line || !masks;
  free(line);
  free(masks);
  return failed;
}

/* bits: [filter][tap][word]. */
void convoy_binary_arrange_filters(const uint32_t *bits, const struct sizes *z, uint32_t *packed, int32_t *sums) {
  const int words = words_of(z), taps = z->r * z->s;
  clear_filters(z, packed, sums);
  for (int filter = 0; filter < z->k; filter++)
    for (int tap = 0; tap < taps; tap++) {
      int positive = 0;
      for (int word = 0; word < words; word++)
        positive += put_signs(z, packed, filter, tap, word, bits[((long)filter * taps + tap) * words + word]);
      sums[((long)(filter / LANES) * taps + tap) * LANES + filter % LANES] = 2 * positive - z->c;
    }
}

/* ---- Rows of results ---- */

/* What a row of results is made from and where it goes. */
struct row {
  const struct sizes *z;
  const uint32_t *images; /* packed, the first row that the results see */
  const uint32_t *filters;
  const int32_t *sums;
  float *to;
  struct layout at; /* of results */
  int y;
};

/* Take back what the padding's pixels have added to a vector of results. */
INLINE void take_back(const struct row *row, int x, const int32_t *sums, int32_t *values) {
  const struct sizes *z = row->z;
  for (int r = 0; r < z->r; r++) {
    const int y = row->y * z->stride_h + r * z->dilation_h - z->top, outside = y < 0 || y >= z->h;
    for (int s = 0; s < z->s; s++) {
      const int column = x * z->stride_w + s * z->dilation_w - z->left;
      if (!outside && column >= 0 && column < z->w) continue;
      const int32_t *sum = sums + (r * z->s + s) * LANES;
      for (int lane = 0; lane < LANES; lane++) values[lane] += sum[lane];
    }
  }
}

/* Write the results of one pixel for 16 filters, of which `counts` are the bits that differ. */
INLINE void finish(const struct row *row, int x, int first, const uint32_t *counts, int border) {
  const struct sizes *z = row->z;
  const int many = smaller(LANES, z->k - first), total = z->c * z->r * z->s;
  if (!border && row->at.c == 1 && many == LANES) {
    typedef int32_t ints16 __attribute__((vector_size(64), aligned(4), may_alias));
    const ints16 values = total - 2 * *(const ints16 *)counts;
    *(floats16 *)(row->to + x * row->at.w + first) = __builtin_convertvector(values, floats16);
    return;
  }
  int32_t values[LANES];
  float results[LANES];
  for (int lane = 0; lane < LANES; lane++) values[lane] = total - 2 * (int32_t)counts[lane];
  if (border) take_back(row, x, row->sums + (long)(first / LANES) * z->r * z->s * LANES, values);
  for (int lane = 0; lane < LANES; lane++) results[lane] = (float)values[lane];
  float *to = row->to + x * row->at.w + first * row->at.c;
  if (row->at.c == 1 && many == LANES)
    memcpy(to, results, sizeof results);
  else
    for (int lane = 0; lane < many; lane++) to[lane * row->at.c] = results[lane];
}

#define ROW(NAME, VECTOR, WIDTH, PIXELS, COUNT)                                                                       \
  static void NAME(const struct row *row) {                                                                           \
    const struct sizes *z = row->z;                                                                                   \
    const int words = words_of(z), taps = z->r * z->s, columns = columns_of(z);                                       \
    const int blocks = (z->k + LANES - 1) / LANES, vectors = 2 * WIDTH / LANES, step = z->stride_w * words;           \
    const int top = row->y * z->stride_h - z->top;                                                                    \
    const int cut = top < 0 || top + (z->r - 1) * z->dilation_h >= z->h;                                              \
    for (int block = 0; block < blocks; block += vectors) {                                                           \
      const long apart = (long)taps * words * LANES; /* from a block's filters to the next's */                       \
      const uint32_t *first = row->filters + block * apart;                                                           \
      const int alone = vectors == 2 && block + 1 == blocks; /* the last block, twice */                              \
      const uint32_t *second = vectors == 1 ? first + WIDTH : alone ? first : first + apart;                          \
      for (int x = 0; x < z->out_w; x += PIXELS) {                                                                    \
        VECTOR counts[PIXELS][2] = {{{0}}};                                                                           \
        for (int r = 0; r < z->r; r++)                                                                                \
          for (int s = 0; s < z->s; s++) {                                                                            \
            const uint32_t *from = row->images + ((long)r * z->dilation_h * columns + s * z->dilation_w) * words      \
                                   + (long)x * step;                                                                  \
            const long tap = (long)(r * z->s + s) * words * LANES;                                                    \
            for (int word = 0; word < words; word++) {                                                                \
              const VECTOR a = *(const VECTOR *)(first + tap + word * LANES);                                         \
              const VECTOR b = *(const VECTOR *)(second + tap + word * LANES);                                        \
              _Pragma("GCC unroll 8") for (int p = 0; p < PIXELS; p++) {                                              \
                const VECTOR pixel = (VECTOR){0} + from[p * step + word];                                             \
                counts[p][0] += COUNT(pixel ^ a);                                                                     \
                counts[p][1] += COUNT(pixel ^ b);                                                                     \
              }                                                                                                       \
            }                                                                                                         \
          }                                                                                                           \
        for (int p = 0; p < PIXELS && x + p < z->out_w; p++) {                                                        \
          const int left = (x + p) * z->stride_w - z->left;                                                           \
          const int border = cut || left < 0 || left + (z->s - 1) * z->dilation_w >= z->w;                            \
          uint32_t both[2 * WIDTH];                                                                                   \
          memcpy(both, counts[p], sizeof both);                                                                       \
          finish(row, x + p, block * LANES, both, border);                                                            \
          if (vectors == 2 && !alone) finish(row, x + p, (block + 1) * LANES, both + WIDTH, border);                  \
        }                                                                                                             \
      }                                                                                                               \
    }                                                                                                                 \
  }

INLINE words8 count8(words8 v) {
  v -= v >> 1 & 0x55555555U;
  v = (v & 0x33333333U) + (v >> 2 & 0x33333333U);
  v = (v + (v >> 4)) & 0x0f0f0f0fU;
  v += v >> 8;
  return (v + (v >> 16)) & 0x3fU;
}

ROW(row_by_arithmetic, words8, 8, 3, count8)

#if defined(__AVX512F__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vpopcntdq")
#define COUNT16(v) ((words16)_mm512_popcnt_epi32((__m512i)(v)))
ROW(row_by_vpopcnt, words16, 16, 6, COUNT16)
#pragma GCC pop_options
#endif

/* Whether bits are counted by an instruction for vectors. */
int convoy_binary_counts_vectors(void) {
#if defined(__AVX512F__)
  return __builtin_cpu_supports("avx512vpopcntdq") != 0;
#else
  return 0;
#endif
}

/* `by_instruction`: 0 counts by arithmetic, for tests. */
void convoy_binary_convolve(
    const uint32_t *images, const struct sizes *z, const uint32_t *filters, const int32_t *sums, float *to,
    struct layout at, int by_instruction, int threads) {
  const long image = (long)rows_of(z) * columns_of(z) * words_of(z);
  void (*by)(const struct row *) = row_by_arithmetic;
#if defined(__AVX512F__)
  if (by_instruction && convoy_binary_counts_vectors()) by = row_by_vpopcnt;
#endif
  (void)by_instruction;
#pragma omp parallel for schedule(static) num_threads(threads) if (z->n * z->out_h > 1)
  for (long number = 0; number < (long)z->n * z->out_h; number++) {
    const int n = (int)(number / z->out_h), y = (int)(number % z->out_h);
    const long line = (long)columns_of(z) * words_of(z) * y * z->stride_h;
    const struct row row = {
        .z = z, .images = images + n * image + line, .filters = filters, .sums = sums,
        .to = to + n * at.n + y * at.h, .at = at, .y = y};
    by(&row);
  }
}
