/* Winograd's F(4x4, 3x3) with its gradients, fp32, for images in NHWC.

   A block of tiles at a time, so that all between image and result stays in cache: tiles are transformed (B^T d B), the
   36 points multiplied by the transformed filters as 36 small matrix products, and the products transformed back
   (A^T m A) and written past the cache. The weight gradient is F(3x3, 4x4), with the same points: 0, +-5/8, +-3/2 and
   infinity (kernels/winograd_points.py derives the matrices).

   Written with the compiler's vectors, WIDTH floats each: AVX-512, AVX2, or pairs of what else there is. Thread-safe:
   each thread keeps memory of its own to work in, which it never gives back.

   Source: Lavin & Gray 2015 (arXiv:1509.09308), section 4. */

#define _GNU_SOURCE
#include "vectors.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define PANEL (2 * WIDTH) /* filters side by side in the transformed weights */
#define SIDE 6            /* of an input tile: F(4x4, 3x3) */
#define POINTS (SIDE * SIDE)
#define OUT 4 /* of a tile of results */
#define CHUNK 256 /* channels: with more, a panel of filters leaves the first cache */
#define A 0.625f
#define B 1.5f

static const float P = A * A, Q = B * B;

/* B^T d of one column. */
INLINE void input_1d(const vec d[SIDE], vec out[SIDE]) {
  const vec even_a = d[4] - Q * d[2], odd_a = A * (d[3] - Q * d[1]);
  const vec even_b = d[4] - P * d[2], odd_b = B * (d[3] - P * d[1]);
  out[0] = P * Q * d[0] - (P + Q) * d[2] + d[4];
  out[1] = even_a + odd_a;
  out[2] = even_a - odd_a;
  out[3] = even_b + odd_b;
  out[4] = even_b - odd_b;
  out[5] = P * Q * d[1] - (P + Q) * d[3] + d[5];
}

/* A^T m of one column. */
INLINE void output_1d(const vec m[SIDE], vec out[OUT]) {
  const vec plus_a = m[1] + m[2], minus_a = A * (m[1] - m[2]);
  const vec plus_b = m[3] + m[4], minus_b = B * (m[3] - m[4]);
  out[0] = m[0] + plus_a + plus_b;
  out[1] = minus_a + minus_b;
  out[2] = P * plus_a + Q * plus_b;
  out[3] = P * minus_a + Q * minus_b + m[5];
}

/* G g of one column. */
INLINE void weight_1d(const vec g[3], vec out[SIDE]) {
  const float f0 = 1 / (P * Q), fa = 1 / (2 * P * (P - Q)), fb = 1 / (2 * Q * (Q - P));
  const vec even_a = fa * (g[0] + P * g[2]), odd_a = fa * A * g[1];
  const vec even_b = fb * (g[0] + Q * g[2]), odd_b = fb * B * g[1];
  out[0] = f0 * g[0];
  out[1] = even_a + odd_a;
  out[2] = even_a - odd_a;
  out[3] = even_b + odd_b;
  out[4] = even_b - odd_b;
  out[5] = g[2];
}

#define TRANSFORM(name, one_d, FROM, TO)                                 \
  INLINE void name(const vec in[FROM][FROM], vec out[TO][TO]) {          \
    vec half[TO][FROM];                                                  \
    for (int j = 0; j < FROM; j++) {                                     \
      vec column[FROM], made[TO];                                        \
      for (int i = 0; i < FROM; i++) column[i] = in[i][j];               \
      one_d(column, made);                                               \
      for (int i = 0; i < TO; i++) half[i][j] = made[i];                 \
    }                                                                    \
    for (int i = 0; i < TO; i++) one_d(half[i], out[i]);                 \
  }
TRANSFORM(input_2d, input_1d, SIDE, SIDE)
TRANSFORM(output_2d, output_1d, SIDE, OUT)
TRANSFORM(weight_2d, weight_1d, 3, SIDE)

static int panels(int filters) { return (filters + PANEL - 1) / PANEL; }

