"""Rounding to few bits, to nearest or stochastically: fixed point <IL, FL>, and bf16; in place or not.

Numbers of <IL, FL> are the multiples of eps = 2^-FL from -2^(IL-1) to 2^(IL-1) - eps: IL bits with the sign before the
point, FL behind it. A number between two of them goes to the one below, or up to the next:

    stochastic   up with probability (x - floor(x)) / eps, so that the mean is x
    nearest      up if x - floor(x) > eps / 2, so a number in the middle goes down

and what is outside goes to the nearer end of the grid (Gupta et al. 2015, "Deep Learning with Limited Numerical
Precision", arXiv:1502.02551, section 3).

Random numbers are a function of (seed, place): the place of an element in memory, its seed by `stream` from whatever
tells one rounding from another: the run's seed, the step, the tensor. So they are the same for any number of threads,
on a GPU, and when a run is resumed. A probability is a multiple of 2^-23, off by 2^-24 at most.

Corner cases: NaN stays NaN and zero is zero, +0 as a multiple of eps; infinities are outside a grid, and stay infinite
in bf16; finite numbers never become infinite; subnormals are numbers as all others.

Computed by native/rounding.c on a CPU, by rounding_triton.py on a GPU, and where there is neither a compiler nor Triton
by the formulas in torch, which tests compare the others with bit for bit.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kernels import triton_kernels
from kernels.native import build
from kernels.native.vectors import load_library

Rounding = Literal["stochastic", "nearest"]
ROUNDINGS: tuple[Rounding, ...] = ("stochastic", "nearest")
MOST_BITS = 24
"""All multiples of eps are fp32 numbers up to here."""

_PLACES = 2**32  # that one key tells apart
_WORD = 2**64 - 1
_MASK, _SIGN, _SIZE, _INFINITE, _LARGEST = 0xFFFF_FFFF, 0x8000_0000, 0x7FFF_FFFF, 0x7F80_0000, 0x7F7F_0000


class Grid(NamedTuple):
    """The numbers of <integer_bits, fraction_bits>."""

    integer_bits: int
    fraction_bits: int

    @property
    def scale(self) -> float:
        """1 / eps."""
        return 2.0**self.fraction_bits

    @property
    def lowest(self) -> float:
        """In units of eps, as is `highest`."""
        return -(2.0 ** (self.integer_bits + self.fraction_bits - 1))

    @property
    def highest(self) -> float:
        return -self.lowest - 1.0

    def check(self) -> None:
        """Raises: ValueError for bits out of range."""
        if self.integer_bits < 1:
            raise ValueError(f"integer_bits: got {self.integer_bits}, must be at least 1, which is the sign")
        if self.fraction_bits < 0:
            raise ValueError(f"fraction_bits: got {self.fraction_bits}, must be at least 0")
        if self.integer_bits + self.fraction_bits > MOST_BITS:
            raise ValueError(
                f"integer_bits and fraction_bits: got {self.integer_bits} and {self.fraction_bits}, must be at most "
                f"{MOST_BITS} together, which fp32 has"
            )


def stream(seed: int, *numbers: int) -> int:
    """A seed of 64 bits for each sequence of numbers, such as (step, tensor).

    Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", the finalizer of SplitMix64.
    """
    state = _mixed(seed)
    for number in numbers:
        state = _mixed(state + number)
    return state


def round_fixed(
    x: Tensor,
    integer_bits: int,
    fraction_bits: int,
    rounding: Rounding = "stochastic",
    *,
    seed: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """x on the grid of <integer_bits, fraction_bits>, as a new tensor or in `out`, which may be x itself.

    Shapes: x and out the same, any; both fp32.
    `seed`: 64 bits, by `stream`; only of stochastic rounding.

    Raises: ValueError for bits or a rounding that there is not, another dtype, or an `out` that does not fit.
    """
    grid = Grid(integer_bits, fraction_bits)
    grid.check()
    return round_to_grid(x, grid, rounding, seed=seed, out=out)


def round_to_grid(
    x: Tensor, grid: Grid, rounding: Rounding = "stochastic", *, seed: int = 0, out: Tensor | None = None
) -> Tensor:
    """As `round_fixed`, to a grid that may lie anywhere: with a negative number of bits before the point or behind it.

    Raises: ValueError as `round_fixed` does, but for bits: of a grid of more than 24 they are not exact.
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding: got {rounding!r}, must be one of {', '.join(ROUNDINGS)}")
    random = rounding == "stochastic"
    return _in_lines(x, out, torch.float32, lambda line, to, key: _to_grid(line, to, grid, random, key), seed)


def round_bf16(x: Tensor, *, seed: int = 0, out: Tensor | None = None) -> Tensor:
    """x rounded stochastically to bf16, as a new tensor or in `out`. To nearest it is `x.bfloat16()`.

    Shapes: x and out the same, any; x fp32, out bf16. Raises: ValueError for others.

    All 16 bits that bf16 has less decide, so the mean is x exactly. What is beyond the largest number stays there.
    """
    return _in_lines(x, out, torch.bfloat16, _to_bf16, seed)


