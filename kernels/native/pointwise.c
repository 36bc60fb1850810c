/* Pointwise convolution (1 x 1, any stride) with its gradients, fp32, in either memory layout: matrix products.

   Of a few rows of one factor by a panel of the other at a time (gemm.h). With channels side by side (NHWC) rows are
   pixels, read where they lie, and panels are filters, packed once; with pixels side by side (NCHW) rows are filters
   and panels are pixels, packed a block at a time that stays in the second cache. The weight's gradient sums over
   pixels, in slices of them that have a sum each: panels are channels of the side that has fewer, packed a block of
   pixels at a time, and rows are channels of the other, read where they lie if they can be.

   With a stride, a pixel that is read has a cell of pixels that no other has; the rest of it gets a gradient of zero.

   What mattered (GFLOP/s on an AMD EPYC with AVX-512, 2 cores with a peak of 262 each, gcc 12.2, 8 images, medians of
   0.1 to 0.4 s, 2026-11; the machine was shared, to +-10 %):
   - The loop of products unrolled twice, and what it is told passed without copies: 235 -> 265 in the caches, 195 ->
     259 for sums of 28 products, one core.
   - Pixels that come next are fetched in even shares during the products of a block, not at once, and packed panel by
     panel: 164 -> 190 for the forward pass of 256-64@56 in NCHW, one core.
   - Few pixels by many filters are cut by filters too, so that these are read from the third cache less often: 326 ->
     383 for the forward pass of 512-2048@7 in NHWC, two cores.
   - Blocks of 128 pixels for the weight's gradient, not 256, whose lines push each other out of the first cache: 180 ->
     201 for 64-256@56 in NHWC, one core.

   Thread-safe: each thread keeps memory of its own to work in, which it never gives back. Results do not depend on the
   number of threads. */

#define _GNU_SOURCE
#include "gemm.h"

#define CACHE_3 (16 << 20)       /* bytes of the third cache that one call may count on */
#define MANY_FILTERS (64 << 10)  /* floats that do not stay in the second cache beside all else */
#define BLOCK (64 << 10)         /* floats of images that do */
#define MOST_PIXELS 192          /* of a block */
#define TASKS 16                 /* at least, if there is enough for so many: not by threads, so results are the same */
#define TILE 384                 /* channels of a tile of the weight's gradient, at most */
#define PIXELS 128               /* summed at a time */
#define SLICE 512                /* pixels that are worth a sum of their own */
#define SUMS (32 << 20)          /* floats that all sums may take */
#define SAME_SETS 1024           /* floats apart, lines share so few sets of the caches that they push each other out */

/* Floats from an image, a channel, a row and a column to the next. */
struct layout {
  long n, c, h, w;
};

/* What is convolved: n images of (h, w) results, from `from` channels to `to` of them; `in` and `out`: layouts of the
   pixels that meet. A pixel of the result stands for a cell of (cell_h, cell_w) in images of (full_h, full_w). */
struct sizes {
  int n, from, to, h, w, cell_h, cell_w, full_h, full_w;
  struct layout in, out;
};

/* Filters: `from` and `to` floats from one channel to the next. */
struct filters {
  const float *at;
  long from, to;
};

enum { FILTERS = 0, OWN = 1 };

INLINE int smaller(int a, int b) { return a < b ? a : b; }
INLINE int larger(int a, int b) { return a > b ? a : b; }
INLINE int times(int whole, int part) { return (whole + part - 1) / part; }

/* Where part number `i` of `parts` begins. */
INLINE int part_of(int whole, int parts, int i) { return (int)((long)whole * i / parts); }

static int num_pixels(const struct sizes *s) { return s->n * s->h * s->w; }

/* Pixels from number q on, `count` at most, that lie evenly, the first at `*at`. */
static int run_of(const struct sizes *s, const struct layout *by, int q, int count, long *at) {
  const int column = q % s->w, row = q / s->w % s->h, image = q / s->w / s->h;
  *at = image * by->n + row * by->h + column * by->w;
  if (by->h != s->w * by->w) return smaller(count, s->w - column);
  if (by->n != s->h * by->h) return smaller(count, s->h * s->w - row * s->w - column);
  return count;
}

