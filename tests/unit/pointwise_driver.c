/* All passes of pointwise.c over odd channels, strides, layouts and threads, in buffers of the exact size, for the
   sanitizers to watch. Prints how many results there were and the largest error. */

#include "pointwise.c"

#include "kernels_driver.h"

static struct layout layout_of(int c, int h, int w, int nhwc) {
  const long pixels = (long)h * w;
  return nhwc ? (struct layout){pixels * c, 1, (long)w * c, c} : (struct layout){pixels * c, pixels, w, 1};
}

/* Of the pixels that a stride meets. */
static struct layout met(struct layout by, int stride_h, int stride_w) {
  return (struct layout){by.n, by.c, by.h * stride_h, by.w * stride_w};
}

static long at(const struct layout *by, int n, int c, int h, int w) { return n * by->n + c * by->c + h * by->h + w * by->w; }

static void definition(const float *x, const struct sizes *s, const float *w, const float *bias, const float *dy,
                       double *y, double *dx, double *dw) {
  for (int n = 0; n < s->n; n++)
    for (int i = 0; i < s->h; i++)
      for (int j = 0; j < s->w; j++)
        for (int k = 0; k < s->to; k++) {
          const long result = at(&s->out, n, k, i, j);
          y[result] = bias ? bias[k] : 0;
          for (int c = 0; c < s->from; c++) {
            const long pixel = at(&s->in, n, c, i, j), weight = (long)k * s->from + c;
            y[result] += (double)x[pixel] * w[weight];
            dx[pixel] += (double)dy[result] * w[weight];
            dw[weight] += (double)dy[result] * x[pixel];
          }
        }
}

int main(void) {
  for (int number = 0; number < 60; number++) {
    const int large = number % 20 == 0, nhwc = number % 2, c = 1 + (int)draw(70), k = 1 + (int)draw(70);
    const int h = 1 + (int)draw(large ? 40 : 12), w = 1 + (int)draw(large ? 40 : 12), n = 1 + (int)draw(3);
    const int stride_h = 1 + (int)draw(3), stride_w = 1 + (int)draw(3);
    const int out_h = (h - 1) / stride_h + 1, out_w = (w - 1) / stride_w + 1, threads = 1 + (int)draw(3);
    const struct layout in = met(layout_of(c, h, w, nhwc), stride_h, stride_w), out = layout_of(k, out_h, out_w, nhwc);
    const struct sizes s = {n, c, k, out_h, out_w, 1, 1, out_h, out_w, in, out};
    const struct sizes back = {n, k, c, out_h, out_w, stride_h, stride_w, h, w, out, in};
    const size_t inputs = (size_t)(n * h * w * c), outputs = (size_t)(n * out_h * out_w * k), weights = (size_t)(k * c);
    float *x = numbers(inputs), *of = numbers(weights), *dy = numbers(outputs), *bias = draw(2) ? numbers((size_t)k) : NULL;
    float *y = numbers(outputs), *dx = numbers(inputs), *dw = numbers(weights);
    double *exact = calloc(outputs, sizeof(double)), *exact_dx = calloc(inputs, sizeof(double));
    double *exact_dw = calloc(weights, sizeof(double));
    definition(x, &s, of, bias, dy, exact, exact_dx, exact_dw);
    const struct filters forward = {of, 1, c}, backward = {of, c, 1};
    note(apart_from(y, exact, outputs, convoy_pointwise(x, &s, &forward, bias, y, threads)));
    note(apart_from(dx, exact_dx, inputs, convoy_pointwise(dy, &back, &backward, NULL, dx, threads)));
    note(apart_from(dw, exact_dw, weights, convoy_pointwise_weight_gradient(x, &s, dy, dw, threads)));
    free(x), free(of), free(dy), free(bias), free(y), free(dx), free(dw), free(exact), free(exact_dx), free(exact_dw);
  }
  printf("%d results, largest error %g\n", cases, worst_of_all);
  return worst_of_all < 1e-4 ? 0 : 1;
}
