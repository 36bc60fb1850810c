"""The range of an axis and round ticks on it: multiples of 1, 2, 2.5 or 5 times a power of ten."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from orchestrator.report.record import Floats
from orchestrator.report.wording import count, number, percent, percent_tick, tick


@dataclass(frozen=True)
class Units:
    """How the values of an axis read.

    `tick(value, distance of ticks)` on the axis, `write(value)` under the pointer.
    """

    name: str
    tick: Callable[[float, float], str] = tick
    write: Callable[[float], str] = number


PLAIN = Units("")
SHARE = Units("", percent_tick, percent)
STEP = Units("step", write=count)
EPOCH = Units("epoch", write=count)
POWERS = Units("", lambda value, _: f"{value:g}")


@dataclass(frozen=True)
class Axis:
    """Where values lie along an axis: `place` maps [low, high] to [start, end]."""

    units: Units
    low: float
    high: float
    ticks: tuple[float, ...]
    warp: Callable[[Floats], Floats]

    @property
    def labels(self) -> tuple[str, ...]:
        distance = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        return tuple(self.units.tick(value, distance) for value in self.ticks)

    def place(self, values: Floats | float, start: float, end: float) -> Floats:
        low, high, at = (self.warp(np.asarray(value, np.float64)) for value in (self.low, self.high, values))
        return start + (end - start) * (at - low) / (high - low)


def outward(values: Floats, units: Units = PLAIN, include: Iterable[float] = ()) -> Axis:
    """An axis whose ends are ticks around all finite values and those to `include`."""
    low, high = _span(values, include)
    step = _round_step((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(index * step for index in range(first, last + 1))
    return Axis(units, ticks[0], ticks[-1], ticks, _same)


def exact(low: float, high: float, units: Units, least: float = 0.0) -> Axis:
    """An axis from `low` to `high` with its ticks inside, `least` or more apart (1: whole numbers only)."""
    if high <= low:
        low, high = low - 0.5, low + 0.5
    step = max(_round_step((high - low) / 7), least)
    if step == 2.5 * least:
        step = 5 * least
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(units, low, high, tuple(index * step for index in range(first, last + 1)), _same)


def logarithmic(values: Floats) -> Axis:
    """An axis of powers of ten. Values must be > 0 where they are finite."""
    low, high = _span(values, ())
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    every = max(1, -(-(last - first) // 6))
    last = first + every * max(1, -(-(last - first) // every))
    ticks = tuple(10.0**power for power in range(first, last + 1, every))
    return Axis(POWERS, ticks[0], ticks[-1], ticks, np.log10)


def loss_axis(values: Floats) -> Axis:
    """Linear, but logarithmic where one spike of 50 times the median would press the curve flat."""
    real = values[np.isfinite(values)]
    if len(real) and real.min() > 0 and real.max() > 50 * np.median(real):
        return logarithmic(real)
    return outward(values)


def _span(values: Floats, include: Iterable[float]) -> tuple[float, float]:
    real = [*values[np.isfinite(values)].tolist(), *include]
    low, high = min(real, default=0.0), max(real, default=1.0)
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    pad = 0.1 * abs(low) or 0.5  # a constant is drawn in the middle
    return low - pad, high + pad


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _same(values: Floats) -> Floats:
    return values
