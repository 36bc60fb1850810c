"""Winograd's convolution F(m x m, r x r): a tile of results by fewer multiplications than the definition's.

For 3 x 3 filters, a tile of m x m results takes (m + 2)^2 products for each pair of channels where the definition takes
9 m^2: 2.25 times fewer at m = 2, 4 at m = 4, 5.06 at m = 6, against more additions and more rounding. The algorithms
`winograd_2`, `winograd` and `winograd_6` have tiles of 4, 6 and 8 pixels along each axis, for filters that leave at
least two results of them: 3 x 3, 5 x 5 and 7 x 7, and along one axis 1 x 3, 7 x 1, ...

fp32 on a CPU runs `winograd_native.py`; whatever else, and a machine without a compiler, the same formulas in torch,
which are made to be read. The input's gradient is the same convolution of the output's gradient with rotated filters;
the weight's gradient is F(r x r, m x m), filters of m x m gradients over the same tiles of pixels.

Source: Lavin & Gray 2015 (arXiv:1509.09308), section 4; points: `winograd_points.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import winograd_native as native
from kernels.native.vectors import are_taken
from kernels.passes import Passes
from kernels.shapes import ConvShape, Pair, UnsupportedShape, check_allowed
from kernels.triton_kernels import with_twin
from kernels.winograd_points import Rows, matrices


class Tile(NamedTuple):
    """Results of a tile and taps of a filter, heights first; an axis with one tap has one result."""

    results: Pair
    taps: Pair

    @property
    def side(self) -> Pair:
        """Pixels of a tile."""
        return self.results[0] + self.taps[0] - 1, self.results[1] + self.taps[1] - 1


def passes(name: str, side: int) -> Passes:
    """The algorithm of that name, with tiles of `side` pixels along each axis of more than one tap."""
    taps = tuple(range(3, side, 2))

    def check(shape: ConvShape) -> None:
        filter_size = (shape.r, shape.s)
        if filter_size == (1, 1) or not set(filter_size) <= {1, *taps}:
            raise UnsupportedShape(
                f"{name}: got filter {filter_size}, must be {' or '.join(map(str, taps))} along an axis, and that or 1 "
                "along the other. Use another algorithm."
            )
        check_allowed(
            name, ("stride", shape.stride, (1, 1)), ("dilation", shape.dilation, (1, 1)), ("groups", shape.groups, 1)
        )

    def tile_of(shape: ConvShape) -> Tile:
        filter_size = (shape.r, shape.s)
        rows, columns = (1 if size == 1 else side + 1 - size for size in filter_size)
        return Tile((rows, columns), filter_size)

    def forward(input: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None) -> Tensor:
        corner = (shape.padding[0][0], shape.padding[1][0])
        return _convolution(
            tile_of(shape), input, weight, corner, (shape.out_h, shape.out_w), bias=bias, rotated=False
        )  # fmt: skip

    def input_gradient(grad_output: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        corner = (shape.r - 1 - shape.padding[0][0], shape.s - 1 - shape.padding[1][0])
        return _convolution(tile_of(shape), grad_output, weight, corner, (shape.h, shape.w), bias=None, rotated=True)

    def weight_gradient(grad_output: Tensor, input: Tensor, shape: ConvShape) -> Tensor:
        tile, corner = tile_of(shape), (shape.padding[0][0], shape.padding[1][0])
        if library := native.library_for(*tile, grad_output, input):
            return native.weight_gradient(library, grad_output, input, corner, shape.weight_size)
        return weight_gradient_by_torch(tile, grad_output, input, corner)

    def prepare(weight: Tensor, shape: ConvShape) -> Callable[[Tensor, ConvShape, Tensor | None], Tensor]:
        tile, library = tile_of(shape), native.library_for(*tile_of(shape), weight)
        wide = native.transformed(library, weight) if library else None

        def prepared(input: Tensor, shape: ConvShape, bias: Tensor | None = None) -> Tensor:
            if library is None or not are_taken(input):
                return forward(input, weight, shape, bias)
            corner, size = (shape.padding[0][0], shape.padding[1][0]), (shape.out_h, shape.out_w)
            return native.convolution(
                library, tile.results, input, weight, corner, size, bias=bias, rotated=False, wide=wide
            )  # fmt: skip

        return prepared

    return Passes(check, forward, input_gradient, weight_gradient, prepare)


SMALL = with_twin("winograd_2", passes("winograd_2", 4))
PASSES = with_twin("winograd", passes("winograd", 6))
LARGE = passes("winograd_6", 8)
load_library = native.load_library


def convolution_by_torch(tile: Tile, images: Tensor, filters: Tensor, corner: Pair, size: Pair) -> Tensor:
    """The formulas, in torch. `corner`: zeros above and left of the images, or less than 0 to leave out pixels.

    Shapes: images (N, C, H, W), filters (K, C, *taps) -> (N, K, *size).
    """
    rows, columns = (_Tensors.of(*sizes, filters) for sizes in zip(*tile, strict=True))
    wide_filters = rows.of_filter @ filters.to(rows.of_filter.dtype) @ columns.of_filter.T
    pixels = _tiles(images.to(rows.of_input.dtype), corner, size, tile.results, tile.side)
    products = torch.einsum("nctuij,kcij->nktuij", rows.of_input @ pixels @ columns.of_input.T, wide_filters)
    results = rows.of_output @ products @ columns.of_output.T
    n, k, down, across = results.shape[:4]
    joined = results.transpose(3, 4).reshape(n, k, down * tile.results[0], across * tile.results[1])
    return joined[:, :, : size[0], : size[1]].to(images.dtype)


def weight_gradient_by_torch(tile: Tile, grads: Tensor, images: Tensor, corner: Pair) -> Tensor:
    """The formulas of F(r x r, m x m), in torch.

    Shapes: grads (N, K, H', W'), images (N, C, H, W) -> (K, C, *taps).
    """
    rows, columns = (_Tensors.of(r, m, grads) for m, r in zip(*tile, strict=True))
    size = (grads.shape[2], grads.shape[3])
    pixels = _tiles(images.to(rows.of_input.dtype), corner, size, tile.results, tile.side)
    spread = _tiles(grads.to(rows.of_filter.dtype), (0, 0), size, tile.results, tile.results)
    products = torch.einsum(
        "nctuij,nktuij->kcij",
        rows.of_input @ pixels @ columns.of_input.T,
        rows.of_filter @ spread @ columns.of_filter.T,
    )
    return (rows.of_output @ products @ columns.of_output.T).to(grads.dtype)


def _tiles(images: Tensor, corner: Pair, size: Pair, step: Pair, side: Pair) -> Tensor:
    """A tile of `side` pixels for each `step` of results. Shapes: (N, C, H, W) -> (N, C, down, across, *side)."""
    numbers = [-(-length // every) for length, every in zip(size, step, strict=True)]
    missing = [
        every * (number - 1) + pixels - before - length
        for number, every, pixels, before, length in zip(numbers, step, side, corner, images.shape[2:], strict=True)
    ]
    padded = F.pad(images, (corner[1], missing[1], corner[0], missing[0]))
    return padded.unfold(2, side[0], step[0]).unfold(3, side[1], step[1])


def _convolution(
    tile: Tile, images: Tensor, weight: Tensor, corner: Pair, size: Pair, *, bias: Tensor | None, rotated: bool
) -> Tensor:
    """Convolve with `weight`, or for the input's gradient with its filters rotated and its channels exchanged."""
    if library := native.library_for(*tile, images, weight):
        return native.convolution(library, tile.results, images, weight, corner, size, bias=bias, rotated=rotated)
    filters = weight.flip(2, 3).transpose(0, 1) if rotated else weight
    output = convolution_by_torch(tile, images, filters, corner, size)
    return output if bias is None else output.add_(bias.view(-1, 1, 1))


class _Tensors(NamedTuple):
    """A^T, G, B^T of one axis."""

    of_output: Tensor
    of_filter: Tensor
    of_input: Tensor

    @classmethod
    def of(cls, m: int, r: int, like: Tensor) -> "_Tensors":
        dtype = torch.promote_types(like.dtype, torch.float32)
        return cls(*(_tensor(rows, dtype, like.device) for rows in matrices(m, r)))


def _tensor(rows: Rows, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor([[float(value) for value in row] for row in rows], dtype=dtype, device=device)
