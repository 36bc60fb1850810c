/* All passes of depthwise.c in both layouts over odd sizes, strides, dilations and borders, in buffers of the exact
   size, for the sanitizers to watch. Prints how many results there were and the largest error. */

#include "depthwise.c"

#include "kernels_driver.h"

static struct layout laid_out(int c, int h, int w, int nhwc) {
  long size = (long)c * h * w;
  struct layout first = {.n = size, .c = (long)h * w, .h = w, .w = 1}, last = {.n = size, .c = 1, .h = (long)w * c, .w = c};
  return nhwc ? last : first;
}

static size_t at(struct layout layout, int n, int c, int h, int w) {
  return (size_t)(n * layout.n + c * layout.c + h * layout.h + w * layout.w);
}

static void definition(const float *x, struct layout in, const struct sizes *s, const float *w, const float *dy,
                       struct layout out, double *y, double *dx, double *dw) {
  for (int n = 0; n < s->n; n++)
    for (int c = 0; c < s->c; c++)
      for (int i = 0; i < s->out_h; i++)
        for (int j = 0; j < s->out_w; j++)
          for (int r = 0; r < s->r; r++)
            for (int q = 0; q < s->s; q++) {
              int h = i * s->stride_h + r * s->dilation_h - s->top, v = j * s->stride_w + q * s->dilation_w - s->left;
              if (h < 0 || h >= s->h || v < 0 || v >= s->w) continue;
              size_t pixel = at(in, n, c, h, v), filter = ((size_t)c * s->r + r) * s->s + q, result = at(out, n, c, i, j);
              y[result] += (double)x[pixel] * w[filter];
              dx[pixel] += (double)dy[result] * w[filter];
              dw[filter] += (double)dy[result] * x[pixel];
            }
}

int main(void) {
  for (int number = 0; number < 160; number++) {
    struct sizes s = {.n = 1 + (int)draw(2), .c = 1 + (int)draw(20), .h = 1 + (int)draw(20), .w = 1 + (int)draw(20),
                      .r = 1 + (int)draw(7), .s = 1 + (int)draw(7), .stride_h = 1 + (int)draw(2),
                      .stride_w = 1 + (int)draw(2), .dilation_h = 1 + (int)draw(2), .dilation_w = 1 + (int)draw(2),
                      .top = (int)draw(5), .left = (int)draw(5)};
    int rows = s.h + 2 * s.top - s.dilation_h * (s.r - 1) - 1, columns = s.w + 2 * s.left - s.dilation_w * (s.s - 1) - 1;
    if (rows < 0 || columns < 0) continue;
    s.out_h = rows / s.stride_h + 1;
    s.out_w = columns / s.stride_w + 1;
    struct layout in = laid_out(s.c, s.h, s.w, number % 2), out = laid_out(s.c, s.out_h, s.out_w, number % 2);
    size_t inputs = (size_t)s.n * s.c * s.h * s.w, outputs = (size_t)s.n * s.c * s.out_h * s.out_w;
    size_t filters = (size_t)s.c * s.r * s.s;
    float *x = numbers(inputs), *w = numbers(filters), *dy = numbers(outputs);
    float *y = numbers(outputs), *dx = numbers(inputs), *dw = numbers(filters);
    double *exact = calloc(outputs, sizeof(double)), *exact_dx = calloc(inputs, sizeof(double));
    double *exact_dw = calloc(filters, sizeof(double));
    definition(x, in, &s, w, dy, out, exact, exact_dx, exact_dw);
    int threads = 1 + (int)draw(3);
    note(apart_from(y, exact, outputs, convoy_depthwise(x, &in, &s, w, y, &out, threads)));
    note(apart_from(dx, exact_dx, inputs, convoy_depthwise_input_gradient(dy, &out, &s, w, dx, &in, threads)));
    note(apart_from(dw, exact_dw, filters, convoy_depthwise_weight_gradient(x, &in, &s, dy, &out, dw, threads)));
    free(x), free(w), free(dy), free(y), free(dx), free(dw), free(exact), free(exact_dx), free(exact_dw);
  }
  printf("%d results, largest error %g\n", cases, worst_of_all);
  return worst_of_all < 1e-4 ? 0 : 1;
}
