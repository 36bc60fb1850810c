/* Convolution of signs by the matrix unit of a CPU (Intel AMX): signs are bytes of 1 and -1, padding is 0.

   A tile of 16 pixels by 64 channels is multiplied by one of 64 channels by 16 filters in 16 cycles: 1,024 products a
   cycle, three times as many as by counting bits, and so as exact: sums are whole numbers, which fp32 holds up to 2^24.

   Packed images are [image][row][column][channel], with the padding's pixels around them, channels filled up to 64 by
   zeros. Where steps are 1, a line is a whole image, whose pixels lie side by side from row to row: what is computed
   between two rows of results is left out. Else a line is a row of results. Packed filters are [16 filters][tap][64
   channels][16][filter][4], as the unit takes them. */

#define _GNU_SOURCE
#include <stdint.h>
#include <string.h>

#include "binary.h"

#if defined(__x86_64__) && defined(__AVX512F__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TARGET __attribute__((target("avx512f,avx512bw,amx-tile,amx-int8")))
#define TILE 16   /* pixels, or filters */
#define DEPTH 64  /* channels of a tile */
#define NEAR (256L << 10) /* bytes of filters that a core keeps beside its pixels */
#define LARGE (4L << 20) /* bytes of results that go past the caches */
#define SLACK 32  /* pixels behind packed images that may be read */

INLINE int depths_of(const struct sizes *z) { return (z->c + DEPTH - 1) / DEPTH; }

/* Whether the CPU has the unit and the system lets this process use it. */
int convoy_amx_is_there(void) {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 24 & 1) || !(d >> 25 & 1)) return 0;
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* Bytes of packed images, and of packed filters. */
long convoy_amx_image_bytes(const struct sizes *z) {
  return ((long)z->n * rows_of(z) * columns_of(z) + SLACK * z->stride_w) * depths_of(z) * DEPTH;
}
long convoy_amx_filter_bytes(const struct sizes *z) {
  return (long)((z->k + 2 * TILE - 1) / (2 * TILE) * 2) * TILE * z->r * z->s * depths_of(z) * DEPTH;
}

/* ---- Packing ---- */

TARGET INLINE __m128i signs16(const float *x) {
  const __mmask16 positive = _mm512_cmp_ps_mask(_mm512_loadu_ps(x), _mm512_setzero_ps(), _CMP_GE_OQ);
  return _mm512_cvtepi32_epi8(_mm512_mask_mov_epi32(_mm512_set1_epi32(-1), positive, _mm512_set1_epi32(1)));
}

/* Channels side by side. */
TARGET static void row_by_channels(const float *x, long step, int columns, int channels, int8_t *to, int apart) {
  for (int column = 0; column < columns; column++, x += step, to += apart) {
    int first = 0;
    for (; first + 16 <= channels; first += 16) _mm_storeu_si128((__m128i *)(to + first), signs16(x + first));
    for (; first < channels; first++) to[first] = x[first] >= 0.0f ? 1 : -1;
    memset(to + first, 0, apart - first);
  }
}

/* Columns side by side, channels `step` apart: 16 by 16. */
TARGET static void row_by_columns(const float *x, long step, int columns, int channels, int8_t *to, int apart) {
  for (int column = 0; column < columns; column += 16) {
    const int many = smaller(16, columns - column);
    for (int first = 0; first < apart; first += 16) {
      int8_t block[16][16] = {{0}};
      for (int i = 0; i < smaller(16, channels - first); i++) {
        const float *from = x + (first + i) * step + column;
        if (many == 16)
          _mm_storeu_si128((__m128i *)block[i], signs16(from));
        else
          for (int j = 0; j < many; j++) block[i][j] = from[j] >= 0.0f ? 1 : -1;
      }
      for (int j = 0; j < many; j++)
        for (int i = 0; i < 16; i++) to[(long)(column + j) * apart + first + i] = block[i][j];
    }
  }
}