/* One of the two that are multiplied: images or the gradient of results, of which the pixels meet. */
struct side {
  const float *at;
  const struct layout *by;
  int channels;
};

/* Packing -------------------------------------------------------------------------------------------------------- */

/* Filters of one panel, channels from `from` to `end`: [from][PANEL] */
static void pack_filters(const struct sizes *s, const struct filters *w, int panel, int from, int end, float *to) {
  const int first = panel * PANEL, many = smaller(PANEL, s->to - first);
  const float *at = w->at + first * w->to;
  if (many < PANEL) memset(to + (size_t)from * PANEL, 0, (size_t)(end - from) * PANEL * sizeof(float));
  if (w->from == 1)
    transpose(at + from, (size_t)w->to, (size_t)many, (size_t)(end - from), to + (size_t)from * PANEL, PANEL);
  else
    for (int c = from; c < end; c++) memcpy(to + (size_t)c * PANEL, at + c * w->from, (size_t)many * sizeof(float));
}

/* Pixels `step` apart, of a channel, side by side. */
INLINE void copy_channel(const float *from, long step, int many, float *to) {
  int j = 0;
  if (step == 1)
    for (int part; j < many; j += part) {
      part = smaller(WIDTH, many - j);
      store_part(to + j, load_part(from + j, part), part);
    }
  if (step == 2)
    for (; many - j > 8; j += 8) {
      const vec8 *pairs = (const vec8 *)(from + 2 * j);
      *(vec8 *)(to + j) = SHUFFLE(pairs[0], pairs[1], 0, 2, 4, 6, 8, 10, 12, 14);
    }
  for (; j < many; j++) to[j] = from[j * step];
}

/* Pixels from q on: panels of them [panel][channel][PANEL], zeros behind the last. */
static void pack_pixels(const struct sizes *s, const float *x, int q, int count, float *to) {
  const size_t panel = (size_t)s->from * PANEL;
  if (count % PANEL) memset(to + (size_t)(count / PANEL) * panel, 0, panel * sizeof(float));
  for (int done = 0, many; done < count; done += many) {
    long at;
    many = run_of(s, &s->in, q + done, smaller(count - done, PANEL - done % PANEL), &at);
    const float *from = x + at;
    float *put = to + (size_t)(done / PANEL) * panel + done % PANEL;
    if (s->in.w == 1 && many == PANEL) {
      for (int c = 0; c < s->from; c++, from += s->in.c, put += PANEL) {
        store(put, load(from));
        store(put + WIDTH, load(from + WIDTH));
      }
    } else {
      for (int c = 0; c < s->from; c++, from += s->in.c, put += PANEL) copy_channel(from, s->in.w, many, put);
    }
  }
}

/* Pixels from q on as rows of channels c to end, `row` floats apart. */
static void copy_rows(const struct sizes *s, const struct layout *by, const float *x, int q, int count, int c, int end,
                      float *to, size_t row) {
  for (int done = 0, many; done < count; done += many) {
    long at;
    many = run_of(s, by, q + done, count - done, &at);
    for (int i = 0; i < many; i++, to += row) memcpy(to, x + at + i * by->w + c, (size_t)(end - c) * sizeof(float));
  }
}

/* Zeros ---------------------------------------------------------------------------------------------------------- */

/* The pixels of the cells of `count` results from q on, which are read by none, of channels from c to `end`. */
static void clear_cells(const struct sizes *s, float *y, int q, int count, int c, int end) {
  const long by_h = s->out.h / s->cell_h, by_w = s->out.w / s->cell_w;
  for (int done = 0, many; done < count; done += many) {
    const int j = (q + done) % s->w, i = (q + done) / s->w % s->h, n = (q + done) / s->w / s->h;
    many = smaller(count - done, s->w - j);
    const int right = smaller(s->full_w, (j + many) * s->cell_w), bottom = smaller(s->full_h, (i + 1) * s->cell_h);
    for (int channel = c; channel < (s->out.c == 1 ? c + 1 : end); channel++)
      for (int row = i * s->cell_h; row < bottom; row++) {
        float *line = y + n * s->out.n + channel * s->out.c + row * by_h;
        if (s->out.c != 1)
          memset(line + j * s->cell_w, 0, (size_t)(right - j * s->cell_w) * sizeof(float));
        else
          for (int column = j * s->cell_w; column < right; column++)
            if (row % s->cell_h || column % s->cell_w)
              memset(line + column * by_w, 0, (size_t)(end - c) * sizeof(float));
      }
  }
}