/* (K, C, 3, 3), in any order of K and C -> [36][K / PANEL][C][PANEL] */
static void transform_filters(const float *w, long stride_k, long stride_c, int K, int C, int rotate, float *u,
                              int threads) {
  const size_t point = apart((size_t)panels(K) * (size_t)C * PANEL);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int panel = 0; panel < panels(K); panel++)
    for (int c = 0; c < C; c++) {
      float taps[9][PANEL] = {{0}};
      for (int k = 0; k < PANEL && panel * PANEL + k < K; k++) {
        const float *from = w + (panel * PANEL + k) * stride_k + c * stride_c;
        for (int t = 0; t < 9; t++) taps[rotate ? 8 - t : t][k] = from[t];
      }
      float *to = u + ((size_t)panel * (size_t)C + (size_t)c) * PANEL;
      for (int half = 0; half < PANEL; half += WIDTH) {
        vec in[3][3], out[SIDE][SIDE];
        for (int t = 0; t < 9; t++) in[t / 3][t % 3] = load(&taps[t][half]);
        weight_2d(in, out);
        for (int p = 0; p < POINTS; p++) store(to + (size_t)p * point + half, out[p / SIDE][p % SIDE]);
      }
    }
}

/* m[rows][ldm] = v[rows][C] times one panel u[C][PANEL] */
#define KERNEL(ROWS)                                                                                           \
  static void multiply_##ROWS(const float *v, const float *u, float *m, int C, int chunk, int add, size_t ldm) {                   \
    vec sum[ROWS][2];                                                                                          \
    for (int r = 0; r < ROWS; r++) {                                                                           \
      sum[r][0] = add ? load(m + (size_t)r * ldm) : (vec){0};                                                  \
      sum[r][1] = add ? load(m + (size_t)r * ldm + WIDTH) : (vec){0};                                          \
    }                                           \
    for (int c = 0; c < chunk; c++, u += PANEL) {                                                                  \
      const vec one = load(u), two = load(u + WIDTH);                                                          \
      _Pragma("GCC unroll 16") for (int r = 0; r < ROWS; r++) {                                                \
        const vec value = splat(v[(size_t)r * (size_t)C + (size_t)c]);                                         \
        sum[r][0] += value * one;                                                                              \
        sum[r][1] += value * two;                                                                              \
      }                                                                                                        \
    }                                                                                                          \
    for (int r = 0; r < ROWS; r++) {                                                                           \
      store(m + (size_t)r * ldm, sum[r][0]);                                                                   \
      store(m + (size_t)r * ldm + WIDTH, sum[r][1]);                                                           \
    }                                                                                                          \
  }
KERNEL(6) KERNEL(4) KERNEL(2) KERNEL(1)

#define ROWS_OF(ROWS) \
  for (; t + ROWS <= T; t += ROWS) \
    multiply_##ROWS(v + (size_t)t * C + from, of_panel, m + (size_t)t * ldm + panel * PANEL, C, chunk, from > 0, ldm)

static void multiply(const float *v, const float *u, float *m, int T, int C, int K) {
  const size_t ldm = (size_t)panels(K) * PANEL;
  for (int from = 0; from < C; from += CHUNK) {
    const int chunk = C - from < CHUNK ? C - from : CHUNK;
    for (int panel = 0; panel < panels(K); panel++) {
      const float *of_panel = u + ((size_t)panel * C + from) * PANEL;
      int t = 0;
      ROWS_OF(6);
      ROWS_OF(4);
      ROWS_OF(2);
      ROWS_OF(1);
    }
  }
}

/* What is convolved: images (n, h, w, c) to (n, out_h, out_w, k), `top` and `left` zeros before the first pixel. */
struct sizes {
  int n, h, w, c, top, left, out_h, out_w, k;
};

struct tile {
  int n, row, column;
};

static int tiles_down(const struct sizes *s) { return (s->out_h + OUT - 1) / OUT; }
static int tiles_across(const struct sizes *s) { return (s->out_w + OUT - 1) / OUT; }
static int num_tiles(const struct sizes *s) { return s->n * tiles_down(s) * tiles_across(s); }

static struct tile tile_at(const struct sizes *s, int number) {
  const int across = tiles_across(s), of_image = tiles_down(s) * across;
  return (struct tile){number / of_image, number / across % tiles_down(s) * OUT, number % across * OUT};
}

/* Where the channels of SIDE x SIDE pixels from (row, column) on lie; those outside of the image are `zeros`. */
INLINE void pixels_at(const float **places, int side, const float *images, int h, int w, int c, struct tile at,
                      const float *zeros) {
  for (int p = 0; p < side * side; p++) {
    const int i = at.row + p / side, j = at.column + p % side;
    const int inside = i >= 0 && i < h && j >= 0 && j < w;
    places[p] = inside ? images + (((size_t)at.n * (size_t)h + (size_t)i) * (size_t)w + (size_t)j) * (size_t)c : zeros;
  }
}

