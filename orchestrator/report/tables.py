"""The tables of a run: phases, slowest steps, events, figures by epoch, versions."""

import math
from itertools import groupby

import numpy as np

from orchestrator.report.curves import MARKED
from orchestrator.report.figures import WALL_PARTS, phase_seconds, spans, step_percentiles, step_seconds
from orchestrator.report.markup import Html, Row, element, folded, join, nothing, table
from orchestrator.report.record import Event, Record, number
from orchestrator.report.wording import count, duration, percent, since, size
from orchestrator.report.wording import number as figure_text
from orchestrator.training.measures import Measure
from orchestrator.training.phases import PHASES

MAX_ROWS = 200  # of a table; what is left out is said
MAX_TEXT = 2000  # characters of a message or an error


def phase_table(record: Record) -> Html:
    """Seconds and share of each phase, the legend of both phase charts."""
    seconds = phase_seconds(record)
    total = float(seconds.sum())
    num_steps = max(float(spans(record).sum()), 1.0)
    rows = [
        Row((_swatch(phase), *_phase_cells(float(value), total, num_steps)))
        for phase, value in zip(PHASES, seconds, strict=True)
    ]
    rows.append(Row(("all steps", *_phase_cells(total, total, num_steps)), "total"))
    return table([("phase", ""), ("time", "num"), ("share", "num"), ("per step", "num")], rows)


def wall_keys(parts: dict[str, float]) -> Html:
    """What the wall time was spent on, the legend of its bar."""
    total = sum(parts.values())
    items = [
        element("li", _colour(part), f"{WALL_PARTS[part]} {duration(seconds)}, {percent(seconds / total, 1)}")
        for part, seconds in parts.items()
    ]
    return element("ul", *items, style="keys")


def slowest_steps(record: Record, num_rows: int = 6) -> Html:
    """Percentiles of the step time, and the steps that took longest, each with its largest phase."""
    places = step_percentiles(record)
    if not places:
        return nothing("No step yet.")
    summary = ", ".join(f"p{share} {duration(at)}" for share, at in places.items() if share < 100)
    steps, step_s = record.steps, np.nan_to_num(step_seconds(record))
    rows = []
    for index in np.argsort(-step_s, kind="stable")[:num_rows]:
        seconds = np.nan_to_num(steps.seconds[index])
        largest = int(np.argmax(seconds))
        most = percent(float(seconds[largest] / seconds.sum()), 0) if seconds.any() else ""
        place = (count(steps.column(name)[index]) for name in ("step", "epoch"))
        rows.append(Row((*place, duration(float(step_s[index])), join([_swatch(PHASES[largest]), " ", most]))))
    listing = table([("step", "num"), ("epoch", "num"), ("time", "num"), ("most of it", "text")], rows)
    return join([listing, element("p", f"{summary}, longest {duration(places[100])}.", style="note")])


def event_table(record: Record) -> Html:
    """All events; commits in a row are one line. Of a very long list the middle is left out, and said so."""
    if not record.events:
        return nothing("No event yet.")
    rows = [
        row
        for kind, events in groupby(record.events, key=lambda event: event.kind)
        for row in _rows(record, kind, [*events])
    ]
    if len(rows) > MAX_ROWS:
        left_out = Row(
            ("", "", "", "", f"{len(rows) - MAX_ROWS:,} rows are left out here; events.jsonl has them."),
            "quiet",
        )
        rows = [*rows[: MAX_ROWS // 2], left_out, *rows[-MAX_ROWS // 2 :]]
    return table(
        [("after", "num"), ("step", "num"), ("attempt", "num"), ("event", ""), ("what happened", "text")],
        rows,
    )


def epoch_table(record: Record) -> Html:
    """The figures of each epoch, newest last."""
    trained = [m for m in record.measures if any(m.name in epoch.train for epoch in record.epochs)]
    names = ["epoch", "step", "train loss", *(f"train {m.short}" for m in trained)]
    names += ["val. loss", *(f"val. {m.short}" for m in record.measures), "images/s", "data wait", "evaluation"]
    columns = [(name, "num") for name in names]
    rows = [
        Row(
            (
                str(epoch.epoch),
                count(epoch.step),
                figure_text(epoch.train_loss),
                *(figure_of(measure, epoch.train.get(measure.name, math.nan)) for measure in trained),
                figure_text(epoch.val_loss),
                *(figure_of(measure, epoch.val.get(measure.name, math.nan)) for measure in record.measures),
                count(epoch.images_per_s),
                percent(epoch.data_wait_share, 1),
                duration(epoch.evaluation_s),
            )
        )
        for epoch in record.epochs[-MAX_ROWS:]
    ]
    newest = f" (the last {MAX_ROWS})" if len(record.epochs) > MAX_ROWS else ""
    return folded(f"Figures of {len(record.epochs)} epochs{newest}", table(columns, rows))


def figure_of(measure: Measure, value: float) -> str:
    """What a run is judged by, as text."""
    return percent(value) if measure.share else figure_text(value)


def versions_table(record: Record) -> Html:
    versions = record.result.get("versions")
    if not isinstance(versions, dict) or not versions:
        return nothing("Written when the run ends.")
    return table([("package", ""), ("version", "")], [Row((str(name), str(value))) for name, value in versions.items()])


def _rows(record: Record, kind: str, events: list[Event]) -> list[Row]:
    """The rows of consecutive events of one kind."""
    if kind != "commit" or len(events) < 3:
        return [_row(record, event, _story(event)) for event in events]
    last = events[-1]
    spent, written = (sum(number(event.fields.get(name)) for event in events) for name in ("seconds", "bytes"))
    all_of_them = f"{duration(spent)}, {size(written)} in all"
    message = f"{len(events)} commits from step {events[0].step:,} on: {all_of_them}. The last: "
    return [_row(record, last, join([message, _story(last)]))]


def _row(record: Record, event: Event, story: Html) -> Row:
    style = MARKED.get(event.kind, "quiet" if event.kind == "commit" else "")
    kind = element("span", event.kind.replace("_", " "), style=f"kind {'' if style == 'quiet' else style}".strip())
    after = since(event.time - record.started)
    return Row((after, count(event.step), str(event.attempt), kind, story), "quiet" if style == "quiet" else "")


def _story(event: Event) -> Html:
    """The event's sentence; its fields where it has none, and of a failure; the error to unfold."""
    error = str(event.fields.get("error") or "")
    cut = "\n... cut here; events.jsonl has all of it" if len(error) > MAX_TEXT else ""
    parts = [event.message[:MAX_TEXT]]
    if event.kind == "failure" or not event.message:
        parts.append(element("div", _fields(event)[:MAX_TEXT], style="none"))
    if error:
        parts.append(folded("Error", element("pre", error[:MAX_TEXT] + cut)))
    return join(parts)


def _fields(event: Event) -> str:
    """The fields that say more than the other columns: `cause workers; ranks 1, 3`."""
    shown = {name: value for name, value in event.fields.items() if name not in ("event", "error", "step", "epoch")}
    texts = {
        name: ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
        for name, value in shown.items()
        if value not in (None, [], "")
    }
    return "; ".join(f"{name} {text}" for name, text in texts.items())


def _phase_cells(seconds: float, total: float, num_steps: float) -> tuple[str, str, str]:
    return duration(seconds), percent(seconds / total, 1) if total else "", duration(seconds / num_steps)


def _swatch(phase: str) -> Html:
    return join([_colour(phase), phase.replace("_", " ")])


def _colour(style: str) -> Html:
    return element("span", style=f"swatch {style}")