/* Fetching ------------------------------------------------------------------------------------------------------- */

/* What is read soon, in parts that one call fetches each: parts are `next` floats apart, their lines `step`. */
struct ahead {
  const float *at;
  size_t step, next;
  int parts;
};

/* What the next block reads: `count` pixels from q on, channels c to `end`, a line of every pixel at a time, or of
   every channel if pixels lie side by side. What does not lie evenly is left out. */
static struct ahead ahead_of(const struct sizes *s, const struct side *side, int q, int count, int c, int end) {
  const struct layout *by = side->by;
  long at;
  if (count <= 0) return (struct ahead){side->at, 0, 0, 0};
  const int run = run_of(s, by, q, count, &at);
  const float *from = side->at + at + c * by->c;
  return by->c == 1 ? (struct ahead){from, (size_t)by->w, LINE, times(end - c, LINE)}
                    : (struct ahead){from, (size_t)by->c, LINE, times(run * (int)by->w, LINE)};
}

/* What call number `call` of `calls` fetches, so that the parts of both are spread evenly: a burst of them would
   wait for memory. Sets the step. */
static const float *share_of(const struct ahead *one, const struct ahead *two, int call, int calls, struct product *p) {
  const int parts = one->parts + two->parts, part = part_of(parts, calls, call);
  const struct ahead *of = part < one->parts ? one : two;
  const int fetches = part_of(parts, calls, call + 1) > part;
  p->fetch = fetches ? of->step : 0;
  return fetches ? of->at + (size_t)(part - (of == two ? one->parts : 0)) * of->next : AT_HAND(p);
}

/* Forward -------------------------------------------------------------------------------------------------------- */

/* What all tasks of a call share. `blocks` of the pixels, each in `parts` of the panels or rows of filters. `w`:
   filters, in panels or `w_row` apart. */
struct call {
  const struct sizes *s;
  const float *x, *w, *bias;
  float *y;
  size_t w_row;
  int blocks, parts, past, many_filters;
};

/* A few rows of results, channels side by side: pixels from q on by one panel. */
static void put_pixels(const struct call *call, struct product *p, int q, int rows, int panel, const float *a,
                       const float *b, const float *fetched) {
  const struct sizes *s = call->s;
  const float *start = call->bias + panel * PANEL;
  float *y = call->y + panel * PANEL, aside[8 * PANEL] __attribute__((aligned(64)));
  long to;
  const int whole = run_of(s, &s->out, q, rows, &to) == rows;
  p->c_row = whole ? (size_t)s->out.w : PANEL;
  p->past = whole && call->past;
  multiply_few(p, rows, a, b, whole ? y + to : aside, start, fetched);
  for (int r = 0; r < (whole ? 0 : rows); r++) {
    run_of(s, &s->out, q + r, 1, &to);
    memcpy(y + to, aside + r * PANEL, (size_t)p->columns * sizeof(float));
  }
}