enum { FILTERS = 0, TILES = 1 };

/* Channels of one tile, WIDTH at a time, to `to` + group * group_step + point * point_step; zeros behind the last. */
#define SPREAD_TILE(name, two_d, FROM)                                                                      \
  INLINE void name(const float *const *px, int channels, float *to, size_t group_step, size_t point_step) { \
    for (int c = 0; c < channels; c += WIDTH, to += group_step) {                                           \
      vec in[FROM][FROM], out[SIDE][SIDE];                                                                  \
      if (c + WIDTH <= channels) {                                                                          \
        for (int p = 0; p < FROM * FROM; p++) in[p / FROM][p % FROM] = load(px[p] + c);                     \
      } else {                                                                                              \
        for (int p = 0; p < FROM * FROM; p++) {                                                             \
          vec tail = {0};                                                                                   \
          memcpy(&tail, px[p] + c, (size_t)(channels - c) * 4);                                             \
          in[p / FROM][p % FROM] = tail;                                                                    \
        }                                                                                                   \
      }                                                                                                     \
      two_d(in, out);                                                                                       \
      for (int p = 0; p < POINTS; p++) store(to + (size_t)p * point_step, out[p / SIDE][p % SIDE]);         \
    }                                                                                                       \
  }
SPREAD_TILE(spread_input, input_2d, SIDE)

#if defined(__AVX512F__)
#define STREAM(to, value) _mm512_stream_ps(to, (__m512)(value))
#elif defined(__AVX__)
#define STREAM(to, value) _mm256_stream_ps(to, (__m256)(value))
#else
#define STREAM(to, value) store(to, value)
#endif

/* Whole lines past the cache: two vectors of filters at a time. */
INLINE void write_tile(const float *m, size_t mpoint, int K, int OW, int rows, int columns, float *y) {
  const int aligned = ((uintptr_t)y % (4 * WIDTH) == 0) && K % WIDTH == 0;
  int k = 0;
  if (aligned)
    for (; k + PANEL <= K; k += PANEL) {
      vec in[SIDE][SIDE], out[2][OUT][OUT];
      for (int half = 0; half < 2; half++) {
        for (int p = 0; p < POINTS; p++) in[p / SIDE][p % SIDE] = load(m + p * mpoint + k + half * WIDTH);
        output_2d(in, out[half]);
      }
      for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) {
          float *to = y + ((size_t)i * OW + j) * K + k;
          STREAM(to, out[0][i][j]);
          STREAM(to + WIDTH, out[1][i][j]);
        }
    }
  for (; k < K; k += WIDTH) {
    vec in[SIDE][SIDE], out[OUT][OUT];
    for (int p = 0; p < POINTS; p++) in[p / SIDE][p % SIDE] = load(m + p * mpoint + k);
    output_2d(in, out);
    const int many = K - k < WIDTH ? K - k : WIDTH;
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < columns; j++) memcpy(y + ((size_t)i * OW + j) * K + k, &out[i][j], (size_t)many * 4);
  }
}

/* One block of tiles, from images to results. */
static void convolve_block(const float *x, const struct sizes *s, int first, int count, const float *u,
                           float *v, size_t vpoint, float *m, size_t mpoint, const float *zeros, float *y) {
  const int filters = panels(s->k) * PANEL;
  const size_t upoint = apart((size_t)filters * (size_t)s->c);
  for (int t = 0; t < count; t++) {
    const float *places[POINTS];
    struct tile at = tile_at(s, first + t);
    at.row -= s->top;
    at.column -= s->left;
    pixels_at(places, SIDE, x, s->h, s->w, s->c, at, zeros);
    /* Zeros behind the last channel lie where the next tile begins, which is yet to come, or behind the last tile. */
    spread_input(places, s->c, v + (size_t)t * (size_t)s->c, WIDTH, vpoint);
  }
  for (size_t p = 0; p < POINTS; p++) multiply(v + p * vpoint, u + p * upoint, m + p * mpoint, count, s->c, s->k);
  for (int t = 0; t < count; t++) {
    const struct tile at = tile_at(s, first + t);
    const int rows = s->out_h - at.row < OUT ? s->out_h - at.row : OUT;
    const int columns = s->out_w - at.column < OUT ? s->out_w - at.column : OUT;
    const size_t pixel = ((size_t)at.n * (size_t)s->out_h + (size_t)at.row) * (size_t)s->out_w + (size_t)at.column;
    write_tile(m + (size_t)t * (size_t)filters, mpoint, s->k, s->out_w, rows, columns, y + pixel * (size_t)s->k);
  }
}

