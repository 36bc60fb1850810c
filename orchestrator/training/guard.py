"""The guard of low precision: a layer whose gradients do not fit its format goes on in a wider one.

A layer's gradients overflow in an update when too large a share of those of its weights is outside of its grid,
infinite or NaN; they vanish when too large a share of them is zero. After so many updates in a row of one of both, its
format gets four bits more, on the side that lacks them, and becomes fp32 when 24 are not enough; bf16 becomes fp32.

Gradients are those of the update, which all workers have alike, so all decide alike without a word.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.rounding import Grid
from orchestrator.config.precision import (
    MOST_BITS,
    Bf16,
    DynamicFixed,
    Fixed,
    Format,
    Fp32,
    GuardConfig,
)

MORE_BITS = 4
OVERFLOW, VANISH = "overflow", "vanish"


def wider(chosen: Format, why: str) -> Format | None:
    """The next format with more bits; None where there is none."""
    if isinstance(chosen, Bf16):
        return Fp32()
    if isinstance(chosen, DynamicFixed):
        weight_bits = None if chosen.weight_bits is None else chosen.weight_bits + MORE_BITS
        if max(chosen.bits + MORE_BITS, weight_bits or 0) > MOST_BITS:
            return Fp32()
        return chosen.model_copy(update={"bits": chosen.bits + MORE_BITS, "weight_bits": weight_bits})
    if isinstance(chosen, Fixed):
        if chosen.integer_bits + chosen.fraction_bits + MORE_BITS > MOST_BITS:
            return Fp32()
        side = "integer_bits" if why == OVERFLOW else "fraction_bits"
        return chosen.model_copy(update={side: getattr(chosen, side) + MORE_BITS})
    return None


class Guard:
    """Updates in a row in which layers' gradients did not fit, by layer."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._in_a_row: dict[int, dict[str, int]] = {}

    @torch.no_grad()
    def look(self, layer: int, gradients: Sequence[tuple[Tensor, Tensor, Grid | None]]) -> str | None:
        """Look at an update's gradients of a layer: of each weight, before and after rounding, and its grid, if any.

        Returns: what they did in too many updates in a row, `overflow` or `vanish`; counting begins anew then.
        """
        if not gradients:
            return None
        number = sum(before.numel() for before, _, _ in gradients)
        outside = sum(int(_is_outside(before, grid).sum()) for before, _, grid in gradients)
        zeros = sum(int((after == 0).sum()) for _, after, _ in gradients)
        shares = {OVERFLOW: outside / number, VANISH: zeros / number}
        limits = {OVERFLOW: self._config.overflow, VANISH: self._config.vanish}
        rows = self._in_a_row.setdefault(layer, {OVERFLOW: 0, VANISH: 0})
        for why, share in shares.items():
            rows[why] = rows[why] + 1 if share >= limits[why] else 0
        why = max(rows, key=lambda each: rows[each])
        if rows[why] < self._config.steps:
            return None
        del self._in_a_row[layer]
        return why

    def state(self) -> dict[str, dict[str, int]]:
        """Fit for JSON."""
        return {str(layer): dict(rows) for layer, rows in self._in_a_row.items()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave."""
        self._in_a_row = {int(layer): dict(rows) for layer, rows in state.items()}


def _is_outside(values: Tensor, grid: Grid | None) -> Tensor:
    outside = ~values.isfinite()
    return outside if grid is None else outside | (values.abs() > -grid.lowest / grid.scale)
