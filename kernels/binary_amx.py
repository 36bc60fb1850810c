"""Convolutions of signs by a CPU's matrix unit, as bytes of 1 and -1 (native/binary_amx.c): exact as by bits.

Intel's AMX makes 1,024 products of bytes a cycle, counting the bits of vectors about a third of that.
"""

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from kernels.native import build
from kernels.native.vectors import Layout, load_library
from kernels.shapes import ConvShape


def takes(shape: ConvShape) -> bool:
    """Whether there is such a unit, and it pays: it always multiplies 64 channels."""
    return shape.c > 32 and _library() is not None


def filters_of(words: Tensor, sizes: Any) -> Tensor:
    """The signs of filters as bytes. `words`: as native/binary.c packs them; `sizes`: of filters and images."""
    library = _library()
    assert library is not None
    filters = torch.empty(library.convoy_amx_filter_bytes(sizes), dtype=torch.int8)
    library.convoy_amx_pack_filters(_at(words), sizes, _at(filters))
    return filters


def convolve(images: Tensor, filters: Tensor, output: Tensor, sizes: Any) -> None:
    """The convolution of sign(images) by filters of bytes, into `output`.

    Shapes: images (N, C, H, W), output (N, K, H', W'), in fp32, channels or columns side by side.
    """
    library = _library()
    assert library is not None
    threads = torch.get_num_threads()
    packed = torch.empty(library.convoy_amx_image_bytes(sizes), dtype=torch.int8)
    library.convoy_amx_pack(_at(images), Layout.of(images), sizes, _at(packed), threads)
    library.convoy_amx_convolve(_at(packed), sizes, _at(filters), _at(output), Layout.of(output), threads)


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = build.loaded(lambda: load_library("binary_amx"), "Binary convolutions count bits, which is slower")
    if library is None or not library.convoy_amx_is_there():
        return None
    for name in ("convoy_amx_image_bytes", "convoy_amx_filter_bytes"):
        getattr(library, name).restype = ctypes.c_long
    return library
