"""Winograd's convolution on a GPU, in Triton: F(4x4, 3x3) for fp32, F(2x2, 3x3) for fp16 and bf16, in all three passes.

One kernel transforms the filters. Another makes a block of tiles and filters at once, from pixels to results: channels
some at a time, it transforms tiles, multiplies them at each of the tile's points by tl.dot, and adds up in registers;
then it transforms the sums. Nothing between is written to memory. The input's gradient is the same of the output's
gradient with rotated filters, channels exchanged. The weight's gradient is F(3x3, 4x4), or F(3x3, 2x2) for the half
types: programs share the sum over tiles, each writes its part, and the parts are added in a fixed order, so results are
the same bit for bit in every run.

Why two sizes: without tensor cores fp32 is bound by products, of which F(4x4, 3x3) has 36 for 144; with them the
transforms weigh more, and F(2x2, 3x3), 16 for 36, has smaller ones and loses less to the half types' rounding, to which
transformed tiles and filters are rounded once each. Sums and transforms are in fp32. Images in NCHW are copied first.
Not yet measured on a GPU.

Source: Lavin & Gray 2015 (arXiv:1509.09308), section 4 and, for fused kernels, 5; matrices: `winograd_points.py`.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.layout import empty, laid_out
from kernels.shapes import ConvShape, Pair
from kernels.triton_kernels import parts, precision
from kernels.winograd_points import Rows, matrices

_TAPS = 3
_PAIRS = 256  # of channels, whose filters a program transforms

Floats = tuple[tuple[float, ...], ...]


class Plan(NamedTuple):
    """F(m x m, r x r), and the block of a program: how many tiles, and how many input and output channels.

    `of_output`, `of_filter`, `of_input`: A^T (m, n), G (n, r), B^T (n, n), n = m + r - 1. `step`: how many terms of the
    sums are taken at a time, channels, or tiles for the weight's gradient.
    """

    m: int
    n: int
    of_output: Floats
    of_filter: Floats
    of_input: Floats
    rows: int
    columns: int
    step: int
    precision: str
    warps: int


class _Tensors(NamedTuple):
    images: Tensor
    other: Tensor  # transformed filters (n n, C, K), or gradients (N, K, H', W')
    bias: Tensor | None
    result: Tensor


class _Channels(NamedTuple):
    """Numbers that the compiler knows to be a multiple of 16 if they are."""

    c: int
    k: int


class _Places(NamedTuple):
    """Numbers that are like any others to the compiler: tiles in all, down and across, borders, and strides.

    If it knew that channels lie side by side it would give each thread several, and the same to several warps.
    `share`: tiles of one program in a sum over tiles.
    """

    tiles: int
    down: int
    across: int
    top: int
    left: int
    h: int
    w: int
    out_h: int
    out_w: int
    share: int
    image_n: int
    image_c: int
    image_h: int
    image_w: int
    other_n: int
    other_k: int
    other_h: int
    other_w: int


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
def _loaded(pointers, size: tl.constexpr, top, left, h, w, stride_h, stride_w, inside):
    """Tiles of size x size pixels as fp32, zero outside of the images."""
    tile = ()
    for row in tl.static_range(size):
        for column in tl.static_range(size):
            there = inside & (top + row >= 0) & (top + row < h) & (left + column >= 0) & (left + column < w)
            values = tl.load(pointers + row * stride_h + column * stride_w, mask=there, other=0.0)
            tile += (values.to(tl.float32),)
    return tile


@triton.jit
def _image_tiles(images, channels, places, tile, channel, m: tl.constexpr, n: tl.constexpr):
    image = tile // (places.down * places.across)
    top = tile // places.across % places.down * m - places.top
    left = tile % places.across * m - places.left
    place = image * places.image_n + top * places.image_h + left * places.image_w + channel * places.image_c
    inside = (tile < places.tiles) & (channel < channels.c)
    return _loaded(images + place, n, top, left, places.h, places.w, places.image_h, places.image_w, inside)


@triton.jit
def _grad_tiles(grads, channels, places, tile, k, m: tl.constexpr):
    """The next tiles of the output's gradient: m x m of (tiles, channels)."""
    image = tile // (places.down * places.across)
    top, left = tile // places.across % places.down * m, tile % places.across * m
    place = image * places.other_n + top * places.other_h + left * places.other_w + k * places.other_k
    inside = (tile < places.tiles) & (k < channels.k)
    return _loaded(grads + place, m, top, left, places.out_h, places.out_w, places.other_h, places.other_w, inside)


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
        tl.store(result + point * c * k + pair, points[point].to(result.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["places"])
def _convolve(tensors, channels, places, plan: tl.constexpr):
    """The results of a block of tiles (plan.rows) for a block of filters (plan.columns)."""
    blocks = tl.cdiv(channels.k, plan.columns)
    tile = tl.program_id(0) // blocks * plan.rows + tl.arange(0, plan.rows)
    k = tl.program_id(0) % blocks * plan.columns + tl.arange(0, plan.columns)
    sums = _zeros(plan.n * plan.n, plan.rows, plan.columns)
    # Read a step ahead. Pixels that come from the step before keep the transform out of tl.dot's own layout, where each
    # warp would do all of it again (Triton 3.8).
    c = tl.arange(0, plan.step)
    pixels = _image_tiles(tensors.images, channels, places, tile[:, None], c[None, :], plan.m, plan.n)
    for start in range(0, channels.c, plan.step):
        c = start + tl.arange(0, plan.step)
        points = _on_both_sides(plan.of_input, pixels, plan.n)
        pixels = _image_tiles(tensors.images, channels, places, tile[:, None], c[None, :] + plan.step, plan.m, plan.n)
        inside = (c < channels.c)[:, None] & (k < channels.k)[None, :]
        filters = tensors.other + c[:, None] * channels.k + k[None, :]
        added = ()
        for point in tl.static_range(plan.n * plan.n):
            factor = tl.load(filters + point * channels.c * channels.k, mask=inside, other=0.0)
            added += (tl.dot(points[point].to(factor.dtype), factor, sums[point], input_precision=plan.precision),)
        sums = added
    results = _on_both_sides(plan.of_output, sums, plan.n)
    bias = tl.zeros((plan.columns,), tl.float32)
    if tensors.bias is not None:
        bias += tl.load(tensors.bias + k, mask=k < channels.k, other=0.0).to(tl.float32)
    image = tile // (places.down * places.across)
    top, left = tile // places.across % places.down * plan.m, tile % places.across * plan.m
    place = image * places.other_n + top * places.other_h + left * places.other_w
    pointers = tensors.result + place[:, None] + k[None, :] * places.other_k
    for row in tl.static_range(plan.m):
        for column in tl.static_range(plan.m):
            there = (tile < places.tiles) & (top + row < places.out_h) & (left + column < places.out_w)
            tl.store(
                pointers + row * places.other_h + column * places.other_w,
                (results[row * plan.m + column] + bias[None, :]).to(tensors.result.dtype.element_ty),
                mask=there[:, None] & (k < channels.k)[None, :],
            )


@triton.jit(do_not_specialize=["places"])
def _weight_sums(tensors, channels, places, plan: tl.constexpr, dtype: tl.constexpr):
    """A part of result (parts, 3 3, C, K), over `places.share` tiles, for channels (plan.rows) x (plan.columns)."""
    blocks = tl.cdiv(channels.k, plan.columns)
    c = tl.program_id(0) // blocks * plan.rows + tl.arange(0, plan.rows)
    k = tl.program_id(0) % blocks * plan.columns + tl.arange(0, plan.columns)
    taps: tl.constexpr = len(plan.of_filter[0])
    first = tl.program_id(1) * places.share
    sums = _zeros(plan.n * plan.n, plan.rows, plan.columns)
    tile = first + tl.arange(0, plan.step)
    pixels = _image_tiles(tensors.images, channels, places, tile[None, :], c[:, None], taps, plan.n)
    grads = _grad_tiles(tensors.other, channels, places, tile[:, None], k[None, :], taps)
    for start in range(first, first + places.share, plan.step):
        points = _on_both_sides(plan.of_input, pixels, plan.n)
        factors = _on_both_sides(plan.of_filter, grads, taps)
        tile = start + plan.step + tl.arange(0, plan.step)
        pixels = _image_tiles(tensors.images, channels, places, tile[None, :], c[:, None], taps, plan.n)
        grads = _grad_tiles(tensors.other, channels, places, tile[:, None], k[None, :], taps)
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


def forward(input: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None, /) -> Tensor:
    """Shapes: input (N, C, H, W), weight (K, C, 3, 3), bias (K,) or None -> (N, K, H', W')."""
    corner = (shape.padding[0][0], shape.padding[1][0])
    output = empty(shape.output_size, input)
    _convolution(input, _transformed(weight, rotated=False), bias, output, corner)
    return output


def input_gradient(grad_output: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: grad_output (N, K, H', W'), weight (K, C, 3, 3) -> (N, C, H, W)."""
    corner = (_TAPS - 1 - shape.padding[0][0], _TAPS - 1 - shape.padding[1][0])
    gradient = empty(shape.input_size, grad_output)
    _convolution(grad_output, _transformed(weight.transpose(0, 1), rotated=True), None, gradient, corner)
    return gradient


def weight_gradient(grad_output: Tensor, input: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: grad_output (N, K, H', W'), input (N, C, H, W) -> (K, C, 3, 3)."""
    plan, input, grad_output = plan_of_gradient(input.dtype), laid_out(input, "nhwc"), laid_out(grad_output, "nhwc")
    programs = triton.cdiv(shape.c, plan.rows) * triton.cdiv(shape.k, plan.columns)
    places = _places(input, grad_output, (shape.padding[0][0], shape.padding[1][0]), len(plan.of_filter[0]))
    steps = triton.cdiv(places.tiles, plan.step)
    share = triton.cdiv(steps, parts(programs, steps))
    sums = input.new_empty(triton.cdiv(steps, share), _TAPS, _TAPS, shape.c, shape.k, dtype=torch.float32)
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


_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@functools.cache
def plan_of(dtype: torch.dtype) -> Plan:
    """For images: `rows` tiles and `columns` filters, `step` channels. What fits registers; not yet measured."""
    if dtype == torch.float32:
        return _plan(4, _TAPS, dtype, rows=16, columns=32, step=8, warps=4)
    return _plan(2, _TAPS, dtype, rows=32, columns=64, step=16, warps=8)


@functools.cache
def plan_of_gradient(dtype: torch.dtype) -> Plan:
    """For weights: `rows` input and `columns` output channels, `step` tiles."""
    if dtype == torch.float32:
        return _plan(_TAPS, 4, dtype, rows=16, columns=32, step=8, warps=8)
    return _plan(_TAPS, 2, dtype, rows=32, columns=64, step=16, warps=8)


def _plan(m: int, taps: int, dtype: torch.dtype, *, rows: int, columns: int, step: int, warps: int) -> Plan:
    of_output, of_filter, of_input = map(_floats, matrices(m, taps))
    return Plan(m, m + taps - 1, of_output, of_filter, of_input, rows, columns, step, precision(dtype), warps)


def _floats(rows: Rows) -> Floats:
    return tuple(tuple(float(value) for value in row) for row in rows)


def _transformed(weight: Tensor, *, rotated: bool) -> Tensor:
    """Shapes: (K, C, 3, 3) -> (n n, C, K)."""
    plan = plan_of(weight.dtype)
    k, c = weight.shape[:2]
    result = weight.new_empty(plan.n * plan.n, c, k)
    with torch.cuda.device_of(weight):
        _transform_filters[(triton.cdiv(c * k, _PAIRS),)](
            weight, result, (c, k, *weight.stride()), plan, rotated, _PAIRS, num_warps=4
        )
    return result


def _convolution(images: Tensor, filters: Tensor, bias: Tensor | None, result: Tensor, corner: Pair) -> None:
    """Shapes: images (N, C, H, W), filters (n n, C, K), bias (K,) -> result (N, K, H', W').

    `corner`: zeros above and left of the images, or less than 0 to leave out pixels.
    """
    plan, images = plan_of(images.dtype), laid_out(images, "nhwc")
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


def _places(images: Tensor, results: Tensor, corner: Pair, of_tile: int) -> _Places:
    """`of_tile`: results in a row of a tile."""
    (n, _, height, width), (_, _, h, w) = results.shape, images.shape
    down, across = triton.cdiv(height, of_tile), triton.cdiv(width, of_tile)
    strides = (*images.stride(), *results.stride())
    return _Places(n * down * across, down, across, corner[0], corner[1], h, w, height, width, 0, *strides)