/* `at`: one of channels and columns is 1 apart. */
void convoy_amx_pack(const float *x, struct layout at, const struct sizes *z, int8_t *packed, int threads) {
  const int apart = depths_of(z) * DEPTH, rows = rows_of(z), columns = columns_of(z);
  const int there = larger(0, smaller(z->w, columns - z->left)), before = smaller(z->left, columns);
#pragma omp parallel for schedule(static) num_threads(threads) if (z->n * rows > 1)
  for (long number = 0; number < (long)z->n * rows; number++) {
    const int image = (int)(number / rows), row = (int)(number % rows) - z->top;
    int8_t *to = packed + number * columns * apart;
    if (row < 0 || row >= z->h || there == 0) {
      memset(to, 0, (size_t)columns * apart);
      continue;
    }
    memset(to, 0, (size_t)before * apart);
    memset(to + (long)(before + there) * apart, 0, (size_t)(columns - before - there) * apart);
    (at.c == 1 ? row_by_channels : row_by_columns)(
        x + image * at.n + row * at.h, at.c == 1 ? at.w : at.c, there, z->c, to + (long)before * apart, apart);
  }
  memset(packed + (long)z->n * rows * columns * apart, 0, (size_t)SLACK * z->stride_w * apart);
}

/* The signs of 4 channels of 16 filters as bytes: bits 4 `part` to 4 `part` + 3 of each word. */
TARGET INLINE __m512i four_signs(__m512i words, int part) {
  const __m512i first = _mm512_broadcast_i32x4(_mm_set_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0));
  const __m512i repeated = _mm512_shuffle_epi8(words, _mm512_add_epi8(first, _mm512_set1_epi8((char)(part / 2))));
  const __m512i places = _mm512_set1_epi32(part % 2 ? (int)0x80402010 : 0x08040201);
  return _mm512_mask_mov_epi8(_mm512_set1_epi8(-1), _mm512_test_epi8_mask(repeated, places), _mm512_set1_epi8(1));
}

/* words: [16 filters][tap][word of 32 channels][filter], as native/binary.c packs them. Channels and filters that fill up
   tiles may be anything: those of images are zeros, and their results are not written. */
TARGET void convoy_amx_pack_filters(const uint32_t *words, const struct sizes *z, int8_t *packed) {
  const int here = (z->c + 31) / 32, tiles = (z->k + TILE - 1) / TILE * z->r * z->s;
  for (long tile = 0; tile < tiles; tile++)
    for (int word = 0; word < 2 * depths_of(z); word++, packed += DEPTH / 2 * TILE) {
      const __m512i signs = word < here ? _mm512_loadu_si512(words + (tile * here + word) * TILE) : _mm512_setzero_si512();
      for (int part = 0; part < 8; part++) _mm512_storeu_si512(packed + 64 * part, four_signs(signs, part));
    }
}

/* ---- Products ---- */

struct tiles {
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};

TARGET static void configure(void) {
  struct tiles tiles = {.palette = 1};
  for (int i = 0; i < 8; i++) tiles.bytes[i] = 64, tiles.rows[i] = TILE;
  _tile_loadconfig(&tiles);
}

/* 32 pixels from `image` on, `step` bytes apart, by 32 filters: sums[pixels / 16][filters / 16][pixel][filter]. */
TARGET static void multiply(
    const int8_t *image, long step, const struct sizes *z, const int8_t *filters, int32_t (*sums)[2][TILE][TILE]) {
  const int depths = depths_of(z), columns = columns_of(z), taps = z->r * z->s;
  const long apart = (long)depths * DEPTH, other = (long)taps * depths * TILE * 64;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int r = 0; r < z->r; r++)
    for (int s = 0; s < z->s; s++) {
      const int8_t *from = image + ((long)r * z->dilation_h * columns + s * z->dilation_w) * apart;
      for (int depth = 0; depth < depths; depth++, from += DEPTH, filters += TILE * 64) {
        _tile_loadd(4, from, step);
        _tile_loadd(6, filters, 64);
        _tile_loadd(7, filters + other, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_loadd(5, from + TILE * step, step);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
      }
    }
  _tile_stored(0, sums[0][0], 64);
  _tile_stored(1, sums[0][1], 64);
  _tile_stored(2, sums[1][0], 64);
  _tile_stored(3, sums[1][1], 64);
}