/* Channels side by side: pixels from q to `end` by panels from `first` to `last`. */
static void by_pixels(const struct call *call, int q, int end, int first, int last, float *own) {
  const struct sizes *s = call->s;
  const size_t of_panel = (size_t)s->from * PANEL, part = (size_t)s->from * LINE;
  struct product p = {.a_row = (size_t)s->in.w, .a_deep = 1, .b_row = PANEL, .depth = s->from, .start = OF_COLUMNS};
  long at;
  const int in_place = run_of(s, &s->in, q, end - q, &at) == end - q, coming = in_place ? times(end - q, LINE) : 0;
  const float *x = in_place ? call->x + at : own;
  if (!in_place) {
    p.a_row = apart((size_t)s->from);
    copy_rows(s, &s->in, call->x, q, end - q, 0, s->from, own, p.a_row);
  }
  if (s->cell_h * s->cell_w > 1) clear_cells(s, call->y, q, end - q, first * PANEL, smaller(s->to, last * PANEL));
  for (int panel = first; panel < last; panel++) {
    const float *b = call->w + (size_t)panel * of_panel;
    const int done = part_of(coming, last - first, panel - first);
    const int then = part_of(coming, last - first, panel + 1 - first);
    const struct ahead filters = {b + of_panel, LINE, part, call->many_filters && panel + 1 < last ? 2 : 0};
    const struct ahead images = {x + (size_t)(end - q) * p.a_row + (size_t)done * part, LINE, part, then - done};
    p.columns = smaller(PANEL, s->to - panel * PANEL);
    const int groups = times(end - q, rows_for(p.columns));
    for (int g = 0, row = 0, next; g < groups; g++, row = next) {
      next = part_of(end - q, groups, g + 1);
      put_pixels(call, &p, q + row, next - row, panel, x + (size_t)row * p.a_row, b,
                 share_of(&filters, &images, g, groups, &p));
    }
  }
}

/* Some rows of results, lying aside, of `count` pixels from q on -> channels from c on. */
static void scatter(const struct sizes *s, const float *aside, int rows, int q, int count, float *y, int c) {
  for (int done = 0, many; done < count; done += many) {
    long at;
    many = run_of(s, &s->out, q + done, count - done, &at);
    for (int r = 0; r < rows; r++) {
      float *to = y + at + (c + r) * s->out.c;
      const float *from = aside + r * PANEL + done;
      if (s->out.w == 1)
        memcpy(to, from, (size_t)many * sizeof(float));
      else
        for (int j = 0; j < many; j++) to[j * s->out.w] = from[j];
    }
  }
}

/* A few rows of results, pixels side by side: filters from k on by a panel of `p->columns` pixels from q on. */
static void put_planes(const struct call *call, struct product *p, int q, int k, int rows, const float *b,
                       const float *fetched) {
  const struct sizes *s = call->s;
  float aside[8 * PANEL] __attribute__((aligned(64)));
  long to;
  const int whole = s->out.w == 1 && run_of(s, &s->out, q, p->columns, &to) == p->columns;
  p->c_row = whole ? (size_t)s->out.c : PANEL;
  p->past = whole && call->past;
  multiply_few(p, rows, call->w + (size_t)k * p->a_row, b, whole ? call->y + to + k * s->out.c : aside, call->bias + k,
               fetched);
  if (!whole) scatter(s, aside, rows, q, p->columns, call->y, k);
}

/* Pixels side by side: filters from `first` to `last` by pixels from q to `end`. */
static void by_planes(const struct call *call, int q, int end, int first, int last, float *own) {
  const struct sizes *s = call->s;
  struct product p = {.a_row = call->w_row, .a_deep = 1, .b_row = PANEL, .depth = s->from, .start = OF_ROWS};
  const struct side images = {call->x, &s->in, s->from};
  const struct ahead ahead = ahead_of(s, &images, end, smaller(end - q, num_pixels(s) - end), 0, s->from), none = {0};
  const int groups = times(last - first, rows_for(PANEL)), calls = groups * times(end - q, PANEL);
  pack_pixels(s, call->x, q, end - q, own);
  for (int g = 0, k = first, next, number = 0; g < groups; g++, k = next) {
    next = first + part_of(last - first, groups, g + 1);
    if (s->cell_h * s->cell_w > 1) clear_cells(s, call->y, q, end - q, k, next);
    for (int pixel = q; pixel < end; pixel += PANEL, number++) {
      p.columns = smaller(PANEL, end - pixel);
      put_planes(call, &p, pixel, k, next - k, own + (size_t)(pixel - q) * (size_t)s->from,
                 share_of(&ahead, &none, number, calls, &p));
    }
  }
}

