"""Long series made short enough to draw, without hiding what stands out."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from orchestrator.report.record import Floats


@dataclass(frozen=True, eq=False)
class Series:
    """One line of a chart. `style`: a CSS class of style.py. NaN leaves a gap."""

    name: str
    style: str
    x: Floats
    y: Floats


def thin(x: Floats, y: Floats, num_buckets: int) -> tuple[Floats, Floats]:
    """At most two points a bucket, its smallest and its largest value in order: spikes keep their height.

    A bucket of NaN alone keeps one NaN, so the gap stays too.
    """
    if len(y) <= 2 * num_buckets:
        return x, y
    edges = np.linspace(0, len(y), num_buckets + 1).astype(int)
    kept: list[int] = []
    for start, end in pairwise(edges):
        bucket = y[start:end]
        if np.isnan(bucket).all():
            kept.append(int(start))
        else:
            kept += sorted({int(start + np.nanargmin(bucket)), int(start + np.nanargmax(bucket))})
    return x[kept], y[kept]


def smooth(y: Floats, window: int) -> Floats:
    """The mean over a centred window, which does not lag; cut short at both ends, NaN values not counted.

    `window`: odd.
    """
    real = np.isfinite(y)
    sums = np.concatenate([[0.0], np.cumsum(np.where(real, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(real)])
    low = np.maximum(np.arange(len(y)) - window // 2, 0)
    high = np.minimum(np.arange(len(y)) + window // 2 + 1, len(y))
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def smoothing_window(num_points: int) -> int:
    """About a fiftieth of a series, odd; 1 for a short one, which needs no smoothing."""
    return 2 * (num_points // 100) + 1
