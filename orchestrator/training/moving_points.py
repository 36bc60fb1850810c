"""Where the binary point of each tensor in dynamic fixed point is: it moves with the tensor's numbers.

A tensor's grid is of as many bits as its format has, and reaches to 2^(integer_bits - 1). If more than a share of its
numbers was outside since it was last looked at, the point moves right, and the grid is twice as wide; if no more would
have been outside of half of it, left.

Source: Courbariaux, Bengio & David 2014, "Training deep neural networks with low precision multiplications"
(arXiv:1412.7024), sections 5 and 7, algorithm 1. Unlike there, the first updates have a look each, in place of a run in
fp32 to find where to begin.

All workers have the same points: what each has counted is added up after every update.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kernels.rounding import Grid
from orchestrator.config.precision import DynamicFixed

FURTHEST = 64  # bits before the point, or behind it: fp32's exponents end near 126
Key = tuple[int, int, int]
"""Which tensor: layer, what of it, and which of those."""


class MovingPoints:
    """The points of tensors, and what was counted since each was last looked at."""

    def __init__(self, tensors: Mapping[Key, DynamicFixed], device: torch.device | str) -> None:
        self._places = {key: place for place, key in enumerate(tensors)}
        self._formats = list(tensors.values())
        self._integer_bits = [chosen.integer_bits for chosen in self._formats]
        # numbers, those outside of the grid, those outside of half of it
        self._new = torch.zeros(len(tensors), 3, dtype=torch.float64, device=device)
        self._counted = self._new.clone()

    def __bool__(self) -> bool:
        return bool(self._places)

    def grid(self, key: Key, bits: int) -> Grid:
        integer_bits = self._integer_bits[self._places[key]]
        return Grid(integer_bits, bits - integer_bits)

    @torch.no_grad()
    def fit(self, key: Key, values: Tensor) -> None:
        """Begin with the narrowest grid that the tensor's numbers are on, but for the share that need not be."""
        place = self._places[key]
        outside = int(self._formats[place].max_overflow * values.numel())
        largest = float(values.detach().abs().flatten().kthvalue(values.numel() - outside).values)
        if 0.0 < largest < math.inf:
            self._integer_bits[place] = _within(math.ceil(math.log2(largest)) + 1)

    @torch.no_grad()
    def count(self, key: Key, values: Tensor) -> None:
        """Note how many numbers of a tensor are outside of its grid."""
        width = 2.0 ** (self._integer_bits[self._places[key]] - 1)
        sizes = values.detach().abs()
        outside = [(sizes > width * share).sum(dtype=torch.float64) for share in (1.0, 0.5)]
        self._new[self._places[key]] += torch.stack([sizes.new_tensor(sizes.numel(), dtype=torch.float64), *outside])

    def settle(self, updates: int) -> None:
        """After update number `updates`, counted from 1: add up what all workers counted, and move points.

        Collective.
        """
        if not self:
            return
        if dist.is_initialized():
            dist.all_reduce(self._new)
        self._counted += self._new
        self._new.zero_()
        due = [each.every for each in self._formats]
        places = [place for place, every in enumerate(due) if updates <= every or updates % every == 0]
        if not places:
            return
        counted = self._counted.tolist()
        for place in places:
            numbers, outside, outside_of_half = counted[place]
            most = self._formats[place].max_overflow * numbers
            if numbers:
                move = 1 if outside > most else -1 if outside_of_half <= most else 0
                self._integer_bits[place] = _within(self._integer_bits[place] + move)
        self._counted[places] = 0.0

    def state(self) -> dict[str, Any]:
        """Fit for JSON."""
        return {"integer_bits": list(self._integer_bits), "counted": self._counted.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave."""
        self._integer_bits = [int(bits) for bits in state["integer_bits"]]
        self._counted.copy_(torch.tensor(state["counted"], dtype=torch.float64).view_as(self._counted))
        self._new.zero_()


def _within(integer_bits: int) -> int:
    return max(-FURTHEST, min(FURTHEST, integer_bits))
