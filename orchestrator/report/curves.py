"""The charts of a run: which series, on which axes, with which events marked."""

from collections.abc import Callable, Sequence

import numpy as np

from orchestrator.report.axes import EPOCH, PLAIN, SHARE, STEP, Axis, Units, exact, loss_axis, outward
from orchestrator.report.charts import Mark, histogram, line_chart, merged, stacked_areas
from orchestrator.report.figures import phase_shares_over_time, spans, step_percentiles, step_seconds
from orchestrator.report.markup import Html, figure, key, nothing
from orchestrator.report.record import Floats, Record
from orchestrator.report.series import Series, smooth, smoothing_window
from orchestrator.report.wording import duration
from orchestrator.training.measures import Measure
from orchestrator.training.phases import PHASES

# Events worth a mark -> CSS class; the first of those that fall together gives the colour.
MARKED = {
    "failure": "bad",
    "updates_lost": "bad",
    "skipped_checkpoint": "warn",
    "hang": "warn",
    "left": "warn",
    "server": "move",
    "resize": "move",
    "restart": "move",
    "fault": "calm",
    "stop": "calm",
}

NUM_BINS = 44


def loss_by_step(record: Record) -> Html:
    lines = _step_lines(record, record.steps.column("loss"))
    return _step_figure(record, "Training loss by step", lines, loss_axis(lines[0].y))


def figure_by_step(record: Record) -> Html:
    """What training is judged by, such as the accuracy."""
    measure, lines = record.steps.measure, _step_lines(record, record.steps.column("figure"))
    return _step_figure(record, f"Training {measure.title} by step", lines, outward(lines[0].y, _units(measure)))


def learning_rate(record: Record) -> Html:
    lines = [Series("learning rate", "train", record.steps.column("step"), record.steps.column("lr"))]
    return _step_figure(record, "Learning rate by step", lines, outward(lines[0].y, PLAIN, [0.0]))


def throughput(record: Record) -> Html:
    """Images per second; the smooth line is samples over seconds in its window, not a mean of rates."""
    steps = record.steps
    samples, seconds = (
        steps.column("samples"),
        np.where(steps.column("step_s") > 0, steps.column("step_s"), np.nan),
    )
    lines = _step_lines(record, samples / seconds)
    if len(lines) == 2:
        window = smoothing_window(len(steps))
        means = smooth(samples, window) / smooth(seconds, window)
        lines[1] = Series(lines[1].name, lines[1].style, lines[1].x, means)
    return _step_figure(record, "Images/s by step", lines, outward(lines[0].y, PLAIN, [0.0]))


def loss_by_epoch(record: Record) -> Html:
    lines = _epoch_lines(record, [(epoch.train_loss, epoch.val_loss) for epoch in record.epochs])
    return _epoch_figure(record, "Loss by epoch", lines, loss_axis(_all_values(lines)))


def figure_by_epoch(record: Record) -> Html:
    """What says which commit is best; training has no such figure where it takes all outputs at once."""
    measure = record.measures[0]
    pairs = [tuple(part.get(measure.name, np.nan) for part in (epoch.train, epoch.val)) for epoch in record.epochs]
    lines = _epoch_lines(record, pairs)
    title = f"{measure.title[0].upper() + measure.title[1:] if measure.title.islower() else measure.title} by epoch"
    return _epoch_figure(record, title, lines, outward(_all_values(lines), _units(measure)))


def phases_over_time(record: Record) -> Html:
    """Shares of the step time over the run, a colour a phase; the table of phases is the legend."""
    name, places, shares = phase_shares_over_time(record)
    title = f"Share of step time by {name}"
    if len(places) < 2:
        return figure(title, nothing("Appears after the second step."))
    x = exact(float(places[0]), float(places[-1]), EPOCH if name == "epoch" else STEP, least=1.0)
    return figure(title, Html(stacked_areas(title, PHASES, places, shares, x)))


