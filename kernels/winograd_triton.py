"""Winograd's convolution on a GPU, in Triton: F(2x2, 3x3) and F(4x4, 3x3), in all three passes.

One kernel transforms the filters. Another makes a block of tiles and filters at once, from pixels to results: channels
some at a time, it transforms tiles, multiplies them at each of the tile's points by tl.dot, and adds up in registers;
then it transforms the sums. Nothing between is written to memory. The input's gradient is the same of the output's
gradient with rotated filters, channels exchanged. The weight's gradient is F(3x3, m x m): programs share the sum over
tiles, each writes its part, and the parts are added in a fixed order, so results are the same bit for bit in every run.
Images in NCHW are copied first.

Sums and transforms are in fp32. For fp16 and bf16, which tensor cores multiply, transformed tiles and filters are
rounded once each: F(4x4, 3x3) in bf16 was off by 2 % of the largest value, F(2x2, 3x3) by less than 1.5 %. Not yet
measured on a GPU.

Source: Lavin & Gray 2015 (arXiv:1509.09308), section 4 and, for fused kernels, 5; matrices: `winograd_points.py`.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.layout import empty, laid_out
from kernels.passes import Passes
from kernels.shapes import ConvShape, Pair, check_allowed
from kernels.triton_kernels import parts
from kernels.winograd_plans import TAPS, Plan, plan_of, plan_of_gradient

_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_PAIRS = 256  # of channels, whose filters a program transforms


class _Tensors(NamedTuple):
    images: Tensor
    other: Tensor  # transformed filters (n n, C, K), or gradients (N, K, H', W')
    bias: Tensor | None
    result: Tensor


class _Channels(NamedTuple):
    """Numbers that the compiler knows to be a multiple of 16 if they are."""

    c: int
    k: int


class _Images(NamedTuple):
    """Where images lie, of which the first tile begins `top` and `left` outside."""

    top: int
    left: int
    channels: int
    h: int
    w: int
    stride_n: int
    stride_c: int
    stride_h: int
    stride_w: int


class _Places(NamedTuple):
    """Numbers that are like any others to the compiler: tiles in all, down and across, and images and results.

    If it knew that channels lie side by side it would give each thread several, and the same to several warps.
    `share`: tiles of one program in a sum over tiles.
    """

    tiles: int
    down: int
    across: int
    share: int
    images: _Images
    results: _Images


@triton.jit
def _times(matrix: tl.constexpr, vector):
    """Matrix x vector of tensors, without the products with zero."""
    result = ()
    for row in tl.static_range(len(matrix)):
        total = tl.zeros_like(vector[0])
        for column in tl.static_range(len(vector)):
            if matrix[row][column] != 0:
                total += matrix[row][column] * vector[column]
        result += (total,)
    return result


@triton.jit
def _on_both_sides(matrix: tl.constexpr, tile, side: tl.constexpr):
    """Matrix x tile x matrix^T. A tile is a tuple of side x side tensors, row by row."""
    columns = ()
    for column in tl.static_range(side):
        columns += _times(matrix, tile[column::side])
    result = ()
    for row in tl.static_range(len(matrix)):
        result += _times(matrix, columns[row :: len(matrix)])
    return result


@triton.jit
def _corners(images, places, tile, m: tl.constexpr):
    """Image, row and column where tiles begin."""
    top = tile // places.across % places.down * m - images.top
    return tile // (places.down * places.across), top, tile % places.across * m - images.left


@triton.jit
def _loaded(pointers, images, places, tile, channel, sides: tl.constexpr):
    """Tiles of side x side pixels as fp32, zero outside of the images. `sides`: from tile to tile, and of a tile."""
    image, top, left = _corners(images, places, tile, sides[0])
    pointers += image * images.stride_n + top * images.stride_h + left * images.stride_w + channel * images.stride_c
    inside = (tile < places.tiles) & (channel < images.channels)
    pixels = ()
    for row in tl.static_range(sides[1]):
        for column in tl.static_range(sides[1]):
            there = (top + row >= 0) & (top + row < images.h) & (left + column >= 0) & (left + column < images.w)
            place = pointers + row * images.stride_h + column * images.stride_w
            pixels += (tl.load(place, mask=inside & there, other=0.0).to(tl.float32),)
    return pixels


@triton.jit
def _zeros(count: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr):
    result = ()
    for _ in tl.static_range(count):
        result += (tl.zeros((rows, columns), tl.float32),)
    return result


@triton.jit
def _transform_filters(weight, result, strides, plan: tl.constexpr, rotated: tl.constexpr, pairs: tl.constexpr):
    """Shapes: weight (K, C, 3, 3) -> result (n n, C, K) = G g G^T. `strides`: C, K, and those of the weight."""
    c, k, stride_k, stride_c, stride_r, stride_s = strides
    pair = tl.program_id(0) * pairs + tl.arange(0, pairs)
    inside = pair < c * k
    filters = weight + pair % k * stride_k + pair // k * stride_c
    if rotated:
        filters += (len(plan.of_filter[0]) - 1) * (stride_r + stride_s)
        stride_r, stride_s = -stride_r, -stride_s
    taps: tl.constexpr = len(plan.of_filter[0])
    tile = ()
    for r in tl.static_range(taps):
        for s in tl.static_range(taps):
            tile += (tl.load(filters + r * stride_r + s * stride_s, mask=inside, other=0.0).to(tl.float32),)
    points = _on_both_sides(plan.of_filter, tile, taps)
    for point in tl.static_range(len(points)):
        tl.store(
            result + point * tl.cast(c, tl.int64) * k + pair, points[point].to(result.dtype.element_ty), mask=inside
        )


@triton.jit(do_not_specialize=["places"])
def _convolve(tensors, channels, places, plan: tl.constexpr):
    """The results of a block of tiles (plan.rows) for a block of filters (plan.columns)."""
    blocks = tl.cdiv(channels.k, plan.columns)
    tile = tl.program_id(0) // blocks * plan.rows + tl.arange(0, plan.rows)
    k = tl.program_id(0) % blocks * plan.columns + tl.arange(0, plan.columns)
    sums = _zeros(plan.n * plan.n, plan.rows, plan.columns)
    sides: tl.constexpr = (plan.m, plan.n)
    plane = tl.cast(channels.c, tl.int64) * channels.k
    # Read a step ahead. Pixels that come from the step before keep the transform out of tl.dot's own layout, where each
    # warp would do all of it again (Triton 3.8).
    c = tl.arange(0, plan.step)
    pixels = _loaded(tensors.images, places.images, places, tile[:, None], c[None, :], sides)
    for start in range(0, channels.c, plan.step):
        c = start + tl.arange(0, plan.step)
        points = _on_both_sides(plan.of_input, pixels, plan.n)
        pixels = _loaded(tensors.images, places.images, places, tile[:, None], c[None, :] + plan.step, sides)
        inside = (c < channels.c)[:, None] & (k < channels.k)[None, :]
        filters = tensors.other + c[:, None] * channels.k + k[None, :]
        added = ()
        for point in tl.static_range(plan.n * plan.n):
            factor = tl.load(filters + point * plane, mask=inside, other=0.0)
            added += (tl.dot(points[point].to(factor.dtype), factor, sums[point], input_precision=plan.precision),)
        sums = added
    results = _on_both_sides(plan.of_output, sums, plan.n)
    bias = tl.zeros((plan.columns,), tl.float32)
    if tensors.bias is not None:
        bias += tl.load(tensors.bias + k, mask=k < channels.k, other=0.0).to(tl.float32)
    images = places.results
    image, top, left = _corners(images, places, tile, plan.m)
    place = image * images.stride_n + top * images.stride_h + left * images.stride_w
    pointers = tensors.result + place[:, None] + k[None, :] * images.stride_c
    for row in tl.static_range(plan.m):
        for column in tl.static_range(plan.m):
            there = (tile < places.tiles) & (top + row < images.h) & (left + column < images.w)
            tl.store(
                pointers + row * images.stride_h + column * images.stride_w,
                (results[row * plan.m + column] + bias[None, :]).to(tensors.result.dtype.element_ty),
                mask=there[:, None] & (k < channels.k)[None, :],
            )


@triton.jit(do_not_specialize=["places"])
def _weight_sums(tensors, channels, places, plan: tl.constexpr, dtype: tl.constexpr):
    """A part of result (parts, 3 3, C, K), over `places.share` tiles, for channels (plan.rows) x (plan.columns)."""
    blocks = tl.cdiv(channels.k, plan.columns)
    c = tl.program_id(0) // blocks * plan.rows + tl.arange(0, plan.rows)
    k = tl.program_id(0) % blocks * plan.columns + tl.arange(0, plan.columns)
    m: tl.constexpr = len(plan.of_filter[0])
    first = tl.program_id(1) * places.share
    sums = _zeros(plan.n * plan.n, plan.rows, plan.columns)
    tile = first + tl.arange(0, plan.step)
    pixels = _loaded(tensors.images, places.images, places, tile[None, :], c[:, None], (m, plan.n))
    grads = _loaded(tensors.other, places.results, places, tile[:, None], k[None, :], (m, m))
    for start in range(first, first + places.share, plan.step):
        points = _on_both_sides(plan.of_input, pixels, plan.n)
        factors = _on_both_sides(plan.of_filter, grads, m)
        tile = start + plan.step + tl.arange(0, plan.step)
        pixels = _loaded(tensors.images, places.images, places, tile[None, :], c[:, None], (m, plan.n))
        grads = _loaded(tensors.other, places.results, places, tile[:, None], k[None, :], (m, m))
        added = ()
        for point in tl.static_range(plan.n * plan.n):
            product = tl.dot(
                points[point].to(dtype), factors[point].to(dtype), sums[point], input_precision=plan.precision
            )
            added += (product,)
        sums = added
    results = _on_both_sides(plan.of_output, sums, plan.n)
    inside = (c < channels.c)[:, None] & (k < channels.k)[None, :]
    part = tensors.result + tl.program_id(1) * len(results) * channels.c * channels.k
    for tap in tl.static_range(len(results)):
        pointers = part + tap * channels.c * channels.k + c[:, None] * channels.k + k[None, :]
        tl.store(pointers, results[tap], mask=inside)


def check(shape: ConvShape) -> None:
    """Raises: UnsupportedShape, with the reason."""
    check_allowed(
        "winograd in Triton",
        ("filter", (shape.r, shape.s), (TAPS, TAPS)),
        ("stride", shape.stride, (1, 1)),
        ("dilation", shape.dilation, (1, 1)),
        ("groups", shape.groups, 1),
    )


def passes(m: int) -> Passes:
    """With tiles of m x m results: F(m x m, 3 x 3)."""

    def forward(input: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None, /) -> Tensor:
        plan, output = plan_of(m, input.dtype), empty(shape.output_size, input)
        corner = (shape.padding[0][0], shape.padding[1][0])
        _convolution(plan, input, _transformed(plan, weight, rotated=False), bias, output, corner)
        return output

    def input_gradient(grad_output: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        plan, gradient = plan_of(m, grad_output.dtype), empty(shape.input_size, grad_output)
        corner = (TAPS - 1 - shape.padding[0][0], TAPS - 1 - shape.padding[1][0])
        filters = _transformed(plan, weight.transpose(0, 1), rotated=True)
        _convolution(plan, grad_output, filters, None, gradient, corner)
        return gradient

    def weight_gradient(grad_output: Tensor, input: Tensor, shape: ConvShape) -> Tensor:
        return _weight_gradient(plan_of_gradient(m, input.dtype), grad_output, input, shape)

    return Passes(check, forward, input_gradient, weight_gradient)


SMALL, PASSES = passes(2), passes(4)


def _transformed(plan: Plan, weight: Tensor, *, rotated: bool) -> Tensor:
    """Shapes: (K, C, 3, 3) -> (n n, C, K)."""
    k, c = weight.shape[:2]
    result = weight.new_empty(plan.n * plan.n, c, k)
    with torch.cuda.device_of(weight):
        _transform_filters[(triton.cdiv(c * k, _PAIRS),)](
            weight, result, (c, k, *weight.stride()), plan, rotated, _PAIRS, num_warps=4
        )
    return result


def _convolution(
    plan: Plan, images: Tensor, filters: Tensor, bias: Tensor | None, result: Tensor, corner: Pair
) -> None:
    """Shapes: images (N, C, H, W), filters (n n, C, K), bias (K,) -> result (N, K, H', W').

    `corner`: zeros above and left of the images, or less than 0 to leave out pixels.
    """
    images = laid_out(images, "nhwc")
    _, c, k = filters.shape
    places = _places(images, result, corner, plan.m)
    programs = triton.cdiv(places.tiles, plan.rows) * triton.cdiv(k, plan.columns)
    with torch.cuda.device_of(images):
        _convolve[(programs,)](
            _Tensors(images, filters, bias, result),
            _Channels(c, k),
            places,
            plan,
            num_warps=plan.warps,
            num_stages=1,
        )


def _weight_gradient(plan: Plan, grad_output: Tensor, input: Tensor, shape: ConvShape) -> Tensor:
    input, grad_output = laid_out(input, "nhwc"), laid_out(grad_output, "nhwc")
    programs = triton.cdiv(shape.c, plan.rows) * triton.cdiv(shape.k, plan.columns)
    places = _places(input, grad_output, (shape.padding[0][0], shape.padding[1][0]), len(plan.of_filter[0]))
    steps = triton.cdiv(places.tiles, plan.step)
    share = triton.cdiv(steps, parts(programs, steps))
    sums = input.new_empty(triton.cdiv(steps, share), TAPS, TAPS, shape.c, shape.k, dtype=torch.float32)
    with torch.cuda.device_of(input):
        _weight_sums[(programs, len(sums))](
            _Tensors(input, grad_output, None, sums),
            _Channels(shape.c, shape.k),
            places._replace(share=share * plan.step),
            plan,
            _TYPES[input.dtype],
            num_warps=plan.warps,
            num_stages=1,
        )
    return sums.sum(0).permute(3, 2, 0, 1).to(input.dtype)


def _places(images: Tensor, results: Tensor, corner: Pair, of_tile: int) -> _Places:
    """`of_tile`: results along a tile."""
    down, across = (triton.cdiv(size, of_tile) for size in results.shape[2:])
    around = [
        _Images(*begin, each.shape[1], each.shape[2], each.shape[3], *each.stride())
        for each, begin in ((images, corner), (results, (0, 0)))
    ]
    return _Places(results.shape[0] * down * across, down, across, 0, *around)
