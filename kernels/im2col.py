"""Convolution as one matrix product, of weights with all the pixels that each result sees ("im2col").

    output (N H' W', K) = columns (N H' W', R S C) x weight (R S C, K)

The columns hold every pixel up to R S times: `workspace_bytes`. A batch is cut into chunks whose columns stay in the
caches, which is also faster: 17 ms in place of 42 ms for 8 images of 64 x 56 x 56 and 3 x 3 filters (AMD EPYC, AVX2, 2
threads, torch 2.14.1, 2026-11). The input's gradient adds the columns' gradients to the pixels that they are copies of
("col2im"). fp16 and bf16 are computed in fp32 and rounded once.

Source: Chellapilla, Puri & Simard 2006, "High Performance Convolutional Neural Networks for Document Processing",
section 2.
"""

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.layout import empty, laid_out, layout_of
from kernels.passes import Passes, adding_bias
from kernels.shapes import ConvShape
from kernels.triton_kernels import with_twin

Matmul = Callable[[Tensor, Tensor], Tensor]
"""Shapes: (B, X, Y), (B, Y, Z) -> (B, X, Z)."""

_CHUNK_VALUES = 2**22


def check(shape: ConvShape) -> None:
    """Every shape is taken."""
    del shape


def forward(input: Tensor, weight: Tensor, shape: ConvShape, *, multiply: Matmul = torch.bmm) -> Tensor:
    """Shapes: input (N, C, H, W), weight (K, C / groups, R, S) -> (N, K, H', W')."""
    output = empty(shape.output_size, input)
    filters = _filters(weight, shape).transpose(1, 2)
    for part in chunks(input, shape):
        _put(multiply(columns(input[part], shape), filters), output[part])
    return output


def input_gradient(grad_output: Tensor, weight: Tensor, shape: ConvShape, *, multiply: Matmul = torch.bmm) -> Tensor:
    """Shapes: grad_output (N, K, H', W'), weight (K, C / groups, R, S) -> (N, C, H, W)."""
    gradient = empty(shape.input_size, grad_output)
    filters = _filters(weight, shape)
    for part in chunks(grad_output, shape):
        _put(_images(multiply(_rows(grad_output[part], shape), filters), shape), gradient[part])
    return gradient


def weight_gradient(grad_output: Tensor, input: Tensor, shape: ConvShape, *, multiply: Matmul = torch.bmm) -> Tensor:
    """Shapes: grad_output (N, K, H', W'), input (N, C, H, W) -> (K, C / groups, R, S)."""
    c, k = shape.c // shape.groups, shape.k // shape.groups
    total = input.new_zeros(shape.groups, k, shape.r * shape.s * c, dtype=_dtype(input))
    for part in chunks(input, shape):
        total += multiply(_rows(grad_output[part], shape).transpose(1, 2), columns(input[part], shape))
    return total.view(shape.k, shape.r, shape.s, c).permute(0, 3, 1, 2).to(input.dtype).contiguous()


def passes(multiply: Matmul) -> Passes:
    """All three passes, with that matrix product."""
    first, second, third = (functools.partial(each, multiply=multiply) for each in _EACH)
    return Passes(check, adding_bias(first), second, third)


def columns(images: Tensor, shape: ConvShape) -> Tensor:
    """The pixels that each result sees, in fp32 at least. A view of the images if it can be, as for 1 x 1 filters.

    Shapes: images (n, C, H, W) -> (groups, n H' W', R S C / groups), n being any part of the batch.
    """
    (top, bottom), (left, right) = shape.padding
    padded = images.to(_dtype(images))
    if not _is_pointwise(shape):
        padded = F.pad(laid_out(padded, "nhwc"), (left, right, top, bottom))
    per_group = shape.c // shape.groups
    image, channel, row, column = padded.stride()
    seen = padded.as_strided(
        (shape.groups, len(images), shape.out_h, shape.out_w, shape.r, shape.s, per_group),
        (
            channel * per_group,
            image,
            row * shape.stride[0],
            column * shape.stride[1],
            row * shape.dilation[0],
            column * shape.dilation[1],
            channel,
        ),
    )
    return seen.reshape(shape.groups, len(images) * shape.out_h * shape.out_w, shape.r * shape.s * per_group)


