"""Pointwise convolution, 1 x 1 filters with any stride: y = W x for every pixel, a matrix product in all three passes.

fp32 on a CPU runs native/pointwise.c, in either memory layout without a copy; whatever else, and a machine without a
compiler, the same products by torch's matrix multiplication. fp16 and bf16 are rounded once.

Source: Lin, Chen & Yan 2013, "Network In Network" (arXiv:1312.4400), section 3.1.
"""

import ctypes
import functools

import torch
from torch import Tensor

from kernels.layout import LAYOUTS, laid_out, layout_of
from kernels.native import build
from kernels.native.vectors import Layout, are_taken, in_lines, load_kernel, unless
from kernels.passes import Passes
from kernels.shapes import ConvShape, Pair, check_allowed


def check(shape: ConvShape) -> None:
    """Raises: UnsupportedShape, with the reason."""
    check_allowed(
        "pointwise",
        ("filter", (shape.r, shape.s), (1, 1)),
        ("padding", shape.padding, ((0, 0), (0, 0))),
        ("groups", shape.groups, 1),
    )


def forward(input: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None) -> Tensor:
    """Shapes: input (N, C, H, W), weight (K, C, 1, 1), bias (K,) -> (N, K, H', W')."""
    library = _library_for(input, weight)
    if library is None:
        return forward_by_torch(input, weight, shape, bias)
    images, filters, output = in_lines(input), weight.contiguous(), _empty(shape.output_size, input)
    sizes = _Sizes.of((shape.c, shape.k), _met(images, shape), output)
    return _product(library, images, sizes, _Filters(filters.data_ptr(), 1, shape.c), bias, output)


def input_gradient(grad_output: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: grad_output (N, K, H', W'), weight (K, C, 1, 1) -> (N, C, H, W)."""
    library = _library_for(grad_output, weight)
    if library is None:
        return input_gradient_by_torch(grad_output, weight, shape)
    grads, filters, gradient = in_lines(grad_output), weight.contiguous(), _empty(shape.input_size, grad_output)
    cells = (shape.stride, (shape.h, shape.w)) if shape.stride != (1, 1) else ()
    sizes = _Sizes.of((shape.k, shape.c), grads, _met(gradient, shape), *cells)
    return _product(library, grads, sizes, _Filters(filters.data_ptr(), shape.c, 1), None, gradient)


def weight_gradient(grad_output: Tensor, input: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: grad_output (N, K, H', W'), input (N, C, H, W) -> (K, C, 1, 1)."""
    library = _library_for(grad_output, input)
    if library is None:
        return weight_gradient_by_torch(grad_output, input, shape)
    images, grads, gradient = in_lines(input), in_lines(grad_output), input.new_empty(shape.weight_size)
    sizes = _Sizes.of((shape.c, shape.k), _met(images, shape), grads)
    failed = library.convoy_pointwise_weight_gradient(
        images.data_ptr(), ctypes.byref(sizes), grads.data_ptr(), gradient.data_ptr(), torch.get_num_threads()
    )
    return unless(failed, gradient, "pointwise")


PASSES = Passes(check, forward, input_gradient, weight_gradient)


def forward_by_torch(input: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None) -> Tensor:
    """Rows of pixels by the filters, channels last."""
    output = _met(_wide(input), shape).permute(0, 2, 3, 1) @ _matrix(weight).T
    if bias is not None:
        output += bias
    return laid_out(output.permute(0, 3, 1, 2).to(input.dtype), layout_of(input))


def input_gradient_by_torch(grad_output: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Rows of gradients by the filters, back to the pixels that were read; zero for others."""
    grads = _wide(grad_output).permute(0, 2, 3, 1) @ _matrix(weight)
    gradient = grad_output.new_zeros(shape.input_size).contiguous(memory_format=LAYOUTS[layout_of(grad_output)])
    _met(gradient, shape).copy_(grads.permute(0, 3, 1, 2))
    return gradient


def weight_gradient_by_torch(grad_output: Tensor, input: Tensor, shape: ConvShape) -> Tensor:
    """One product summed over all pixels."""
    grads, images = (each.permute(1, 0, 2, 3).flatten(1) for each in (_wide(grad_output), _met(_wide(input), shape)))
    return (grads @ images.T).view(shape.weight_size).to(input.dtype)


def _met(images: Tensor, shape: ConvShape) -> Tensor:
    """The pixels that a filter meets, as a view. Shapes: (N, C, H, W) -> (N, C, H', W')."""
    return images[:, :, :: shape.stride[0], :: shape.stride[1]]


def _empty(size: tuple[int, ...], like: Tensor) -> Tensor:
    """Room for a result, laid out as what it comes from."""
    return torch.empty(size, dtype=like.dtype, memory_format=LAYOUTS[layout_of(like)])


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _matrix(weight: Tensor) -> Tensor:
    return _wide(weight).flatten(1)


class _Sizes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("n", "from_", "to", "h", "w", "cell_h", "cell_w", "full_h", "full_w")),
        ("in_", Layout),
        ("out", Layout),
    ]

    @classmethod
    def of(
        cls, channels: Pair, read: Tensor, written: Tensor, cell: Pair = (1, 1), full: Pair | None = None
    ) -> "_Sizes":
        """From pixels that are read to those that are written, of `channels`. `full`: images that cells make up."""
        n, _, h, w = read.shape
        layouts = [Layout.of(read), Layout.of(written)]
        if h * w == 1 and not full:  # a row of images
            n, w, layouts = 1, n, [Layout(0, layout.c, 0, layout.n) for layout in layouts]
        return cls(n, *channels, h, w, *cell, *(full or (h, w)), *layouts)


class _Filters(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("from_", ctypes.c_long), ("to", ctypes.c_long)]


def _product(
    library: ctypes.CDLL, images: Tensor, sizes: _Sizes, filters: _Filters, bias: Tensor | None, result: Tensor
) -> Tensor:
    bias = None if bias is None else bias.contiguous()
    failed = library.convoy_pointwise(
        images.data_ptr(),
        ctypes.byref(sizes),
        ctypes.byref(filters),
        None if bias is None else bias.data_ptr(),
        result.data_ptr(),
        torch.get_num_threads(),
    )
    return unless(failed, result, "pointwise")


def _library_for(*tensors: Tensor) -> ctypes.CDLL | None:
    return _library() if are_taken(*tensors) else None


@functools.cache
def _library() -> ctypes.CDLL | None:
    return build.loaded(load_library, "pointwise convolutions are computed by torch's matrix product, which is slower")


def load_library() -> ctypes.CDLL:
    """The native code for this CPU. Raises: build.NotBuilt."""
    library = load_kernel("pointwise")
    pointer, sizes, filters, number = ctypes.c_void_p, ctypes.POINTER(_Sizes), ctypes.POINTER(_Filters), ctypes.c_int
    library.convoy_pointwise.argtypes = [pointer, sizes, filters, pointer, pointer, number]
    library.convoy_pointwise_weight_gradient.argtypes = [pointer, sizes, pointer, pointer, number]
    return library
