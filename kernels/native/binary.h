/* What both ways to convolve signs know of images and filters: by bits (binary.c), and by a matrix unit (binary_amx.c). */

#ifndef CONVOY_BINARY_H
#define CONVOY_BINARY_H

#define INLINE static inline __attribute__((always_inline))

/* Images (n, c, h, w) with filters (k, c, r, s) to (n, k, out_h, out_w); `top` and `left` zeros before the first pixel. */
struct sizes {
  int n, c, h, w, k, out_h, out_w, r, s, stride_h, stride_w, dilation_h, dilation_w, top, left;
};

/* Floats from one image, channel, row and column to the next. */
struct layout {
  long n, c, h, w;
};

INLINE int smaller(int a, int b) { return a < b ? a : b; }
INLINE int larger(int a, int b) { return a > b ? a : b; }

/* Of packed images: what results see, the padding's pixels around it included. */
INLINE int rows_of(const struct sizes *z) { return (z->out_h - 1) * z->stride_h + (z->r - 1) * z->dilation_h + 1; }
INLINE int columns_of(const struct sizes *z) { return (z->out_w - 1) * z->stride_w + (z->s - 1) * z->dilation_w + 1; }

#endif
