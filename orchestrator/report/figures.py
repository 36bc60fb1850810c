"""The numbers on the page: what result.json says; while there is none, the same from the lines so far."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.report.record import Floats, Record, number
from orchestrator.training.measures import Measure
from orchestrator.training.phases import PHASES

UNFINISHED = "unfinished"  # no result yet: the run goes on or was killed; its folder cannot tell which

# The parts of the wall time; the last is what no line of metrics.jsonl tells.
WALL_PARTS = {
    "trained": "training steps",
    "redone": "steps done again",
    "evaluated": "evaluation",
    "rest": "start, restarts and the rest",
}


@dataclass(frozen=True)
class Figures:
    """The key figures; NaN where the run has none yet. `val`, `best_val`: of `measure`, by which it is judged."""

    status: str
    measure: Measure
    val: float
    val_loss: float
    best_val: float
    best_epoch: int | None
    epochs: float
    steps: float
    samples_seen: float
    images_per_s: float
    data_wait_share: float
    restarts: int
    wall_s: float
    evaluation_s: float


@dataclass(frozen=True)
class Staleness:
    """How many updates old the weights of gradients were: `times[n]` gradients by n updates."""

    times: Floats

    @property
    def num_gradients(self) -> float:
        return float(self.times.sum())

    @property
    def mean(self) -> float:
        """In updates; NaN of no gradients."""
        return _ratio(float(self.times @ np.arange(len(self.times))), self.num_gradients)

    @property
    def largest(self) -> int:
        return max(len(self.times) - 1, 0)

    def share_above(self, bound: int) -> float:
        return _ratio(float(self.times[bound + 1 :].sum()), self.num_gradients)


def figures(record: Record) -> Figures:
    """The key figures of a run, finished or not."""
    result, steps, epochs = record.result, record.steps, record.epochs
    measure = record.measures[0]
    evaluated = [epoch for epoch in epochs if math.isfinite(epoch.val.get(measure.name, math.nan))]
    best = max(evaluated, key=lambda epoch: measure.merit(epoch.val[measure.name]), default=None)
    newest = evaluated[-1].val[measure.name] if evaluated else math.nan
    highest = best.val[measure.name] if best else math.nan
    step_s, samples = np.nansum(steps.column("step_s")), np.nansum(steps.column("samples"))
    seconds = phase_seconds(record)
    return Figures(
        status=str(result.get("status", UNFINISHED)),
        measure=measure,
        val=_first(result, f"val_{measure.name}", newest),
        val_loss=_first(result, "val_loss", evaluated[-1].val_loss if evaluated else math.nan),
        best_val=_first(result, f"best_val_{measure.name}", highest),
        best_epoch=best.epoch if best else None,
        epochs=_first(result, "epochs", float(len(epochs))),
        steps=_first(result, "steps", float(steps.column("step")[-1]) if len(steps) else 0.0),
        samples_seen=_first(result, "samples_seen", float(samples)),
        images_per_s=_first(result, "images_per_s", _ratio(samples, step_s)),
        data_wait_share=_first(result, "data_wait_share", _ratio(seconds[PHASES.index("data_wait")], seconds.sum())),
        restarts=int(_first(result, "restarts", sum(event.kind == "restart" for event in record.events))),
        wall_s=_first(result, "wall_s", record.last_sign - record.started),
        evaluation_s=_first(result, "evaluation_s", float(np.nansum([epoch.evaluation_s for epoch in epochs]))),
    )


def phase_seconds(record: Record) -> Floats:
    """Seconds in each of PHASES, summed over the steps that count; without steps, those of result.json."""
    if len(record.steps):
        total: Floats = np.nansum(record.steps.seconds, axis=0)
        return total
    told = record.result.get("seconds")
    return np.nan_to_num([number(told.get(phase)) if isinstance(told, dict) else 0.0 for phase in PHASES])


def staleness(record: Record) -> Staleness:
    """As result.json has it; of no gradients while there is none."""
    told = record.result.get("staleness")
    histogram = told.get("histogram") if isinstance(told, dict) else None
    pairs = histogram.items() if isinstance(histogram, dict) else ()
    known = {int(updates): number(times) for updates, times in pairs if updates.isdecimal() and len(updates) < 7}
    known = {updates: times for updates, times in known.items() if times > 0}
    times = np.zeros(max(known, default=-1) + 1)
    times[[*known]] = [*known.values()]
    return Staleness(times)


def spans(record: Record) -> Floats:
    """How many steps each line stands for: more than one where workers only meet now and then, as with `local`."""
    train = record.experiment.get("train")
    batch = number(train.get("global_batch")) if isinstance(train, dict) else math.nan
    if not batch > 0:
        return np.ones(len(record.steps))
    return np.maximum(np.nan_to_num(np.ceil(record.steps.column("samples") / batch), nan=1.0), 1.0)


def step_seconds(record: Record) -> Floats:
    """Of each line, the seconds that one of its steps took."""
    return record.steps.column("step_s") / spans(record)


@dataclass(frozen=True)
class Pace:
    """How a run goes on once it has begun; NaN before. `communication`: share of the step time."""

    samples_per_s: float
    communication: float


def pace(record: Record) -> Pace:
    """Of all lines but the first of each attempt, which waits for the pipeline to start, unless there is no other."""
    steps = record.steps
    _, first = np.unique(steps.column("attempt"), return_index=True)
    kept = np.setdiff1d(np.arange(len(steps)), first)
    kept = kept if len(kept) else first
    seconds = np.nansum(steps.seconds[kept], axis=0)
    total_s = float(np.nansum(steps.column("step_s")[kept]))
    return Pace(
        samples_per_s=_ratio(float(np.nansum(steps.column("samples")[kept])), total_s),
        communication=_ratio(seconds[PHASES.index("communication")], seconds.sum()),
    )


def wall_parts(record: Record, key: Figures) -> dict[str, float]:
    """What the wall time was spent on, seconds of each of WALL_PARTS that took any."""
    told = [float(phase_seconds(record).sum()), record.steps.redone_s, key.evaluation_s]
    parts = zip(WALL_PARTS, [*told, key.wall_s - sum(told)], strict=True)
    return {name: seconds for name, seconds in parts if seconds > 0}


def step_percentiles(record: Record) -> dict[int, float]:
    """The 50th, 95th, 99th and 100th percentile of the step time, seconds; empty before the first step."""
    step_s = step_seconds(record)
    step_s = step_s[np.isfinite(step_s)]
    shares = (50, 95, 99, 100)
    return dict(zip(shares, np.percentile(step_s, shares).tolist(), strict=True)) if len(step_s) else {}


def phase_shares_over_time(record: Record) -> tuple[str, Floats, Floats]:
    """Shares of each phase in pieces of the run: `epoch` or `step`, where they are (n,), shares (n, phases).

    The pieces are epochs where there are at least 10, else fortieths of the steps.
    """
    if len(record.epochs) >= 10:
        name, places = "epoch", np.array([float(epoch.epoch) for epoch in record.epochs])
        seconds = np.nan_to_num([epoch.seconds for epoch in record.epochs])
    else:
        groups = np.array_split(np.arange(len(record.steps)), min(40, max(len(record.steps), 1)))
        groups = [group for group in groups if len(group)]
        name, places = "step", np.array([record.steps.column("step")[group].mean() for group in groups])
        seconds = np.array([np.nansum(record.steps.seconds[group], axis=0) for group in groups])
        seconds = seconds.reshape(-1, len(PHASES))
    total = seconds.sum(axis=1)
    return name, places[total > 0], seconds[total > 0] / total[total > 0, None]


def _first(result: dict[str, Any], name: str, otherwise: float) -> float:
    """The figure of result.json if it has one."""
    told = number(result.get(name))
    return told if math.isfinite(told) else otherwise


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else math.nan
