"""im2col on a GPU, in Triton: the same matrix product, of columns that are never written ("implicit GEMM").

Each program makes a block of the result. The pixels that it needs are read from where they lie in the image, a block of
the columns at a time. The weight's gradient is a sum over all pixels: programs share it, each writes its part, and the
parts are added in a fixed order, so results are the same bit for bit in every run. Sums are in fp32.

One group only. Not yet measured on a GPU.

Source: Chetlur et al. 2014, "cuDNN: Efficient Primitives for Deep Learning" (arXiv:1410.0759), section 3.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import gather
from kernels.gather_triton import Places, Strides, Tensors, place, seen
from kernels.layout import empty
from kernels.passes import Passes
from kernels.shapes import ConvShape, check_allowed
from kernels.triton_kernels import parts, precision


class Blocks(NamedTuple):
    """The block of the result that a program makes, and how many terms of its sums it takes at a time."""

    rows: int
    columns: int
    depth: int
    precision: str
    warps: int


@triton.jit(do_not_specialize=["places"])
def _gather_product(tensors, strides, places, blocks: tl.constexpr):
    """Block (rows, columns) of result (N H' W', K) = columns (N H' W', J I C) x filters (J I C, K) + bias."""
    num_columns = tl.cdiv(strides.k, blocks.columns)
    pixel = tl.program_id(0) // num_columns * blocks.rows + tl.arange(0, blocks.rows)
    k = tl.program_id(0) % num_columns * blocks.columns + tl.arange(0, blocks.columns)
    depth = places.taps * strides.c
    total = tl.zeros((blocks.rows, blocks.columns), tl.float32)
    for start in range(0, depth, blocks.depth):
        term = start + tl.arange(0, blocks.depth)
        tap, channel = term // strides.c, term % strides.c
        pixels = seen(tensors.source, strides, places, pixel[:, None], tap[None, :], channel[None, :])
        inside = (term[:, None] < depth) & (k[None, :] < strides.k)
        filters = tl.load(tensors.other + k[None, :] * depth + term[:, None], mask=inside, other=0.0)
        total = tl.dot(pixels, filters, total, input_precision=blocks.precision)
    if tensors.bias is not None:
        total += tl.load(tensors.bias + k, mask=k < strides.k, other=0.0).to(tl.float32)[None, :]
    there, inside = place(strides, places, pixel[:, None], k[None, :])
    tl.store(tensors.result + there, total.to(tensors.result.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["places"])
def _weight_product(tensors, strides, places, blocks: tl.constexpr):
    """Block (rows, columns) of a part of result (parts, K, R S C): gradients (K, pixels) x columns (pixels, R S C)."""
    depth = places.taps * strides.c
    num_columns = tl.cdiv(depth, blocks.columns)
    k = tl.program_id(0) // num_columns * blocks.rows + tl.arange(0, blocks.rows)
    term = tl.program_id(0) % num_columns * blocks.columns + tl.arange(0, blocks.columns)
    tap, channel = term // strides.c, term % strides.c
    first = tl.program_id(1) * places.share
    total = tl.zeros((blocks.rows, blocks.columns), tl.float32)
    for start in range(first, first + places.share, blocks.depth):
        pixel = start + tl.arange(0, blocks.depth)
        there, inside = place(strides, places, pixel[None, :], k[:, None])
        grads = tl.load(tensors.other + there, mask=inside, other=0.0)
        pixels = seen(tensors.source, strides, places, pixel[:, None], tap[None, :], channel[None, :])
        total = tl.dot(grads, pixels, total, input_precision=blocks.precision)
    inside = (k < strides.k)[:, None] & (term < depth)[None, :]
    part = tensors.result + tl.program_id(1) * strides.k * depth
    tl.store(part + k[:, None] * depth + term[None, :], total, mask=inside)


def check(shape: ConvShape) -> None:
    """Raises: UnsupportedShape for more groups than one."""
    check_allowed("im2col in Triton", ("groups", shape.groups, 1))


def forward(input: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None, /) -> Tensor:
    """Shapes: input (N, C, H, W), weight (K, C, R, S), bias (K,) or None -> (N, K, H', W')."""
    output = empty(shape.output_size, input)
    _gather(input, weight, bias, output, gather.of_forward(shape))
    return output


def input_gradient(grad_output: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: grad_output (N, K, H', W'), weight (K, C, R, S) -> (N, C, H, W)."""
    gradient = empty(shape.input_size, grad_output)
    for lines in gather.of_input_gradient(shape):
        _gather(grad_output, weight.transpose(0, 1), None, gradient, lines)
    return gradient


def weight_gradient(grad_output: Tensor, input: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: grad_output (N, K, H', W'), input (N, C, H, W) -> (K, C, R, S)."""
    depth, pixels = shape.r * shape.s * shape.c, shape.n * shape.out_h * shape.out_w
    blocks = blocks_for(shape.k, depth, input.dtype)
    programs = triton.cdiv(shape.k, blocks.rows) * triton.cdiv(depth, blocks.columns)
    steps = triton.cdiv(pixels, blocks.depth)
    share = triton.cdiv(steps, parts(programs, steps))
    sums = input.new_empty(triton.cdiv(steps, share), shape.k, shape.r, shape.s, shape.c, dtype=torch.float32)
    strides = Strides(shape.c, shape.k, *input.stride(), *grad_output.stride())
    places = Places.of(input, grad_output, gather.of_forward(shape), (shape.r, shape.s), share=share * blocks.depth)
    with torch.cuda.device_of(input):
        _weight_product[(programs, len(sums))](
            Tensors(input, grad_output, None, sums),
            strides,
            places,
            blocks,
            num_warps=blocks.warps,
        )
    return sums.sum(0).permute(0, 3, 1, 2).to(input.dtype)


PASSES = Passes(check, forward, input_gradient, weight_gradient)


def blocks_for(rows: int, columns: int, dtype: torch.dtype) -> Blocks:
    """For a result of so many rows and columns. Not yet measured: what fits registers and shared memory without spills.

    fp16 and bf16 run on tensor cores, whose larger blocks read less; fp32 by fp32 arithmetic ("ieee").
    """
    half = dtype.itemsize == 2
    width = next(size for size in (32, 64, 128) if columns <= size or size == (128 if half else 64))
    large = rows > 64 and triton.cdiv(rows, 128) * triton.cdiv(columns, width) >= 128
    return Blocks(
        rows=128 if large else 64 if rows > 32 else 32,
        columns=width,
        depth=32 if half else 16,
        precision=precision(dtype),
        warps=8 if large and width >= 64 else 4,
    )


def _gather(
    source: Tensor, filters: Tensor, bias: Tensor | None, result: Tensor, lines: tuple[gather.Line, gather.Line]
) -> None:
    """Shapes: source (N, C, H, W), filters (K, C, R, S), bias (K,), result (N, K, ..., ...), which `lines` fill."""
    filters, result = (
        images[:, :, places[0], places[1]]
        for images, places in ((filters, [line.taps for line in lines]), (result, [line.results for line in lines]))
    )
    (k, c), size = filters.shape[:2], (filters.shape[2], filters.shape[3])
    places = Places.of(source, result, lines, size)
    blocks = blocks_for(places.pixels, k, source.dtype)
    programs = triton.cdiv(places.pixels, blocks.rows) * triton.cdiv(k, blocks.columns)
    with torch.cuda.device_of(source):
        _gather_product[(programs,)](
            Tensors(source, filters.permute(0, 2, 3, 1).contiguous(), bias, result),
            Strides(c, k, *source.stride(), *result.stride()),
            places,
            blocks,
            num_warps=blocks.warps,
        )
