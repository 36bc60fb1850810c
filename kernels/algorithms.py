"""The table of algorithms: one file of this folder and one row each.

An algorithm raises UnsupportedShape for what it does not do, and is never replaced silently by another.
"""

import difflib

from torch import Tensor

from kernels import cast, depthwise, direct, fft, im2col, pointwise, strassen, vendor, winograd
from kernels.passes import AUTO, VENDOR, Passes
from kernels.shapes import ConvShape, UnsupportedShape

ALGORITHMS: dict[str, Passes] = {
    "vendor": vendor.PASSES,
    "vendor_nchw": vendor.NCHW,
    "vendor_nhwc": vendor.NHWC,
    "direct": direct.PASSES,
    "depthwise": depthwise.PASSES,
    "pointwise": pointwise.PASSES,
    "winograd_2": winograd.SMALL,
    "winograd": winograd.PASSES,
    "winograd_6": winograd.LARGE,
    "im2col": im2col.PASSES,
    "strassen": strassen.PASSES,
    "fft": fft.PASSES,
    "cast": cast.PASSES,
}


def check_name(name: str) -> None:
    """Raises: ValueError unless it is the name of an algorithm, or 'auto'."""
    if name not in ALGORITHMS and name != AUTO:
        near = difflib.get_close_matches(name, ALGORITHMS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "Use 'vendor' for the one that PyTorch chooses."
        raise ValueError(f"algorithm: got {name!r}, must be auto or one of {', '.join(sorted(ALGORITHMS))}. {hint}")


def takes(name: str, shape: ConvShape) -> bool:
    """Whether the algorithm of that name does this convolution."""
    return ALGORITHMS[name].takes(shape)


def check_tensors(name: str, *tensors: Tensor) -> None:
    """Raises: UnsupportedShape for numbers that are not floating-point, which are the vendor's to convolve."""
    if not name.startswith(VENDOR) and not all(tensor.is_floating_point() for tensor in tensors):
        raise UnsupportedShape(
            f"{name}: got {tensors[0].dtype}, must be a floating-point type. Use the algorithm 'vendor'."
        )
