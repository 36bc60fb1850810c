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


def wall_parts(record: Record, key: Figures) -> dict[str, float]:
    """What the wall time was spent on, seconds of each of WALL_PARTS that took any."""
    told = [float(phase_seconds(record).sum()), record.steps.redone_s, key.evaluation_s]
    parts = zip(WALL_PARTS, [*told, key.wall_s - sum(told)], strict=True)
    return {name: seconds for name, seconds in parts if seconds > 0}


def step_percentiles(record: Record) -> dict[int, float]:
    """The 50th, 95th, 99th and 100th percentile of the step time, seconds; empty before the first step."""
    step_s = record.steps.column("step_s")
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