def images_at_once(shape: ConvShape) -> int:
    """The images of a chunk."""
    of_one = shape.out_h * shape.out_w * shape.r * shape.s * shape.c
    return min(shape.n, max(1, _CHUNK_VALUES // of_one))


def workspace_bytes(shape: ConvShape, element_bytes: int = 4) -> int:
    """Bytes that the columns take at once; none for 1 x 1 filters without stride and padding.

    `element_bytes`: of a number in the columns, 4 for fp16 and bf16 too.
    """
    if _is_pointwise(shape):
        return 0
    return images_at_once(shape) * shape.out_h * shape.out_w * shape.r * shape.s * shape.c * element_bytes


def chunks(images: Tensor, shape: ConvShape) -> Iterator[slice]:
    # Images that lie channel by channel are matrices only one by one.
    whole = _is_pointwise(shape) and layout_of(images) == "nchw"
    step = 1 if whole else max(1, images_at_once(shape))
    return (slice(start, min(start + step, shape.n)) for start in range(0, shape.n, step))


def _is_pointwise(shape: ConvShape) -> bool:
    return shape.r == shape.s == 1 and shape.stride == (1, 1) and shape.padding == ((0, 0), (0, 0))


def _filters(weight: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: (K, C / groups, R, S) -> (groups, K / groups, R S C / groups)."""
    by_position = weight.to(_dtype(weight)).permute(0, 2, 3, 1)
    return by_position.reshape(shape.groups, shape.k // shape.groups, -1)


def _rows(grads: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: (n, K, H', W') -> (groups, n H' W', K / groups)."""
    size = (len(grads) * shape.out_h * shape.out_w, shape.k // shape.groups)
    return _by_group(grads.to(_dtype(grads)), shape.groups).reshape(shape.groups, *size)


def _images(seen: Tensor, shape: ConvShape) -> Tensor:
    """Add up columns. Shapes: (groups, n H' W', R S C / groups) -> (groups, n, H, W, C / groups)."""
    (height, width), (top, _), (left, _) = (shape.out_h, shape.out_w), *shape.padding
    each = seen.view(shape.groups, -1, height, width, shape.r, shape.s, shape.c // shape.groups)
    if _is_pointwise(shape):
        return each[..., 0, 0, :]
    padded = seen.new_zeros(*each.shape[:2], shape.padded_h, shape.padded_w, each.shape[-1])
    for r in range(shape.r):
        first = r * shape.dilation[0]
        rows = padded[:, :, first : first + shape.stride[0] * (height - 1) + 1 : shape.stride[0]]
        for s in range(shape.s):
            first = s * shape.dilation[1]
            rows[:, :, :, first : first + shape.stride[1] * (width - 1) + 1 : shape.stride[1]] += each[..., r, s, :]
    return padded[:, :, top : top + shape.h, left : left + shape.w]


def _put(result: Tensor, images: Tensor) -> None:
    """Put (groups, n x H x W, C / groups), in as many dimensions, into images (n, C, H, W)."""
    places = _by_group(images, result.shape[0])
    places.copy_(result.reshape(places.shape))


def _by_group(images: Tensor, groups: int) -> Tensor:
    """A view. Shapes: (n, C, H, W) -> (groups, n, H, W, C / groups)."""
    n, c, height, width = images.shape
    return images.view(n, groups, c // groups, height, width).permute(1, 0, 3, 4, 2)


def _dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


_EACH = (forward, input_gradient, weight_gradient)
PASSES = with_twin("im2col", passes(torch.bmm))
