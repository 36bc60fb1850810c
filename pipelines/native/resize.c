/* Scale uint8 pixels with a bilinear filter that is widened by the ratio where an image gets smaller ("antialias").

   The arithmetic is that of torch 2.x's uint8 kernel, value for value: columns first, then rows; weights of 16 bits, as
   many behind the point as the largest of an axis allows; rounded to uint8 between the two. (Pillow's is the same with
   weights of 22 bits.) Of the source at its final width no more rows are kept than one row of the result needs.

   Thread-safe: no state. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define FOR_AVX2 __attribute__((target("avx2")))
#endif

enum { DONE = 0, NO_MEMORY = 1 };

/* Result i of an axis: sum over t < taps of weights[i * taps + t] * source[first[i] + t], shifted right by `shift`.
   `taps` is a multiple of 4, the same for all results; those that need fewer have weights of 0. */
struct axis {
  int taps, shift;
  int *first;
  int16_t *weights;
};

struct source {
  const uint8_t *pixels;
  size_t stride;
  int height, width, channels;
};

static double triangle(double x) {
  if (x < 0) x = -x;
  return x < 1 ? 1 - x : 0;
}

/* The weights of one result in double precision; returns how many there are. */
static int filter(int size, double ratio, int i, int *first, double *weights) {
  const double support = ratio >= 1 ? ratio : 1, centre = ratio * (i + 0.5);
  const int from = (int)(centre - support + 0.5) > 0 ? (int)(centre - support + 0.5) : 0;
  const int to = (int)(centre + support + 0.5) < size ? (int)(centre + support + 0.5) : size;
  const double inverse = 1 / support;
  double total = 0;
  for (int t = 0; t < to - from; t++) total += weights[t] = triangle((t + from - centre + 0.5) * inverse);
  for (int t = 0; t < to - from; t++) weights[t] /= total;
  *first = from;
  return to - from;
}

static void free_axis(struct axis *axis) {
  free(axis->first);
  free(axis->weights);
}

static int make_axis(struct axis *axis, int from_size, int to_size) {
  const double ratio = (double)from_size / to_size;
  const size_t most = (size_t)(2 * (ratio >= 1 ? ratio : 1)) + 2, results = (size_t)to_size;
  double *exact = calloc(results * most, sizeof *exact), largest = 0;
  axis->first = malloc(results * sizeof *axis->first);
  if (!exact || !axis->first) {
    free(exact);
    return NO_MEMORY;
  }
  for (size_t i = 0; i < results; i++) {
    const int count = filter(from_size, ratio, (int)i, &axis->first[i], exact + i * most);
    axis->taps = count > axis->taps ? count : axis->taps;
  }
  axis->taps = (axis->taps + 3) / 4 * 4;
  for (size_t i = 0; i < results * most; i++) largest = exact[i] > largest ? exact[i] : largest;
  while (axis->shift < 22 && (int)(0.5 + largest * (1 << (axis->shift + 1))) < 1 << 15) axis->shift++;
  const size_t taps = (size_t)axis->taps;
  axis->weights = calloc(results * taps, sizeof *axis->weights);
  for (size_t i = 0; axis->weights && i < results; i++)
    for (size_t t = 0; t < most && t < taps; t++)
      axis->weights[i * taps + t] = (int16_t)(0.5 + exact[i * most + t] * (1 << axis->shift));
  free(exact);
  return axis->weights ? DONE : NO_MEMORY;
}

