"""What goes wrong on purpose: workers that wait and processes that are killed, as the section `faults` says.

Who waits when is a function of (seed, step, rank), the same in every run. A kill happens once in a run: the run log
remembers it, so what starts anew in its place, or by --resume, lives.
"""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from orchestrator.config.strategy import FaultsConfig, KillConfig, SlowConfig
from pipelines.randomness import mix

Fire = Callable[[str, str, dict[str, Any]], bool]
"""`RunLog.fire`: a fault's key, its message and its fields; returns once they are written down."""


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _nobody(key: str, message: str, fields: dict[str, Any]) -> bool:
    del key, message, fields
    return False


class Faults:
    """What goes wrong with one worker. As it stands without arguments: nothing."""

    def __init__(
        self,
        config: FaultsConfig | None = None,
        *,
        seed: int = 0,
        rank: int = 0,
        fire: Fire = _nobody,
        sleep: Callable[[float], None] = time.sleep,
        kill: Callable[[], None] = _kill_this_process,
    ) -> None:
        config = config or FaultsConfig()
        self._slow = [(number, slow) for number, slow in enumerate(config.slow) if slow.rank == rank]
        self._kill = [(number, kill) for number, kill in enumerate(config.kill) if kill.rank == rank]
        self._seed, self._rank = seed, rank
        self._fire, self._sleep, self._end = fire, sleep, kill
        self._told: set[str] = set()

    def before_step(self, number: int) -> None:
        """Wait or die, if that is due before this worker's share of step `number`, from 0."""
        for entry, kill in self._kill:
            if number + 1 >= kill.step and self._tell("kill", _key(entry, kill), number, "is killed before"):
                self._end()
        for entry, slow in self._slow:
            if slow.chance >= 1.0 or self._draw(entry, number) < slow.chance:
                self._tell("slow", _key(entry, slow), number, f"waits {slow.extra_ms:g} ms, for the first time in")
                self._sleep(slow.extra_ms / 1000.0)

    def _draw(self, entry: int, number: int) -> float:
        """Uniform in [0, 1)."""
        return (mix("slow", self._seed, number, self._rank, entry) >> 11) / 2.0**53

    def _tell(self, kind: str, key: str, number: int, what: str) -> bool:
        """Have it written down, once; returns whether it is the first time in the run."""
        if key in self._told:
            return False
        self._told.add(key)
        message = f"rank {self._rank} {what} step {number + 1}, as faults says"
        return self._fire(key, message, {"kind": kind, "rank": self._rank, "step": number + 1})


def due_shards(config: FaultsConfig, shard: int, step: int) -> list[str]:
    """The keys of the kills of a parameter server's shard that are due when `step`, from 1, has been taken."""
    kills = enumerate(config.kill)
    return [_key(entry, kill) for entry, kill in kills if kill.shard == shard and step >= kill.step]


def _key(entry: int, fault: SlowConfig | KillConfig) -> str:
    """What a fault is known by: where it stands in its list, and what it says."""
    said = [f"{name} {value}" for name, value in fault.model_dump(exclude_none=True).items()]
    return f"{'slow' if isinstance(fault, SlowConfig) else 'kill'} {entry}: {', '.join(said)}"
