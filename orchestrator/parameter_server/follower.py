"""A further shard of the weights: it decides nothing, and makes the versions that the server has decided on.

A worker first parks its part of a gradient here, then tells the server, which decides; the answer lists the updates,
and with them the worker asks here for the weights. So every shard makes every version from the same gradients, whoever
tells it of them first, and a version is the same on all.

An `era` begins when the server does, and when a shard is lost: all go back to the newest version of which every shard
has a snapshot. A call from another era is refused.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import CheckpointError
from orchestrator.parameter_server.keeper import Keeper
from orchestrator.parameter_server.messages import Floats, Refused
from orchestrator.parameter_server.optimizer import build
from orchestrator.parameter_server.setup import Ears, ServerSetup
from orchestrator.parameter_server.shard import MissingUpdate, Shard, Update
from orchestrator.parameter_server.transport import Line, Offer, line_of


@dataclass(frozen=True)
class ShardState:
    """A part of what is trained, of `version`."""

    version: int
    weights: Floats
    optimizer: dict[str, Any]
    average: Floats | None


class Follower:
    """Shard `index` of `setup.num_shards`, from 1 on; 0 is the server's own."""

    def __init__(self, setup: ServerSetup, index: int, ears: Ears, line_of: Callable[[Offer], Line] = line_of) -> None:
        self._setup, self._index, self._ears, self._line_of = setup, index, ears, line_of
        self._lock = threading.Lock()
        self._keeper = Keeper(Path(setup.folder), index, setup.num_shards)
        self._shard: Shard | None = None
        self._era = -1
        self._lines: dict[int, Line] = {}

    def begin(self, era: int, state: ShardState, num_decayed: int) -> None:
        """Begin an era with a state; its first `num_decayed` weights decay."""
        with self._lock:
            self._make(state, num_decayed)
            self._era = era
            self._save(num_decayed)

    def join(self, era: int, version: int, session: int, offer: Offer) -> bool | Refused:
        """A worker is here; the era began with `version`. Returns: whether the memory that it offers can be shared."""
        with self._lock:
            if era < self._era:
                return Refused("session")
            if era > self._era:
                try:
                    snapshot = self._keeper.read(version)
                except CheckpointError:
                    return Refused("era")
                state = snapshot.state
                self._make(ShardState(0, state["weights"], {}, None), snapshot.extra["num_decayed"])
                assert self._shard is not None
                self._shard.load(state)
                self._era, self._lines = era, {}
            self._lines[session] = self._line_of(offer)
            return self._lines[session].shared

    def park(self, era: int, key: tuple[int, int], gradient: Any, base: int) -> bool | Refused:
        """Keep a part of a gradient until an update uses or drops it."""
        with self._lock:
            if self._shard is None or era != self._era or key[0] not in self._lines:
                return Refused("era")
            line = self._lines[key[0]]
            self._shard.park(key, None if gradient is None else line.read(gradient), base=base)
            if line.shared:
                self._shard.keep(key)
            return True

    def pull(self, era: int, session: int, updates: Sequence[Update], step: int) -> tuple[int, Any] | Refused:
        """Make the versions up to the last of `updates`; returns the version and its weights."""
        with self._lock:
            if self._shard is None or era != self._era or session not in self._lines:
                return Refused("era")
            if not self._advance(updates):
                return Refused("era")
            answer = self._shard.version, self._lines[session].write(self._shard.pulled(session))
        self._ears.step_taken(step)
        return answer

    def state(self, era: int, updates: Sequence[Update], *, whole: bool) -> ShardState | Refused:
        """Copies of what is trained, after `updates`; without `whole`, the optimizer's state is left out."""
        with self._lock:
            if self._shard is None or era != self._era or not self._advance(updates):
                return Refused("era")
            state = self._shard.copy_for_saving().state
            return ShardState(
                state["version"], state["weights"], dict(state["optimizer"]) if whole else {}, state["average"]
            )

    def _advance(self, updates: Sequence[Update]) -> bool:
        assert self._shard is not None
        try:
            for update in updates:
                new = update.version > self._shard.version
                self._shard.advance([update])
                if new and update.snapshot:
                    self._save(self._num_decayed)
        except MissingUpdate:
            return False
        return True

    def _make(self, state: ShardState, num_decayed: int) -> None:
        setup = self._setup
        self._num_decayed = num_decayed
        self._shard = Shard(
            state.weights,
            build(setup.optimizer, state.weights.size, num_decayed),
            index=self._index,
            count=setup.num_shards,
            ema_decay=setup.ema_decay,
            compensate=setup.compensate,
        )
        if state.optimizer:
            average = self._shard.state()["average"] if state.average is None else state.average
            self._shard.load({"version": 0, "weights": state.weights, "optimizer": state.optimizer, "average": average})

    def _save(self, num_decayed: int) -> None:
        assert self._shard is not None
        self._keeper.save(self._shard, {"num_decayed": num_decayed})
