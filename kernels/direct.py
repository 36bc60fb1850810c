"""Convolution by its definition: the oracle that every other algorithm here is tested against.

    y[n, k, i, j] = sum over c, r, s of x[n, c, i * stride + r * dilation - padding, ...] * w[k, c, r, s]

One step for each filter position (r, s): all products with that one value of the filter, summed over c. Made
to be read, not to be fast: it passes over the images R * S times. fp16 and bf16 are summed in fp32 and
rounded once.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.passes import Passes, adding_bias
from kernels.shapes import ConvShape


def forward(input: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: input (N, C, H, W), weight (K, C / groups, R, S) -> (N, K, H', W')."""
    images, filters = _grouped_images(input, shape), _grouped_filters(weight, shape)
    output = images.new_zeros(shape.n, shape.groups, shape.k // shape.groups, shape.out_h, shape.out_w)
    for r, s, rows, columns in taps(shape):
        output += torch.einsum("ngchw,gkc->ngkhw", images[..., rows, columns], filters[..., r, s])
    return output.reshape(shape.output_size).to(input.dtype)


def input_gradient(grad_output: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """The gradient of the images: every product of `forward` sent back to the pixel that it read.

    Shapes: grad_output (N, K, H', W'), weight (K, C / groups, R, S) -> (N, C, H, W).
    """
    grads, filters = _grouped_grads(grad_output, shape), _grouped_filters(weight, shape)
    padded = grads.new_zeros(shape.n, shape.groups, shape.c // shape.groups, shape.padded_h, shape.padded_w)
    for r, s, rows, columns in taps(shape):
        padded[..., rows, columns] += torch.einsum("ngkhw,gkc->ngchw", grads, filters[..., r, s])
    (top, _), (left, _) = shape.padding
    images = padded[..., top : top + shape.h, left : left + shape.w]
    return images.reshape(shape.input_size).to(grad_output.dtype)


def weight_gradient(grad_output: Tensor, input: Tensor, shape: ConvShape) -> Tensor:
    """The gradient of the filter: every product of `forward` sent back to the filter value that it used.

    Shapes: grad_output (N, K, H', W'), input (N, C, H, W) -> (K, C / groups, R, S).
    """
    grads, images = _grouped_grads(grad_output, shape), _grouped_images(input, shape)
    filters = images.new_empty(shape.groups, shape.k // shape.groups, shape.c // shape.groups, shape.r, shape.s)
    for r, s, rows, columns in taps(shape):
        filters[..., r, s] = torch.einsum("ngchw,ngkhw->gkc", images[..., rows, columns], grads)
    return filters.reshape(shape.weight_size).to(input.dtype)


def check(shape: ConvShape) -> None:
    """Every shape is taken."""
    del shape


PASSES = Passes(check, adding_bias(forward), input_gradient, weight_gradient)


def taps(shape: ConvShape) -> Iterator[tuple[int, int, slice, slice]]:
    """Each filter position with the rows and columns of the padded image that it meets."""
    for r in range(shape.r):
        top = r * shape.dilation[0]
        rows = slice(top, top + shape.stride[0] * (shape.out_h - 1) + 1, shape.stride[0])
        for s in range(shape.s):
            left = s * shape.dilation[1]
            yield r, s, rows, slice(left, left + shape.stride[1] * (shape.out_w - 1) + 1, shape.stride[1])


def _grouped_images(input: Tensor, shape: ConvShape) -> Tensor:
    """(N, C, H, W) -> (N, groups, C / groups, padded H, padded W)."""
    (top, bottom), (left, right) = shape.padding
    padded = F.pad(widened(input), (left, right, top, bottom))
    return padded.reshape(shape.n, shape.groups, shape.c // shape.groups, shape.padded_h, shape.padded_w)


def _grouped_grads(grad_output: Tensor, shape: ConvShape) -> Tensor:
    """(N, K, H', W') -> (N, groups, K / groups, H', W')."""
    return widened(grad_output).reshape(shape.n, shape.groups, shape.k // shape.groups, shape.out_h, shape.out_w)


def _grouped_filters(weight: Tensor, shape: ConvShape) -> Tensor:
    """(K, C / groups, R, S) -> (groups, K / groups, C / groups, R, S)."""
    return widened(weight).reshape(shape.groups, shape.k // shape.groups, shape.c // shape.groups, shape.r, shape.s)


def widened(tensor: Tensor) -> Tensor:
    """fp16 and bf16 in fp32, others as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
