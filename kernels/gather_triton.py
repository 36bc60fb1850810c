"""What the kernels of im2col_triton.py and depthwise_triton.py share: a gather's numbers, and where its pixels lie."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from kernels.gather import Line
from kernels.shapes import Pair


class Tensors(NamedTuple):
    """`source`: (N, C, H, W), read at many places. `other`: filters, or gradients (N, K, H', W')."""

    source: Tensor
    other: Tensor
    bias: Tensor | None
    result: Tensor


class Strides(NamedTuple):
    """Numbers that the compiler knows to be 1 or a multiple of 16 if they are. `other`: of (N, K, H', W')."""

    c: int
    k: int
    source_n: int
    source_c: int
    source_h: int
    source_w: int
    other_n: int
    other_k: int
    other_h: int
    other_w: int


class Places(NamedTuple):
    """Numbers that are like any others to the compiler, or each new size would be compiled anew.

    `pixels`: results in all, `down` and `across` in each image. `taps`: the filter's values. `share`: pixels of one
    program in a sum over pixels. The rest as in `gather.Line`.
    """

    pixels: int
    down: int
    across: int
    h: int
    w: int
    taps: int
    taps_across: int
    first_h: int
    first_w: int
    move_h: int
    move_w: int
    spread_h: int
    spread_w: int
    share: int

    @classmethod
    def of(
        cls, source: Tensor, results: Tensor, lines: tuple[Line, Line], filter_size: Pair, share: int = 0
    ) -> "Places":
        """Shapes: source (N, C, H, W), results (N, K, H', W')."""
        (n, _, down, across), (_, _, h, w), (rows, columns) = results.shape, source.shape, lines
        return cls(
            n * down * across, down, across, h, w, filter_size[0] * filter_size[1], filter_size[1],
            rows.first, columns.first, rows.move, columns.move, rows.spread, columns.spread, share,
        )  # fmt: skip


@triton.jit
def seen(source, strides, places, pixel, tap, channel):
    """What results see at values of the filter, zero outside of the images. The three are broadcast."""
    image = pixel // (places.down * places.across)
    row = pixel // places.across % places.down * places.move_h + places.first_h
    column = pixel % places.across * places.move_w + places.first_w
    row += tap // places.taps_across * places.spread_h
    column += tap % places.taps_across * places.spread_w
    inside = (row >= 0) & (row < places.h) & (column >= 0) & (column < places.w)
    inside &= (pixel < places.pixels) & (tap < places.taps) & (channel < strides.c)
    place = image * strides.source_n + row * strides.source_h + column * strides.source_w
    return tl.load(source + place + channel * strides.source_c, mask=inside, other=0.0)


@triton.jit
def place(strides, places, pixel, k):
    """Where results lie, and which of them there are. The two are broadcast."""
    image = pixel // (places.down * places.across)
    row, column = pixel // places.across % places.down, pixel % places.across
    there = image * strides.other_n + row * strides.other_h + column * strides.other_w + k * strides.other_k
    return there, (pixel < places.pixels) & (k < strides.k)
