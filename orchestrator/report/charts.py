"""Data -> SVG text: lines, stacked areas, a histogram, columns, groups of bars, a bar of shares.

Colours and fonts come from CSS classes (style.py), so one drawing serves light and dark. What appears where
the pointer rests is a <title>; no script is needed. Knows nothing of runs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise

import numpy as np

from orchestrator.report.axes import PLAIN, SHARE, Axis, Units, exact, outward
from orchestrator.report.record import Floats
from orchestrator.report.series import Series, thin
from orchestrator.report.wording import count

WIDTH, HEIGHT = 520, 236
LEFT, RIGHT, TOP, BOTTOM = 50, 508, 14, 212  # of the plot inside the drawing
GROUP_LEFT, GROUP_GAP, BAR = 172, 9, 13  # of groups of bars: where they begin, what is between them, one of them
COLUMN = 40.0  # at most so wide is a column
NUM_BUCKETS = 420  # about one a pixel
NUM_BANDS = 130  # hover bands: narrower ones cannot be pointed at
MERGE_PX = 5.0  # marks nearer than this are drawn as one


@dataclass(frozen=True)
class Mark:
    """A moment to point out, as a vertical line. `style`: a CSS class.

    Of marks that merge, the one of the smallest `rank` stays.
    """

    x: float
    style: str
    rank: int
    name: str
    text: str


@dataclass(frozen=True)
class Bar:
    """A bar with a text behind it and one under the pointer. `style`: a CSS class."""

    value: float
    style: str
    text: str
    hover: str


def line_chart(label: str, series: Sequence[Series], x: Axis, y: Axis, marks: Sequence[Mark] = ()) -> str:
    """Lines over x, with marks behind them and a hover band for each piece of the x axis."""
    parts = [_frame(x, y), *(_mark(mark, x) for mark in marks)]
    parts += [_line(line, x, y) for line in series]
    parts += _bands(series, x, y)
    return _svg(label, parts)


def merged(marks: Sequence[Mark], x: Axis) -> list[Mark]:
    """Marks whose lines would touch become one, which says what all of them were."""
    groups: list[list[Mark]] = []
    for mark in sorted(marks, key=lambda mark: mark.x):
        at = float(x.place(mark.x, LEFT, RIGHT))
        if groups and at - float(x.place(groups[-1][0].x, LEFT, RIGHT)) < MERGE_PX:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    together = []
    for group in groups:
        more = f"\nand {len(group) - 4} more" if len(group) > 4 else ""
        text = "\n".join(mark.text for mark in group[:4]) + more
        together.append(replace(min(group, key=lambda mark: mark.rank), text=text))
    return together


def stacked_areas(label: str, names: Sequence[str], x_values: Floats, shares: Floats, x: Axis) -> str:
    """Shares (points, parts) of a whole, stacked upward. The parts' `names` are their CSS classes too."""
    y = exact(0.0, 1.0, SHARE)
    xs = x.place(x_values, LEFT, RIGHT)
    tops = y.place(np.pad(np.cumsum(shares, axis=1), ((0, 0), (1, 0))), BOTTOM, TOP)
    parts = []
    for index, name in enumerate(names):
        outline = [*_points(xs, tops[:, index + 1]), *reversed(_points(xs, tops[:, index]))]
        if shares[:, index].any():
            parts.append(f'<path class="area {name}" d="M{"L".join(outline)}Z"/>')
    columns = [Series(name.replace("_", " "), name, x_values, shares[:, index]) for index, name in enumerate(names)]
    return _svg(label, [*parts, f'<g class="over">{_frame(x, y)}</g>', *_bands(columns[::-1], x, y)])


def histogram(label: str, edges: Floats, counts: Floats, marks: Sequence[Mark], units: Units) -> str:
    """Bars of `counts` steps between `edges`. If the last edge is infinite, the last bar is the open end."""
    open_end = not np.isfinite(edges[-1])
    drawn = np.append(edges[:-1], 2 * edges[-2] - edges[-3]) if open_end else edges
    x, y = exact(float(drawn[0]), float(drawn[-1]), units), outward(counts, include=(0.0, 4.0))
    lefts, tops = x.place(drawn, LEFT, RIGHT), y.place(counts, BOTTOM, TOP)
    parts = [_frame(x, y)]
    for index, top in enumerate(tops):
        last = open_end and index == len(tops) - 1
        low, high = (units.write(edge) for edge in edges[index : index + 2])
        span = f"over {low}" if last else f"{low} to {high}"
        left, width = lefts[index], max(lefts[index + 1] - lefts[index] - 1, 0.5)
        hover = f"{span} {units.name}: {count(counts[index])} steps"
        parts.append(_column(left, width, top, hover, "bar tail" if last else "bar"))
    return _svg(label, [*parts, *_named_marks(marks, x)])


