"""Depthwise convolution on a GPU, in Triton: directly, in either memory layout, by the tensors' strides.

Each program makes a block of pixels and channels, whichever lie side by side the wider. The weight's gradient is a sum
over all pixels: programs share it, each writes its part, and the parts are added in a fixed order, so results are the
same bit for bit in every run. Sums are in fp32. Not yet measured on a GPU.

The algorithm and its sources: `depthwise.py`.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import gather
from kernels.depthwise import check
from kernels.gather_triton import Places, Strides, Tensors, place, seen
from kernels.layout import empty
from kernels.passes import Passes
from kernels.shapes import ConvShape
from kernels.triton_kernels import parts

_WARPS = 4
_TAPS = 4  # of the filter, whose gradients a program sums at once


class Blocks(NamedTuple):
    """The pixels and channels of a program."""

    pixels: int
    channels: int


@triton.jit(do_not_specialize=["places"])
def _gather_channels(tensors, strides, places, blocks: tl.constexpr):
    num_channels = tl.cdiv(strides.c, blocks.channels)
    pixel = tl.program_id(0) // num_channels * blocks.pixels + tl.arange(0, blocks.pixels)
    channel = tl.program_id(0) % num_channels * blocks.channels + tl.arange(0, blocks.channels)
    total = tl.zeros((blocks.pixels, blocks.channels), tl.float32)
    for tap in tl.range(0, places.taps, loop_unroll_factor=4):
        weight = tl.load(tensors.other + tap * strides.c + channel, mask=channel < strides.c, other=0.0)
        pixels = seen(tensors.source, strides, places, pixel[:, None], tap, channel[None, :])
        total += pixels.to(tl.float32) * weight.to(tl.float32)[None, :]
    if tensors.bias is not None:
        total += tl.load(tensors.bias + channel, mask=channel < strides.c, other=0.0).to(tl.float32)[None, :]
    there, inside = place(strides, places, pixel[:, None], channel[None, :])
    tl.store(tensors.result + there, total.to(tensors.result.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["places"])
def _weight_sums(tensors, strides, places, blocks: tl.constexpr, taps: tl.constexpr):
    """A part of result (parts, J I, C): the sums over `places.share` pixels for `taps` values of some filters."""
    num_channels = tl.cdiv(strides.c, blocks.channels)
    first_tap = tl.program_id(0) // num_channels * taps
    channel = tl.program_id(0) % num_channels * blocks.channels + tl.arange(0, blocks.channels)
    first = tl.program_id(1) * places.share
    totals = ()
    for _ in tl.static_range(taps):
        totals += (tl.zeros((blocks.pixels, blocks.channels), tl.float32),)
    for start in range(first, first + places.share, blocks.pixels):
        pixel = start + tl.arange(0, blocks.pixels)
        there, inside = place(strides, places, pixel[:, None], channel[None, :])
        grads = tl.load(tensors.other + there, mask=inside, other=0.0).to(tl.float32)
        added = ()
        for tap in tl.static_range(taps):
            pixels = seen(tensors.source, strides, places, pixel[:, None], first_tap + tap, channel[None, :])
            added += (totals[tap] + grads * pixels.to(tl.float32),)
        totals = added
    part = tensors.result + tl.program_id(1) * places.taps * strides.c
    for tap in tl.static_range(taps):
        inside = (channel < strides.c) & (first_tap + tap < places.taps)
        tl.store(part + (first_tap + tap) * strides.c + channel, tl.sum(totals[tap], 0), mask=inside)


def forward(input: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None, /) -> Tensor:
    """Shapes: input (N, C, H, W), weight (C, 1, R, S), bias (C,) or None -> (N, C, H', W')."""
    output = empty(shape.output_size, input)
    _gather(input, weight, bias, output, gather.of_forward(shape))
    return output


def input_gradient(grad_output: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: grad_output (N, C, H', W'), weight (C, 1, R, S) -> (N, C, H, W)."""
    gradient = empty(shape.input_size, grad_output)
    for lines in gather.of_input_gradient(shape):
        _gather(grad_output, weight, None, gradient, lines)
    return gradient


def weight_gradient(grad_output: Tensor, input: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: grad_output (N, C, H', W'), input (N, C, H, W) -> (C, 1, R, S)."""
    blocks = blocks_for(input, shape.c, summed=True)
    programs = triton.cdiv(shape.c, blocks.channels) * triton.cdiv(shape.r * shape.s, _TAPS)
    steps = triton.cdiv(shape.n * shape.out_h * shape.out_w, blocks.pixels)
    share = triton.cdiv(steps, parts(programs, steps))
    sums = input.new_empty(triton.cdiv(steps, share), shape.r, shape.s, shape.c, dtype=torch.float32)
    places = Places.of(input, grad_output, gather.of_forward(shape), (shape.r, shape.s), share=share * blocks.pixels)
    with torch.cuda.device_of(input):
        _weight_sums[(programs, len(sums))](
            Tensors(input, grad_output, None, sums),
            Strides(shape.c, shape.c, *input.stride(), *grad_output.stride()),
            places,
            blocks,
            _TAPS,
            num_warps=_WARPS,
        )
    return sums.sum(0).permute(2, 0, 1).unsqueeze(1).to(input.dtype)


PASSES = Passes(check, forward, input_gradient, weight_gradient)


def blocks_for(images: Tensor, channels: int, *, summed: bool = False) -> Blocks:
    """Wide in what lies side by side. `summed`: over pixels, for which a program holds several blocks at once."""
    if images.stride(1) != 1 or channels == 1:
        return Blocks(pixels=256 if summed else 512, channels=1)
    width = min(64, max(16, triton.next_power_of_2(channels)))
    return Blocks(pixels=(512 if summed else 1024) // width, channels=width)


def _gather(
    source: Tensor, filters: Tensor, bias: Tensor | None, result: Tensor, lines: tuple[gather.Line, gather.Line]
) -> None:
    """Shapes: source (N, C, H, W), filters (C, 1, R, S), bias (C,), result (N, C, ..., ...), which `lines` fill."""
    rows, columns = lines
    filters = filters[:, 0, rows.taps, columns.taps]
    result = result[:, :, rows.results, columns.results]
    c, down, across = filters.shape
    places = Places.of(source, result, lines, (down, across))
    blocks = blocks_for(source, c)
    programs = triton.cdiv(places.pixels, blocks.pixels) * triton.cdiv(c, blocks.channels)
    with torch.cuda.device_of(source):
        _gather_channels[(programs,)](
            Tensors(source, filters.permute(1, 2, 0).contiguous(), bias, result),
            Strides(c, c, *source.stride(), *result.stride()),
            places,
            blocks,
            num_warps=_WARPS,
        )
