"""Convolution by Fourier transforms: matrices, the choice of tiles, and tiles that meet at borders and in corners."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import fft
from kernels.algorithms import ALGORITHMS
from kernels.dft import Dft
from kernels.fft_tiles import Tiles, choose_tiles, cost
from kernels.shapes import ConvShape, UnsupportedShape

FLOAT64 = torch.empty(0, dtype=torch.float64)
LENGTHS = [1, 2, 3, 4, 7, 8, 13, 30]

# n, c, h, w, k, r, s, padding
SHAPES = [
    (2, 3, 20, 17, 4, 5, 5, 2),
    (3, 2, 13, 30, 5, 4, 7, (3, 1)),
    (1, 1, 9, 40, 2, 9, 1, 0),
    (2, 4, 6, 5, 3, 2, 3, (7, 9)),
    (1, 3, 12, 12, 2, 11, 11, "same"),
    (2, 3, 12, 14, 2, 4, 6, "same"),
]


def tensors(shape: tuple[object, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, ConvShape]:
    n, c, h, w, k, r, s, padding = shape
    random = torch.Generator().manual_seed(3)
    images = torch.randn(n, c, h, w, generator=random, dtype=torch.float64).to(dtype)
    weight = torch.randn(k, c, r, s, generator=random, dtype=torch.float64).to(dtype)
    sizes = ConvShape.of(images, weight, padding=padding)  # type: ignore[arg-type]
    return images, weight, torch.randn(sizes.output_size, generator=random, dtype=torch.float64).to(dtype), sizes


def all_passes(algorithm: str, images: Tensor, weight: Tensor, grad: Tensor, shape: ConvShape) -> list[Tensor]:
    passes = ALGORITHMS[algorithm]
    return [
        passes.forward(images, weight, shape),
        passes.input_gradient(grad, weight, shape),
        passes.weight_gradient(grad, images, shape),
    ]


def largest_error(got: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("length", LENGTHS)
def test_the_matrices_are_the_fourier_transform(length: int) -> None:
    dft = Dft(length, FLOAT64)
    tile = torch.randn(length, length, dtype=torch.float64)
    along_x = torch.einsum("fx,yx->yf", dft.across(length), tile)
    got = (dft.down(length) @ along_x.reshape(2 * length, -1)).view(2, length, -1)
    torch.testing.assert_close(torch.complex(*got), torch.fft.rfft2(tile), rtol=0, atol=1e-12)
    up = (dft.up(length) @ got.view(2 * length, -1)).view(2, length, -1)
    back = torch.einsum("xg,yg->yx", dft.back(length), up.permute(1, 2, 0).reshape(length, -1))
    torch.testing.assert_close(back, tile, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_fewer_points_are_those_of_a_signal_that_ends_in_zeros(length: int) -> None:
    dft = Dft(length, FLOAT64)
    for taps in range(1, length):
        assert torch.equal(dft.across(taps), dft.across(length)[:, :taps])
        assert torch.equal(dft.down(taps), dft.down(length)[:, : 2 * taps])
        assert torch.equal(dft.back(taps), dft.back(length)[:taps])
    real, imaginary = dft.across(length).chunk(2)
    assert torch.equal(dft.across(length, conjugate=True), torch.cat([real, -imaginary]))


@pytest.mark.parametrize("made", [(1, 1), (2, 5), (4, 3), (7, 8), (40, 40)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_of_any_size_give_the_definitions_results(
    shape: tuple[object, ...], made: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    *given, sizes = tensors(shape)
    expected = all_passes("direct", *given, sizes)

    def tiles(*given: Any) -> Tiles:
        *_, filter_size, size = given
        side = (made[0] + filter_size[0] - 1, made[1] + filter_size[1] - 1)
        return Tiles(side, made, (-(-size[0] // made[0]), -(-size[1] // made[1])))

    monkeypatch.setattr(fft, "choose_tiles", tiles)
    assert largest_error(all_passes("fft", *given, sizes), expected) < 1e-12


@pytest.mark.parametrize("name", ["_BAND", "_CHUNK", "_MIN_ROWS"])
@pytest.mark.parametrize("value", [1, 2**30])
def test_how_the_work_is_cut_does_not_change_results(name: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    *given, sizes = tensors((5, 3, 60, 60, 2, 7, 7, 3))
    assert choose_tiles(5, 3, 2, (7, 7), (60, 60)).number != (1, 1)
    expected = all_passes("direct", *given, sizes)
    monkeypatch.setattr(fft, name, value)
    assert largest_error(all_passes("fft", *given, sizes), expected) < 1e-12


@pytest.mark.parametrize("size", [5, 9, 21])
def test_fp32_is_exact_to_a_millionth_of_the_largest_value(size: int) -> None:
    images, weight, grad, sizes = tensors((2, 32, 40, 40, 16, size, size, size // 2), torch.float32)
    exact = all_passes("direct", images.double(), weight.double(), grad.double(), sizes)
    assert largest_error(all_passes("fft", images, weight, grad, sizes), exact) < 2e-6


@pytest.mark.parametrize(("size", "taps"), [*itertools.product([1, 7, 56, 57, 224, 500], [1, 3, 11, 31, 150])])
def test_tiles_cover_the_results_and_none_is_idle(size: int, taps: int) -> None:
    tiles = choose_tiles(2, 8, 8, (taps, 3), (size, size))
    for side, made, number, length in zip(*tiles, (taps, 3), strict=True):
        assert side == made + length - 1
        assert (number - 1) * made < size <= number * made


def test_the_tiles_are_those_of_least_cost() -> None:
    chosen = choose_tiles(8, 64, 64, (9, 9), (56, 56))
    least = cost(chosen, 8, 64, 64, (9, 9))
    for down, across in itertools.product(range(1, 57), repeat=2):
        number = (-(-56 // down), -(-56 // across))
        assert least <= cost(Tiles((down + 8, across + 8), (down, across), number), 8, 64, 64, (9, 9))


def test_large_images_are_cut_and_small_ones_are_not() -> None:
    assert choose_tiles(8, 64, 64, (9, 9), (224, 224)).number > (3, 3)
    assert choose_tiles(8, 64, 64, (9, 9), (7, 7)).number == (1, 1)
    sides = [choose_tiles(8, 64, 64, (taps, taps), (224, 224)).side[0] for taps in (5, 15, 31)]
    assert sides == sorted(sides)


@pytest.mark.parametrize(
    ("weight_size", "options", "message"),
    [
        ((4, 4, 5, 5), {"stride": 2}, r"got stride \(2, 2\), must be \(1, 1\)"),
        ((4, 4, 3, 3), {"dilation": (1, 2)}, r"got dilation \(1, 2\), must be \(1, 1\)"),
        ((4, 2, 3, 3), {"groups": 2}, "got groups 2, must be 1"),
    ],
)
def test_what_it_does_not_do_is_said(weight_size: tuple[int, ...], options: dict[str, int], message: str) -> None:
    shape = ConvShape.of(torch.empty(1, 4, 9, 9), torch.empty(weight_size), **options)
    with pytest.raises(UnsupportedShape, match=f"fft: {message}. Use another algorithm"):
        fft.check(shape)