static uint8_t clipped(int value) {
  return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

/* One row at its final width. Behind the pixels of `row` lie zeros, for taps beyond the end. */
static void columns(const struct axis *axis, const uint8_t *row, int channels, uint8_t *out, int size) {
  for (int x = 0; x < size; x++) {
    const int16_t *weights = axis->weights + (size_t)x * (size_t)axis->taps;
    const uint8_t *source = row + (size_t)axis->first[x] * (size_t)channels;
    for (int c = 0; c < channels; c++) {
      int sum = 1 << (axis->shift - 1);
      for (int t = 0; t < axis->taps; t++) sum += weights[t] * source[t * channels + c];
      out[x * channels + c] = clipped(sum >> axis->shift);
    }
  }
}

/* Results from..length of one row, from `taps` rows. */
static void rows(const struct axis *axis, int y, const uint8_t *const *kept, uint8_t *out, int from, int length) {
  const int16_t *weights = axis->weights + (size_t)y * (size_t)axis->taps;
  for (int i = from; i < length; i++) {
    int sum = 1 << (axis->shift - 1);
    for (int t = 0; t < axis->taps; t++) sum += weights[t] * kept[t][i];
    out[i] = clipped(sum >> axis->shift);
  }
}

#if defined(__x86_64__)

/* Four taps of an RGB pixel: r0 r1 g0 g1 b0 b1 in the lower half, taps 2 and 3 in the upper, as 16 bits, times weights. */
FOR_AVX2 static inline __attribute__((always_inline)) __m256i pixel_avx2(const uint8_t *source, const int16_t *weights, int taps) {
  const __m256i places = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                          6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
  const __m256i pairs = _mm256_setr_epi32(0x03020100, 0x03020100, 0x03020100, 0x03020100,  //
                                          0x07060504, 0x07060504, 0x07060504, 0x07060504);
  __m256i sum = _mm256_setzero_si256();
  for (int t = 0; t < taps; t += 4, source += 12, weights += 4) {
    const __m256i four = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)source));
    long long all;
    memcpy(&all, weights, sizeof all);
    const __m256i both = _mm256_shuffle_epi8(_mm256_set1_epi64x(all), pairs);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(four, places), both));
  }
  return sum;
}

/* Writes 16 bytes at a time, 4 pixels and 4 bytes too many. */
FOR_AVX2 static inline __attribute__((always_inline)) void columns_of_taps(const struct axis *axis, int taps, const uint8_t *row, uint8_t *out,
                                            int size) {
  const __m256i half = _mm256_set1_epi32(1 << (axis->shift - 1));
  const __m128i shift = _mm_cvtsi32_si128(axis->shift);
  const __m128i close = _mm_setr_epi8(0, 1, 2, 8, 9, 10, 4, 5, 6, 12, 13, 14, -1, -1, -1, -1);
  int x = 0;
  for (; x + 4 <= size; x += 4) {
    __m256i pixels[4];
    for (int i = 0; i < 4; i++)
      pixels[i] = pixel_avx2(row + 3 * (size_t)axis->first[x + i],
                             axis->weights + (size_t)(x + i) * (size_t)taps, taps);
    __m256i low = _mm256_add_epi32(_mm256_permute2x128_si256(pixels[0], pixels[1], 0x20),
                                   _mm256_permute2x128_si256(pixels[0], pixels[1], 0x31));
    __m256i high = _mm256_add_epi32(_mm256_permute2x128_si256(pixels[2], pixels[3], 0x20),
                                    _mm256_permute2x128_si256(pixels[2], pixels[3], 0x31));
    low = _mm256_sra_epi32(_mm256_add_epi32(low, half), shift);
    high = _mm256_sra_epi32(_mm256_add_epi32(high, half), shift);
    const __m256i words = _mm256_packs_epi32(low, high); /* pixels 0, 2, 1, 3 */
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    const __m128i ordered = _mm_shuffle_epi8(bytes, close);
    _mm_storeu_si128((__m128i *)(out + 3 * x), ordered);
  }
  const struct axis rest = {taps, axis->shift, axis->first + x, axis->weights + (size_t)x * (size_t)taps};
  columns(&rest, row, 3, out + 3 * x, size - x);
}

/* With the number of taps known to the compiler half the time. */
FOR_AVX2 static void columns_avx2(const struct axis *axis, const uint8_t *row, uint8_t *out, int size) {
  if (axis->taps == 4)
    columns_of_taps(axis, 4, row, out, size);
  else if (axis->taps == 8)
    columns_of_taps(axis, 8, row, out, size);
  else
    columns_of_taps(axis, axis->taps, row, out, size);
}

