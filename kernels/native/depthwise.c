/* Depthwise convolution (one filter a channel) with its gradients, fp32, for images in NHWC or NCHW, any filter, stride,
   dilation and padding.

   WIDTH channels are one vector. The rows that a few rows of results need are copied into a ring with zeros beside
   them, [channels / WIDTH][row][column][WIDTH], so that the arithmetic knows neither layouts nor borders, and pixels
   that are used together are neighbours. There, 8 results of a row are summed at a time in registers: each pixel that
   is loaded meets up to 7 values of the filter. Products with zeros of the padding are left out by whole rows, and by
   blocks of columns.

   The input's gradient is the same convolution of the output's gradient with reversed filters; with a stride, results
   fall into phases, each with its own part of the filter. The weight's gradient keeps up to 7 values of a filter in
   registers over several rows of the output's gradient.

   Written with the compiler's vectors (vectors.h). Thread-safe: each thread keeps memory of its own to work in. */

#include "vectors.h"

#define L1_FLOATS (24 * 1024 / 4)  /* of the first cache, for the rows of one vector of channels */
#define L2_FLOATS (256 * 1024 / 4) /* of the second cache, for the rows of a group of them */
#define MOST_ROWS 8                /* of results at a time */
#define UNITS 48                   /* of work at least, if there are as many images: not by threads, that results be the same */

/* What is convolved: images (n, c, h, w) with filters (c, r, s) to (n, c, out_h, out_w), `top` and `left` zeros before
   the first pixel. */
struct sizes {
  int n, c, h, w, out_h, out_w, r, s, stride_h, stride_w, dilation_h, dilation_w, top, left;
};

/* Floats from one image, channel, row and column to the next. One of the last but two and the last is 1. */
struct layout {
  long n, c, h, w;
};

struct images {
  float *data;
  struct layout at;
  int n, c, h, w;
};

static float *pixel(const struct images *x, int n, int c, int row, int column) {
  return x->data + n * x->at.n + c * x->at.c + row * x->at.h + column * x->at.w;
}

static int smaller(int a, int b) { return a < b ? a : b; }
static int larger(int a, int b) { return a > b ? a : b; }
static int times(int whole, int part) { return (whole + part - 1) / part; }

/* ---- Which pixels a result reads ---- */

/* Result number m of a phase is the sum over k < taps of in[first + m * stride + k * dilation] * filter[tap + k]. */
struct phase {
  int tap, taps, first;
};

/* The rows that row `out` of the results reads: from `row` on, dilation apart, times filter rows from `tap` on. */
struct reads {
  int row, tap, count, slot; /* of a ring */
};

/* Rows or columns. Results p, p + phases, p + 2 * phases, ... are phase p. `places`: where each value of the filter
   lies among those in the order of phases. */
struct axis {
  int in, out, filter, phases, stride, dilation;
  struct phase *of_phase;
  struct reads *reads;
  int *places;
};

static int common_divisor(int a, int b) { return b ? common_divisor(b, a % b) : a; }

/* Of `taps` pixels from `first` on, `dilation` apart, in a row of `size`: how many lie before it, and before its end. */
static int before_start(int first, int taps, int dilation) {
  return first >= 0 ? 0 : smaller(taps, times(-first, dilation));
}
static int before_end(int first, int taps, int dilation, int size) {
  return first >= size ? 0 : smaller(taps, times(size - first, dilation));
}

static struct reads reads_of(const struct axis *a, int out) {
  const struct phase *p = &a->of_phase[out % a->phases];
  const int first = p->first + out / a->phases * a->stride;
  const int skipped = before_start(first, p->taps, a->dilation);
  const int end = before_end(first, p->taps, a->dilation, a->in);
  return (struct reads){first + skipped * a->dilation, p->tap + skipped, larger(0, end - skipped), 0};
}

static void free_axis(struct axis *a) {
  free(a->of_phase);
  free(a->reads);
  free(a->places);
}

static int allocate_axis(struct axis *a) {
  a->of_phase = malloc((size_t)a->phases * sizeof(struct phase));
  a->reads = malloc((size_t)a->out * sizeof(struct reads));
  a->places = malloc((size_t)a->filter * sizeof(int));
  return a->of_phase && a->reads && a->places ? DONE : NO_MEMORY;
}

static int forward_axis(struct axis *a, int in, int out, int filter, int stride, int dilation, int before) {
  *a = (struct axis){in, out, filter, 1, stride, dilation, NULL, NULL, NULL};
  if (allocate_axis(a) != DONE) return NO_MEMORY;
  a->of_phase[0] = (struct phase){0, filter, -before};
  for (int s = 0; s < filter; s++) a->places[s] = s;
  for (int i = 0; i < out; i++) a->reads[i] = reads_of(a, i);
  return DONE;
}

/* From gradients of `out` results to those of `in` pixels: pixel p was read by the filter's values s for which stride
   divides p + before - s * dilation, which are s, s + every, ...; they come in reverse. */