def step_times(record: Record) -> Html:
    """A histogram of step times. The few that are far from all others share one bar."""
    title = "Distribution of step times"
    seconds = step_seconds(record)
    known = np.isfinite(seconds)
    seconds, times = seconds[known], spans(record)[known]
    places = step_percentiles(record)
    if not places:
        return figure(title, nothing("No step yet."))
    scale, units = (1000.0, Units("ms")) if places[50] < 1 else (1.0, Units("s"))
    low, high = float(seconds.min()), float(seconds.max())
    cap = min(4 * places[50], 2 * places[95], 1.25 * places[99])
    bulk = np.linspace(low, min(high, cap) if high > low else 1.1 * low + 1e-6, NUM_BINS)
    edges = np.append(bulk, np.inf) if high > cap else bulk
    counts = np.histogram(seconds, edges, weights=times)[0].astype(np.float64)
    marks = [
        Mark(scale * at, "calm", share, f"p{share}", f"p{share} {duration(at)}")
        for share, at in places.items()
        if share < 100
    ]
    keys = [key(f"all over {duration(cap)}", '<g class="bar tail"><rect x="5" width="10" height="10"/></g>')]
    drawing = Html(histogram(title, scale * edges, counts, marks, units))
    return figure(f"{title}, {units.name}", drawing, keys if high > cap else ())


def _step_lines(record: Record, values: Floats) -> list[Series]:
    """Each step, faint, under its smoothed line; a short run has the steps alone."""
    steps = record.steps.column("step")
    window = smoothing_window(len(values))
    if window == 1:
        return [Series("each step", "train", steps, values)]
    raw = Series("each step", "raw", steps, values)
    return [raw, Series(f"mean of {window}", "train", steps, smooth(raw.y, window))]


def _epoch_lines(record: Record, pairs: Sequence[Sequence[float]]) -> list[Series]:
    """`pairs`: a figure of each epoch, in training and in validation."""
    x = np.array([float(epoch.epoch) for epoch in record.epochs])
    columns = np.array(pairs, np.float64).reshape(-1, 2).T
    return [Series("train", "train", x, columns[0]), Series("validation", "val", x, columns[1])]


def _units(measure: Measure) -> Units:
    return SHARE if measure.share else PLAIN


def _step_figure(record: Record, title: str, lines: Sequence[Series], y: Axis) -> Html:
    steps = record.steps.column("step")
    if not np.isfinite(lines[0].y).any():
        return figure(title, nothing("Nothing recorded yet."))
    missing = int(np.isnan(lines[0].y).sum())
    note = f"{missing:,} of {len(steps):,} values are missing, NaN or infinite and leave a gap." if missing else ""
    x = exact(float(steps[0]), float(steps[-1]), STEP, least=1.0)
    return _line_figure(title, lines, x, y, _marks(record, float), note)


def _epoch_figure(record: Record, title: str, lines: Sequence[Series], y: Axis) -> Html:
    lines = [line for line in lines if np.isfinite(line.y).any()]
    if not lines:
        return figure(title, nothing("Appears after the first epoch."))
    numbers, ends = lines[0].x, np.array([epoch.step for epoch in record.epochs], np.float64)
    x = exact(float(numbers[0]), float(numbers[-1]), EPOCH, least=1.0)
    # The point of an epoch is its end, so a step inside it lies between the point before and its own.
    marks = _marks(record, lambda step: float(np.interp(step, ends, numbers)))
    return _line_figure(title, lines, x, y, marks)


def _line_figure(title: str, lines: Sequence[Series], x: Axis, y: Axis, marks: Sequence[Mark], note: str = "") -> Html:
    drawn = merged(marks, x)
    names: dict[str, list[str]] = {}
    for mark in drawn:
        names.setdefault(mark.style, [])
        names[mark.style] += [mark.name] if mark.name not in names[mark.style] else []
    keys = [key(line.name, f'<path class="line {line.style}" d="M0 5H20"/>') for line in lines]
    keys += [
        key(
            ", ".join(kinds),
            f'<g class="mark {style}"><line x1="10" x2="10" y1="0" y2="11"/><path d="M10 5l-4 -7h8z"/></g>',
        )
        for style, kinds in names.items()
    ]
    return figure(title, Html(line_chart(title, lines, x, y, drawn)), keys, note)


def _marks(record: Record, place: Callable[[float], float]) -> list[Mark]:
    """The events worth a mark; `place` maps a step to the x axis."""
    ranks = list(MARKED)
    return [
        Mark(
            x=place(float(event.step)),
            style=MARKED[event.kind],
            rank=ranks.index(event.kind),
            name=event.kind.replace("_", " "),
            text=f"step {event.step:,}: {event.message or event.kind}"[:300],
        )
        for event in record.events
        if event.kind in MARKED
    ]


def _all_values(lines: Sequence[Series]) -> Floats:
    return np.concatenate([line.y for line in lines])
