"""Winograd's convolution F(4x4, 3x3): a fourth of the multiplications of the definition, in all three passes.

A tile of 4 x 4 results takes 36 products for each pair of channels where the definition takes 144. fp32 on a CPU runs
native/winograd.c; whatever else, and a machine without a compiler, the same formulas in torch, which are made to be
read. The input's gradient is the same convolution of the output's gradient with rotated filters; the weight's gradient
is F(3x3, 4x4), filters of 4 x 4 gradients over tiles of 6 x 6 pixels.

Results differ from the definition's by rounding, some 5 times as much as the vendor's: fp32, about 1e-6 of the largest.

Source: Lavin & Gray 2015 (arXiv:1509.09308), section 4; points: `winograd_points.py`.
"""

import ctypes
import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.layout import laid_out, layout_of
from kernels.native import build
from kernels.native.vectors import are_taken, load_kernel, unless
from kernels.passes import Passes, adding_bias
from kernels.shapes import ConvShape, Pair, check_allowed
from kernels.triton_kernels import with_twin
from kernels.winograd_points import Rows, matrices

_OUT, _TAPS = 4, 3
_SIDE = _OUT + _TAPS - 1

# Blocks of tiles: what is between image and result fits the second cache, unless the filters are too many to be read
# again for every few tiles.
_FEW_TILES, _MANY_TILES, _FILTERS_IN_CACHE = 16, 64, 10 * 2**20
_TILES_OF_GRADIENT = 128


def check(shape: ConvShape) -> None:
    """Raises: UnsupportedShape, with the reason."""
    check_allowed(
        "winograd",
        ("filter", (shape.r, shape.s), (_TAPS, _TAPS)),
        ("stride", shape.stride, (1, 1)),
        ("dilation", shape.dilation, (1, 1)),
        ("groups", shape.groups, 1),
    )