static int backward_axis(struct axis *a, int in, int out, int filter, int stride, int dilation, int before) {
  const int common = common_divisor(stride, dilation), every = stride / common;
  *a = (struct axis){out, in, filter, stride, 1, dilation / common, NULL, NULL, NULL};
  if (allocate_axis(a) != DONE) return NO_MEMORY;
  for (int s = 0, place = 0; s < smaller(every, filter); s++)
    for (int k = times(filter - s, every) - 1; k >= 0; k--) a->places[s + k * every] = place++;
  for (int p = 0; p < stride; p++) {
    int s = 0;
    while (s < smaller(every, filter) && (p + before - s * dilation) % stride) s++;
    const int taps = s < smaller(every, filter) ? times(filter - s, every) : 0;
    const int tap = taps ? a->places[s + (taps - 1) * every] : 0;
    a->of_phase[p] = (struct phase){tap, taps, (p + before - s * dilation) / stride - (taps - 1) * a->dilation};
  }
  for (int i = 0; i < in; i++) a->reads[i] = reads_of(a, i);
  return DONE;
}

/* The first and the last row that rows `from` to `to` read; 0 and -1 if none. */
static void span_of(const struct axis *a, int from, int to, int *first, int *last) {
  *first = a->in;
  *last = -1;
  for (int out = from; out < to; out++) {
    const struct reads r = a->reads[out];
    if (!r.count) continue;
    *first = smaller(*first, r.row);
    *last = larger(*last, r.row + (r.count - 1) * a->dilation);
  }
  if (*last < 0) *first = 0;
}

/* How many rows a ring must hold, if results are computed `step` rows at a time. */
static int depth_of(const struct axis *a, int step) {
  int depth = 1, end = -1, first, last;
  for (int from = 0; from < a->out; from += step) {
    span_of(a, from, smaller(from + step, a->out), &first, &last);
    end = larger(end, last);
    if (last >= first) depth = larger(depth, end - first + 1);
  }
  return depth;
}

/* ---- Copies into rows of [column][WIDTH] and out of them ---- */

/* The pixels of one row, channels c to c + groups * WIDTH; zeros for channels that do not exist. */
static void copy_pixels(const struct images *x, int n, int c, int row, int groups, float *to, size_t group) {
  const int whole = smaller(groups, (x->c - c) / WIDTH);
  for (int column = 0; column < x->w; column++, to += WIDTH) {
    const float *from = pixel(x, n, c, row, column);
    for (int g = 0; g < whole; g++) store(to + (size_t)g * group, load(from + g * WIDTH));
    for (int g = whole; g < groups; g++)
      store(to + (size_t)g * group, load_part(from + g * WIDTH, larger(0, smaller(WIDTH, x->c - c - g * WIDTH))));
  }
}

/* The same of 8 planes, from channel c on, to 8 of the WIDTH floats of each column. May write 8 columns if there are
   fewer, with zeros behind the last. */
static void copy_planes(const struct images *x, int n, int c, int row, float *to) {
  const float *from = pixel(x, n, c, row, 0);
  const float *end = pixel(x, x->n - 1, x->c - 1, x->h - 1, x->w - 1) + 1;
  const int channels = larger(0, smaller(8, x->c - c));
  if (channels == 8 && (x->w >= 8 || end - from >= 7 * x->at.c + 8)) {
    for (int column = 0; column + 8 <= x->w; column += 8)
      transpose_8x8(from + column, (size_t)x->at.c, to + (size_t)column * WIDTH, WIDTH);
    if (x->w > 8 && x->w % 8) transpose_8x8(from + x->w - 8, (size_t)x->at.c, to + (size_t)(x->w - 8) * WIDTH, WIDTH);
    if (x->w < 8) transpose_8x8(from, (size_t)x->at.c, to, WIDTH);
    for (int column = x->w; column < 8; column++) *(vec8 *)(to + (size_t)column * WIDTH) = (vec8){0};
    return;
  }
  for (int column = 0; column < x->w; column++) {
    *(vec8 *)(to + (size_t)column * WIDTH) = (vec8){0};
    for (int i = 0; i < channels; i++) to[(size_t)column * WIDTH + (size_t)i] = from[i * x->at.c + column];
  }
}

static void copy_row(const struct images *x, int n, int c, int row, int groups, float *to, size_t group) {
  if (x->at.c == 1) {
    copy_pixels(x, n, c, row, groups, to, group);
    return;
  }
  for (int g = 0; g < groups; g++)
    for (int half = 0; half < WIDTH; half += 8)
      copy_planes(x, n, c + g * WIDTH + half, row, to + (size_t)g * group + half);
}

/* Up to 8 floats. */
static void copy_few(float *to, const float *from, int many) {
  if (many >= 4) {
    memcpy(to, from, 4 * sizeof(float));
    memcpy(to + many - 4, from + many - 4, 4 * sizeof(float));
  } else {
    for (int i = 0; i < many; i++) to[i] = from[i];
  }
}

