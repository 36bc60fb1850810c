"""What a server has, and how it is saved and had again: weights, coordinator, batch statistics, rows of the trace."""

import time
import uuid
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.parameter_server.coordinator import Coordinator
from orchestrator.parameter_server.keeper import Keeper
from orchestrator.parameter_server.messages import Floats, State
from orchestrator.parameter_server.optimizer import build
from orchestrator.parameter_server.setup import Ears, ServerSetup
from orchestrator.parameter_server.shard import Shard, Update
from orchestrator.parameter_server.transport import Line

_REMEMBERED = 4096  # updates, for shards that do not know of them yet


class Kept:
    """Every method is called under the server's lock."""

    def __init__(self, setup: ServerSetup, ears: Ears) -> None:
        self._setup, self._ears = setup, ears
        self.incarnation = uuid.uuid4().hex[:12]
        self._coordinator = self._new_coordinator()
        self._shard: Shard | None = None
        self._num_decayed = 0
        self._lines: dict[int, Line] = {}
        self._buffers: dict[int, Floats] = {}
        self._first_buffers: Floats | None = None
        self._rows: dict[str, list[Any]] = {}
        self._updates: deque[Update] = deque(maxlen=_REMEMBERED)
        self._keeper = Keeper(Path(setup.folder), 0, setup.num_shards)
        self._saved = self._began_at = self._lost = 0
        self._told_failed = False

    def _new_coordinator(self) -> Coordinator:
        """With sessions that no other one has given."""
        return Coordinator(self._setup.rule, self._setup.course, first_session=time.time_ns())

    def _go_back(self) -> None:
        """Forget all, and go on from the newest snapshot that all shards have, if there is one."""
        reached, stops = self._coordinator.version, self._coordinator.stop_wanted
        lost_before = self._coordinator.ledger.updates_lost
        self._shard, self._lines, self._rows, self._lost, self._began_at = None, {}, {}, 0, 0
        self._coordinator = self._new_coordinator()
        self._coordinator.stop_wanted = stops
        self._updates.clear()
        self._restore()
        self._coordinator.ledger.updates_lost = lost_before
        self._note_lost(reached - self._began_at)

    def _begin(self, state: State, num_decayed: int) -> None:
        setup = self._setup
        self._num_decayed = num_decayed
        self._shard = Shard(
            state.weights,
            build(setup.optimizer, state.weights.size, num_decayed),
            count=setup.num_shards,
            clip_grad_norm=setup.clip_grad_norm,
            ema_decay=setup.ema_decay,
            compensate=setup.compensate,
        )
        self._first_buffers = state.buffers
        if state.optimizer:
            current = self._shard.state()
            self._shard.load(
                {
                    "version": 0,
                    "weights": state.weights,
                    "optimizer": state.optimizer,
                    "average": current["average"] if state.average is None else state.average,
                }
            )

    def _mean_buffers(self) -> Floats | None:
        if not self._buffers:
            return self._first_buffers
        return np.mean([self._buffers[rank] for rank in sorted(self._buffers)], axis=0, dtype=np.float32)

    def _save(self) -> None:
        assert self._shard is not None
        self._saved = self._coordinator.version
        buffers = self._mean_buffers()
        extra = {
            "coordinator": self._coordinator.state(),
            "num_decayed": self._num_decayed,
            "buffers": None if buffers is None else buffers.tolist(),
            "rows": {name: [*values] for name, values in self._rows.items()},
        }
        self._keeper.save(self._shard, extra)
        if self._keeper.failed and not self._told_failed:
            why = f"a snapshot of the parameter server could not be written: {self._keeper.failed}"
            self._ears.event("snapshot_failed", f"{why}. If it is killed, training begins at an older one.")
        self._told_failed = bool(self._keeper.failed)

    def _restore(self) -> None:
        snapshot = self._keeper.newest()
        if snapshot is None:
            return
        extra, state = snapshot.extra, snapshot.state
        buffers = None if extra["buffers"] is None else np.array(extra["buffers"], np.float32)
        self._begin(State(state["weights"], {}, None, buffers, {}), extra["num_decayed"])
        assert self._shard is not None
        self._shard.load(state)
        self._coordinator.load(extra["coordinator"])
        self._rows = extra["rows"]
        self._saved = self._began_at = self._coordinator.version
        self._ears.event(
            "server",
            f"the parameter server began anew from its snapshot of version {self._saved}",
            version=self._saved,
            incarnation=self.incarnation,
        )

    def _note_lost(self, lost: int) -> None:
        """A worker knows so many updates more than the snapshot that this server began with."""
        if lost > self._lost:
            self._coordinator.ledger.updates_lost += lost - self._lost
            self._lost = lost
            self._ears.event(
                "updates_lost",
                f"{lost} updates were lost; their samples are given out again",
                updates=lost,
                version=self._began_at,
            )
            if self._shard is not None and self._coordinator.version == self._began_at:
                self._save()  # so that it is not forgotten
