/* Winograd's convolution F(OUT_H x OUT_W, TAPS_H x TAPS_W) with its gradients, fp32, in either memory layout.

   A block of tiles at a time, so that all between images and results stays in cache: tiles are transformed (B^T d B), the
   values of each point multiplied by the transformed filters as a small matrix product, and the products transformed
   back (A^T m A) and written past the cache, while the pixels of the next block are fetched. Where there are few tiles
   and many filters it is the filters' turn to come in blocks: each panel is transformed, used and forgotten. The weight
   gradient is F(TAPS, OUT), with the same points: products of pixels and gradients summed over the tiles.

   Images with rows side by side (NCHW) are turned a block at a time, through a strip that stays in cache.

   winograd_transforms.h, with the sizes and the five transforms of an axis, is written by kernels/winograd_code.py.
   Thread-safe: each thread keeps memory of its own to work in, which it never gives back. Results do not depend on the
   number of threads.

   Source: Lavin & Gray 2015 (arXiv:1509.09308), section 4. */

#define _GNU_SOURCE
#include "gemm.h"
#include "winograd_transforms.h"

#define SIDE_H (OUT_H + TAPS_H - 1)
#define SIDE_W (OUT_W + TAPS_W - 1)
#define POINTS (SIDE_H * SIDE_W)
#define TAPS (TAPS_H * TAPS_W)

#define CACHE_3 (16 << 20)      /* bytes of the third that one call may count on */
#define SOME_CHANNELS 16        /* transformed together when filters are read or written */
#define AHEAD 4                 /* tiles whose pixels are asked for in advance */
#define TILES_OF_GRADIENT 128   /* at a time, of all threads */
#define CHANNELS_OF_GRADIENT 96 /* of a point, that one thread takes */

/* Both axes of a transform: what LOAD(i, j) gives, columns first, then rows, to STORE(i, j, value). Each column is read
   when its turn comes, since there are fewer registers than values. */
#define TRANSFORM(of_columns, of_rows, FROM_H, FROM_W, TO_H, TO_W, LOAD, STORE) \
  do {                                                                         \
    vec half_way[TO_H][FROM_W];                                                \
    UNROLL for (int j = 0; j < FROM_W; j++) {                                  \
      vec column[FROM_H], made[TO_H];                                          \
      UNROLL for (int i = 0; i < FROM_H; i++) column[i] = LOAD(i, j);          \
      of_columns(column, made);                                                \
      UNROLL for (int i = 0; i < TO_H; i++) half_way[i][j] = made[i];          \
    }                                                                          \
    UNROLL for (int i = 0; i < TO_H; i++) {                                    \
      vec made[TO_W];                                                          \
      of_rows(half_way[i], made);                                              \
      UNROLL for (int j = 0; j < TO_W; j++) STORE(i, j, made[j]);              \
    }                                                                          \
  } while (0)

/* Floats from an image, a channel, a row and a column to the next. */
struct layout {
  long n, c, h, w;
};

/* Images (n, c, h, w) to results (n, k, out_h, out_w), `top` and `left` zeros before the first pixel. */
struct sizes {
  int n, c, h, w, k, out_h, out_w, top, left;
  struct layout x, y;
};

/* Filters lie at `at` + k * `k` + c * `c` + tap * `tap`: taps or channels are side by side. */
struct filters {
  const float *at;
  long k, c, tap;
  int rotated;
};

INLINE int smaller(int a, int b) { return a < b ? a : b; }

/* Floats from one tile to the next, behind `channels` of them. */
static size_t row_of(int channels) { return apart((size_t)channels); }

/* Filters -------------------------------------------------------------------------------------------------------- */

/* taps[c][t][k] of `count` channels from `c` on, and the filters of one panel. */
static void read_filters(const struct filters *w, int k, int filters, int c, int count, float *taps) {
  const float *from = w->at + k * w->k + c * w->c;
  const size_t channel = TAPS * PANEL, rows = (size_t)smaller(PANEL, filters - k), many = (size_t)count;
  if (rows < PANEL) memset(taps, 0, many * channel * sizeof(float));
  if (w->tap == 1 && w->c == TAPS) {
    transpose(from, (size_t)w->k, rows, many * TAPS, taps, PANEL);
  } else if (w->tap == 1) {
    for (size_t i = 0; i < many; i++)
      transpose(from + (long)i * w->c, (size_t)w->k, rows, TAPS, taps + i * channel, PANEL);
  } else if (w->c == 1) {
    for (size_t t = 0; t < TAPS; t++)
      transpose(from + (long)t * w->tap, (size_t)w->k, rows, many, taps + t * PANEL, channel);
  } else {
    for (size_t i = 0; i < many; i++)
      for (size_t t = 0; t < TAPS; t++)
        memcpy(taps + i * channel + t * PANEL, from + (long)i * w->c + (long)t * w->tap, rows * sizeof(float));
  }
}

