"""A parameter server: the coordinator and the weights behind one lock. What workers call; an actor when launched.

    join -> (offer, if asked) -> next -> push -> push ... -> evaluate_next ... evaluated -> state, books, committed

A call that has nothing to answer yet waits, for `patience_s` at most, while others go on in their threads. One that
is killed and started again has a new incarnation and knows no session: who calls is refused, joins again, and learns
from which version on training goes on. What had been done since then is handed out again.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.parameter_server.kept import Kept
from orchestrator.parameter_server.messages import (
    End,
    Push,
    Refused,
    Reply,
    State,
    Turn,
    Wait,
    Welcome,
    Window,
)
from orchestrator.parameter_server.rules import Contribution
from orchestrator.parameter_server.setup import Ears, ServerSetup
from orchestrator.parameter_server.shard import Update
from orchestrator.parameter_server.transport import Line, Offer, line_of

_REMEMBERED = 4096  # updates, for shards that do not know of them yet
TICK_S = 0.5  # between two looks for workers of which nothing is heard, where one waits


class ParameterServer(Kept):
    """See above. `line_of`: makes the server's end of what a worker offers to travel by."""

    def __init__(
        self,
        setup: ServerSetup,
        ears: Ears,
        line_of: Callable[[Offer], Line] = line_of,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(setup, ears)
        self._line_of, self._clock = line_of, clock
        self._changed = threading.Condition()
        self._offering: int | None = None
        self._era = time.time_ns()
        self._restore()

    def join(self, rank: int, offer: Offer, seen: tuple[str, int] | None) -> Welcome:
        """A worker is here. `seen`: the incarnation that it knew before, and the newest version of it."""
        with self._changed:
            if seen is not None and seen[0] != self.incarnation:
                self._note_lost(seen[1] - self._began_at)
            session = self._coordinator.join(rank, self._clock())
            self._forget_strangers()
            self._lines[session] = self._line_of(offer)
            wants_state = self._needs_state
            if wants_state:
                self._offering = session
            self._changed.notify_all()
            shared, version, at = self._lines[session].shared, self._coordinator.version, self._began_at
            return Welcome(session, self.incarnation, version, wants_state, shared, self._era, at)

    def offer(self, session: int, state: State, num_decayed: int) -> bool:
        """The state that training begins with, or goes on from; the first `num_decayed` weights decay."""
        with self._changed:
            if session not in self._coordinator.members or self._shard is not None:
                return False
            self._begin(state, num_decayed)
            position = state.progress["position"]
            done = position["step"] * self._setup.rule.shares_a_step
            self._coordinator.begin_at(position["epoch"], done, state.progress)
            self._save()
            self._changed.notify_all()
            return True

    def left(self, rank: int, reason: str) -> None:
        """A worker is gone."""
        with self._changed:
            shares = self._coordinator.leave(rank)
            self._forget_strangers()
            what = f"{len(shares)} of its shares are given to others" if shares else "it held nothing"
            self._ears.event("left", f"rank {rank} is gone: {what}", rank=rank, shares=shares, reason=reason)
            self._changed.notify_all()

    def lose_shard(self, era: int) -> None:
        """A shard was killed in this era: all go back to the newest snapshot that all have, and a new era begins."""
        with self._changed:
            if era != self._era or self._coordinator.end is not None:
                return
            if self._coordinator.version == self._began_at and self._keeper.common() == self._began_at:
                return  # nothing was trained in it: the shard only has to come back
            self._era = time.time_ns()
            self._go_back()
            self._changed.notify_all()

    def next(self, session: int, have_version: int, known: int = 0) -> Reply | Refused:
        """What to do next; with the weights, if they are others than those of `have_version`."""
        with self._changed:
            if session not in self._coordinator.members or self._needs_state:
                return Refused("session")
            held = self._coordinator.queue.held_by(session)
            turn = self._turn(session) if held else self._wait_for_turn(session)
            return self._reply(session, turn, None, have_version, known)

    def push(self, session: int, push: Push) -> Reply | Refused:
        """A gradient; the answer has the newest weights, and what to do next beside what the worker has in store."""
        with self._changed:
            member = self._coordinator.members.get(session)
            if member is None or self._shard is None:
                return Refused("session")
            self._coordinator.hear(session, self._clock())
            member.pushes += 1
            self._take(session, member.pushes, push)
            window = self._coordinator.window(self._clock())
            self._changed.notify_all()
            held = self._coordinator.queue.held_by(session)
            turn = self._turn(session) if held else self._wait_for_turn(session)
            return self._reply(session, turn, window, -1, push.known)

    def want_stop(self) -> None:
        """Commit at the next step boundary and end."""
        with self._changed:
            self._coordinator.want_stop()
            self._changed.notify_all()

    def fail(self, error: str) -> None:
        """A worker has met what would only repeat itself: all end."""
        with self._changed:
            self._coordinator.finish(End("failed", error))
            self._changed.notify_all()

    def _take(self, session: int, number: int, push: Push) -> None:
        assert self._shard is not None
        coordinator, share, line = self._coordinator, push.share, self._lines[session]
        contribution = Contribution(session, number, share.number, push.base, push.samples, push.lr)
        key = contribution.key
        self._shard.park(key, None if push.gradient is None else line.read(push.gradient), base=push.base)
        if push.totals[2]:
            coordinator.want_stop()
        accepted, updates = coordinator.contribute(contribution, share.epoch, push.totals, push.seconds)
        if not accepted:
            self._shard.discard(key)
            return
        saves = coordinator.version // self._setup.snapshot_every > self._saved // self._setup.snapshot_every
        if updates and saves:
            updates[-1] = replace(updates[-1], snapshot=True)
        self._shard.advance(updates)
        self._updates.extend(updates)
        if key in self._shard.parked and line.shared:
            self._shard.keep(key)
        rank = coordinator.members[session].rank
        if push.buffers is not None:
            self._buffers[rank] = push.buffers
        for name, values in (push.rows or {}).items():
            self._rows.setdefault(name, []).extend(values)
        if updates and saves:
            self._save()
        if updates:
            self._ears.step_taken(coordinator.position()[2])

    def _reply(self, session: int, turn: Turn, window: Window | None, have_version: int, known: int) -> Reply:
        version = self._coordinator.version
        weights = None
        if self._shard is not None and version != have_version and session in self._lines:
            weights = self._lines[session].write(self._shard.pulled(session))
        return Reply(version, weights, turn, window, self._after(known), self._coordinator.position()[2])

    def _after(self, known: int) -> tuple[Update, ...]:
        """The updates that other shards may not have."""
        if self._setup.num_shards == 1:
            return ()
        return tuple(update for update in self._updates if update.version > known)

    def _turn(self, session: int) -> Turn:
        if session not in self._coordinator.members or (self._shard is None and self._coordinator.end is None):
            return Wait()
        self._coordinator.hear(session, self._clock())
        before = self._coordinator.phase
        turn = self._coordinator.turn(session, self._clock())
        if self._coordinator.phase != before:
            self._changed.notify_all()
        return turn

    def _wait_for_turn(self, session: int) -> Turn:
        deadline = self._clock() + self._setup.patience_s
        while True:
            turn = self._turn(session)
            now = self._clock()
            if not isinstance(turn, Wait) or now >= deadline or session not in self._coordinator.members:
                return turn
            self._changed.wait(min(TICK_S, deadline - now))
            self._look_for_silence()

    def _look_for_silence(self) -> None:
        for rank in self._coordinator.overdue(self._clock()):
            hang_s = self._setup.course.hang_s
            self._ears.event(
                "hang", f"nothing was heard of rank {rank} for {hang_s:g} s: its shares are given to others", rank=rank
            )
            self._changed.notify_all()

    def evaluate_next(self, session: int, number: int) -> int | Refused | None:
        """The next share of the held-out samples; None if all are given out."""
        with self._changed:
            try:
                self._coordinator.hear(session, self._clock())
                return self._coordinator.evaluate_next(session, number, self._clock())
            except KeyError:
                return Refused("round")

    def evaluated(self, session: int, number: int, values: NDArray[np.float64] | None) -> Any:
        """What a worker found on all that it took, None if it has said so; returns the sums, None if not all have."""
        with self._changed:
            deadline = self._clock() + self._setup.patience_s
            try:
                if values is not None:
                    self._coordinator.evaluated(session, number, values)
                    self._changed.notify_all()
                while True:
                    self._coordinator.hear(session, self._clock())
                    sums = self._coordinator.evaluation(session, number)
                    now = self._clock()
                    if sums is None and self._coordinator.end is not None:
                        return Refused("round")  # who failed will not say what it found
                    if sums is not None or now >= deadline:
                        return sums
                    self._changed.wait(min(TICK_S, deadline - now))
                    self._look_for_silence()
            except KeyError:
                return Refused("round")

    def state(self, session: int, *, whole: bool, known: int = 0) -> State | Refused:
        """Copies of all that is trained, of one version; without `whole`, the optimizer's is left out."""
        with self._changed:
            if session not in self._coordinator.members or self._shard is None:
                return Refused("session")
            state = self._shard.state()
            optimizer = {
                name: value.copy() if isinstance(value, np.ndarray) else value
                for name, value in (state["optimizer"] if whole else {}).items()
            }
            average = None if self._shard.average is None else self._shard.average.copy()
            weights, buffers = self._shard.weights.copy(), self._mean_buffers()
            return State(weights, optimizer, average, buffers, {}, self._shard.version, self._after(known))

    def books(self, session: int) -> dict[str, Any] | None:
        """For who leads a commit, what was trained since the last one; None for others."""
        with self._changed:
            coordinator = self._coordinator
            if coordinator.leader != session:
                return None
            epoch, step, steps = coordinator.position()
            if self._rows:
                self._ears.trace(steps, self._rows)
                self._rows = {}
            return coordinator.ledger.to_json() | {"epoch": epoch, "step": step, "steps": steps}

    def committed(self, session: int, progress: dict[str, Any]) -> bool:
        """The commit of who leads is whole."""
        with self._changed:
            try:
                self._coordinator.committed(session, progress)
            except KeyError:
                return False
            if self._setup.num_shards == 1:  # others save when an update says so
                self._save()
            self._changed.notify_all()
            return True

    @property
    def _needs_state(self) -> bool:
        return self._shard is None and self._offering not in self._coordinator.members

    def _forget_strangers(self) -> None:
        for session in [session for session in self._lines if session not in self._coordinator.members]:
            del self._lines[session]
            if self._shard is not None:
                self._shard.forget(session)
