"""How winograd_triton.py cuts a convolution into programs: tiles, channels, filters. No Triton here."""

import functools
from typing import NamedTuple

import torch

from kernels.triton_kernels import precision
from kernels.winograd_points import Rows, matrices

TAPS = 3

Floats = tuple[tuple[float, ...], ...]


class Plan(NamedTuple):
    """F(m x m, r x r), and the block of a program: for images, tiles (`rows`) and filters (`columns`).

    For the weight's gradient, input channels and output channels. `of_output`, `of_filter`, `of_input`: A^T (m, n), G
    (n, r), B^T (n, n), n = m + r - 1. `step`: how many terms of the sums are taken at a time, channels or tiles.
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


# (results along a tile, bytes of a number) -> rows, columns, step and warps: as many sums as registers hold without
# spills, which the compiler tells. Tensor cores take 8 columns from each warp at least. Not yet measured.
_OF_IMAGES = {(2, 4): (32, 64, 8, 8), (2, 2): (32, 64, 16, 8), (4, 4): (16, 32, 8, 4), (4, 2): (16, 64, 16, 8)}
_OF_WEIGHTS = {(2, 4): (32, 64, 8, 8), (2, 2): (32, 64, 16, 8), (4, 4): (16, 32, 8, 8)}


@functools.cache
def plan_of(m: int, dtype: torch.dtype) -> Plan:
    """For images, with tiles of m x m results."""
    return _plan(m, TAPS, dtype, _OF_IMAGES[m, dtype.itemsize])


@functools.cache
def plan_of_gradient(m: int, dtype: torch.dtype) -> Plan:
    """For weights, from tiles of m x m gradients; always 2 x 2 for the half types, of whose larger tiles sums spill."""
    m = m if dtype == torch.float32 else 2
    return _plan(TAPS, m, dtype, _OF_WEIGHTS[m, dtype.itemsize])


def _plan(m: int, taps: int, dtype: torch.dtype, blocks: tuple[int, int, int, int]) -> Plan:
    of_output, of_filter, of_input = map(_floats, matrices(m, taps))
    rows, columns, step, warps = blocks
    return Plan(m, m + taps - 1, of_output, of_filter, of_input, rows, columns, step, precision(dtype), warps)


def _floats(rows: Rows) -> Floats:
    return tuple(tuple(float(value) for value in row) for row in rows)