/* One row of results from [column][WIDTH] to their place. */
static void place_row(const struct images *y, int n, int c, int row, const float *from) {
  const int channels = smaller(WIDTH, y->c - c);
  float *to = pixel(y, n, c, row, 0);
  if (y->at.c == 1) {
    for (int column = 0; column < y->w; column++)
      memcpy(to + column * y->at.w, from + (size_t)column * WIDTH, (size_t)channels * sizeof(float));
    return;
  }
  for (int i = 0; i < channels; i += 8) {
    for (int column = 0; column < y->w; column += 8) {
      const int at = larger(0, smaller(column, y->w - 8)), columns = smaller(8, y->w);
      if (channels - i >= 8 && columns == 8) {
        transpose_8x8(from + (size_t)at * WIDTH + i, WIDTH, to + i * y->at.c + at, (size_t)y->at.c);
      } else {
        float turned[64];
        transpose_8x8(from + (size_t)at * WIDTH + i, WIDTH, turned, 8);
        for (int k = 0; k < smaller(8, channels - i); k++)
          copy_few(to + (i + k) * y->at.c + at, turned + 8 * k, columns);
      }
    }
  }
}

/* ---- A block of results of one row ---- */

/* Results `out`, `out` + phases, ... of a row, `count` of them, computed as `width`: from column `in` of the ring's
   rows on, by `taps` values of the filter's rows from `tap` on. */
struct block {
  int out, count, width, in, tap, taps;
};

/* How many results to take next of `left` ones: 8s and 7s if the sum of such, else as few as possible too many. */
static int next_width(int left) {
  const int sevens = (8 - left % 8) % 8;
  if (left >= 8) return sevens && 7 * sevens <= left ? 7 : 8;
  return left > 4 ? (left > 7 ? 8 : 7) : 4;
}

/* The blocks of a row, in `blocks`, and the columns that they read beyond the images' in `before` and `behind`. */
static int plan_blocks(const struct axis *a, struct block *blocks, int *before, int *behind) {
  int number = 0;
  *before = *behind = 0;
  for (int p = 0; p < a->phases; p++) {
    const struct phase *phase = &a->of_phase[p];
    for (int m = 0, left = times(a->out - p, a->phases); left > 0; number++) {
      struct block b = {.out = p + m * a->phases, .width = next_width(left)};
      const int first = phase->first + m * a->stride, last = first + (b.width - 1) * a->stride;
      const int skipped = before_start(last, phase->taps, a->dilation);
      b.count = smaller(b.width, left);
      b.taps = larger(0, before_end(first, phase->taps, a->dilation, a->in) - skipped);
      b.tap = phase->tap + skipped;
      b.in = b.taps ? first + skipped * a->dilation : 0;
      if (b.taps) {
        *before = larger(*before, -b.in);
        *behind = larger(*behind, last + (skipped + b.taps - 1) * a->dilation - a->in + 1);
      }
      blocks[number] = b;
      m += b.width;
      left -= b.width;
    }
  }
  return number;
}

/* One row of results: `rows` rows of a ring of `depth`, from `slot` on, and as many of the filter. */
struct source {
  const float *ring, *filter;
  int rows, slot, depth, dilation_h, dilation_w, stride_w;
  size_t row_floats, filter_row;
};

/* sum[j] += x[j * STRIDE + t] * w[t] for t < TAPS of every row, each pixel loaded once; then TAPS columns further. */
#define MEET(B, STRIDE, TAPS)                                                         \
  {                                                                                   \
    const float *w = filter;                                                          \
    for (int row = 0, slot = s->slot; row < s->rows; row++, w += s->filter_row) {     \
      const float *x = column + (size_t)slot * s->row_floats;                         \
      vec value[TAPS];                                                                \
      _Pragma("GCC unroll 8") for (int t = 0; t < TAPS; t++) value[t] = load(w + t * WIDTH); \
      _Pragma("GCC unroll 32") for (int i = 0; i < (B - 1) * STRIDE + TAPS; i++) {    \
        const vec of_pixel = load(x + i * WIDTH);                                     \
        _Pragma("GCC unroll 8") for (int t = 0; t < TAPS; t++)                        \
          if (i >= t && (i - t) % STRIDE == 0 && (i - t) / STRIDE < B)                \
            sum[(i - t) / STRIDE] += of_pixel * value[t];                             \
      }                                                                               \
      slot += s->dilation_h;                                                          \
      if (slot >= s->depth) slot -= s->depth;                                         \
    }                                                                                 \
    column += TAPS * WIDTH;                                                           \
    filter += TAPS * WIDTH;                                                           \
    taps -= TAPS;                                                                     \
  }

#define MEET_DENSE(B, STRIDE)          \
  while (taps >= 7) MEET(B, STRIDE, 7) \
  if (taps >= 5) MEET(B, STRIDE, 5)    \
  if (taps >= 3) MEET(B, STRIDE, 3)    \
  while (taps > 0) MEET(B, STRIDE, 1)