def random_bits(seed: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """The 32 random bits of places 0, 1, ... count - 1, as int64: what native/rounding.h computes, in torch."""
    first, second = seed & _MASK, seed >> 32 & _MASK
    bits = torch.arange(count, device=device) ^ first
    bits = (bits ^ bits >> 16) * 0x7FEB352D & _MASK
    bits = (bits ^ bits >> 15 ^ second) * 0x846CA68B & _MASK
    return bits ^ bits >> 16


def random_halves(seed: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """16 random bits for each of places 0, 1, ... count - 1, as int64: two places share 32."""
    pairs = random_bits(seed, (count + 1) // 2, device)
    return torch.stack([pairs & 0xFFFF, pairs >> 16], 1).view(-1)[:count]


def by_torch_to_grid(line: Tensor, grid: Grid, seed: int | None) -> Tensor:
    """What `round_fixed` is of a line of numbers; to nearest without a seed."""
    scaled = torch.where(line.isnan(), line, (line * grid.scale).clamp(grid.lowest, grid.highest))
    below = scaled.floor()
    threshold: Tensor | float = 0.5
    if seed is not None:
        threshold = ((random_bits(seed, len(line), line.device) >> 9) * 2 + 1).float() * 2.0**-24
    return (below + (scaled - below > threshold).float()) * (1.0 / grid.scale)


def by_torch_to_bf16(line: Tensor, seed: int) -> Tensor:
    """What `round_bf16` is of a line of numbers."""
    bits = line.view(torch.int32).to(torch.int64) & _MASK
    size = bits & _SIZE
    up = bits + random_halves(seed, len(line), line.device)
    up = torch.where((up & _SIZE) >= _INFINITE, bits & _SIGN | _LARGEST, up)
    up = torch.where(size == _INFINITE, bits, up)
    up = torch.where(size > _INFINITE, bits | 0x40_0000, up)
    half = up >> 16
    return (half - (half >> 15 << 16)).to(torch.int16).view(torch.bfloat16)


def _in_lines(
    x: Tensor, out: Tensor | None, dtype: torch.dtype, compute: Callable[[Tensor, Tensor, int], None], seed: int
) -> Tensor:
    """Round, by the places that numbers have in memory. What has gaps there is rounded as a copy without."""
    x = x.detach()
    if x.dtype != torch.float32:
        raise ValueError(f"x: got {x.dtype}, must be torch.float32")
    result = torch.empty_like(x, dtype=dtype) if out is None else out
    if (result.shape, result.dtype, result.device) != (x.shape, dtype, x.device):
        raise ValueError(
            f"out: got {tuple(result.shape)} of {result.dtype} on {result.device}, must be {tuple(x.shape)} of {dtype} "
            f"on {x.device}"
        )
    if not (is_without_gaps(x) and x.stride() == result.stride()):
        rounded = _in_lines(x.contiguous(), None, dtype, compute, seed)
        return rounded if out is None else out.copy_(rounded)
    for start in range(0, x.numel(), _PLACES):
        places = min(_PLACES, x.numel() - start)
        line, to = (each.detach().as_strided((places,), (1,), each.storage_offset() + start) for each in (x, result))
        compute(line, to, stream(seed, start) if start else seed)
    return result


def _to_grid(line: Tensor, to: Tensor, grid: Grid, random: bool, seed: int) -> None:
    if triton_kernels.runs_on(line.device):
        from kernels import rounding_triton

        rounding_triton.to_grid(line, to, grid, seed if random else None)
    elif line.device.type == "cpu" and (library := _library()) is not None:
        sizes = _Grid(grid.scale, grid.lowest, grid.highest)
        threads = torch.get_num_threads()
        library.convoy_round_fixed(*_ends(line, to), sizes, random, Key.of(seed), threads)
    else:
        to.copy_(by_torch_to_grid(line, grid, seed if random else None))


def _to_bf16(line: Tensor, to: Tensor, seed: int) -> None:
    if triton_kernels.runs_on(line.device):
        from kernels import rounding_triton

        rounding_triton.to_bf16(line, to, seed)
    elif line.device.type == "cpu" and (library := _library()) is not None:
        library.convoy_round_bf16(*_ends(line, to), Key.of(seed), torch.get_num_threads())
    else:
        to.copy_(by_torch_to_bf16(line, seed))


class Key(ctypes.Structure):
    """A seed, as C takes it."""

    _fields_ = [("first", ctypes.c_uint32), ("second", ctypes.c_uint32)]

    @classmethod
    def of(cls, seed: int) -> "Key":
        return cls(seed & _MASK, seed >> 32 & _MASK)


class _Grid(ctypes.Structure):
    _fields_ = [(name, ctypes.c_float) for name in ("scale", "low", "high")]


def _ends(line: Tensor, to: Tensor) -> tuple[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]:
    return ctypes.c_void_p(line.data_ptr()), ctypes.c_void_p(to.data_ptr()), ctypes.c_int64(len(line))


@functools.cache
def _library() -> ctypes.CDLL | None:
    return build.loaded(lambda: load_library("rounding"), "Rounding is done by torch, which is slower")


def is_without_gaps(x: Tensor) -> bool:
    """Whether its elements fill a stretch of memory, in any order."""
    return sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1 == x.numel()


def _mixed(state: int) -> int:
    state = state + 0x9E3779B97F4A7C15 & _WORD
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    state = (state ^ state >> 27) * 0x94D049BB133111EB & _WORD
    return state ^ state >> 31