/* x (n, h, w, c), w (k, c, 3, 3) -> y (n, out_h, out_w, k). The filters lie at w + k * stride_k + c * stride_c, and are
   rotated by 180 degrees for the gradient of the input. `block`: tiles at a time. Returns DONE or NO_MEMORY. */
int convoy_winograd(const float *x, const struct sizes *s, const float *w, long stride_k, long stride_c, int rotate,
                    float *y, int block, int threads) {
  const int all = num_tiles(s), blocks = (all + block - 1) / block, filters = panels(s->k) * PANEL;
  float *zeros = calloc((size_t)s->c + WIDTH, sizeof(float));
  float *u = scratch(FILTERS, POINTS * apart((size_t)filters * (size_t)s->c));
  int failed = !zeros || !u;
  if (!failed) transform_filters(w, stride_k, stride_c, s->k, s->c, rotate, u, threads);
#pragma omp parallel num_threads(threads) if (!failed)
  {
    const size_t vpoint = apart((size_t)block * (size_t)s->c), mpoint = apart((size_t)block * (size_t)filters);
    float *v = failed ? NULL : scratch(TILES, POINTS * (vpoint + mpoint));
    if (!v) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(dynamic)
    for (int b = 0; b < blocks; b++) {
      const int first = b * block, count = first + block < all ? block : all - first;
      if (v) convolve_block(x, s, first, count, u, v, vpoint, v + POINTS * vpoint, mpoint, zeros, y);
    }
#if defined(__x86_64__)
    _mm_sfence();
#endif
  }
  free(zeros);
  return failed ? NO_MEMORY : DONE;
}

/* A^T of F(3x3, 4x4), whose points are the same. */
INLINE void gradient_1d(const vec m[SIDE], vec out[3]) {
  const vec plus_a = m[1] + m[2], plus_b = m[3] + m[4];
  out[0] = m[0] + plus_a + plus_b;
  out[1] = A * (m[1] - m[2]) + B * (m[3] - m[4]);
  out[2] = P * plus_a + Q * plus_b + m[5];
}

/* G of F(3x3, 4x4) times 4 gradients of the output. */
INLINE void spread_1d(const vec g[OUT], vec out[SIDE]) {
  const float f0 = 1 / (P * Q), fa = 1 / (2 * P * (P - Q)), fb = 1 / (2 * Q * (Q - P));
  const vec even_a = fa * (g[0] + P * g[2]), odd_a = fa * A * (g[1] + P * g[3]);
  const vec even_b = fb * (g[0] + Q * g[2]), odd_b = fb * B * (g[1] + Q * g[3]);
  out[0] = f0 * g[0];
  out[1] = even_a + odd_a;
  out[2] = even_a - odd_a;
  out[3] = even_b + odd_b;
  out[4] = even_b - odd_b;
  out[5] = g[3];
}
TRANSFORM(gradient_2d, gradient_1d, SIDE, 3)
TRANSFORM(spread_2d, spread_1d, OUT, SIDE)
SPREAD_TILE(spread_output, spread_2d, OUT)

#define ROWS_W (WIDTH / 2)

/* sum[r][k] += v[t][r] * g[t][k] over t; v (T, WIDTH), g two panels of (T, WIDTH) */
static void outer(const float *v, const float *g, const float *g2, int T, float *sum, size_t ld, int add) {
  vec acc[ROWS_W][2];
  for (int r = 0; r < ROWS_W; r++) {
    acc[r][0] = add ? load(sum + r * ld) : (vec){0};
    acc[r][1] = add ? load(sum + r * ld + WIDTH) : (vec){0};
  }
  for (int t = 0; t < T; t++, v += WIDTH, g += WIDTH, g2 += WIDTH) {
    const vec one = load(g), two = load(g2);
    _Pragma("GCC unroll 16") for (int r = 0; r < ROWS_W; r++) {
      acc[r][0] += splat(v[r]) * one;
      acc[r][1] += splat(v[r]) * two;
    }
  }
  for (int r = 0; r < ROWS_W; r++) {
    store(sum + r * ld, acc[r][0]);
    store(sum + r * ld + WIDTH, acc[r][1]);
  }
}

static int groups(int channels) { return (channels + WIDTH - 1) / WIDTH; }

