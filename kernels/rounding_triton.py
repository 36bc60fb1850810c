"""Rounding on a GPU, in Triton: a block of numbers a program, with the random bits of their places.

Formulas, corner cases and sources: `rounding.py`. Not yet measured on a GPU.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.rounding import Grid

_BLOCK = 1024


class Limits(NamedTuple):
    """Of a grid, in units of eps = 1 / scale."""

    scale: float
    low: float
    high: float


class Key(NamedTuple):
    """The halves of a seed."""

    first: int
    second: int


@triton.jit
def _random_bits(key, places):
    x = places.to(tl.uint32) ^ key.first.to(tl.uint32)
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= (x >> 15) ^ key.second.to(tl.uint32)
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit(do_not_specialize=["limits", "key"])
def _round_fixed(source, result, count, limits, key, block: tl.constexpr):
    """To nearest without a key."""
    places = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    x = tl.load(source + places, mask=places < count, other=0.0)
    y = x * limits.scale
    y = tl.where(y < limits.low, limits.low, y)
    y = tl.where(y > limits.high, limits.high, y)
    below = tl.floor(y)
    threshold = 0.5
    if key is not None:
        bits = _random_bits(key, places)
        threshold = (0x3F800000 | (bits >> 9)).to(tl.float32, bitcast=True) - 0.999999940395355224609375
    rounded = (below + tl.where(y - below > threshold, 1.0, 0.0)) * (1.0 / limits.scale)
    tl.store(result + places, rounded, mask=places < count)


@triton.jit(do_not_specialize=["key"])
def _round_bf16(source, result, count, key, block: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    bits = tl.load(source + places, mask=places < count, other=0).to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    pairs = _random_bits(key, places // 2)
    random = tl.where(places % 2 == 0, pairs & 0xFFFF, pairs >> 16)
    rounded = bits + random
    rounded = tl.where((rounded & 0x7FFFFFFF) >= 0x7F800000, (bits & 0x80000000) | 0x7F7F0000, rounded)
    rounded = tl.where(size == 0x7F800000, bits, rounded)
    rounded = tl.where(size > 0x7F800000, bits | 0x400000, rounded)
    tl.store(result + places, (rounded >> 16).to(tl.int16), mask=places < count)


def to_grid(line: Tensor, to: Tensor, grid: Grid, seed: int | None) -> None:
    """Shapes: line, to (n,), fp32; to nearest without a seed."""
    limits = Limits(grid.scale, grid.lowest, grid.highest)
    key = None if seed is None else _key(seed)
    _round_fixed[(triton.cdiv(len(line), _BLOCK),)](line, to, len(line), limits, key, block=_BLOCK)


def to_bf16(line: Tensor, to: Tensor, seed: int) -> None:
    """Shapes: line (n,) in fp32, to (n,) in bf16."""
    halves = to.view(torch.int16)
    _round_bf16[(triton.cdiv(len(line), _BLOCK),)](line.view(torch.int32), halves, len(line), _key(seed), block=_BLOCK)


def _key(seed: int) -> Key:
    return Key(seed & 0xFFFF_FFFF, seed >> 32 & 0xFFFF_FFFF)
