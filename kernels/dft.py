"""The discrete Fourier transform of a tile of real numbers, as two products with real matrices.

Tiles are so short (some 20 to 60 points a side) that matrix products do it faster than a fast Fourier transform, which
would have to move the numbers about: the frequencies come out as rows, whatever lies in the columns beside them, and
any length will do, primes too. First along x, which of L frequencies leaves the F = L // 2 + 1 that tell real numbers
apart; then along y, where all L are kept:

    across: (2 parts, F) x (x)                 back: (x) x (F, 2 parts)
    down:   (2 parts, L) x (y, 2 parts)        up:   (2 parts, y) x (2 parts, L)

Parts are the real and the imaginary one. A transform reads as many points as there are (`taps`), the rest being zeros;
an inverse makes as many as are wanted. Of a filter one needs the conjugate: correlation is X times conj(W).
"""

import functools
import math

import torch
from torch import Tensor


class Dft:
    """The matrices for `length` points, in the type and on the device of `like`."""

    def __init__(self, length: int, like: Tensor) -> None:
        self.length, self.num_halved = length, length // 2 + 1
        self._dtype, self._device = like.dtype, like.device

    def across(self, taps: int, *, conjugate: bool = False) -> Tensor:
        return _across(self.length, taps, conjugate, self._dtype, self._device)

    def down(self, taps: int, *, conjugate: bool = False) -> Tensor:
        return _down(self.length, taps, conjugate, self._dtype, self._device)

    def up(self, taps: int) -> Tensor:
        return _up(self.length, taps, self._dtype, self._device)

    def back(self, taps: int) -> Tensor:
        return _back(self.length, taps, self._dtype, self._device)


@functools.cache
def _across(length: int, taps: int, conjugate: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    cos, sin = _waves(length, length // 2 + 1, taps)
    return torch.cat([cos, sin if conjugate else -sin]).to(device, dtype)


@functools.cache
def _down(length: int, taps: int, conjugate: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    cos, sin = _waves(length, length, taps)
    sin = -sin if conjugate else sin
    real, imaginary = torch.stack([cos, sin], dim=2), torch.stack([-sin, cos], dim=2)
    return torch.cat([real, imaginary]).flatten(1).to(device, dtype)


@functools.cache
def _up(length: int, taps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    cos, sin = (wave.T for wave in _waves(length, length, taps))
    real, imaginary = torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)
    return (torch.cat([real, imaginary]) / length).to(device, dtype)


@functools.cache
def _back(length: int, taps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    cos, sin = (wave.T for wave in _waves(length, length // 2 + 1, taps))
    count = torch.full((length // 2 + 1,), 2, dtype=torch.float64)  # a frequency and its mirror image
    count[0] = 1
    if length % 2 == 0:
        count[-1] = 1
    return (torch.stack([cos * count, -sin * count], dim=2).flatten(1) / length).to(device, dtype)


def _waves(length: int, num_frequencies: int, taps: int) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi f x / length. Shapes: (num_frequencies, taps) each."""
    turns = torch.arange(num_frequencies)[:, None] * torch.arange(taps) % length
    angle = turns.double() * (2 * math.pi / length)
    return torch.cos(angle), torch.sin(angle)
