"""The tables of a run: phases, slowest steps, events, figures by epoch, versions."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from orchestrator.report.curves import MARKED, PERCENTILES
from orchestrator.report.figures import phase_seconds
from orchestrator.report.markup import Html, Row, element, folded, join, nothing, table
from orchestrator.report.record import Event, Record, number
from orchestrator.report.wording import count, duration, percent, since, size
from orchestrator.report.wording import number as figure_text
from orchestrator.training.phases import PHASES

MAX_ROWS = 400  # of a table; what is left out is said
MAX_TEXT = 4000  # characters of an error


def phase_table(record: Record) -> Html:
    """Seconds and share of each phase, the legend of both phase charts."""
    seconds = phase_seconds(record)
    total = float(seconds.sum())
    num_steps = max(len(record.steps), 1)
    rows = [
        Row((_swatch(phase), *_phase_cells(float(value), total, num_steps)))
        for phase, value in zip(PHASES, seconds, strict=True)
    ]
    rows.append(Row(("all steps", *_phase_cells(total, total, num_steps)), "total"))
    return table([("phase", ""), ("time", "num"), ("share", "num"), ("per step", "num")], rows)


def wall_table(parts: Sequence[tuple[str, float]]) -> Html:
    """What the wall time was spent on, the legend of its bar."""
    total = sum(seconds for _, seconds in parts)
    rows = [
        Row((join([_colour(f"wall-{index}"), name]), duration(seconds), percent(seconds / total, 1)))
        for index, (name, seconds) in enumerate(parts)
    ]
    return table([("wall time", ""), ("time", "num"), ("share", "num")], rows)


def slowest_steps(record: Record, num_rows: int = 8) -> Html:
    """Percentiles of the step time, and the steps that took longest, each with the phase that took most of it."""
    steps = record.steps
    times = np.nan_to_num(steps.column("step_s"))
    if not len(steps):
        return nothing("No step yet.")
    places = np.percentile(times, PERCENTILES)
    head = ", ".join(f"p{share} {duration(at)}" for share, at in zip(PERCENTILES, places, strict=True))
    rows = []
    for index in np.argsort(-times, kind="stable")[:num_rows]:
        seconds = np.nan_to_num(steps.seconds[index])
        largest = int(np.argmax(seconds))
        most = (
            f"{PHASES[largest].replace('_', ' ')} {percent(seconds[largest] / times[index], 0)}"
            if seconds.any()
            else ""
        )
        step, epoch = count(steps.column("step")[index]), count(steps.column("epoch")[index])
        rows.append(Row((step, epoch, duration(float(times[index])), most)))
    listing = table([("step", "num"), ("epoch", "num"), ("time", "num"), ("most of it", "text")], rows)
    return join([element("p", f"{head}, longest {duration(float(times.max()))}.", style="summary"), listing])


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
    return table([("after", "num"), ("step", "num"), ("attempt", "num"), ("event", ""), ("", "text")], rows)


def epoch_table(record: Record) -> Html:
    """The figures of each epoch, newest last."""
    columns = [
        (name, "num") for name in ("epoch", "step", "train loss", "train acc.", "val. loss", "val. acc.")
    ]
    columns += [(name, "num") for name in ("images/s", "data wait", "evaluation")]
    rows = [
        Row(
            (
                str(epoch.epoch),
                count(epoch.step),
                figure_text(epoch.train_loss),
                percent(epoch.train_accuracy),
                figure_text(epoch.val_loss),
                percent(epoch.val_accuracy),
                count(epoch.images_per_s),
                percent(epoch.data_wait_share, 1),
                duration(epoch.evaluation_s),
            )
        )
        for epoch in record.epochs[-MAX_ROWS:]
    ]
    newest = f" (the last {MAX_ROWS})" if len(record.epochs) > MAX_ROWS else ""
    return folded(f"Figures of {len(record.epochs)} epochs{newest}", table(columns, rows))


def versions_table(record: Record) -> Html:
    versions = record.result.get("versions")
    if not isinstance(versions, dict) or not versions:
        return nothing("Written when the run ends.")
    return table(
        [("", ""), ("version", "")], [Row((str(name), str(value))) for name, value in versions.items()]
    )


def _rows(record: Record, kind: str, events: list[Event]) -> list[Row]:
    """The rows of consecutive events of one kind."""
    if kind != "commit" or len(events) < 3:
        return [_row(record, event, _story(event)) for event in events]
    last = events[-1]
    spent, written = (
        sum(number(event.fields.get(name)) for event in events) for name in ("seconds", "bytes")
    )
    message = f"{len(events)} commits from step {events[0].step:,} on: {duration(spent)}, {size(written)} in all. The last: "
    return [_row(record, last, join([message, _story(last)]))]


def _row(record: Record, event: Event, story: Html) -> Row:
    style = MARKED.get(event.kind, "quiet" if event.kind == "commit" else "")
    kind = element(
        "span", event.kind.replace("_", " "), style=f"kind {'' if style == 'quiet' else style}".strip()
    )
    after = since(event.time - record.started)
    return Row(
        (after, count(event.step), str(event.attempt), kind, story), "quiet" if style == "quiet" else ""
    )


def _story(event: Event) -> Html:
    """The event's sentence; its fields where it has none; the error of a failure to unfold."""
    fields = {name: value for name, value in event.fields.items() if name not in ("error", "step", "epoch")}
    told = event.message or ", ".join(f"{name}: {value}" for name, value in fields.items())
    parts = [told[:MAX_TEXT]]
    if event.kind == "failure":
        where = [f"{name} {value}" for name, value in fields.items() if value not in (None, [], "")]
        parts.append(
            element("div", ", ".join(where)[:MAX_TEXT], style="none") if event.message and where else ""
        )
        error = str(event.fields.get("error") or "")
        cut = "\n... cut here; events.jsonl has all of it" if len(error) > MAX_TEXT else ""
        parts.append(folded("Error", element("pre", error[:MAX_TEXT] + cut)) if error else "")
    return join(parts)


def _phase_cells(seconds: float, total: float, num_steps: int) -> tuple[str, str, str]:
    return duration(seconds), percent(seconds / total, 1) if total else "", duration(seconds / num_steps)


def _swatch(phase: str) -> Html:
    return join([_colour(phase), phase.replace("_", " ")])


def _colour(style: str) -> Html:
    return element("span", style=f"swatch {style}")
