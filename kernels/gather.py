"""A pass over images as gathers, which the GPU kernels of im2col and depthwise compute alike. No Triton here.

    result[u] = sum over j of source[first + u move + j spread] filter[j]        in rows as in columns

The forward pass is one gather. The input's gradient is one for each remainder of a pixel's place by the stride: only
every so many filter values meet such pixels, so no product with an inserted zero is computed. Dumoulin & Visin 2016
(arXiv:1603.07285), section 4, draws the same as a convolution with inserted zeros.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from kernels.shapes import ConvShape, Pair


class Line(NamedTuple):
    """A gather in one direction. `results`, `taps`: which of the results and of the filter's values it is about."""

    results: slice
    taps: slice
    first: int
    move: int
    spread: int


def of_forward(shape: ConvShape) -> tuple[Line, Line]:
    """Rows and columns, from the input to the output."""
    rows, columns = (
        Line(slice(None), slice(None), -before, stride, dilation)
        for stride, (before, _), dilation in zip(shape.stride, shape.padding, shape.dilation, strict=True)
    )
    return rows, columns


def of_input_gradient(shape: ConvShape) -> Iterator[tuple[Line, Line]]:
    """Rows and columns, from the output's gradient to the input's, whose pixels they fill between them."""
    rows, columns = (
        _backward(*of_line)
        for of_line in zip(shape.stride, shape.padding, shape.dilation, (shape.r, shape.s), strict=True)
    )
    return ((row, column) for row in rows[: shape.h] for column in columns[: shape.w])


def _backward(stride: int, padding: Pair, dilation: int, taps: int) -> list[Line]:
    every = stride // math.gcd(stride, dilation)
    lines = []
    for remainder in range(stride):
        place = remainder + padding[0]
        tap = next((tap for tap in range(taps) if (place - tap * dilation) % stride == 0), taps)
        lines.append(
            Line(
                results=slice(remainder, None, stride),
                taps=slice(tap, None, every),
                first=(place - tap * dilation) // stride,
                move=1,
                spread=-every * dilation // stride,
            )
        )
    return lines
