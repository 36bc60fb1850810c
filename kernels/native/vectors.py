"""Kernels in C for the vectors of this CPU, the tensors that they take, and what they return."""

import ctypes
import types
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from kernels.native import build

NARROW = ("rounding", "updates")
"""Sources with numbers of 16 bits, of which AVX-512 F alone makes half vectors."""

_loaded: dict[str, ctypes.CDLL] = {}


class Layout(ctypes.Structure):
    """Floats from an image, a channel, a row and a column to the next."""

    _fields_ = [(name, ctypes.c_long) for name in ("n", "c", "h", "w")]

    @classmethod
    def of(cls, images: Tensor) -> "Layout":
        """Shapes: images (N, C, H, W)."""
        return cls(*images.stride())


def in_lines(images: Tensor) -> Tensor:
    """The images with channels or columns side by side, copied unless they lie so. Shapes: (N, C, H, W) -> the same."""
    return images if 1 in (images.stride(1), images.stride(3)) else images.contiguous()


def load_kernel(name: str, headers: Mapping[str, str] = types.MappingProxyType({})) -> ctypes.CDLL:
    """As `load_library`, of a kernel that works in memory of its own and counts it."""
    library = load_library(name, headers)
    library.convoy_scratch_bytes.restype = ctypes.c_size_t
    _loaded[library._name] = library
    return library


def load_library(name: str, headers: Mapping[str, str] = types.MappingProxyType({})) -> ctypes.CDLL:
    """The library of native/NAME.c, for the vectors that torch uses on this CPU. Raises: build.NotBuilt.

    `headers`: name -> text, of those that are not files.
    """
    vectors: dict[str, tuple[str, ...]] = {
        "AVX512": ("-mavx512f", "-mfma", "-mbmi2"),
        "AVX2": ("-mavx2", "-mfma", "-mbmi2"),
    }
    of_cpu = vectors.get(torch.backends.cpu.get_cpu_capability(), ())
    if name in NARROW and "-mavx512f" in of_cpu:  # torch calls a CPU AVX512 that has these too
        of_cpu += ("-mavx512bw", "-mavx512dq", "-mavx512vl")
    flags = ("-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", *of_cpu)
    return build.load(Path(__file__).parent / f"{name}.c", flags=flags, headers=headers)


def scratch_bytes() -> int:
    """Memory that kernels worked in, of all threads together, since this was last asked."""
    return sum(library.convoy_scratch_bytes() for library in _loaded.values())


def unless(failed: int, result: Tensor, algorithm: str) -> Tensor:
    """The result. Raises: MemoryError if the kernel says that it had none to work in."""
    if failed:
        raise MemoryError(f"no memory for a convolution to {tuple(result.shape)} by {algorithm}")
    return result


def are_taken(*tensors: Tensor) -> bool:
    """Whether the kernels take such tensors: fp32 on a CPU, with something in them."""
    return all(each.device.type == "cpu" and each.dtype == torch.float32 and each.numel() for each in tensors)
