"""What a run folder says, read for a report: the files of docs/run-folder.md as arrays and frozen records.

A run that goes on or was killed must give a report too: a missing file is an empty part, and a line that a
kill cut off is left out and counted in `Record.notes`. Nothing is validated, and checkpoints are not read.
"""

import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from orchestrator.config.strategy import ServedConfig, StrategyConfig
from orchestrator.errors import InputError
from orchestrator.report.strategy import read_strategy
from orchestrator.training.measures import MEASURES, Measure
from orchestrator.training.phases import PHASES

Floats = NDArray[np.float64]

_FIELDS = ("step", "epoch", "time", "attempt", "samples", "loss", "figure", "lr", "step_s")
_STEP, _TIME, _STEP_S = (_FIELDS.index(name) for name in ("step", "time", "step_s"))


@dataclass(frozen=True, eq=False)
class Steps:
    """One row an optimizer step, sorted by step; columns are named as in metrics.jsonl, `figure` is that of `measure`.

    NaN stands where a figure is missing or not finite.
    `num_redone` and `redone_s`: rows that a later attempt did again; they are not in the columns.
    """

    rows: Floats
    num_redone: int
    redone_s: float
    measure: Measure

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> Floats:
        return self.rows[:, _FIELDS.index(name)]

    @property
    def seconds(self) -> Floats:
        """Seconds of each phase, (steps, phases) in the order of PHASES."""
        return self.rows[:, len(_FIELDS) :]


@dataclass(frozen=True)
class Epoch:
    """One epoch line of metrics.jsonl; NaN where a number is missing or not finite. `train`, `val`: figures by name."""

    epoch: int
    step: int
    train_loss: float
    val_loss: float
    train: dict[str, float]
    val: dict[str, float]
    images_per_s: float
    data_wait_share: float
    evaluation_s: float
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Event:
    """One line of events.jsonl. `step`: the step it names, else the last one done when it happened."""

    time: float
    kind: str
    attempt: int
    message: str
    step: int
    fields: dict[str, Any]


@dataclass(frozen=True)
class Tuned:
    """One pass of the convolutions of one shape, as measured: what was chosen, its time and the vendor's in seconds."""

    layers: tuple[str, ...]
    shape: str
    which: str
    algorithm: str
    seconds: float
    vendor_s: float

    @property
    def by_vendor(self) -> bool:
        return self.algorithm.startswith("vendor")

    @property
    def ratio(self) -> float:
        """How many times as fast as the vendor's; 1 where the vendor stays, whatever the noise says."""
        return 1.0 if self.by_vendor else self.vendor_s / self.seconds

    @property
    def saved_s(self) -> float:
        """In all layers of the shape."""
        return len(self.layers) * (self.vendor_s - self.seconds)


@dataclass(frozen=True, eq=False)
class Record:
    """All that a report is derived from.

    `tuned`: what `kernels: auto` chose by on the workers' device, the first that was measured if there are several.
    `experiment`: the parsed experiment.yaml, empty if it is missing or no mapping; `strategy`: its section, None if it
        cannot be read.
    `result`: empty until a run has ended.
    `notes`: what could not be read, one sentence each.
    """

    folder: Path
    experiment_text: str
    experiment: dict[str, Any]
    strategy: StrategyConfig | None
    steps: Steps
    epochs: tuple[Epoch, ...]
    events: tuple[Event, ...]
    result: dict[str, Any]
    tuned: tuple[Tuned, ...]
    notes: tuple[str, ...]

    @property
    def measures(self) -> tuple[Measure, ...]:
        """By what the run is judged, in the order of tables; the first is the one that decides which commit is best."""
        names = {name for epoch in self.epochs for name in epoch.val}
        told = {str(name).removeprefix("val_") for name in self.result}
        found = tuple(measure for name, measure in MEASURES.items() if name in names | told)
        return found or (self.steps.measure,)

    @property
    def workers(self) -> int | None:
        """How many there were last; None if nothing says it."""
        starts = (event.fields.get("workers") for event in reversed(self.events) if event.kind == "start")
        told = self.result.get("workers") or next(starts, None)
        return told if isinstance(told, int) else None

    @property
    def is_served(self) -> bool:
        """Whether a parameter server led the run."""
        return isinstance(self.strategy, ServedConfig)

    @property
    def started(self) -> float:
        """When the run first gave a sign of life, Unix seconds; NaN if it has not."""
        return min(self._times(), default=math.nan)

    @property
    def last_sign(self) -> float:
        """When the run last gave a sign of life, Unix seconds; NaN if it has not."""
        return max(self._times(), default=math.nan)

    def _times(self) -> list[float]:
        times = [event.time for event in self.events]
        if len(self.steps):
            times += [float(np.min(self.steps.column("time"))), float(np.max(self.steps.column("time")))]
        return [time for time in times if math.isfinite(time)]


def read_record(folder: Path) -> Record:
    """Read experiment.yaml, metrics.jsonl, events.jsonl, result.json and kernels.json; each may be missing.

    Raises: InputError if `folder` is no folder.
    """
    if not folder.is_dir():
        raise InputError(f"report: got {str(folder)!r}, must be the folder of a run. Try one of the folders in runs/.")
    notes: list[str] = []
    text, experiment = _read_experiment(folder / "experiment.yaml", notes)
    rows, measure, epochs = _read_metrics(folder / "metrics.jsonl", notes)
    events = _read_events(folder / "events.jsonl", rows, notes)
    return Record(
        folder=folder,
        experiment_text=text,
        experiment=experiment,
        strategy=read_strategy(experiment),
        steps=_last_attempts(rows, measure),
        epochs=epochs,
        events=events,
        result=_read_result(folder / "result.json", events, notes),
        tuned=_read_tuned(folder / "kernels.json", events, notes),
        notes=tuple(notes),
    )


