"""Gathers: each product of a convolution once, from where it is read to where it is added."""

import itertools

import pytest

from kernels.gather import Line, of_forward, of_input_gradient
from kernels.shapes import ConvShape

SIZES = [
    {"stride": stride, "padding": padding, "dilation": dilation, "taps": taps, "length": length}
    for stride, padding, dilation, taps, length in itertools.product(
        (1, 2, 3, 4), (0, 1, 4), (1, 2, 3), (1, 2, 3), (7, 8)
    )
]


def shape_of(*, stride: int, padding: int, dilation: int, taps: int, length: int) -> ConvShape:
    """With other sizes in columns, so that rows are not taken for them."""
    return ConvShape(
        n=1, c=1, h=length, w=9, k=1, r=taps, s=2, stride=(stride, 1), padding=((padding, 2), (0, 0)),
        dilation=(dilation, 1),
    )  # fmt: skip


def products(line: Line, results: int, taps: int, sources: int) -> list[tuple[int, int, int]]:
    """(result, tap, source) of every product that a gather takes, of sources that there are."""
    return [
        (result, tap, source)
        for u, result in enumerate(range(results)[line.results])
        for j, tap in enumerate(range(taps)[line.taps])
        if 0 <= (source := line.first + u * line.move + j * line.spread) < sources
    ]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_product_is_taken_once_in_either_direction(size: dict[str, int]) -> None:
    shape = shape_of(**size)
    expected = sorted(
        (result, tap, pixel)
        for result in range(shape.out_h)
        for tap in range(shape.r)
        if 0 <= (pixel := result * size["stride"] + tap * size["dilation"] - size["padding"]) < shape.h
    )
    rows, _ = of_forward(shape)
    assert sorted(products(rows, shape.out_h, shape.r, shape.h)) == expected

    backward = [rows for rows, _ in of_input_gradient(shape)]
    found = [each for line in backward for each in products(line, shape.h, shape.r, shape.out_h)]
    assert sorted((result, tap, pixel) for pixel, tap, result in found) == expected


def test_every_pixel_has_a_gradient_of_zero_at_least() -> None:
    shape = shape_of(stride=4, padding=0, dilation=1, taps=1, length=7)
    filled = [pixel for rows, _ in of_input_gradient(shape) for pixel in range(7)[rows.results]]
    assert sorted(filled) == list(range(7))