/* One panel of filters, of channels from `c` on -> u[point][c][PANEL]. `past`: past the caches. */
static void transform_filters(const struct filters *w, int k, int filters, int c, int count, float *u, size_t point,
                              int past) {
  float taps[SOME_CHANNELS * TAPS * PANEL] __attribute__((aligned(64)));
  read_filters(w, k, filters, c, count, taps);
  for (int i = 0; i < count; i++, u += PANEL)
    for (int half = 0; half < PANEL; half += WIDTH) {
      const float *from = taps + i * TAPS * PANEL + half;
#define TAP(i, j) load(from + (w->rotated ? TAPS - 1 - (i) * TAPS_W - (j) : (i) * TAPS_W + (j)) * PANEL)
#define KEEP(i, j, value) store(u + (size_t)((i) * SIDE_W + (j)) * point + half, value)
#define PASS(i, j, value) STREAM(u + (size_t)((i) * SIDE_W + (j)) * point + half, value)
      if (past)
        TRANSFORM(filter_h, filter_w, TAPS_H, TAPS_W, SIDE_H, SIDE_W, TAP, PASS);
      else
        TRANSFORM(filter_h, filter_w, TAPS_H, TAPS_W, SIDE_H, SIDE_W, TAP, KEEP);
    }
}

static size_t filters_point(int filters, int channels) {
  return apart((size_t)panels(filters) * PANEL * (size_t)channels);
}

/* Floats of all transformed filters: [point][panel][c][PANEL]. */
size_t convoy_winograd_room(int filters, int channels) { return POINTS * filters_point(filters, channels); }

/* All filters, transformed; part of a parallel region. */
static void transform_all(const struct filters *w, int filters, int channels, float *u) {
  const size_t point = filters_point(filters, channels);
  const int past = POINTS * point * sizeof(float) > CACHE_3;
#pragma omp for schedule(static) collapse(2)
  for (int panel = 0; panel < panels(filters); panel++)
    for (int c = 0; c < channels; c += SOME_CHANNELS)
      transform_filters(w, panel * PANEL, filters, c, smaller(SOME_CHANNELS, channels - c),
                        u + ((size_t)panel * (size_t)channels + (size_t)c) * PANEL, point, past);
  if (past) FENCE();
}

/* u: room for convoy_winograd_room floats. */
void convoy_winograd_filters(const struct filters *w, int filters, int channels, float *u, int threads) {
  prefer_huge(u, convoy_winograd_room(filters, channels));
#pragma omp parallel num_threads(threads)
  transform_all(w, filters, channels, u);
}

/* Tiles ---------------------------------------------------------------------------------------------------------- */

struct tile {
  int n, row, column;
};

static int tiles_down(const struct sizes *s) { return (s->out_h + OUT_H - 1) / OUT_H; }
static int tiles_across(const struct sizes *s) { return (s->out_w + OUT_W - 1) / OUT_W; }
static int num_tiles(const struct sizes *s) { return s->n * tiles_down(s) * tiles_across(s); }

/* Where the results of a tile begin. */
static struct tile tile_at(const struct sizes *s, int number) {
  const int across = tiles_across(s), of_image = tiles_down(s) * across;
  return (struct tile){number / of_image, number / across % tiles_down(s) * OUT_H, number % across * OUT_W};
}

/* Tiles from `number` on that are in one row of an image, `count` at most. */
static int tiles_in_row(const struct sizes *s, int number, int count) {
  return smaller(count, tiles_across(s) - number % tiles_across(s));
}

/* Pixels with their channels side by side: a part of an image from (row, column) on, which is of (h, w) in all. */
struct view {
  const float *at;
  long by_h, by_w;
  int row, column, h, w;
};