def number(value: object) -> float:
    """A JSON number as float; NaN for null, for what is no number, and for what is as good as infinite."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30:
        return float(value)
    return math.nan


def _read_experiment(path: Path, notes: list[str]) -> tuple[str, dict[str, Any]]:
    if not path.exists():
        return "", {}
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        experiment = yaml.safe_load(text)
    except yaml.YAMLError:
        experiment = None
    if isinstance(experiment, dict):
        return text, experiment
    notes.append("experiment.yaml is not a YAML mapping; it is shown as it is.")
    return text, {}


def _read_metrics(path: Path, notes: list[str]) -> tuple[Floats, Measure, tuple[Epoch, ...]]:
    """All step rows in the order of the file, every attempt; by what they judge; and the last line of each epoch."""
    flat = array("d")  # 17 floats a step: a million steps stay below 150 MB
    epochs: dict[int, Epoch] = {}
    measure: Measure | None = None
    for line in _json_lines(path, notes):
        if line.get("kind") == "step" and math.isfinite(number(line.get("step"))):
            measure = measure or next((MEASURES[name] for name in MEASURES if name in line), None)
            judged = line | {"figure": line.get(measure.name)} if measure else line
            flat.extend(number(judged.get(name)) for name in _FIELDS)
            flat.extend(_phase_seconds(line))
        elif line.get("kind") == "epoch" and isinstance(line.get("epoch"), int):
            epochs[line["epoch"]] = _epoch(line)
    rows = np.array(flat, np.float64).reshape(-1, len(_FIELDS) + len(PHASES))
    return rows, measure or MEASURES["accuracy"], tuple(epochs[key] for key in sorted(epochs))


def _phase_seconds(line: dict[str, Any]) -> list[float]:
    seconds = line.get("seconds")
    return [number(seconds.get(phase)) if isinstance(seconds, dict) else math.nan for phase in PHASES]


def _epoch(line: dict[str, Any]) -> Epoch:
    step = number(line.get("step"))
    names = ("train_loss", "val_loss", "images_per_s", "data_wait_share", "evaluation_s")
    train, val = (
        {name: number(line[prefix + name]) for name in MEASURES if prefix + name in line}
        for prefix in ("train_", "val_")
    )
    return Epoch(
        epoch=line["epoch"],
        step=int(step) if math.isfinite(step) else 0,
        train=train,
        val=val,
        seconds=tuple(_phase_seconds(line)),
        **{name: number(line.get(name)) for name in names},
    )


def _last_attempts(rows: Floats, measure: Measure) -> Steps:
    """The last line of each step, sorted by step."""
    _, newest = np.unique(rows[::-1, _STEP], return_index=True)
    kept = len(rows) - 1 - newest
    redone = np.delete(rows[:, _STEP_S], kept)
    return Steps(rows=rows[kept], num_redone=len(redone), redone_s=float(np.nansum(redone)), measure=measure)


def _read_events(path: Path, rows: Floats, notes: list[str]) -> tuple[Event, ...]:
    times = np.maximum.accumulate(np.nan_to_num(rows[:, _TIME]))
    events, reached = [], 0.0
    for line in _json_lines(path, notes):
        step = number(line.get("step"))
        if not math.isfinite(step):
            done = int(np.searchsorted(times, number(line.get("time")), side="right"))
            # The workers of a server deliver out of turn: the newest line may be of an older step.
            step = max(reached, rows[done - 1, _STEP] if done else 0.0)
        reached = step
        attempt = number(line.get("attempt"))
        events.append(
            Event(
                time=number(line.get("time")),
                kind=str(line.get("event", "?")),
                attempt=int(attempt) if math.isfinite(attempt) else 1,
                message=str(line.get("message", "")),
                step=int(step),
                fields={key: line[key] for key in line if key not in ("time", "event", "attempt", "message")},
            )
        )
    return tuple(events)


def _read_result(path: Path, events: tuple[Event, ...], notes: list[str]) -> dict[str, Any]:
    """The outcome; empty if there is none yet, or if the run started again after it was written."""
    if not path.exists():
        return {}
    try:
        result = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError:
        result = None
    if not isinstance(result, dict):
        notes.append("result.json is cut off and was left out.")
        return {}
    kinds = [event.kind for event in events]
    if "finish" in kinds and "start" in kinds[len(kinds) - kinds[::-1].index("finish") :]:
        notes.append("result.json is older than the last start of the run and was left out.")
        return {}
    return result


def _read_tuned(path: Path, events: tuple[Event, ...], notes: list[str]) -> tuple[Tuned, ...]:
    if not path.exists():
        return ()
    devices = [str(event.fields.get("device")) for event in events if event.kind == "kernels"]
    try:
        layers = json.loads(path.read_text(encoding="utf-8", errors="replace"))["layers"]
        found: list[dict[str, Any]] = next((layers[device] for device in devices if layers.get(device)), [])
        return tuple(
            Tuned(
                layers=tuple(map(str, each["layers"])),
                shape=str(each["shape"]),
                which=str(each["pass"]),
                algorithm=str(each["algorithm"]),
                seconds=float(each["seconds"]),
                vendor_s=float(each["vendor_s"]),
            )
            for each in found
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        notes.append("kernels.json is cut off and was left out.")
        return ()


def _json_lines(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl file; what is cut off or no object is counted in `notes`."""
    if not path.exists():
        return
    num_torn = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if isinstance(line, dict):
                yield line
            elif text.strip():
                num_torn += 1
    if num_torn:
        lines = "1 line is" if num_torn == 1 else f"{num_torn} lines are"
        notes.append(f"{path.name}: {lines} cut off and left out.")
