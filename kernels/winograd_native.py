"""Winograd's convolution by native/winograd.c, which is compiled for each size of tile and filter that is met."""

import ctypes
import functools
import math

import torch
from torch import Tensor

from kernels.layout import LAYOUTS, layout_of
from kernels.native import build
from kernels.native.vectors import Layout, are_taken, in_lines, load_kernel, unless
from kernels.shapes import Pair
from kernels.winograd_code import transforms

# Tiles that a block has at least and at most, and bytes between image and result that it may take in between. Fewer
# tiles for each thread than that, and filters are taken in turn if they are more than a core's second cache holds.
_FEWEST, _MOST, _BLOCK = 28, 84, 9 * 2**18
_FEW, _FILTERS_IN_CACHE = 12, 2**20


def library_for(results: Pair, taps: Pair, *tensors: Tensor) -> ctypes.CDLL | None:
    """The native code for such tiles, if it takes such tensors and can be built."""
    return _library(results, taps) if are_taken(*tensors) else None


@functools.cache
def _library(results: Pair, taps: Pair) -> ctypes.CDLL | None:
    return build.loaded(
        functools.partial(load_library, results, taps),
        "winograd convolutions are computed by torch, many times slower",
    )


def load_library(results: Pair = (4, 4), taps: Pair = (3, 3)) -> ctypes.CDLL:
    """The native code for this CPU. Raises: build.NotBuilt."""
    library = load_kernel("winograd", {"winograd_transforms.h": transforms(results, taps)})
    pointer, sizes, filters, number = ctypes.c_void_p, ctypes.POINTER(_Sizes), ctypes.POINTER(_Filters), ctypes.c_int
    library.convoy_winograd_room.argtypes, library.convoy_winograd_room.restype = [number, number], ctypes.c_size_t
    library.convoy_winograd_filters.argtypes = [filters, number, number, pointer, number]
    library.convoy_winograd_filters.restype = None
    library.convoy_winograd.argtypes = [pointer, sizes, filters, pointer, pointer, pointer, number, number]
    library.convoy_winograd_weight_gradient.argtypes = [pointer, sizes, pointer, pointer, number]
    return library


def convolution(
    library: ctypes.CDLL,
    results: Pair,
    images: Tensor,
    weight: Tensor,
    corner: Pair,
    size: Pair,
    *,
    bias: Tensor | None,
    rotated: bool,
    wide: Tensor | None = None,
) -> Tensor:
    """Convolve with `weight`, or with its filters rotated and its channels exchanged.

    `results`: of a tile. `corner`: zeros above and left of the images. `wide`: of `transformed`, if that is done.
    Shapes: images (N, C, H, W), weight (K, C, R, S), bias (K,) -> (N, K, *size). Raises: MemoryError.
    """
    filters = _in_order(weight)
    places = in_lines(images)
    bias = None if bias is None else bias.contiguous()
    of_weight = _Filters.of(filters, rotated=rotated)
    k = weight.shape[1 if rotated else 0]
    output = torch.empty((images.shape[0], k, *size), memory_format=LAYOUTS[layout_of(images)], dtype=torch.float32)
    sizes = _Sizes.of(places, output, corner)
    failed = library.convoy_winograd(
        places.data_ptr(),
        ctypes.byref(sizes),
        ctypes.byref(of_weight),
        None if wide is None else wide.data_ptr(),
        None if bias is None else bias.data_ptr(),
        output.data_ptr(),
        _block(sizes, results, (weight.shape[2], weight.shape[3])),
        torch.get_num_threads(),
    )
    return unless(failed, output, "winograd")


def transformed(library: ctypes.CDLL, weight: Tensor) -> Tensor:
    """What `convolution` makes of a weight (K, C, R, S) before anything else, for use again and again."""
    filters = _in_order(weight)
    k, c = weight.shape[:2]
    wide = torch.empty(library.convoy_winograd_room(k, c), dtype=torch.float32)
    of_weight = _Filters.of(filters, rotated=False)
    library.convoy_winograd_filters(ctypes.byref(of_weight), k, c, wide.data_ptr(), torch.get_num_threads())
    return wide


def weight_gradient(library: ctypes.CDLL, grads: Tensor, images: Tensor, corner: Pair, size: tuple[int, ...]) -> Tensor:
    """Shapes: grads (N, K, H', W'), images (N, C, H, W) -> (K, C, R, S), which is `size`. Raises: MemoryError."""
    places, slopes = in_lines(images), in_lines(grads)
    gradient = torch.empty(size, dtype=torch.float32)
    failed = library.convoy_winograd_weight_gradient(
        places.data_ptr(),
        ctypes.byref(_Sizes.of(places, slopes, corner)),
        slopes.data_ptr(),
        gradient.data_ptr(),
        torch.get_num_threads(),
    )
    return unless(failed, gradient, "winograd")


def _in_order(weight: Tensor) -> Tensor:
    """With taps or channels side by side, copied unless they lie so."""
    return weight if weight.is_contiguous(memory_format=torch.channels_last) else weight.contiguous()


def _block(sizes: "_Sizes", results: Pair, taps: Pair) -> int:
    """Tiles at a time, as many for each thread; 0 to take the filters in turn."""
    points = math.prod(m + r - 1 for m, r in zip(results, taps, strict=True))
    tiles = sizes.n * -(-sizes.out_h // results[0]) * -(-sizes.out_w // results[1])
    threads = torch.get_num_threads()
    if tiles < _FEW * threads and 4 * points * sizes.c * sizes.k > _FILTERS_IN_CACHE:
        return 0
    most = min(_MOST, max(_FEWEST, _BLOCK // (4 * points * (sizes.c + sizes.k))))
    return max(1, -(-tiles // (threads * -(-tiles // (threads * most)))))


class _Sizes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("n", "c", "h", "w", "k", "out_h", "out_w", "top", "left")),
        ("x", Layout),
        ("y", Layout),
    ]

    @classmethod
    def of(cls, images: Tensor, results: Tensor, corner: Pair) -> "_Sizes":
        return cls(*images.shape, *results.shape[1:], *corner, Layout.of(images), Layout.of(results))


class _Filters(ctypes.Structure):
    _fields_ = [
        ("at", ctypes.c_void_p),
        ("k", ctypes.c_long),
        ("c", ctypes.c_long),
        ("tap", ctypes.c_long),
        ("rotated", ctypes.c_int),
    ]

    @classmethod
    def of(cls, weight: Tensor, *, rotated: bool) -> "_Filters":
        """Shapes: weight (K, C, R, S), taps or channels side by side."""
        channels, taps = weight.shape[1], weight.shape[2] * weight.shape[3]
        k, c, tap = (channels * taps, taps, 1) if weight.is_contiguous() else (channels * taps, 1, channels)
        return cls(weight.data_ptr(), *((c, k) if rotated else (k, c)), tap, int(rotated))
