"""What PyTorch chooses (cuDNN, oneDNN, MIOpen, ...), as one algorithm among others, and in either memory layout.

`vendor` takes the tensors as they lie, and a linear layer as a matrix product. `vendor_nchw` and `vendor_nhwc` lay them
out first and convolve, and lay the result as the first of them lay: a copy or two that the faster kernel of the other
layout may be worth.
"""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.layout import empty, laid_out, layout_of
from kernels.passes import Passes
from kernels.shapes import ConvShape, Pair


def forward(input: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None) -> Tensor:
    """Shapes: input (N, C, H, W), weight (K, C / groups, R, S), bias (K,) -> (N, K, H', W')."""
    if shape.linear:
        return F.linear(_pixels(input), weight.flatten(1), bias).permute(0, 3, 1, 2)
    padding = _even_padding(shape)
    images = input if padding else _padded(input, shape)
    return F.conv2d(images, weight, bias, shape.stride, padding or 0, shape.dilation, shape.groups)


def input_gradient(grad_output: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: grad_output (N, K, H', W'), weight (K, C / groups, R, S) -> (N, C, H, W)."""
    if shape.linear:
        return (_pixels(grad_output) @ weight.flatten(1)).permute(0, 3, 1, 2)
    padding = _even_padding(shape)
    size = shape.input_size if padding else (shape.n, shape.c, shape.padded_h, shape.padded_w)
    gradient, _ = _gradients(grad_output, empty(size, grad_output), weight, padding, shape, wanted=[True, False, False])
    return gradient if padding else _cropped(gradient, shape)


def weight_gradient(grad_output: Tensor, input: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: grad_output (N, K, H', W'), input (N, C, H, W) -> (K, C / groups, R, S)."""
    if shape.linear:
        grads, images = (_pixels(each).flatten(0, 2) for each in (grad_output, input))
        return (grads.T @ images).view(shape.weight_size)
    padding = _even_padding(shape)
    images = input if padding else _padded(input, shape)
    unread = input.new_empty(shape.weight_size)
    _, gradient = _gradients(grad_output, images, unread, padding, shape, wanted=[False, True, False])
    return gradient


def check(shape: ConvShape) -> None:
    """Every shape is taken."""
    del shape


def _in(layout: str) -> Passes:
    def in_layout(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def computed(first: Tensor, second: Tensor, shape: ConvShape, *bias: Tensor | None) -> Tensor:
            convolved = dataclasses.replace(shape, linear=False) if shape.linear else shape
            result = compute(laid_out(first, layout), laid_out(second, layout), convolved, *bias)
            return result if compute is weight_gradient else laid_out(result, layout_of(first))

        return computed

    return Passes(check, in_layout(forward), in_layout(input_gradient), in_layout(weight_gradient))


PASSES = Passes(check, forward, input_gradient, weight_gradient)
NCHW, NHWC = _in("nchw"), _in("nhwc")


def _pixels(images: Tensor) -> Tensor:
    """Shapes: (N, C, H, W) -> (N, H, W, C)."""
    return images.permute(0, 2, 3, 1)


def _even_padding(shape: ConvShape) -> Pair | None:
    """The padding as PyTorch takes it; None if two opposite sides differ."""
    (top, bottom), (left, right) = shape.padding
    return (top, left) if (top, left) == (bottom, right) else None


def _padded(images: Tensor, shape: ConvShape) -> Tensor:
    return F.pad(images, (*shape.padding[1], *shape.padding[0]))


def _cropped(padded: Tensor, shape: ConvShape) -> Tensor:
    (top, _), (left, _) = shape.padding
    return padded[:, :, top : top + shape.h, left : left + shape.w]


def _gradients(
    grad_output: Tensor, images: Tensor, weight: Tensor, padding: Pair | None, shape: ConvShape, *, wanted: list[bool]
) -> tuple[Tensor, Tensor]:
    gradients = torch.ops.aten.convolution_backward(
        grad_output, images, weight, None, shape.stride, padding or (0, 0), shape.dilation, False, (0, 0),
        shape.groups, wanted,
    )  # fmt: skip
    return gradients[0], gradients[1]
