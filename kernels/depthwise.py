"""Depthwise convolution, one filter a channel, directly: y[n, c] = x[n, c] * w[c], in all three passes.

fp32 on a CPU runs native/depthwise.c, in either memory layout without a copy; whatever else, and a machine without a
compiler, the same sums in torch, one step for each value of the filter. Results differ from the vendor's by the order
of additions only.

Depthwise convolution: Sifre 2014, "Rigid-motion scattering for image classification", section 6.2; MobileNets, Howard
et al. 2017 (arXiv:1704.04861).
"""

import ctypes
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.direct import taps, widened
from kernels.layout import LAYOUTS, laid_out, layout_of
from kernels.native import build
from kernels.native.vectors import Layout, are_taken, in_lines, load_kernel, unless
from kernels.passes import Passes, adding_bias
from kernels.shapes import ConvShape, UnsupportedShape
from kernels.triton_kernels import with_twin


def check(shape: ConvShape) -> None:
    """Raises: UnsupportedShape, with the reason."""
    if not shape.groups == shape.c == shape.k:
        raise UnsupportedShape(
            f"depthwise: got {shape.c} channels, {shape.k} outputs and {shape.groups} groups, must be as many of each. "
            "Use another algorithm."
        )


def forward(input: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: input (N, C, H, W), weight (C, 1, R, S) -> (N, C, H', W')."""
    library = _library_for(input, weight)
    if library is None:
        return forward_by_torch(input, weight, shape)
    return _convolved(library.convoy_depthwise, input, weight, shape, shape.output_size)


def input_gradient(grad_output: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: grad_output (N, C, H', W'), weight (C, 1, R, S) -> (N, C, H, W)."""
    library = _library_for(grad_output, weight)
    if library is None:
        return input_gradient_by_torch(grad_output, weight, shape)
    return _convolved(library.convoy_depthwise_input_gradient, grad_output, weight, shape, shape.input_size)


def weight_gradient(grad_output: Tensor, input: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: grad_output (N, C, H', W'), input (N, C, H, W) -> (C, 1, R, S)."""
    library = _library_for(grad_output, input)
    if library is None:
        return weight_gradient_by_torch(grad_output, input, shape)
    images, grads = in_lines(input), in_lines(grad_output)
    gradient = input.new_empty(shape.weight_size)
    failed = library.convoy_depthwise_weight_gradient(
        images.data_ptr(), Layout.of(images), _sizes(shape), grads.data_ptr(), Layout.of(grads),
        gradient.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return unless(failed, gradient, "depthwise")


PASSES = with_twin("depthwise", Passes(check, adding_bias(forward), input_gradient, weight_gradient))


def forward_by_torch(input: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """The definition: each pixel's products with one value of the filter at a time."""
    images, filters = _padded(input, shape), widened(weight)
    output = images.new_zeros(shape.output_size)
    for r, s, rows, columns in taps(shape):
        output += images[..., rows, columns] * filters[:, 0, r, s, None, None]
    return _like(output, input)


def input_gradient_by_torch(grad_output: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Every product of `forward` sent back to the pixel that it read."""
    grads, filters = widened(grad_output), widened(weight)
    padded = grads.new_zeros(shape.n, shape.c, shape.padded_h, shape.padded_w)
    for r, s, rows, columns in taps(shape):
        padded[..., rows, columns] += grads * filters[:, 0, r, s, None, None]
    (top, _), (left, _) = shape.padding
    return _like(padded[..., top : top + shape.h, left : left + shape.w], grad_output)


def weight_gradient_by_torch(grad_output: Tensor, input: Tensor, shape: ConvShape) -> Tensor:
    """Every product of `forward` sent back to the filter value that it used."""
    grads, images = widened(grad_output), _padded(input, shape)
    filters = images.new_empty(shape.weight_size)
    for r, s, rows, columns in taps(shape):
        filters[:, 0, r, s] = torch.einsum("nchw,nchw->c", images[..., rows, columns], grads)
    return filters.to(input.dtype)


def _padded(input: Tensor, shape: ConvShape) -> Tensor:
    (top, bottom), (left, right) = shape.padding
    return F.pad(widened(input), (left, right, top, bottom))


def _like(result: Tensor, images: Tensor) -> Tensor:
    return laid_out(result.to(images.dtype), layout_of(images))


class _Sizes(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int)
        for name in (
            "n", "c", "h", "w", "out_h", "out_w", "r", "s", "stride_h", "stride_w", "dilation_h", "dilation_w",
            "top", "left",
        )
    ]  # fmt: skip


def _convolved(
    function: Callable[..., int], images: Tensor, weight: Tensor, shape: ConvShape, size: tuple[int, ...]
) -> Tensor:
    lines, filters = in_lines(images), weight.contiguous()
    result = torch.empty(size, memory_format=LAYOUTS[layout_of(images)], dtype=torch.float32)
    failed = function(
        lines.data_ptr(), Layout.of(lines), _sizes(shape), filters.data_ptr(),
        result.data_ptr(), Layout.of(result), torch.get_num_threads(),
    )  # fmt: skip
    return unless(failed, result, "depthwise")


def _sizes(shape: ConvShape) -> _Sizes:
    (top, _), (left, _) = shape.padding
    return _Sizes(
        shape.n, shape.c, shape.h, shape.w, shape.out_h, shape.out_w, shape.r, shape.s,
        *shape.stride, *shape.dilation, top, left,
    )  # fmt: skip


def _library_for(*tensors: Tensor) -> ctypes.CDLL | None:
    return _library() if are_taken(*tensors) else None


@functools.cache
def _library() -> ctypes.CDLL | None:
    return build.loaded(load_library, "depthwise convolutions are computed by torch, many times slower")


def load_library() -> ctypes.CDLL:
    """The native code for this CPU. Raises: build.NotBuilt."""
    library = load_kernel("depthwise")
    pointer, layout, sizes, number = ctypes.c_void_p, ctypes.POINTER(Layout), ctypes.POINTER(_Sizes), ctypes.c_int
    for function in (library.convoy_depthwise, library.convoy_depthwise_input_gradient):
        function.argtypes = [pointer, layout, sizes, pointer, pointer, layout, number]
    library.convoy_depthwise_weight_gradient.argtypes = [pointer, layout, sizes, pointer, layout, pointer, number]
    return library