/* One pixel's results of 16 filters. `past`: past the caches, which do not hold all of them. */
TARGET INLINE void put(const int32_t *sums, float *to, long apart, int many, int past) {
  const __m512 results = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums));
  if (past && many == TILE && (uintptr_t)to % 64 == 0) {
    _mm512_stream_ps(to, results);
  } else if (apart == 1) {
    _mm512_mask_storeu_ps(to, (__mmask16)((1U << many) - 1U), results);
  } else {
    float values[TILE];
    _mm512_storeu_ps(values, results);
    for (int i = 0; i < many; i++) to[i * apart] = values[i];
  }
}

/* images: packed. filters: packed. What is done at a time is a stretch of a line by 32 filters. */
TARGET void convoy_amx_convolve(
    const int8_t *images, const struct sizes *z, const int8_t *filters, float *to, struct layout at, int threads) {
  const int whole = z->stride_h == 1 && z->stride_w == 1, columns = columns_of(z), rows = rows_of(z);
  const long apart = (long)depths_of(z) * DEPTH, line_apart = (long)columns * apart * z->stride_h;
  const int lines = whole ? z->n : z->n * z->out_h, length = whole ? (z->out_h - 1) * columns + z->out_w : z->out_w;
  const int pairs = (z->k + 2 * TILE - 1) / (2 * TILE), stretch = 2 * TILE * 16;
  const long pair_bytes = 2L * TILE * z->r * z->s * apart;
  const int past = at.c == 1 && 4L * z->n * z->k * z->out_h * z->out_w > LARGE;
  const int pixels_stay = pairs * pair_bytes <= NEAR; /* and all filters with them, else filters do */
  const int stretches = (length + stretch - 1) / stretch;
#pragma omp parallel num_threads(threads)
  {
    struct tiles before;
    _tile_storeconfig(&before);
    configure();
#pragma omp for schedule(static)
    for (long number = 0; number < (long)pairs * lines * stretches; number++) {
      const int pair = (int)(pixels_stay ? number % pairs : number / ((long)lines * stretches));
      const int place = (int)(pixels_stay ? number / pairs : number % ((long)lines * stretches));
      const int line = place / stretches, part = place % stretches;
      const int n = whole ? line : line / z->out_h, y = whole ? 0 : line % z->out_h;
      const int8_t *image = images + (long)n * rows * columns * apart + y * line_apart;
      float *result = to + n * at.n + 2 * TILE * pair * at.c;
      for (int first = part * stretch; first < smaller(length, (part + 1) * stretch); first += 2 * TILE) {
        int32_t sums[2][2][TILE][TILE] __attribute__((aligned(64)));
        multiply(
            image + (long)first * z->stride_w * apart, z->stride_w * apart, z, filters + pair * pair_bytes, sums);
        int row = whole ? first / columns : y, x = whole ? first % columns : first;
        for (int i = 0; i < smaller(2 * TILE, length - first); i++, x++) {
          if (whole && x == columns) row++, x = 0;
          if (x >= z->out_w) continue;
          float *pixel = result + row * at.h + x * at.w;
          for (int half = 0; half < 2; half++) {
            const int many = smaller(TILE, z->k - 2 * TILE * pair - TILE * half);
            if (many > 0) put(sums[i / TILE][half][i % TILE], pixel + TILE * half * at.c, at.c, many, past);
          }
        }
      }
    }
    _mm_sfence();
    if (before.palette)
      _tile_loadconfig(&before); /* of who else uses the unit in this thread */
    else
      _tile_release();
  }
}

#else

int convoy_amx_is_there(void) { return 0; }

#endif
