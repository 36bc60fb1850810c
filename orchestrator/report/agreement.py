"""How the workers of a run agreed on one model: the strategy in words, updates, and how stale gradients were."""

import math

import numpy as np

from orchestrator.config.strategy import LocalConfig, ServedConfig
from orchestrator.report.advice import advice
from orchestrator.report.axes import Units
from orchestrator.report.charts import Bar, Mark, columns
from orchestrator.report.figures import Staleness, figures, pace, staleness
from orchestrator.report.markup import Html, element, figure, join, tiles
from orchestrator.report.record import Record, number
from orchestrator.report.strategy import in_full, in_short
from orchestrator.report.wording import MISSING, count, percent

MAX_COLUMNS = 40  # of the chart: beyond, a column is of several numbers of updates
LATER = "known when the run ends"


def has_agreed(record: Record) -> bool:
    """Whether there was anybody to agree with: another worker, or a server."""
    return record.is_served or (record.workers or 1) > 1


def agreement(record: Record) -> Html:
    """Key figures; the strategy in words; where gradients were stale, a chart of how stale."""
    stale = staleness(record)
    inside = _words(record)
    if stale.largest:
        inside = element("div", inside, _chart(stale), style="grid2")
    return join([_tiles(record, stale), inside])


def _tiles(record: Record, stale: Staleness) -> Html:
    running = pace(record)
    return tiles(
        *(_of_server(record, stale) if record.is_served else _of_peers(record)),
        ("Communication", percent(running.communication, 1), "of the step time after the start"),
        ("Samples per second", count(running.samples_per_s), "of all workers, after the start"),
    )


def _of_server(record: Record, stale: Staleness) -> tuple[tuple[str, str, str], ...]:
    made, lost = (number(record.result.get(name)) for name in ("updates", "updates_lost"))
    about = f"{count(lost)} more were lost and made again" if lost > 0 else "none was lost"
    mean = f"{stale.mean:.2f}" if stale.largest else "0"
    most = f"updates in the mean, {stale.largest} at most" if stale.largest else "all gradients of the newest weights"
    return (
        ("Updates", count(made), about if math.isfinite(lost) else LATER),
        ("Staleness", mean, most) if stale.num_gradients else ("Staleness", MISSING, LATER),
    )


def _of_peers(record: Record) -> tuple[tuple[str, str, str], ...]:
    workers = count(record.workers or 1)
    updates = ("Updates", count(figures(record).steps), "one a step")
    if isinstance(record.strategy, LocalConfig):
        return updates, ("Averages", count(len(record.steps)), f"of {workers} workers")
    return updates, ("Workers", workers, "")


def _words(record: Record) -> Html:
    strategy, who = record.strategy, _many(record.workers or 1, "worker")
    if strategy is None:
        return element("div", element("h3", who), style="card")
    shards = strategy.shards if isinstance(strategy, ServedConfig) else "auto"
    short = in_short(strategy, None if shards == "auto" else shards)
    return element(
        "div",
        element("h3", f"{who}, {short}" if short else who),
        element("p", in_full(strategy), style="none"),
        advice(record, strategy),
        style="card",
    )


def _chart(stale: Staleness) -> Html:
    width = -(-len(stale.times) // MAX_COLUMNS)
    padded = np.pad(stale.times, (0, -len(stale.times) % width))
    starts = np.arange(0.0, len(padded), width)
    bars = []
    for start, times in zip(starts.astype(int).tolist(), padded.reshape(-1, width).sum(axis=1).tolist(), strict=True):
        updates = f"{start} to {start + width - 1} updates" if width > 1 else _many(start, "update")
        gradients = f"{_many(round(times), 'gradient')}, {percent(times / stale.num_gradients, 1)}"
        bars.append(Bar(times, "bar", "", f"{updates} stale: {gradients}"))
    mark = Mark(stale.mean, "calm", 0, "mean", f"mean {stale.mean:.2f}")
    title = "Gradients by staleness, in updates"
    return figure(title, Html(columns(title, starts, bars, [mark], Units("updates", write=count))))


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
