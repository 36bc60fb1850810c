"""Convolutions of signs on a GPU, in Triton: signs packed to 32 a word, products by exclusive or, sums by counts.

Results are whole numbers, so they are those of every other way bit for bit. What a filter sees outside of the image is
left out of the count. Bits are counted by arithmetic that LLVM knows and makes one instruction (popc.b32) of.
Formulas and sources: `binary.py`. Not yet measured on a GPU.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.binary_bits import WORD
from kernels.layout import empty
from kernels.shapes import ConvShape

_PIXELS, _FILTERS, _PACKED = 32, 32, 128


class Strides(NamedTuple):
    """Elements from one of a tensor to the next; of images (N, C, H, W)."""

    n: int
    c: int
    h: int
    w: int


class Images(NamedTuple):
    """Images to be packed; `words` of a pixel."""

    pixels: int
    c: int
    h: int
    w: int
    words: int


class Tensors(NamedTuple):
    """Words of images (N, H, W, words) and filters (K, R S, words), and the result (N, K, H', W')."""

    images: Tensor
    filters: Tensor
    result: Tensor


class Sizes(NamedTuple):
    """Of a convolution; `words` of a pixel."""

    n: int
    c: int
    h: int
    w: int
    k: int
    out_h: int
    out_w: int
    r: int
    s: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    top: int
    left: int
    words: int


@triton.jit
def _count(bits):
    """Of a word: sums of pairs, of fours, of bytes; then all bytes into the highest."""
    x = bits - ((bits >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit(do_not_specialize=["z"])
def _pack(images, packed, strides, z, block: tl.constexpr):
    """Words (N, H, W, words) of images (N, C, H, W), one column of programs a word."""
    pixel = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    word = tl.program_id(1)
    row = pixel // z.w
    from_pixel = row // z.h * strides.n + row % z.h * strides.h + pixel % z.w * strides.w
    channel = word * 32 + tl.arange(0, 32)
    inside = (pixel < z.pixels)[:, None] & (channel < z.c)[None, :]
    values = tl.load(images + from_pixel[:, None] + channel[None, :] * strides.c, mask=inside, other=-1.0)
    bits = (values >= 0.0).to(tl.int32) << tl.arange(0, 32)[None, :]
    tl.store(packed + pixel * z.words + word, tl.sum(bits, 1), mask=pixel < z.pixels)


@triton.jit(do_not_specialize=["z"])
def _convolve(tensors, strides, z, pixels: tl.constexpr, num_filters: tl.constexpr):
    """A block of pixels of the result by one of filters."""
    pixel = tl.program_id(0) * pixels + tl.arange(0, pixels)
    k = tl.program_id(1) * num_filters + tl.arange(0, num_filters)
    x, row = pixel % z.out_w, pixel // z.out_w
    y, n = row % z.out_h, row // z.out_h
    there, known = pixel < z.n * z.out_h * z.out_w, k < z.k
    differing = tl.zeros((pixels, num_filters), tl.int32)
    taps_seen = tl.zeros((pixels,), tl.int32)
    for tap in range(z.r * z.s):
        from_row = y * z.stride_h + tap // z.s * z.dilation_h - z.top
        from_column = x * z.stride_w + tap % z.s * z.dilation_w - z.left
        seen = there & (from_row >= 0) & (from_row < z.h) & (from_column >= 0) & (from_column < z.w)
        taps_seen += seen.to(tl.int32)
        source = tensors.images + ((n * z.h + from_row) * z.w + from_column).to(tl.int64) * z.words
        taps = tensors.filters + (k * z.r * z.s + tap).to(tl.int64) * z.words
        for word in range(z.words):
            signs = tl.load(source + word, mask=seen, other=0).to(tl.uint32, bitcast=True)
            weights = tl.load(taps + word, mask=known, other=0).to(tl.uint32, bitcast=True)
            differing += tl.where(seen[:, None], _count(signs[:, None] ^ weights[None, :]), 0)
    total = (taps_seen * z.c)[:, None] - 2 * differing
    to = n.to(tl.int64) * strides.n + y * strides.h + x * strides.w
    places = tensors.result + to[:, None] + k[None, :].to(tl.int64) * strides.c
    tl.store(places, total.to(tensors.result.dtype.element_ty), mask=there[:, None] & known[None, :])


def bits_of(weight: Tensor) -> Tensor:
    """Shapes: weight (K, C, R, S) -> (K, R S, ceil(C / 32)), int32, as `binary_bits.bits_of`."""
    return _packed(weight).flatten(1, 2)


def convolve(input: Tensor, bits: Tensor, shape: ConvShape) -> Tensor:
    """The convolution of sign(input) by filters of bits. Shapes: input (N, C, H, W) -> (N, K, H', W')."""
    output = empty(shape.output_size, input)
    _, _, out_h, out_w = shape.output_size
    (top, _), (left, _) = shape.padding
    sizes = Sizes(
        shape.n, shape.c, shape.h, shape.w, shape.k, out_h, out_w, shape.r, shape.s, *shape.stride, *shape.dilation,
        top, left, triton.cdiv(shape.c, WORD),
    )  # fmt: skip
    grid = (triton.cdiv(shape.n * out_h * out_w, _PIXELS), triton.cdiv(shape.k, _FILTERS))
    with torch.cuda.device_of(input):
        tensors, strides = Tensors(_packed(input), bits, output), Strides(*output.stride())
        _convolve[grid](tensors, strides, sizes, pixels=_PIXELS, num_filters=_FILTERS)
    return output


def _packed(images: Tensor) -> Tensor:
    """Shapes: (N, C, H, W), as it lies -> (N, H, W, ceil(C / 32)), int32."""
    n, c, h, w = images.shape
    words = triton.cdiv(c, WORD)
    packed = images.new_empty((n, h, w, words), dtype=torch.int32)
    grid = (triton.cdiv(n * h * w, _PACKED), words)
    with torch.cuda.device_of(images):
        _pack[grid](images, packed, Strides(*images.stride()), Images(n * h * w, c, h, w, words), block=_PACKED)
    return packed