#define MEET_ANY(B, STRIDE)                                                           \
  for (int row = 0, slot = s->slot; row < s->rows; row++, filter += s->filter_row) {  \
    const float *x = column + (size_t)slot * s->row_floats;                           \
    for (int t = 0; t < taps; t++, x += s->dilation_w * WIDTH) {                      \
      const vec value = load(filter + t * WIDTH);                                     \
      _Pragma("GCC unroll 8") for (int j = 0; j < B; j++)                             \
        sum[j] += load(x + (ptrdiff_t)j * s->stride_w * WIDTH) * value;               \
    }                                                                                 \
    slot += s->dilation_h;                                                            \
    if (slot >= s->depth) slot -= s->depth;                                           \
  }

#define BLOCK(NAME, B, STRIDE, MEET_ALL)                                                          \
  static void NAME(const struct source *s, const struct block *b, float *y, ptrdiff_t y_step) {   \
    vec sum[B] = {{0}};                                                                           \
    const float *filter = s->filter + b->tap * WIDTH, *column = s->ring + (ptrdiff_t)b->in * WIDTH; \
    int taps = b->taps;                                                                           \
    MEET_ALL(B, STRIDE)                                                                           \
    if (b->count == B) {                                                                          \
      _Pragma("GCC unroll 8") for (int j = 0; j < B; j++) store(y + j * y_step, sum[j]);          \
    } else {                                                                                      \
      _Pragma("GCC unroll 8") for (int j = 0; j < B; j++)                                         \
        if (j < b->count) store(y + j * y_step, sum[j]);                                          \
    }                                                                                             \
  }