/* Blocks of pixels, and parts of the filters if there are few of them: `least` filters are worth a part. */
static void plan(struct call *call, int unit, int least) {
  const struct sizes *s = call->s;
  const int units = times(num_pixels(s), unit);
  const int most = smaller(larger(1, BLOCK / (s->from * unit)), MOST_PIXELS / unit);
  call->blocks = times(units, most);
  call->parts = larger(1, smaller(s->to / least, times(TASKS, call->blocks)));
  call->blocks = larger(call->blocks, smaller(units, times(TASKS, call->parts)));
}

/* Whether results go past the caches: they are many, and whole lines. */
static int goes_past(const struct sizes *s, const float *y) {
  const size_t bytes = (size_t)num_pixels(s) * (size_t)s->to * sizeof(float);
  const long of_line = s->out.c == 1 ? s->out.w : s->out.c;
  return bytes > CACHE_3 / 4 && (uintptr_t)y % (4 * WIDTH) == 0 && of_line % WIDTH == 0 && s->out.n % WIDTH == 0;
}

/* Filters as the product needs them; part of a parallel region. */
static void prepare(const struct call *call, const struct filters *w, float *shared, int nhwc) {
  const struct sizes *s = call->s;
  const int some = 64, every = nhwc ? PANEL : 32;
  if (!nhwc && w->from == 1) return;
#pragma omp for schedule(static) collapse(2)
  for (int to = 0; to < s->to; to += every)
    for (int from = 0; from < s->from; from += some) {
      const int end = smaller(s->from, from + some);
      if (nhwc)
        pack_filters(s, w, to / PANEL, from, end, shared + (size_t)(to / PANEL) * (size_t)s->from * PANEL);
      else
        transpose(w->at + from * w->from + to, (size_t)w->from, (size_t)(end - from),
                  (size_t)smaller(every, s->to - to), shared + (size_t)to * call->w_row + from, call->w_row);
    }
}

/* x (n, from, ...) -> y (n, to, ...). `bias` (to), or NULL. Returns DONE or NO_MEMORY. */
int convoy_pointwise(const float *x, const struct sizes *s, const struct filters *w, const float *bias, float *y,
                     int threads) {
  const int nhwc = s->in.c == 1 && s->out.c == 1, unit = nhwc ? 6 : PANEL;
  const size_t starts = (size_t)panels(s->to) * PANEL;
  float *shared = scratch(FILTERS, starts + starts * apart((size_t)s->from));
  if (!shared) return NO_MEMORY;
  float *weights = shared + starts;
  memset(shared, 0, starts * sizeof(float));
  if (bias) memcpy(shared, bias, (size_t)s->to * sizeof(float));
  struct call call = {.s = s, .x = x, .w = weights, .bias = shared, .y = y, .past = goes_past(s, y)};
  call.many_filters = starts * (size_t)s->from > MANY_FILTERS;
  call.w_row = apart((size_t)s->from);
  if (!nhwc && w->from == 1) call.w = w->at, call.w_row = (size_t)w->to;
  plan(&call, unit, nhwc ? 4 * PANEL : 256);
  const int units = times(num_pixels(s), unit), filters = nhwc ? panels(s->to) : s->to;
  const size_t most = (size_t)(times(units, call.blocks) * unit);
  int failed = DONE;
  prefer_huge(y, (size_t)(s->n * s->full_h) * (size_t)s->full_w * (size_t)s->to);
#pragma omp parallel num_threads(threads)
  {
    prepare(&call, w, weights, nhwc);
    float *own = scratch(OWN, most * apart((size_t)s->from));
    if (!own) {
#pragma omp atomic write
      failed = NO_MEMORY;
    }
#pragma omp for schedule(dynamic) collapse(2)
    for (int block = 0; block < call.blocks; block++)
      for (int part = 0; part < call.parts; part++) {
        const int q = part_of(units, call.blocks, block) * unit;
        const int end = smaller(num_pixels(s), part_of(units, call.blocks, block + 1) * unit);
        if (own)
          (nhwc ? by_pixels : by_planes)(&call, q, end, part_of(filters, call.parts, part),
                                         part_of(filters, call.parts, part + 1), own);
      }
    FENCE();
  }
  return failed;
}

/* Weight gradient ------------------------------------------------------------------------------------------------ */

/* Sums of products over pixels, [slice][channel of rows][row]: the rows' side is the one with more channels, which
   costs less to prepare. Tiles of them are summed apart. */
