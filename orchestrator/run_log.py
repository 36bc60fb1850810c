"""The one writer of a run's records: a plain class, an actor when the workers are elsewhere.

Workers send what happened; the driver asks for `view()` to draw its table. In the other direction travels one
thing: whether the run should stop, as the answer to every delivery of records.
"""

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator.run_folder import RunFolder

RECENT_STEPS = 50
KEPT_EVENTS = 20


@dataclass(frozen=True)
class WorkerPlace:
    """Where a worker runs, for the message when it fails. `log` is the file of its standard error."""

    rank: int
    node: str
    pid: int
    log: str


@dataclass(frozen=True)
class View:
    """What the live table shows: the newest step and epoch, the speed of the recent steps, events since start.

    `peak_bytes`: the highest peak of memory of any worker; 0 before one has ended.
    """

    attempt: int
    workers: int
    step: dict[str, Any] | None
    epoch: dict[str, Any] | None
    images_per_s: float
    data_wait_share: float
    restarts: int
    stopping: bool
    events: tuple[dict[str, Any], ...]
    num_events: int
    quarantined: int
    peak_bytes: int = 0


class RunLog:
    """Writes metrics.jsonl, events.jsonl and the trace of one run folder."""

    def __init__(self, folder: RunFolder, budget: dict[str, int]) -> None:
        self._folder = folder
        self._budget = budget
        earlier = self._folder.read_lines("events.jsonl")
        self._attempt = max((event.get("attempt", 0) for event in earlier), default=0)
        self._workers = 0
        self._restarts = 0
        self._failures: list[dict[str, Any]] = []
        self._unanswered: list[dict[str, Any]] = []
        self._controllers: list[Any] = []
        self._places: dict[int, WorkerPlace] = {}
        self._stop_signal: str | None = None
        self._step: dict[str, Any] | None = None
        self._epoch: dict[str, Any] | None = None
        self._first_step: int | None = None
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT_STEPS)
        self._events: deque[dict[str, Any]] = deque(maxlen=KEPT_EVENTS)
        self._num_events = 0
        self._peak_bytes = 0
        self._said: set[str] = set()
        self._fired = {event["key"] for event in earlier if event["event"] == "fault"}
        self._quarantined = {_address(line): line for line in self._folder.read_lines("quarantine.jsonl")}

    def begin(self, epoch: int, step: int, workers: int) -> int:
        """Note that training begins or goes on here; returns the number of the attempt, from 1."""
        before, self._workers = self._workers, workers
        self._attempt += 1
        self._first_step = None
        self._recent.clear()
        if self._unanswered:
            cause = self._unanswered[-1]["cause"]
            self._unanswered.clear()
            self._note_restart(cause, f"restart {self._num_failures(cause)} after a failure of {cause}")
        if before and before != workers:
            self.event("resize", f"{before} workers became {workers}", workers_before=before, workers=workers)
        self._drop_trace(step)
        where = f"epoch {epoch}, step {step}"
        on = "1 worker" if workers == 1 else f"{workers} workers"
        self.event("start", f"training on {on} from {where}", epoch=epoch, step=step, workers=workers)
        return self._attempt

    def rejoin(self, rank: int) -> None:
        """Note that a worker has joined others that go on: one that was lost is back, if it was."""
        answered = [failure for failure in self._unanswered if rank in failure["ranks"]]
        if answered:
            self._unanswered = [failure for failure in self._unanswered if failure not in answered]
            self._note_restart(answered[-1]["cause"], f"rank {rank} is back; the others went on", rank=rank)

    def _note_restart(self, cause: str, message: str, **fields: Any) -> None:
        self._restarts += 1
        count, budget = self._num_failures(cause), self._budget.get(cause)
        self.event("restart", message, cause=cause, count=count, budget=budget, **fields)

    def _num_failures(self, cause: str) -> int:
        return sum(failure["cause"] == cause for failure in self._failures)

    def place(self, worker: WorkerPlace) -> None:
        """Note where a worker runs, in place of what was noted for its rank before."""
        self._places[worker.rank] = worker

    def peak(self, num_bytes: int) -> None:
        """Note the peak of memory that a worker has measured."""
        self._peak_bytes = max(self._peak_bytes, num_bytes)

    def add(self, items: list[tuple[str, dict[str, Any]]]) -> bool:
        """Write records and events down, in order; returns whether the run should stop."""
        metrics = []
        for kind, item in items:
            if kind == "event":
                self.event(**item)
            else:
                metrics.append({"attempt": self._attempt} | item)
                self._note(item)
        if metrics:
            self._folder.append("metrics.jsonl", metrics)
        return self._stop_signal is not None

    def event(self, name: str, message: str, **fields: Any) -> None:
        """Write an event down."""
        event = {"time": time.time(), "event": name, "attempt": self._attempt, "message": message} | fields
        self._folder.append("events.jsonl", [event])
        self._events.append(event)
        self._num_events += 1
        if name == "commit":
            self._drop_trace(fields["step"])  # a server that was killed may have been further
            self._folder.upload()
            self._folder.refresh_lock()

    def event_once(self, name: str, message: str, fields: dict[str, Any]) -> None:
        """Write an event down unless another worker, or an earlier attempt, has said the same."""
        if message not in self._said:
            self._said.add(message)
            self.event(name, message, **fields)

    def fire(self, key: str, message: str, fields: dict[str, Any]) -> bool:
        """Write down that a fault happens, unless it has in this run; returns whether it is to happen."""
        if key in self._fired:
            return False
        self._fired.add(key)
        self.event("fault", message, key=key, **fields)
        return True

    def failure(self, cause: str, error: str, ranks: list[int]) -> None:
        """Note that the run failed; whether it goes on shows at the next `begin`."""
        places = [self._places[rank] for rank in ranks if rank in self._places]
        failure = {"cause": cause, "ranks": ranks, "nodes": sorted({p.node for p in places}), "error": error}
        self._failures.append(failure | {"places": places})
        self._unanswered.append(failure)
        who = f"rank {', '.join(map(str, ranks))}" if ranks else "the run"
        lines = error.strip().splitlines()
        self.event("failure", f"{who} failed: {lines[-1] if lines else 'no message'}", **failure)

    def note_controller(self, controller: Any) -> None:
        """Note an actor that leads a worker group, for who started it to end it."""
        self._controllers.append(controller)

    def controllers(self) -> list[Any]:
        return self._controllers

    def failures(self) -> list[dict[str, Any]]:
        """All failures since the run log began, each with the places of the workers that failed."""
        return self._failures

    def request_stop(self, signal: str) -> None:
        """Ask the workers to commit and end at the next step boundary."""
        if self._stop_signal is None:
            self._stop_signal = signal
            step = self._step["step"] if self._step else 0
            self.event("stop", f"{signal}: committing at the next step boundary", signal=signal, step=step)

    def quarantine(self, replaced: list[dict[str, Any]]) -> None:
        """Write down samples that could not be read; what is met again after a restart counts once."""
        for each in replaced:
            if _address(each) not in self._quarantined:
                self._quarantined[_address(each)] = each
                self._folder.append("quarantine.jsonl", [each])

    def quarantined(self) -> list[str]:
        """The samples that could not be read, each once, and why."""
        return list(dict.fromkeys(f"{each['sample_id']}: {each['reason']}" for each in self._quarantined.values()))

    def view(self) -> View:
        """What there is to show now."""
        # The first record of an attempt waits for the pipeline to start: it says nothing about the speed from then on.
        recent = [record for record in self._recent if record["step"] != self._first_step] or list(self._recent)
        seconds = sum(record["step_s"] for record in recent)
        waited = sum(record["seconds"]["data_wait"] for record in recent)
        samples = sum(record["samples"] for record in recent)
        return View(
            attempt=self._attempt,
            workers=self._workers,
            step=self._step,
            epoch=self._epoch,
            images_per_s=samples / seconds if seconds else 0.0,
            data_wait_share=waited / seconds if seconds else 0.0,
            restarts=self._restarts,
            stopping=self._stop_signal is not None,
            events=tuple(self._events),
            num_events=self._num_events,
            quarantined=len(self._quarantined),
            peak_bytes=self._peak_bytes,
        )

    def trace(self, rank: int, until_step: int, rows: dict[str, Any]) -> None:
        """Keep one rank's rows of the steps up to `until_step`, which is about to be committed."""
        folder = self._folder.local / "trace"
        folder.mkdir(exist_ok=True)
        path = folder / f"until-{until_step:08d}-rank-{rank}.parquet"
        pq.write_table(pa.table(rows), path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def _drop_trace(self, step: int) -> None:
        """Forget the trace of steps that will be done again."""
        for path in (self._folder.local / "trace").glob("until-*"):
            if int(path.name.split("-")[1]) > step or path.suffix == ".tmp":
                path.unlink()

    def finish_trace(self) -> None:
        """Join the parts into trace.parquet, in the order of (epoch, position)."""
        parts = sorted((self._folder.local / "trace").glob("until-*.parquet"))
        if parts:
            table = pa.concat_tables(pq.read_table(path) for path in parts)
            table = table.take(pc.sort_indices(table, [("epoch", "ascending"), ("position", "ascending")]))
            pq.write_table(table, self._folder.local / "trace.parquet")

    def _note(self, record: dict[str, Any]) -> None:
        if record["kind"] == "step":
            self._step = record
            self._first_step = record["step"] if self._first_step is None else self._first_step
            self._recent.append(record)
        else:
            self._epoch = record


def _address(replaced: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(replaced[name] for name in ("split", "epoch", "position", "sample_id"))