/* Where the channels of the pixels of a tile lie; those outside of the image are `zeros`. */
INLINE void pixels_at(const float **places, int side_h, int side_w, const struct view *v, int row, int column,
                      const float *zeros) {
  for (int i = 0; i < side_h; i++)
    for (int j = 0; j < side_w; j++) {
      const int at_h = row + i, at_w = column + j;
      const int inside = at_h >= 0 && at_h < v->h && at_w >= 0 && at_w < v->w;
      places[i * side_w + j] =
          inside ? v->at + (at_h - v->row) * v->by_h + (at_w - v->column) * v->by_w : zeros;
    }
}

/* A part of image n, (h, w) in all: where it lies if channels are side by side, else turned into the strip. */
static struct view viewed(const float *images, const struct layout *by, int channels, int n, int h, int w, int row,
                          int rows, int column, int columns, float *strip) {
  const float *image = images + n * by->n;
  if (by->c == 1) return (struct view){image, by->h, by->w, 0, 0, h, w};
  const int first_h = row > 0 ? row : 0, first_w = column > 0 ? column : 0;
  const int height = smaller(row + rows, h) - first_h, width = smaller(column + columns, w) - first_w;
  const size_t pixel = row_of(channels);
  if (height > 0 && width > 0) {
    const int whole = width == by->h;
    for (int i = 0; i < (whole ? 1 : height); i++)
      transpose(image + (first_h + i) * by->h + first_w, (size_t)by->c, (size_t)channels,
                (size_t)(whole ? height * width : width), strip + (size_t)(i * width) * pixel, pixel);
  }
  return (struct view){strip, width * (long)pixel, (long)pixel, first_h, first_w, h, w};
}

static size_t strip_of(int side_h, int side_w, int out_w, int tiles, int channels) {
  return (size_t)(side_h * (tiles * out_w + side_w - out_w)) * row_of(channels);
}