FOR_AVX2 static void rows_avx2(const struct axis *axis, int y, const uint8_t *const *kept, uint8_t *out, int length) {
  const int16_t *weights = axis->weights + (size_t)y * (size_t)axis->taps;
  const __m256i half = _mm256_set1_epi32(1 << (axis->shift - 1));
  const __m128i shift = _mm_cvtsi32_si128(axis->shift);
  int i = 0;
  for (; i + 16 <= length; i += 16) {
    __m256i low = half, high = half;
    for (int t = 0; t < axis->taps; t += 2) {
      int pair;
      memcpy(&pair, weights + t, sizeof pair);
      const __m256i both = _mm256_set1_epi32(pair);
      const __m256i one = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(kept[t] + i)));
      const __m256i two = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(kept[t + 1] + i)));
      low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(one, two), both));
      high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(one, two), both));
    }
    const __m256i words = _mm256_packs_epi32(_mm256_sra_epi32(low, shift), _mm256_sra_epi32(high, shift));
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(words, words), 0x08);
    _mm_storeu_si128((__m128i *)(out + i), _mm256_castsi256_si128(bytes));
  }
  rows(axis, y, kept, out, i, length);
}

#else

#define columns_avx2(axis, row, out, size) columns(axis, row, 3, out, size)
#define rows_avx2(axis, y, kept, out, length) rows(axis, y, kept, out, 0, length)

#endif

static int scale(const struct source *source, uint8_t *out, int size, const struct axis *across, const struct axis *down,
                 int avx2) {
  const int channels = source->channels, ring = down->taps, length = size * channels;
  const size_t source_bytes = (size_t)source->width * (size_t)channels, kept_bytes = (size_t)length + 16;
  uint8_t *row = calloc(source_bytes + (size_t)(across->taps * channels) + 16, 1);
  uint8_t *ring_rows = calloc((size_t)ring, kept_bytes);
  const uint8_t **kept = malloc((size_t)ring * sizeof *kept);
  const int result = row && ring_rows && kept ? DONE : NO_MEMORY;
  for (int y = 0, made = 0; result == DONE && y < size; y++) {
    const int end = down->first[y] + ring < source->height ? down->first[y] + ring : source->height;
    for (; made < end; made++) {
      uint8_t *narrow = ring_rows + (size_t)(made % ring) * kept_bytes;
      memcpy(row, source->pixels + (size_t)made * source->stride, source_bytes);
      if (avx2 && channels == 3)
        columns_avx2(across, row, narrow, size);
      else
        columns(across, row, channels, narrow, size);
    }
    for (int t = 0; t < ring; t++) kept[t] = ring_rows + (size_t)((down->first[y] + t) % ring) * kept_bytes;
    if (avx2)
      rows_avx2(down, y, kept, out + (size_t)y * (size_t)length, length);
    else
      rows(down, y, kept, out + (size_t)y * (size_t)length, 0, length);
  }
  free(row);
  free(ring_rows);
  free(kept);
  return result;
}

/* (height, width, channels) with `stride` bytes from row to row -> (size, size, channels) without gaps.
   `vectors`: whether vector code may be used; the results are the same. Returns DONE or NO_MEMORY. */
int convoy_resize(const uint8_t *pixels, size_t stride, int height, int width, int channels, uint8_t *out, int size,
                  int vectors) {
  const struct source source = {pixels, stride, height, width, channels};
  struct axis across = {0}, down = {0};
#if defined(__x86_64__)
  vectors = vectors && __builtin_cpu_supports("avx2");
#endif
  int result = make_axis(&across, width, size);
  if (result == DONE) result = make_axis(&down, height, size);
  if (result == DONE) result = scale(&source, out, size, &across, &down, vectors);
  free_axis(&across);
  free_axis(&down);
  return result;
}