def forward(input: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: input (N, C, H, W), weight (K, C, 3, 3) -> (N, K, H', W')."""
    corner = (shape.padding[0][0], shape.padding[1][0])
    return _convolution(input, weight, corner, (shape.out_h, shape.out_w), rotated=False)


def input_gradient(grad_output: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: grad_output (N, K, H', W'), weight (K, C, 3, 3) -> (N, C, H, W)."""
    corner = (_TAPS - 1 - shape.padding[0][0], _TAPS - 1 - shape.padding[1][0])
    return _convolution(grad_output, weight, corner, (shape.h, shape.w), rotated=True)


def weight_gradient(grad_output: Tensor, input: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: grad_output (N, K, H', W'), input (N, C, H, W) -> (K, C, 3, 3)."""
    corner = (shape.padding[0][0], shape.padding[1][0])
    library = _library_for(grad_output, input)
    if library is None:
        return weight_gradient_by_torch(grad_output, input, corner)
    images, grads = laid_out(input, "nhwc"), laid_out(grad_output, "nhwc")
    sizes = _Sizes(*_pixels(images), *corner, *grads.shape[2:], grads.shape[1])
    gradient = grads.new_empty(shape.weight_size)
    failed = library.convoy_winograd_weight_gradient(
        images.data_ptr(),
        ctypes.byref(sizes),
        grads.data_ptr(),
        gradient.data_ptr(),
        _TILES_OF_GRADIENT,
        torch.get_num_threads(),
    )
    return unless(failed, gradient, "winograd")


PASSES = with_twin("winograd", Passes(check, adding_bias(forward), input_gradient, weight_gradient))


def convolution_by_torch(images: Tensor, filters: Tensor, corner: Pair, size: Pair) -> Tensor:
    """The formulas, in torch. `corner`: zeros above and left of the images, or less than 0 to leave out pixels.

    Shapes: images (N, C, H, W), filters (K, C, 3, 3) -> (N, K, *size).
    """
    of_output, of_filter, of_input = _matrices(_OUT, _TAPS, filters)
    wide_filters = of_filter @ filters.to(of_filter.dtype) @ of_filter.T
    tiles = of_input @ _tiles(images.to(of_input.dtype), corner, size, _SIDE) @ of_input.T
    products = torch.einsum("nctuij,kcij->nktuij", tiles, wide_filters)
    results = of_output @ products @ of_output.T
    n, k, down, across = results.shape[:4]
    joined = results.transpose(3, 4).reshape(n, k, down * _OUT, across * _OUT)
    return joined[:, :, : size[0], : size[1]].to(images.dtype)


def weight_gradient_by_torch(grads: Tensor, images: Tensor, corner: Pair) -> Tensor:
    """The formulas of F(3x3, 4x4), in torch.

    Shapes: grads (N, K, H', W'), images (N, C, H, W) -> (K, C, 3, 3).
    """
    of_output, of_filter, of_input = _matrices(_TAPS, _OUT, grads)
    size = (grads.shape[2], grads.shape[3])
    tiles = of_input @ _tiles(images.to(of_input.dtype), corner, size, _SIDE) @ of_input.T
    spread = of_filter @ _tiles(grads.to(of_filter.dtype), (0, 0), size, _OUT) @ of_filter.T
    products = torch.einsum("nctuij,nktuij->kcij", tiles, spread)
    return (of_output @ products @ of_output.T).to(grads.dtype)


def _tiles(images: Tensor, corner: Pair, size: Pair, side: int) -> Tensor:
    """Overlapping tiles, one for each 4 x 4 results. Shapes: (N, C, H, W) -> (N, C, down, across, side, side)."""
    down, across = (-(-length // _OUT) for length in size)
    missing = [
        _OUT * (number - 1) + side - before - length
        for number, before, length in zip((down, across), corner, images.shape[2:], strict=True)
    ]
    padded = F.pad(images, (corner[1], missing[1], corner[0], missing[0]))
    return padded.unfold(2, side, _OUT).unfold(3, side, _OUT)


def _convolution(images: Tensor, weight: Tensor, corner: Pair, size: Pair, *, rotated: bool) -> Tensor:
    """Convolve with `weight`, or for the input's gradient with its filters rotated and its channels exchanged."""
    library = _library_for(images, weight)
    if library is None:
        filters = weight.flip(2, 3).transpose(0, 1) if rotated else weight
        return convolution_by_torch(images, filters, corner, size)
    filters = weight.contiguous()
    k, c = filters.shape[:2]
    stride_k, stride_c = (9, 9 * c) if rotated else (9 * c, 9)
    places = laid_out(images, "nhwc")
    sizes = _Sizes(*_pixels(places), *corner, *size, c if rotated else k)
    result = places.new_empty((sizes.n, sizes.out_h, sizes.out_w, sizes.k)).permute(0, 3, 1, 2)
    failed = library.convoy_winograd(
        places.data_ptr(),
        ctypes.byref(sizes),
        filters.data_ptr(),
        stride_k,
        stride_c,
        int(rotated),
        result.data_ptr(),
        _FEW_TILES if _SIDE * _SIDE * 4 * c * k <= _FILTERS_IN_CACHE else _MANY_TILES,
        torch.get_num_threads(),
    )
    return laid_out(unless(failed, result, "winograd"), layout_of(images))


class _Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("n", "h", "w", "c", "top", "left", "out_h", "out_w", "k")]


def _pixels(images: Tensor) -> tuple[int, int, int, int]:
    n, c, h, w = images.shape
    return n, h, w, c


def _library_for(*tensors: Tensor) -> ctypes.CDLL | None:
    return _library() if are_taken(*tensors) else None


@functools.cache
def _library() -> ctypes.CDLL | None:
    return build.loaded(load_library, "winograd convolutions are computed by torch, many times slower")


def load_library() -> ctypes.CDLL:
    """The native code for this CPU. Raises: build.NotBuilt."""
    library = load_kernel("winograd")
    pointer, sizes, number = ctypes.c_void_p, ctypes.POINTER(_Sizes), ctypes.c_int
    library.convoy_winograd.argtypes = [
        pointer, sizes, pointer, ctypes.c_long, ctypes.c_long, number, pointer, number, number
    ]  # fmt: skip
    library.convoy_winograd_weight_gradient.argtypes = [pointer, sizes, pointer, pointer, number, number]
    return library


def _matrices(m: int, r: int, like: Tensor) -> list[Tensor]:
    dtype = torch.promote_types(like.dtype, torch.float32)
    return [_tensor(rows, dtype, like.device) for rows in matrices(m, r)]


def _tensor(rows: Rows, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor([[float(value) for value in row] for row in rows], dtype=dtype, device=device)