/* Two transformed sets of tiles, and their sums of products over tiles. Groups are of WIDTH channels. */
struct gradient {
  const struct sizes *sizes;
  int c_groups, k_groups;
  size_t group, v_point, g_point, row, sum_point;
  float *v, *g, *sum;
};

static void spread_tile(const struct gradient *a, const float *x, const float *dy, int tile, int t, const float *zeros) {
  const struct sizes *s = a->sizes;
  const float *places[POINTS];
  struct tile at = tile_at(s, tile);
  pixels_at(places, OUT, dy, s->out_h, s->out_w, s->k, at, zeros);
  spread_output(places, s->k, a->g + (size_t)t * WIDTH, a->group, a->g_point);
  if (groups(s->k) < a->k_groups)
    for (size_t p = 0; p < POINTS; p++)
      memset(a->g + p * a->g_point + (size_t)(a->k_groups - 1) * a->group + (size_t)t * WIDTH, 0, sizeof(vec));
  at.row -= s->top;
  at.column -= s->left;
  pixels_at(places, SIDE, x, s->h, s->w, s->c, at, zeros);
  spread_input(places, s->c, a->v + (size_t)t * WIDTH, a->group, a->v_point);
}

static void sum_products(const struct gradient *a, int point, int c, int count, int add) {
  const float *v = a->v + (size_t)point * a->v_point + (size_t)c * a->group;
  const float *g = a->g + (size_t)point * a->g_point;
  float *sum = a->sum + (size_t)point * a->sum_point + (size_t)c * WIDTH * a->row;
  for (int k = 0; k < a->k_groups; k += 2, g += 2 * a->group, sum += PANEL)
    for (size_t r = 0; r < WIDTH; r += ROWS_W) outer(v + r, g, g + a->group, count, sum + r * a->row, a->row, add);
}

static void write_filters(const struct gradient *a, int k, float *dw) {
  const int channels = a->sizes->c, filters = a->sizes->k;
  for (int c = 0; c < channels; c++) {
    vec in[SIDE][SIDE], out[3][3];
    float taps[9][WIDTH];
    for (size_t p = 0; p < POINTS; p++)
      in[p / SIDE][p % SIDE] = load(a->sum + p * a->sum_point + (size_t)c * a->row + (size_t)k);
    gradient_2d(in, out);
    for (int p = 0; p < 9; p++) store(taps[p], out[p / 3][p % 3]);
    for (int i = 0; i < WIDTH && k + i < filters; i++)
      for (int p = 0; p < 9; p++) dw[((size_t)(k + i) * (size_t)channels + (size_t)c) * 9 + (size_t)p] = taps[p][i];
  }
}

/* x (n, h, w, c), dy (n, out_h, out_w, k) -> dw (k, c, 3, 3). `chunk`: tiles at a time. Returns DONE or NO_MEMORY. */
int convoy_winograd_weight_gradient(const float *x, const struct sizes *s, const float *dy, float *dw, int chunk,
                                    int threads) {
  struct gradient a = {.sizes = s, .c_groups = groups(s->c), .k_groups = 2 * panels(s->k)};
  a.group = (size_t)chunk * WIDTH + 16;
  a.v_point = apart(a.group * (size_t)a.c_groups);
  a.g_point = apart(a.group * (size_t)a.k_groups);
  a.row = (size_t)a.k_groups * WIDTH;
  a.sum_point = apart((size_t)a.c_groups * WIDTH * a.row);
  float *zeros = calloc((size_t)(s->c > s->k ? s->c : s->k) + WIDTH, sizeof(float));
  a.v = scratch(TILES, POINTS * (a.v_point + a.g_point + a.sum_point));
  if (!zeros || !a.v) {
    free(zeros);
    return NO_MEMORY;
  }
  a.g = a.v + POINTS * a.v_point;
  a.sum = a.g + POINTS * a.g_point;
  const int all = num_tiles(s);
#pragma omp parallel num_threads(threads)
  {
    for (int first = 0; first < all; first += chunk) {
      const int count = first + chunk < all ? chunk : all - first;
#pragma omp for schedule(static)
      for (int t = 0; t < count; t++) spread_tile(&a, x, dy, first + t, t, zeros);
#pragma omp for schedule(dynamic) collapse(2)
      for (int point = 0; point < POINTS; point++)
        for (int c = 0; c < a.c_groups; c++) sum_products(&a, point, c, count, first > 0);
    }
#pragma omp for schedule(static)
    for (int k = 0; k < s->k; k += WIDTH) write_filters(&a, k, dw);
  }
  free(zeros);
  return DONE;
}