#define BLOCKS(B) \
  BLOCK(dense_##B, B, 1, MEET_DENSE) BLOCK(every_second_##B, B, 2, MEET_DENSE) BLOCK(any_##B, B, 1, MEET_ANY)
BLOCKS(8) BLOCKS(7) BLOCKS(4)

#define OF_WIDTH(NAME) (b->width == 8 ? NAME##_8 : b->width == 7 ? NAME##_7 : NAME##_4)

/* One row of results for one vector of channels; y_step: from one to the next. */
static void convolve_row(const struct source *s, const struct block *blocks, int number, int phases, float *y,
                         ptrdiff_t y_step) {
  for (const struct block *b = blocks; b < blocks + number; b++) {
    float *to = y + b->out * y_step;
    if (s->dilation_w == 1 && s->stride_w == 1)
      OF_WIDTH(dense)(s, b, to, y_step * phases);
    else if (s->dilation_w == 1 && s->stride_w == 2)
      OF_WIDTH(every_second)(s, b, to, y_step * phases);
    else
      OF_WIDTH(any)(s, b, to, y_step * phases);
  }
}

/* ---- Forward and the input's gradient ---- */

struct convolution {
  struct images x, y;
  struct axis rows, columns;
  const struct block *blocks;
  int num_blocks, step, depth, group, before;
  const float *filters; /* [c / WIDTH][r][s][WIDTH] */
  size_t filter_row, row_floats, ring_floats;
};

/* to[place of r][place of s][WIDTH] of channels c to c + WIDTH of w (c, r, s); zeros for channels that do not exist. */
static void pack_filters(const struct convolution *a, const float *w, int c, float *to) {
  const int columns = a->columns.filter, all = a->rows.filter * columns;
  for (int first = 0; first < all; first += 8) {
    const int many = smaller(8, all - first);
    for (int half = 0; half < WIDTH; half += 8) {
      float in[64] = {0}, turned[64];
      for (int i = 0; i < smaller(8, a->x.c - c - half); i++)
        memcpy(in + 8 * i, w + (size_t)(c + half + i) * (size_t)all + (size_t)first, (size_t)many * sizeof(float));
      transpose_8x8(in, 8, turned, 8);
      for (int t = 0; t < many; t++) {
        const int r = (first + t) / columns, s = (first + t) % columns;
        float *place = to + (size_t)(a->rows.places[r] * columns + a->columns.places[s]) * WIDTH;
        memcpy(place + half, turned + 8 * t, 8 * sizeof(float));
      }
    }
  }
}

/* Rows of results at a time, and groups of channels, so that what they read fits the caches. */
static void plan_ring(struct convolution *a, int before, int behind) {
  a->before = before;
  a->row_floats = (size_t)larger(before + a->x.w + behind, before + 8) * WIDTH;
  a->step = MOST_ROWS;
  while (a->step > 1 && (size_t)depth_of(&a->rows, a->step) * a->row_floats > L1_FLOATS) a->step--;
  a->depth = depth_of(&a->rows, a->step);
  for (int out = 0; out < a->rows.out; out++) a->rows.reads[out].slot = larger(0, a->rows.reads[out].row) % a->depth;
  a->ring_floats = apart((size_t)a->depth * a->row_floats);
  const int fit = (int)(L2_FLOATS / a->ring_floats), line = 16 / WIDTH;
  a->group = a->x.at.c == 1 ? larger(fit / line, 1) * line : line;
}

/* Rows `from` to `to` of the results of image n, one vector of channels. */
static void convolve_rows(const struct convolution *a, int n, int c, int from, int to, const float *ring, float *row) {
  const int direct = a->y.at.c == 1 && c + WIDTH <= a->y.c;
  const float *filters = a->filters + (size_t)(c / WIDTH) * (size_t)a->rows.filter * a->filter_row;
  const ptrdiff_t y_step = direct ? a->y.at.w : WIDTH, next_row = direct ? a->y.at.h : 0;
  float *y = direct ? pixel(&a->y, n, c, from, 0) : row;
  struct source source = {
      .ring = ring, .depth = a->depth, .dilation_h = a->rows.dilation, .dilation_w = a->columns.dilation,
      .stride_w = a->columns.stride, .row_floats = a->row_floats, .filter_row = a->filter_row};
  for (int out = from; out < to; out++, y += next_row) {
    const struct reads *r = &a->rows.reads[out];
    source.filter = filters + (size_t)r->tap * a->filter_row;
    source.rows = r->count;
    source.slot = r->slot;
    convolve_row(&source, a->blocks, a->num_blocks, a->columns.phases, y, y_step);
    if (!direct) place_row(&a->y, n, c, out, row);
  }
}

/* Rows `from` to `to` of the results of image n, `groups` vectors of channels from c on. */
static void convolve_part(const struct convolution *a, int n, int c, int groups, int from, int to, float *ring,
                          float *row) {
  int held = 0; /* rows before this one are in the ring, the last `depth` of them */
  for (int step = from; step < to; step += a->step) {
    const int end = smaller(step + a->step, to);
    int first, last;
    span_of(&a->rows, step, end, &first, &last);
    for (held = larger(held, first); held <= last; held++)
      copy_row(&a->x, n, c, held, groups, ring + (size_t)(held % a->depth) * a->row_floats + a->before * WIDTH,
               a->ring_floats);
    for (int g = 0; g < groups; g++)
      convolve_rows(a, n, c + g * WIDTH, step, end, ring + (size_t)g * a->ring_floats + a->before * WIDTH, row);
  }
}

static int convolve_all(const struct convolution *a, const float *w, float *filters, int threads) {
  const int vectors = times(a->x.c, WIDTH), groups = times(vectors, a->group), steps = times(a->y.h, a->step);
  const int parts = smaller(steps, times(4 * threads, a->x.n * groups));
  const int rows = times(steps, parts) * a->step, units = a->x.n * groups * parts;
  const size_t of_vector = (size_t)a->rows.filter * a->filter_row;
  int failed = 0;
#pragma omp parallel num_threads(threads)
  {
    const size_t in_ring = (size_t)a->group * a->ring_floats, in_row = (size_t)larger(a->y.w, 8) * WIDTH;
    float *ring = scratch(1, in_ring + in_row);
    if (ring) {
      memset(ring, 0, in_ring * sizeof(float));
    } else {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(static)
    for (int v = 0; v < vectors; v++) pack_filters(a, w, v * WIDTH, filters + (size_t)v * of_vector);
#pragma omp for schedule(dynamic)
    for (int u = 0; u < units; u++) {
      const int part = u % parts, group = u / parts % groups, n = u / parts / groups;
      const int from = smaller(part * rows, a->y.h), to = smaller(from + rows, a->y.h);
      const int first = group * a->group, number = smaller(a->group, vectors - first);
      if (ring) convolve_part(a, n, first * WIDTH, number, from, to, ring, ring + in_ring);
    }
  }
  return failed ? NO_MEMORY : DONE;
}

static int convolve(struct convolution *a, const float *w, int threads) {
  const size_t floats = (size_t)times(a->x.c, WIDTH) * WIDTH * (size_t)(a->rows.filter * a->columns.filter);
  struct block *blocks = malloc((size_t)(a->columns.out + a->columns.phases) * sizeof(struct block));
  float *filters = scratch(0, floats);
  int failed = NO_MEMORY;
  if (blocks && filters) {
    int before, behind;
    a->filter_row = (size_t)a->columns.filter * WIDTH;
    a->num_blocks = plan_blocks(&a->columns, blocks, &before, &behind);
    a->blocks = blocks;
    a->filters = filters;
    plan_ring(a, before, behind);
    failed = convolve_all(a, w, filters, threads);
  }
  free(blocks);
  return failed;
}

static struct images inputs(const struct sizes *s, const float *data, const struct layout *at) {
  return (struct images){(float *)data, *at, s->n, s->c, s->h, s->w};
}

static struct images outputs(const struct sizes *s, const float *data, const struct layout *at) {
  return (struct images){(float *)data, *at, s->n, s->c, s->out_h, s->out_w};
}

/* x (n, c, h, w), w (c, r, s) -> y (n, c, out_h, out_w). Returns DONE or NO_MEMORY. */
int convoy_depthwise(const float *x, const struct layout *x_at, const struct sizes *s, const float *w, float *y,
                     const struct layout *y_at, int threads) {
  struct convolution a = {.x = inputs(s, x, x_at), .y = outputs(s, y, y_at)};
  int failed = forward_axis(&a.rows, s->h, s->out_h, s->r, s->stride_h, s->dilation_h, s->top);
  failed |= forward_axis(&a.columns, s->w, s->out_w, s->s, s->stride_w, s->dilation_w, s->left);
  if (!failed) failed = convolve(&a, w, threads);
  free_axis(&a.rows);
  free_axis(&a.columns);
  return failed;
}

/* dy (n, c, out_h, out_w), w (c, r, s) -> dx (n, c, h, w). Returns DONE or NO_MEMORY. */
int convoy_depthwise_input_gradient(const float *dy, const struct layout *dy_at, const struct sizes *s, const float *w,
                                    float *dx, const struct layout *dx_at, int threads) {
  struct convolution a = {.x = outputs(s, dy, dy_at), .y = inputs(s, dx, dx_at)};
  int failed = backward_axis(&a.rows, s->h, s->out_h, s->r, s->stride_h, s->dilation_h, s->top);
  failed |= backward_axis(&a.columns, s->w, s->out_w, s->s, s->stride_w, s->dilation_w, s->left);
  if (!failed) failed = convolve(&a, w, threads);
  free_axis(&a.rows);
  free_axis(&a.columns);
  return failed;
}

/* ---- The weight's gradient ---- */

/* `count` values of a filter's row from `tap` on, by which result 0 reads from column `in` on, and the blocks of columns
   of the output's gradient that meet pixels by them. */
struct taps {
  int tap, count, in, from, to;
};

struct gradient {
  struct images x, dy;
  struct axis rows, columns;
  const struct taps *taps;
  const int *starts; /* of blocks of columns, and the end of the last */
  int num_taps, step, depth, group, before, parts;
  size_t row_floats, ring_floats, grad_row, grads_floats, sums_floats;
  float *sums; /* [part][c / WIDTH][r][s][WIDTH] */
};

/* Rows of one vector of channels: gradients `grad_row` floats apart, the pixels that they meet by one row of the filter
   `stride_h` slots of the ring apart. */
struct pairs {
  const float *ring, *grads;
  int rows, slot, depth, stride_h, stride_w;
  size_t row_floats, grad_row;
};

/* sum[t] += x[j * STRIDE + t] * g[j] for j < B, in SETS sums by turns, since additions to one wait for each other. */
#define GATHER(B, STRIDE, TAPS, SETS)                                                     \
  _Pragma("GCC unroll 32") for (int i = 0; i < (B - 1) * STRIDE + TAPS; i++) {            \
    const vec of_pixel = load(x + i * WIDTH);                                             \
    _Pragma("GCC unroll 8") for (int t = 0; t < TAPS; t++)                                \
      if (i >= t && (i - t) % STRIDE == 0 && (i - t) / STRIDE < B)                        \
        sum[(i - t) / STRIDE % SETS][t] += of_pixel * load(g + (i - t) / STRIDE * WIDTH); \
  }
#define GATHER_ANY(B, STRIDE, TAPS, SETS)                \
  _Pragma("GCC unroll 8") for (int j = 0; j < B; j++)    \
    sum[j % SETS][0] += load(x + (ptrdiff_t)j * p->stride_w * WIDTH) * load(g + j * WIDTH);

#define CORRELATE(NAME, STRIDE, TAPS, SETS, GATHER_ALL)                                                       \
  static void NAME(const struct pairs *p, const struct taps *taps, const int *starts, float *to) {            \
    vec sum[SETS][TAPS] = {{{0}}};                                                                            \
    int slot = p->slot;                                                                                       \
    for (int row = 0; row < p->rows; row++) {                                                                 \
      const float *of_row = p->ring + (size_t)slot * p->row_floats + (ptrdiff_t)taps->in * WIDTH;             \
      const float *grads = p->grads + (size_t)row * p->grad_row;                                              \
      for (int b = taps->from; b < taps->to; b++) {                                                           \
        const float *x = of_row + (ptrdiff_t)starts[b] * p->stride_w * WIDTH, *g = grads + starts[b] * WIDTH; \
        switch (starts[b + 1] - starts[b]) {                                                                  \
          case 8: GATHER_ALL(8, STRIDE, TAPS, SETS) break;                                                    \
          case 7: GATHER_ALL(7, STRIDE, TAPS, SETS) break;                                                    \
          case 4: GATHER_ALL(4, STRIDE, TAPS, SETS) break;                                                    \
          default: GATHER_ALL(1, STRIDE, TAPS, SETS)                                                          \
        }                                                                                                     \
      }                                                                                                       \
      slot += p->stride_h;                                                                                    \
      if (slot >= p->depth) slot -= p->depth;                                                                 \
    }                                                                                                         \
    _Pragma("GCC unroll 8") for (int t = 0; t < TAPS; t++) {                                                  \
      vec all = sum[0][t];                                                                                    \
      _Pragma("GCC unroll 8") for (int set = 1; set < SETS; set++) all += sum[set][t];                        \
      store(to + t * WIDTH, load(to + t * WIDTH) + all);                                                      \
    }                                                                                                         \
  }
CORRELATE(gather_7, 1, 7, 1, GATHER) CORRELATE(second_gather_7, 2, 7, 1, GATHER)
CORRELATE(gather_5, 1, 5, 2, GATHER) CORRELATE(second_gather_5, 2, 5, 2, GATHER)
CORRELATE(gather_3, 1, 3, 3, GATHER) CORRELATE(second_gather_3, 2, 3, 3, GATHER)
CORRELATE(any_gather_1, 1, 1, 4, GATHER_ANY)

static void correlate(const struct pairs *p, const struct taps *taps, const int *starts, float *to) {
  const int second = p->stride_w == 2;
  if (taps->count == 7)
    (second ? second_gather_7 : gather_7)(p, taps, starts, to);
  else if (taps->count == 5)
    (second ? second_gather_5 : gather_5)(p, taps, starts, to);
  else if (taps->count == 3)
    (second ? second_gather_3 : gather_3)(p, taps, starts, to);
  else
    any_gather_1(p, taps, starts, to);
}

/* Blocks of columns of exactly 8, 7, 4 or 1, as their starts and the end of the last. Returns how many. */
static int plan_starts(int out, int *starts) {
  int number = 0, at = 0;
  while (at < out) {
    const int width = next_width(out - at);
    starts[number++] = at;
    at += width <= out - at ? width : out - at >= 4 ? 4 : 1;
  }
  starts[number] = out;
  return number;
}

/* Splits a row of the filter in 7, 5, 3 and 1 values, where they lie side by side. Returns how many parts, and the
   columns that they read beyond the images' in `before` and `behind`. */
static int plan_taps(const struct axis *a, const int *starts, int blocks, struct taps *taps, int *before, int *behind) {
  const int together = a->dilation == 1 && a->stride <= 2;
  int number = 0;
  *before = *behind = 0;
  for (int tap = 0; tap < a->filter; tap += taps[number++].count) {
    const int left = together ? a->filter - tap : 1, count = left >= 7 ? 7 : left >= 5 ? 5 : left >= 3 ? 3 : 1;
    struct taps t = {.tap = tap, .count = count, .in = a->of_phase->first + tap * a->dilation, .from = blocks};
    for (int b = 0; b < blocks; b++) {
      const int first = t.in + starts[b] * a->stride, last = t.in + (starts[b + 1] - 1) * a->stride + count - 1;
      if (last < 0 || first >= a->in) continue;
      t.from = smaller(t.from, b);
      t.to = b + 1;
      *before = larger(*before, -first);
      *behind = larger(*behind, last - a->in + 1);
    }
    taps[number] = t;
  }
  return number;
}

/* Gradients of rows `from` to `to` of one image with what they meet, added to the sums of one vector of channels. */
static void correlate_rows(const struct gradient *a, int from, int to, const float *ring, const float *grads,
                           float *sums) {
  const struct axis *rows = &a->rows;
  for (int r = 0; r < rows->filter; r++) {
    const int at = rows->of_phase->first + r * rows->dilation;
    const int first = larger(from, before_start(at, to, rows->stride));
    const int end = before_end(at, to, rows->stride, rows->in);
    if (first >= end) continue;
    const struct pairs pairs = {
        .ring = ring, .grads = grads + (size_t)(first - from) * a->grad_row, .rows = end - first,
        .slot = (at + first * rows->stride) % a->depth, .depth = a->depth, .stride_h = rows->stride % a->depth,
        .stride_w = a->columns.stride, .row_floats = a->row_floats, .grad_row = a->grad_row};
    for (int t = 0; t < a->num_taps; t++)
      correlate(&pairs, &a->taps[t], a->starts, sums + (size_t)(r * a->columns.filter + a->taps[t].tap) * WIDTH);
  }
}

/* Image n, added to the sums of `groups` vectors of channels from c on. */
static void correlate_image(const struct gradient *a, int n, int c, int groups, float *ring, float *grads,
                            float *sums) {
  int held = 0;
  for (int step = 0; step < a->dy.h; step += a->step) {
    const int end = smaller(step + a->step, a->dy.h);
    int first, last;
    span_of(&a->rows, step, end, &first, &last);
    for (held = larger(held, first); held <= last; held++)
      copy_row(&a->x, n, c, held, groups, ring + (size_t)(held % a->depth) * a->row_floats + a->before * WIDTH,
               a->ring_floats);
    for (int row = step; row < end; row++)
      copy_row(&a->dy, n, c, row, groups, grads + (size_t)(row - step) * a->grad_row, a->grads_floats);
    for (int g = 0; g < groups; g++)
      correlate_rows(a, step, end, ring + (size_t)g * a->ring_floats + a->before * WIDTH,
                     grads + (size_t)g * a->grads_floats, sums + (size_t)g * a->sums_floats);
  }
}

/* dw (c, r, s) = the sum of all parts, of channels c to c + WIDTH */
static void add_parts(const struct gradient *a, int c, float *dw) {
  const int all = a->rows.filter * a->columns.filter;
  const size_t part = (size_t)times(a->x.c, WIDTH) * a->sums_floats;
  for (int first = 0; first < all; first += 8) {
    const int many = smaller(8, all - first);
    float sums[8 * WIDTH] = {0};
    for (int t = 0; t < many; t++) {
      const float *from = a->sums + (size_t)(c / WIDTH) * a->sums_floats + (size_t)(first + t) * WIDTH;
      vec sum = {0};
      for (int p = 0; p < a->parts; p++) sum += load(from + (size_t)p * part);
      store(sums + t * WIDTH, sum);
    }
    for (int half = 0; half < WIDTH; half += 8) {
      float turned[64];
      transpose_8x8(sums + half, WIDTH, turned, 8);
      for (int i = 0; i < smaller(8, a->x.c - c - half); i++)
        memcpy(dw + (size_t)(c + half + i) * (size_t)all + (size_t)first, turned + 8 * i, (size_t)many * sizeof(float));
    }
  }
}

static int correlate_all(const struct gradient *a, float *dw, int threads) {
  const int vectors = times(a->x.c, WIDTH), groups = times(vectors, a->group);
  int failed = 0;
#pragma omp parallel num_threads(threads)
  {
    const size_t in_ring = (size_t)a->group * a->ring_floats, in_grads = (size_t)a->group * a->grads_floats;
    float *ring = scratch(1, in_ring + in_grads);
    if (ring) {
      memset(ring, 0, in_ring * sizeof(float));
    } else {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(dynamic)
    for (int u = 0; u < groups * a->parts; u++) {
      const int part = u / groups, first = u % groups * a->group, number = smaller(a->group, vectors - first);
      float *sums = a->sums + ((size_t)part * (size_t)vectors + (size_t)first) * a->sums_floats;
      memset(sums, 0, (size_t)number * a->sums_floats * sizeof(float));
      for (long n = (long)part * a->x.n / a->parts; n < (long)(part + 1) * a->x.n / a->parts && ring; n++)
        correlate_image(a, (int)n, first * WIDTH, number, ring, ring + in_ring, sums);
    }
#pragma omp for schedule(static)
    for (int v = 0; v < vectors; v++) add_parts(a, v * WIDTH, dw);
  }
  return failed ? NO_MEMORY : DONE;
}

static void plan_gradient(struct gradient *a, int before, int behind) {
  a->before = before;
  a->row_floats = (size_t)larger(before + a->x.w + behind, before + 8) * WIDTH;
  a->grad_row = (size_t)larger(a->dy.w, 8) * WIDTH;
  a->step = MOST_ROWS;
  while (a->step > 1 && (size_t)depth_of(&a->rows, a->step) * a->row_floats + (size_t)a->step * a->grad_row > L1_FLOATS)
    a->step--;
  a->depth = depth_of(&a->rows, a->step);
  a->ring_floats = apart((size_t)a->depth * a->row_floats);
  a->grads_floats = apart((size_t)a->step * a->grad_row);
  a->sums_floats = (size_t)(a->rows.filter * a->columns.filter) * WIDTH;
  const int fit = (int)(L2_FLOATS / (a->ring_floats + a->grads_floats + a->sums_floats)), line = 16 / WIDTH;
  a->group = a->x.at.c == 1 ? larger(fit / line, 1) * line : line;
  a->parts = smaller(a->x.n, times(UNITS, times(times(a->x.c, WIDTH), a->group)));
}

/* x (n, c, h, w), dy (n, c, out_h, out_w) -> dw (c, r, s). Returns DONE or NO_MEMORY. */
int convoy_depthwise_weight_gradient(const float *x, const struct layout *x_at, const struct sizes *s, const float *dy,
                                     const struct layout *dy_at, float *dw, int threads) {
  struct gradient a = {.x = inputs(s, x, x_at), .dy = outputs(s, dy, dy_at)};
  int *starts = malloc((size_t)(s->out_w + 1) * sizeof(int));
  struct taps *taps = malloc((size_t)s->s * sizeof(struct taps));
  int failed = forward_axis(&a.rows, s->h, s->out_h, s->r, s->stride_h, s->dilation_h, s->top);
  failed |= forward_axis(&a.columns, s->w, s->out_w, s->s, s->stride_w, s->dilation_w, s->left);
  if (!failed && starts && taps) {
    int before, behind;
    a.num_taps = plan_taps(&a.columns, starts, plan_starts(s->out_w, starts), taps, &before, &behind);
    a.starts = starts;
    a.taps = taps;
    plan_gradient(&a, before, behind);
    a.sums = scratch(0, (size_t)a.parts * (size_t)times(s->c, WIDTH) * a.sums_floats);
    failed = a.sums ? correlate_all(&a, dw, threads) : NO_MEMORY;
  } else {
    failed = NO_MEMORY;
  }
  free(starts);
  free(taps);
  free_axis(&a.rows);
  free_axis(&a.columns);
  return failed;
}