struct gradient {
  const struct sizes *s;
  struct side rows, columns;
  float *sums;
  size_t row, sum;
  int slices, tiles_down, tiles_across;
};

/* Channels c to `end` of pixels from q on, where they lie or copied, pixels side by side and `*row` from a channel
   to the next. */
static const float *by_channels(const struct sizes *s, const struct side *side, int q, int count, int c, int end,
                                float *own, size_t *row) {
  const struct layout *by = side->by;
  long at;
  *row = (size_t)by->c;
  if (by->w == 1 && run_of(s, by, q, count, &at) == count) return side->at + at + c * by->c;
  *row = apart((size_t)count);
  for (int done = 0, run; done < count; done += run) {
    run = run_of(s, by, q + done, count - done, &at);
    for (int i = c; i < end; i++)
      copy_channel(side->at + at + i * by->c, by->w, run, own + (size_t)(i - c) * *row + done);
  }
  return own;
}

/* Channels c to `end` of pixels from q on: [panel][pixel][PANEL], zeros behind the last. `aside`: room for a panel. */
static void pack_channels(const struct sizes *s, const struct side *side, int q, int count, int c, int end, float *to,
                          float *aside) {
  const struct layout *by = side->by;
  for (; c < end; c += PANEL, to += (size_t)count * PANEL) {
    const int many = smaller(PANEL, end - c);
    if (many < PANEL) memset(to, 0, (size_t)count * PANEL * sizeof(float));
    if (by->c != 1) {
      size_t row;
      const float *from = by_channels(s, side, q, count, c, c + many, aside, &row);
      transpose(from, row, (size_t)many, (size_t)count, to, PANEL);
      continue;
    }
    for (int done = 0, run; done < count; done += run) {
      long at;
      run = run_of(s, by, q + done, count - done, &at);
      const float *from = side->at + at + c;
      float *put = to + (size_t)done * PANEL;
      for (int i = 0; i < run; i++, from += by->w, put += PANEL) copy_channel(from, 1, many, put);
    }
  }
}

/* Channels k to `end` of the rows' side at pixels from q on, where they lie or copied: the first factor. */
static const float *first_factor(const struct gradient *g, int q, int count, int k, int end, float *own,
                                 struct product *p) {
  const struct layout *by = g->rows.by;
  long at;
  p->a_row = p->a_deep = 1;
  if (by->c != 1) return by_channels(g->s, &g->rows, q, count, k, end, own, &p->a_row);
  p->a_deep = (size_t)by->w;
  if (by->w % SAME_SETS && run_of(g->s, by, q, count, &at) == count) return g->rows.at + at + k;
  p->a_deep = apart((size_t)(end - k));
  copy_rows(g->s, by, g->rows.at, q, count, k, end, own, p->a_deep);
  return own;
}

/* Where the block ends that begins at pixel q of a slice: at most PIXELS on, and not beyond an image that is large. */
static int block_end(const struct sizes *s, int q, int stop) {
  const int image = s->h * s->w, left = smaller(stop, image < PIXELS / 2 ? stop : (q / image + 1) * image) - q;
  return q + times(left, times(left, PIXELS));
}