/* Channels of one tile, WIDTH at a time, to `to` + point * point_step; zeros behind the last. */
#define SPREAD_TILE(name, of_columns, of_rows, FROM_H, FROM_W)                                           \
  INLINE void name(const float *const *px, int channels, float *to, size_t point) {                      \
    int c = 0;                                                                                           \
    for (; c + WIDTH <= channels; c += WIDTH, to += WIDTH)                                               \
      TRANSFORM(of_columns, of_rows, FROM_H, FROM_W, SIDE_H, SIDE_W, name##_whole, name##_to);           \
    if (c < channels) TRANSFORM(of_columns, of_rows, FROM_H, FROM_W, SIDE_H, SIDE_W, name##_part, name##_to); \
  }
#define TO_POINT(i, j, value) store(to + (size_t)((i) * SIDE_W + (j)) * point, value)
#define spread_pixels_whole(i, j) load(px[(i) * SIDE_W + (j)] + c)
#define spread_pixels_part(i, j) load_part(px[(i) * SIDE_W + (j)] + c, channels - c)
#define spread_pixels_to TO_POINT
#define spread_gradients_whole(i, j) load(px[(i) * OUT_W + (j)] + c)
#define spread_gradients_part(i, j) load_part(px[(i) * OUT_W + (j)] + c, channels - c)
#define spread_gradients_to TO_POINT
SPREAD_TILE(spread_pixels, input_h, input_w, SIDE_H, SIDE_W)
SPREAD_TILE(spread_gradients, spread_h, spread_w, OUT_H, OUT_W)

/* What a tile adds to the pixels of the one before it, asked for AHEAD of its turn: lines this far apart are no stream
   that a CPU would see. */
static void fetch_tile(const struct sizes *s, const float *x, int number) {
  if (s->x.c != 1 || number >= num_tiles(s)) return;
  const struct tile at = tile_at(s, number);
  for (int i = 0; i < SIDE_H; i++)
    for (int j = SIDE_W - OUT_W; j < SIDE_W; j++) {
      const int row = at.row - s->top + i, column = at.column - s->left + j;
      if (row < 0 || row >= s->h || column < 0 || column >= s->w) continue;
      const float *pixel = x + at.n * s->x.n + row * s->x.h + column * s->x.w;
      for (int c = 0; c < s->c; c += 16) __builtin_prefetch(pixel + c);
    }
}

/* Tiles of pixels from `first` on -> v[point][tile][row_of(c)] */
static void spread_images(const struct sizes *s, const float *x, int first, int count, float *v, size_t point,
                          float *strip, const float *zeros) {
  for (int t = 0, many; t < count; t += many) {
    many = tiles_in_row(s, first + t, count - t);
    const struct tile at = tile_at(s, first + t);
    const int row = at.row - s->top, column = at.column - s->left;
    const struct view part =
        viewed(x, &s->x, s->c, at.n, s->h, s->w, row, SIDE_H, column, many * OUT_W + SIDE_W - OUT_W, strip);
    for (int i = 0; i < many; i++) {
      const float *places[POINTS];
      fetch_tile(s, x, first + t + i + AHEAD);
      pixels_at(places, SIDE_H, SIDE_W, &part, row, column + i * OUT_W, zeros);
      spread_pixels(places, s->c, v + (size_t)(t + i) * row_of(s->c), point);
    }
  }
}

/* Tiles of the results' gradient -> g[point][tile][row] */
static void spread_results(const struct sizes *s, const float *dy, int first, int count, float *g, size_t point,
                           size_t row, float *strip, const float *zeros) {
  for (int t = 0, many; t < count; t += many) {
    many = tiles_in_row(s, first + t, count - t);
    const struct tile at = tile_at(s, first + t);
    const struct view part = viewed(dy, &s->y, s->k, at.n, s->out_h, s->out_w, at.row, OUT_H, at.column, many * OUT_W, strip);
    for (int i = 0; i < many; i++) {
      const float *places[OUT_H * OUT_W];
      pixels_at(places, OUT_H, OUT_W, &part, at.row, at.column + i * OUT_W, zeros);
      spread_gradients(places, s->k, g + (size_t)(t + i) * row, point);
    }
  }
}

/* Results -------------------------------------------------------------------------------------------------------- */

/* One tile of results from products m[point][.], filters side by side, of which there are `filters`. */
INLINE void write_tile(const float *m, size_t point, int filters, const float *bias, int rows, int columns, float *y,
                       long by_h, long by_w, int past) {
  for (int k = 0; k < filters; k += PANEL) {
    vec out[2][OUT_H][OUT_W];
    const int halves = k + WIDTH < filters ? 2 : 1;
    for (int half = 0; half < halves; half++) {
#define PRODUCT_AT(i, j) load(m + (size_t)((i) * SIDE_W + (j)) * point + k + half * WIDTH)
#define RESULT(i, j, value) out[half][i][j] = value
      TRANSFORM(output_h, output_w, SIDE_H, SIDE_W, OUT_H, OUT_W, PRODUCT_AT, RESULT);
    }
    if (bias)
      for (int half = 0; half < halves; half++) {
        const int left = filters - k - half * WIDTH;
        const vec added = left >= WIDTH ? load(bias + k + half * WIDTH) : load_part(bias + k + half * WIDTH, left);
        UNROLL for (int i = 0; i < OUT_H; i++) UNROLL for (int j = 0; j < OUT_W; j++) out[half][i][j] += added;
      }
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < columns; j++) {
        float *to = y + i * by_h + j * by_w + k;
        for (int half = 0; half < halves; half++) {
          const int left = filters - k - half * WIDTH;
          if (left < WIDTH)
            store_part(to + half * WIDTH, out[half][i][j], left);
          else if (past)
            STREAM(to + half * WIDTH, out[half][i][j]);
          else
            store(to + half * WIDTH, out[half][i][j]);
        }
      }
  }
}

/* Tiles of results from `first` on, of filters from `k` on; m[point][tile][row]. */
static void write_results(const struct sizes *s, const float *m, size_t point, size_t row, int first, int count, int k,
                          int filters, const float *bias, float *y, float *strip, int past) {
  for (int t = 0, many; t < count; t += many) {
    many = tiles_in_row(s, first + t, count - t);
    const struct tile at = tile_at(s, first + t);
    const int rows = smaller(OUT_H, s->out_h - at.row), width = smaller(many * OUT_W, s->out_w - at.column);
    const int direct = s->y.c == 1;
    float *to = y + at.n * s->y.n + k * s->y.c + at.row * s->y.h + at.column * s->y.w;
    const size_t pixel = direct ? (size_t)s->y.w : row_of(filters), line = direct ? (size_t)s->y.h : (size_t)width * pixel;
    for (int i = 0; i < many; i++)
      write_tile(m + (size_t)(t + i) * row, point, filters, bias ? bias + k : NULL, rows, smaller(OUT_W, width - i * OUT_W),
                 (direct ? to : strip) + (size_t)(i * OUT_W) * pixel, (long)line, (long)pixel, past && direct);
    if (direct) continue;
    const int whole = width == s->y.h;
    for (int i = 0; i < (whole ? 1 : rows); i++)
      transpose(strip + (size_t)i * line, pixel, (size_t)(whole ? rows * width : width), (size_t)filters,
                to + i * s->y.h, (size_t)s->y.c);
  }
}

/* Forward -------------------------------------------------------------------------------------------------------- */

enum { FILTERS = 0, TILES = 1, SHARED = 2 };

/* Blocks of tiles by all filters; part of a parallel region. Returns whether there was memory. */
static int by_tiles(const struct sizes *s, const float *x, const float *u, const float *bias, float *y, int block,
                    int past, const float *zeros) {
  const int all = num_tiles(s), blocks = (all + block - 1) / block, of_panels = panels(s->k);
  const size_t v_row = row_of(s->c), m_row = row_of(of_panels * PANEL);
  const size_t v_point = apart((size_t)block * v_row), m_point = apart((size_t)block * m_row);
  const size_t u_point = filters_point(s->k, s->c), u_panel = (size_t)s->c * PANEL;
  float *v = scratch(TILES, POINTS * (v_point + m_point) + strip_of(SIDE_H, SIDE_W, OUT_W, block, s->c) +
                                strip_of(OUT_H, OUT_W, OUT_W, block, s->k));
  float *m = v + POINTS * v_point, *strip = m + POINTS * m_point;
#pragma omp for schedule(dynamic)
  for (int b = 0; b < blocks; b++) {
    if (!v) continue;
    const int first = b * block, count = smaller(block, all - first);
    spread_images(s, x, first, count, v, v_point, strip, zeros);
    for (int p = 0; p < POINTS; p++) {
      const float *of_point = u + (size_t)p * u_point;
      multiply(v + (size_t)p * v_point, v_row, count, of_point, u_panel, of_panels, s->c, m + (size_t)p * m_point,
               m_row, p + 1 < POINTS ? of_point + u_point : u);
    }
    write_results(s, m, m_point, m_row, first, count, 0, s->k, bias, y, strip, past);
  }
  return v != NULL;
}

/* All tiles, then panels of filters; part of a parallel region. `u`: transformed filters, or NULL to do it here. */
static int by_filters(const struct sizes *s, const float *x, const struct filters *w, const float *u, const float *bias,
                      float *y, float *v, const float *zeros) {
  const int all = num_tiles(s), some = tiles_across(s);
  const size_t v_row = row_of(s->c), v_point = apart((size_t)all * v_row), own = apart((size_t)s->c * PANEL);
  const size_t m_row = row_of(PANEL), m_point = apart((size_t)all * m_row);
  const size_t strips = strip_of(SIDE_H, SIDE_W, OUT_W, some, s->c) + strip_of(OUT_H, OUT_W, OUT_W, all, PANEL);
  float *m = scratch(TILES, POINTS * (m_point + (u ? 0 : own)) + strips);
  float *filters = m + POINTS * m_point, *strip = filters + (u ? 0 : POINTS * own);
#pragma omp for schedule(static)
  for (int first = 0; first < all; first += some)
    if (m) spread_images(s, x, first, smaller(some, all - first), v + (size_t)first * v_row, v_point, strip, zeros);
#pragma omp for schedule(dynamic)
  for (int panel = 0; panel < panels(s->k); panel++) {
    if (!m) continue;
    const float *of_panel = u ? u + (size_t)panel * (size_t)s->c * PANEL : filters;
    const size_t u_point = u ? filters_point(s->k, s->c) : own;
    for (int c = 0; !u && c < s->c; c += SOME_CHANNELS)
      transform_filters(w, panel * PANEL, s->k, c, smaller(SOME_CHANNELS, s->c - c), filters + (size_t)c * PANEL, own, 0);
    for (int p = 0; p < POINTS; p++)
      multiply_panel(v + (size_t)p * v_point, v_row, all, of_panel + (size_t)p * u_point, s->c,
                     m + (size_t)p * m_point, m_row, of_panel + (size_t)(p + 1 < POINTS ? p + 1 : 0) * u_point);
    write_results(s, m, m_point, m_row, 0, all, panel * PANEL, smaller(PANEL, s->k - panel * PANEL), bias, y, strip, 0);
  }
  return m != NULL;
}

/* Whether results go past the caches: they are many, and whole lines. */
static int goes_past(const struct sizes *s, const float *y) {
  const size_t bytes = (size_t)s->n * (size_t)s->out_h * (size_t)s->out_w * (size_t)s->k * sizeof(float);
  return bytes > CACHE_3 / 4 && (uintptr_t)y % (4 * WIDTH) == 0 && s->k % WIDTH == 0 && s->y.c == 1;
}

/* x (n, c, h, w), filters (k, c, TAPS_H, TAPS_W) -> y (n, k, out_h, out_w). `u`: of convoy_winograd_filters, or NULL;
   `bias` (k), or NULL; `block`: tiles at a time, or 0 to take the filters in turn. Returns DONE or NO_MEMORY. */
int convoy_winograd(const float *x, const struct sizes *s, const struct filters *w, const float *u, const float *bias,
                    float *y, int block, int threads) {
  float *zeros = calloc((size_t)s->c + WIDTH, sizeof(float)), *shared = NULL;
  const size_t v_floats = block ? 0 : POINTS * apart((size_t)num_tiles(s) * row_of(s->c));
  if (block && !u) shared = scratch(FILTERS, convoy_winograd_room(s->k, s->c));
  if (!block) shared = scratch(SHARED, v_floats);
  int failed = !zeros || (!shared && !(block && u));
  const int past = goes_past(s, y);
  prefer_huge(y, (size_t)s->n * (size_t)s->out_h * (size_t)s->out_w * (size_t)s->k);
#pragma omp parallel num_threads(threads) if (!failed)
  if (!failed) {
    if (block && !u) transform_all(w, s->k, s->c, shared);
    const int done = block ? by_tiles(s, x, u ? u : shared, bias, y, block, past, zeros)
                           : by_filters(s, x, w, u, bias, y, shared, zeros);
    FENCE();
    if (!done) {
#pragma omp atomic write
      failed = 1;
    }
  }
  free(zeros);
  return failed ? NO_MEMORY : DONE;
}

/* Weight gradient ------------------------------------------------------------------------------------------------ */

/* Pixels v[tile][v_row] and gradients g[tile][g_row] of one point -> sum[c][row], of channels from `c` to `end`. */
static void sum_products(const float *v, size_t v_row, const float *g, size_t g_row, int tiles, int c, int end,
                         int of_panels, float *sum, size_t row, int add) {
  const struct product p = {.a_row = 1, .a_deep = v_row, .b_row = g_row, .c_row = row, .depth = tiles,
                            .columns = PANEL, .start = add ? PLACE : NOTHING};
  for (int panel = 0; panel < of_panels; panel++, g += PANEL)
    multiply_all(&p, end - c, v + c, g, sum + (size_t)c * row + panel * PANEL, AT_HAND(&p));
}

/* What is summed, and where: v[point][tile][v_row], g[point][tile][g_row], sum[point][c][g_row]. */
struct gradient {
  const struct sizes *s;
  int tiles, of_panels; /* tiles at a time */
  size_t v_row, g_row, v_point, g_point, sum_point;
};

static struct gradient gradient_of(const struct sizes *s) {
  const int across = tiles_across(s), lines = smaller(TILES_OF_GRADIENT / across, num_tiles(s) / across);
  struct gradient a = {.s = s, .tiles = (lines > 1 ? lines : 1) * across, .of_panels = panels(s->k)};
  a.v_row = row_of(s->c);
  a.g_row = row_of(a.of_panels * PANEL);
  a.v_point = apart((size_t)a.tiles * a.v_row);
  a.g_point = apart((size_t)a.tiles * a.g_row);
  a.sum_point = apart((size_t)s->c * a.g_row);
  return a;
}

/* Gradients behind the last filter are read by whole panels: they must be numbers. */
static void clear_behind(const struct gradient *a, float *g, int tiles) {
  const size_t used = (size_t)((a->s->k + WIDTH - 1) / WIDTH * WIDTH), left = (size_t)a->of_panels * PANEL - used;
  for (size_t p = 0; left && p < POINTS; p++)
    for (int t = 0; t < tiles; t++) memset(g + p * a->g_point + (size_t)t * a->g_row + used, 0, left * sizeof(float));
}

/* The threads share tiles, then points and channels; part of a parallel region. Returns whether there was memory. */
static int sum_gradients(const struct gradient *a, const float *x, const float *dy, float *v, float *g, float *sum,
                         const float *zeros) {
  const struct sizes *s = a->s;
  const int all = num_tiles(s), some = tiles_across(s);
  float *strip = scratch(TILES, strip_of(SIDE_H, SIDE_W, OUT_W, some, s->c > s->k ? s->c : s->k));
  for (int first = 0; first < all; first += a->tiles) {
    const int count = smaller(a->tiles, all - first);
#pragma omp for schedule(static)
    for (int t = 0; t < count; t += some)
      if (strip) {
        const int many = smaller(some, count - t);
        float *gradients = g + (size_t)t * a->g_row;
        spread_images(s, x, first + t, many, v + (size_t)t * a->v_row, a->v_point, strip, zeros);
        spread_results(s, dy, first + t, many, gradients, a->g_point, a->g_row, strip, zeros);
        clear_behind(a, gradients, many);
      }
#pragma omp for schedule(static) collapse(2)
    for (int p = 0; p < POINTS; p++)
      for (int c = 0; c < s->c; c += CHANNELS_OF_GRADIENT)
        sum_products(v + (size_t)p * a->v_point, a->v_row, g + (size_t)p * a->g_point, a->g_row, count, c,
                     smaller(c + CHANNELS_OF_GRADIENT, s->c), a->of_panels, sum + (size_t)p * a->sum_point, a->g_row,
                     first > 0);
  }
  return strip != NULL;
}

/* The sums of WIDTH filters from `k` on and some channels, transformed back -> dw (k, c, TAPS_H, TAPS_W) */
static void write_filters(const struct gradient *a, const float *sum, int k, int c, int count, float *dw) {
  float taps[SOME_CHANNELS * TAPS * WIDTH] __attribute__((aligned(64)));
  for (int i = 0; i < count; i++) {
    const float *from = sum + (size_t)(c + i) * a->g_row + (size_t)k;
    float *to = taps + i * TAPS * WIDTH;
#define SUM_AT(i, j) load(from + (size_t)((i) * SIDE_W + (j)) * a->sum_point)
#define TO_TAP(i, j, value) store(to + ((i) * TAPS_W + (j)) * WIDTH, value)
    TRANSFORM(gradient_h, gradient_w, SIDE_H, SIDE_W, TAPS_H, TAPS_W, SUM_AT, TO_TAP);
  }
  const size_t filter = (size_t)a->s->c * TAPS;
  transpose(taps, WIDTH, (size_t)(count * TAPS), (size_t)smaller(WIDTH, a->s->k - k),
            dw + (size_t)k * filter + (size_t)c * TAPS, filter);
}

/* x (n, c, h, w), dy (n, k, out_h, out_w) -> dw (k, c, TAPS_H, TAPS_W). Returns DONE or NO_MEMORY. */
int convoy_winograd_weight_gradient(const float *x, const struct sizes *s, const float *dy, float *dw, int threads) {
  const struct gradient a = gradient_of(s);
  float *zeros = calloc((size_t)(s->c > s->k ? s->c : s->k) + WIDTH, sizeof(float));
  float *sum = scratch(FILTERS, POINTS * a.sum_point), *v = scratch(SHARED, POINTS * (a.v_point + a.g_point));
  int failed = !zeros || !sum || !v;
#pragma omp parallel num_threads(threads) if (!failed)
  if (!failed) {
    if (!sum_gradients(&a, x, dy, v, v + POINTS * a.v_point, sum, zeros)) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(static) collapse(2)
    for (int k = 0; k < s->k; k += WIDTH)
      for (int c = 0; c < s->c; c += SOME_CHANNELS)
        write_filters(&a, sum, k, c, smaller(SOME_CHANNELS, s->c - c), dw);
  }
  free(zeros);
  return failed ? NO_MEMORY : DONE;
}
