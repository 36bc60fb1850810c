"""Where every second of a step goes.

A clock is read at the end of each phase; what lies between two readings belongs to the phase that ended. So the
phases of a step add up to its whole time, by construction. On a GPU the readings are events on the
device's stream, resolved a step later: nothing waits, and a phase is what the device did or waited for.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from orchestrator.training.phases import PHASES

Seconds = dict[str, float]


def no_seconds() -> Seconds:
    return dict.fromkeys(PHASES, 0.0)


@dataclass
class _Step:
    start: Any
    readings: list[tuple[str, Any]] = field(default_factory=list)
    emit: Callable[[Seconds], None] | None = None


class StepClock:
    """Splits the time of steps into phases and hands each step's seconds to a callback.

    `read` takes a reading of the time, `between` gives the seconds between two readings, or None while the
    device has not come to the second.
    """

    def __init__(self, read: Callable[[], Any], between: Callable[[Any, Any], float | None]) -> None:
        self._read = read
        self._between = between
        self._pending: deque[_Step] = deque()
        self._step = _Step(read())

    def lap(self, phase: str) -> None:
        """Say that what was done since the last lap was `phase`."""
        self._step.readings.append((phase, self._read()))

    def end_step(self, emit: Callable[[Seconds], None]) -> None:
        """Close the step: what was not lapped is `other`; `emit` gets its seconds once they are known."""
        self.lap("other")
        self._step.emit = emit
        self._pending.append(self._step)
        self._step = _Step(self._step.readings[-1][1])
        while self._pending and (seconds := self._resolve(self._pending[0])) is not None:
            finished = self._pending.popleft()
            assert finished.emit is not None
            finished.emit(seconds)

    def pause(self) -> None:
        """Forget the time since the last step ended (evaluation has an account of its own)."""
        self._step = _Step(self._read())

    def flush(self) -> None:
        """Hand out what is still pending; on a GPU this waits for it."""
        if self._pending:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            while self._pending:
                step = self._pending.popleft()
                seconds = self._resolve(step)
                assert seconds is not None
                assert step.emit is not None
                step.emit(seconds)

    def _resolve(self, step: _Step) -> Seconds | None:
        seconds = no_seconds()
        last = step.start
        for phase, reading in step.readings:
            elapsed = self._between(last, reading)
            if elapsed is None:
                return None
            seconds[phase] += elapsed
            last = reading
        return seconds


def step_clock(device: torch.device) -> StepClock:
    """The clock for a device: the host's for the CPU, events on the stream for CUDA."""
    if device.type == "cuda":
        return StepClock(_record_event, _between_events)
    return StepClock(time.perf_counter, lambda start, end: end - start)


def _record_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between_events(start: torch.cuda.Event, end: torch.cuda.Event) -> float | None:
    return start.elapsed_time(end) / 1000.0 if end.query() else None  # type: ignore[no-untyped-call]


def data_wait_share(seconds: Seconds) -> float:
    """The share of all time in steps that was spent waiting for data, in [0, 1]."""
    total = sum(seconds.values())
    return seconds["data_wait"] / total if total > 0 else 0.0