static void sum_tile(const struct gradient *g, int slice, int down, int across, float *own) {
  const struct sizes *s = g->s;
  const int k = part_of(g->rows.channels, g->tiles_down, down);
  const int last = part_of(g->rows.channels, g->tiles_down, down + 1);
  const int all = panels(g->columns.channels), c = part_of(all, g->tiles_across, across) * PANEL;
  const int end = smaller(g->columns.channels, part_of(all, g->tiles_across, across + 1) * PANEL);
  const int begin = part_of(num_pixels(s), g->slices, slice), stop = part_of(num_pixels(s), g->slices, slice + 1);
  float *packed = own + PANEL * (PIXELS + PANEL), *copied = packed + (TILE + PANEL) * PIXELS;
  float *sum = g->sums + (size_t)slice * g->sum + (size_t)k * g->row + (size_t)c;
  for (int q = begin, next; q < stop; q = next) {
    next = block_end(s, q, stop);
    const int coming = next < stop ? block_end(s, next, stop) - next : 0;
    const struct ahead rows = ahead_of(s, &g->rows, next, coming, k, last);
    const struct ahead columns = ahead_of(s, &g->columns, next, coming, c, end);
    struct product p = {.b_row = PANEL, .c_row = g->row, .depth = next - q, .start = q > begin ? PLACE : NOTHING};
    pack_channels(s, &g->columns, q, next - q, c, end, packed, own);
    const float *a = first_factor(g, q, next - q, k, last, copied, &p);
    for (int panel = 0; panel < panels(end - c); panel++) {
      const float *b = packed + (size_t)(panel * (next - q)) * PANEL;
      p.columns = smaller(PANEL, end - c - panel * PANEL);
      const int groups = times(last - k, rows_for(p.columns));
      for (int group = 0, first = 0, after; group < groups; group++, first = after) {
        after = part_of(last - k, groups, group + 1);
        const float *fetched = share_of(&rows, &columns, panel * groups + group, panels(end - c) * groups, &p);
        multiply_few(&p, after - first, a + (size_t)first * p.a_row, b, sum + (size_t)first * g->row + panel * PANEL,
                     NULL, fetched);
      }
    }
  }
}

/* Rows from `first` on of all slices -> dw (rows, columns), or (columns, rows) if it is `turned`. */
static void add_slices(const struct gradient *g, int first, int rows, int turned, float *dw) {
  const size_t columns = (size_t)g->columns.channels;
  float *sum = g->sums + (size_t)first * g->row;
  for (size_t r = 0; r < (size_t)rows; r++)
    for (size_t c = 0; c < columns; c += WIDTH) {
      float *at = sum + r * g->row + c;
      vec total = load(at);
      for (size_t slice = 1; slice < (size_t)g->slices; slice++) total += load(at + slice * g->sum);
      store(at, total);
    }
  if (turned)
    transpose(sum, g->row, (size_t)rows, columns, dw + first, (size_t)g->rows.channels);
  else
    for (size_t r = 0; r < (size_t)rows; r++)
      memcpy(dw + ((size_t)first + r) * columns, sum + r * g->row, columns * sizeof(float));
}

/* x (n, from, ...), dy (n, to, ...) -> dw (to, from). Returns DONE or NO_MEMORY. */
int convoy_pointwise_weight_gradient(const float *x, const struct sizes *s, const float *dy, float *dw, int threads) {
  const struct side images = {x, &s->in, s->from}, results = {dy, &s->out, s->to};
  const int turned = s->from > s->to, some = 16;
  struct gradient g = {.s = s, .rows = turned ? images : results, .columns = turned ? results : images};
  g.row = apart((size_t)panels(g.columns.channels) * PANEL);
  g.sum = g.row * (size_t)g.rows.channels;
  g.tiles_down = times(g.rows.channels, TILE);
  g.tiles_across = times(g.columns.channels, TILE);
  const int worth = smaller(num_pixels(s) / SLICE, (int)(SUMS / g.sum));
  g.slices = larger(1, smaller(worth, times(TASKS, g.tiles_down * g.tiles_across)));
  g.sums = scratch(FILTERS, (size_t)g.slices * g.sum);
  if (!g.sums) return NO_MEMORY;
  int failed = DONE;
#pragma omp parallel num_threads(threads)
  {
    float *own = scratch(OWN, PANEL * (PIXELS + PANEL) + (TILE + PANEL) * PIXELS + (TILE + PANEL) * (PIXELS + PANEL));
    if (!own) {
#pragma omp atomic write
      failed = NO_MEMORY;
    }
#pragma omp for schedule(dynamic) collapse(3)
    for (int slice = 0; slice < g.slices; slice++)
      for (int down = 0; down < g.tiles_down; down++)
        for (int across = 0; across < g.tiles_across; across++)
          if (own) sum_tile(&g, slice, down, across, own);
#pragma omp for schedule(static)
    for (int k = 0; k < g.rows.channels; k += some)
      add_slices(&g, k, smaller(some, g.rows.channels - k), turned, dw);
  }
  return failed;
}