def columns(label: str, starts: Floats, bars: Sequence[Bar], marks: Sequence[Mark], units: Units) -> str:
    """Bars over whole numbers, each from its start up to the next; all are as wide. The text is the pointer's alone."""
    width = float(starts[1] - starts[0]) if len(starts) > 1 else 1.0
    values = np.array([bar.value for bar in bars])
    x = exact(float(starts[0]) - 0.5, float(starts[-1]) + width - 0.5, units, least=1.0)
    y = outward(values, include=(0.0, 4.0))
    slot = float(x.place(width, LEFT, RIGHT) - x.place(0.0, LEFT, RIGHT))
    drawn = min(max(slot - 2.0, 0.5), COLUMN)
    lefts = x.place(starts - 0.5, LEFT, RIGHT) + (slot - drawn) / 2
    parts = [_frame(x, y)]
    for left, top, bar in zip(lefts, y.place(values, BOTTOM, TOP), bars, strict=True):
        parts.append(_column(left, drawn, top, bar.hover, bar.style))
    return _svg(label, [*parts, *_named_marks(marks, x)])


def _column(left: float, width: float, top: float, hover: str, style: str) -> str:
    return (
        f'<g class="{style}"><title>{escape(hover)}</title>'
        f'<rect class="band" x="{left:.1f}" y="{TOP}" width="{width:.1f}" height="{BOTTOM - TOP}"/>'
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{BOTTOM - top:.1f}"/></g>'
    )


def _named_marks(marks: Sequence[Mark], x: Axis) -> list[str]:
    """Marks with their texts beside them, below one another."""
    parts = []
    for row, mark in enumerate(marks):
        at = float(x.place(min(mark.x, x.high), LEFT, RIGHT))
        side, shift = ("end", -4) if at > RIGHT - 90 else ("start", 4)
        parts.append(
            f'<g class="mark {mark.style}"><line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{BOTTOM}"/>'
            f'<text text-anchor="{side}" x="{at + shift:.1f}" y="{TOP + 10 + 17 * row}">'
            f"{escape(mark.text)}</text></g>"
        )
    return parts


def grouped_bars(label: str, groups: Sequence[tuple[str, Sequence[Bar]]], base: float) -> str:
    """Groups of bars from the left, a name before each and a line at `base`, the value that bars are compared with."""
    values = np.array([bar.value for _, bars in groups for bar in bars])
    x = exact(0.0, 1.25 * max(base, float(values.max())), PLAIN)
    bottom = TOP + sum(GROUP_GAP + BAR * len(bars) for _, bars in groups)
    parts = []
    for value, text in zip(x.ticks, x.labels, strict=True):
        at = float(x.place(value, GROUP_LEFT, RIGHT))
        parts.append(f'<line class="gridline" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" text-anchor="middle" x="{at:.1f}" y="{bottom + 18}">{text}</text>')
    top = TOP + GROUP_GAP / 2
    for name, bars in groups:
        middle = top + BAR * len(bars) / 2 + 4
        parts.append(
            f'<text class="name" text-anchor="end" x="{GROUP_LEFT - 7}" y="{middle:.1f}">{escape(name)}</text>'
        )
        for row, bar in enumerate(bars):
            parts.append(_bar(bar, x, top + BAR * row))
        top += BAR * len(bars) + GROUP_GAP
    at = float(x.place(base, GROUP_LEFT, RIGHT))
    parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
    return _svg(label, parts, bottom + 24)


def _bar(bar: Bar, x: Axis, top: float) -> str:
    end = float(x.place(bar.value, GROUP_LEFT, RIGHT))
    return (
        f'<g class="one"><title>{escape(bar.hover)}</title>'
        f'<rect class="{bar.style}" x="{GROUP_LEFT}" y="{top:.1f}" width="{end - GROUP_LEFT:.1f}" height="{BAR - 2}"/>'
        f'<text x="{end + 5:.1f}" y="{top + BAR - 4:.1f}">{escape(bar.text)}</text></g>'
    )


def share_bar(label: str, parts: Iterable[tuple[str, float, str]]) -> str:
    """One bar of (CSS class, share, hover text) side by side; without text inside it, so it may stretch."""
    left, rects = 0.0, []
    for style, share, text in parts:
        if share > 0:
            rects.append(
                f'<rect class="{style}" x="{1000 * left:.2f}" y="0" width="{1000 * share:.2f}" height="10">'
                f"<title>{escape(text)}</title></rect>"
            )
        left += share
    return (
        f'<svg class="shares" role="img" aria-label="{escape(label)}" viewBox="0 0 1000 10" '
        f'preserveAspectRatio="none">{"".join(rects)}</svg>'
    )


def _svg(label: str, parts: Iterable[str], height: float = HEIGHT) -> str:
    return (
        f'<svg class="plot" role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {height:g}">'
        f"{''.join(parts)}</svg>"
    )


def _frame(x: Axis, y: Axis) -> str:
    """Grid lines, tick labels and the base line."""
    parts = []
    for at, text in zip(y.place(np.array(y.ticks), BOTTOM, TOP), y.labels, strict=True):
        parts.append(f'<line class="gridline" x1="{LEFT}" x2="{RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 7}" y="{at + 4:.1f}">{text}</text>')
    for value, text in zip(x.ticks, x.labels, strict=True):
        at = float(x.place(value, LEFT, RIGHT))
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{BOTTOM}" y2="{BOTTOM + 4}"/>')
        parts.append(f'<text class="tick" text-anchor="middle" x="{at:.1f}" y="{BOTTOM + 18}">{text}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>')
    return "".join(parts)


def _points(xs: Floats, ys: Floats) -> list[str]:
    return [f"{x:.1f} {y:.1f}" for x, y in zip(xs.tolist(), ys.tolist(), strict=True)]


def _line(series: Series, x: Axis, y: Axis) -> str:
    """A path, broken where values are NaN; dots where there are few points or a point stands alone."""
    xs, ys = thin(series.x, series.y, NUM_BUCKETS)
    real = np.isfinite(ys)
    points = _points(x.place(xs, LEFT, RIGHT), y.place(np.where(real, ys, y.low), BOTTOM, TOP))
    path, dots = [], []
    for index in np.flatnonzero(real):
        joined = index > 0 and real[index - 1]
        path.append(("L" if joined else "M") + points[index])
        alone = not joined and not (index + 1 < len(real) and real[index + 1])
        if alone or real.sum() <= 40:
            at_x, at_y = points[index].split()
            dots.append(f'<circle class="dot {series.style}" cx="{at_x}" cy="{at_y}" r="2.4"/>')
    return f'<path class="line {series.style}" d="{"".join(path)}"/>{"".join(dots)}' if path else ""


def _mark(mark: Mark, x: Axis) -> str:
    at = min(max(float(x.place(mark.x, LEFT, RIGHT)), LEFT), RIGHT)
    return (
        f'<g class="mark {mark.style}"><title>{escape(mark.text)}</title>'
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 4}" y2="{BOTTOM}"/>'
        f'<path d="M{at:.1f} {TOP - 2}l-4.5 -8h9z"/></g>'
    )


def _bands(series: Sequence[Series], x: Axis, y: Axis) -> list[str]:
    """Invisible strips that say under the pointer what each line is there: a value, or its mean and range."""
    known = np.unique(np.concatenate([line.x for line in series]))
    groups = np.array_split(known, min(NUM_BANDS, len(known))) if len(known) else []
    borders = [x.low, *((a[-1] + b[0]) / 2 for a, b in pairwise(groups)), x.high]
    places = x.place(np.array(borders), LEFT, RIGHT)
    parts = []
    for group, (left, right) in zip(groups, pairwise(places), strict=True):
        first, last = x.units.write(group[0]), x.units.write(group[-1])
        lines = [f"{x.units.name} {first}" + (f" to {last}" if last != first else "")]
        for line in series:
            inside = line.y[np.searchsorted(line.x, group[0]) : np.searchsorted(line.x, group[-1], "right")]
            lines += (
                [f"{line.name}: {_spread(inside[np.isfinite(inside)], y.units)}"] if np.isfinite(inside).any() else []
            )
        parts.append(
            f'<rect class="band" x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{BOTTOM - TOP}">'
            f"<title>{escape(chr(10).join(lines))}</title></rect>"
        )
    return parts


def _spread(values: Floats, units: Units) -> str:
    mean, low, high = (units.write(float(value)) for value in (values.mean(), values.min(), values.max()))
    return mean if low == high else f"{mean} ({low} to {high})"
