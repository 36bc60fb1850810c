"""Who computes what next, and which gradients make which update: decisions only. It computes nothing and never waits.

    training --- all shares up to the fence are done ---> evaluating (end of an epoch) ---> committing ---> training
                                                     \\--> committing (in mid-epoch) --------------------->
    any ---> ended

An epoch's shares go to whoever is free. A commit, an evaluation or a stop is a fence: nothing beyond it is handed out
until all before it is done, so that what is committed is a whole number of steps, as with `sync`, and may be gone on
from with any strategy. Times are seconds of a clock that the caller reads.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.parameter_server.evaluation import EvaluationRound
from orchestrator.parameter_server.ledger import Course, Ledger, Member
from orchestrator.parameter_server.messages import End, Evaluation, Lead, Share, Turn, Wait, Window
from orchestrator.parameter_server.rules import Contribution, Rule, View
from orchestrator.parameter_server.shard import Part, Update
from orchestrator.parameter_server.work_queue import WorkQueue

TRAINING, EVALUATING, COMMITTING, ENDED = "training", "evaluating", "committing", "ended"


class Coordinator:
    """Of one run. Sessions are numbered from `first_session` on, so that no two incarnations of a server share one."""

    def __init__(self, rule: Rule, course: Course, *, first_session: int = 0) -> None:
        self.rule, self.course = rule, course
        self.phase = TRAINING
        self.version = 0
        self.epoch = 0
        self.queue = WorkQueue(course.num_shares)
        self.members: dict[int, Member] = {}
        self.ledger = Ledger()
        self.stop_wanted = False
        self.leader: int | None = None
        self.round: EvaluationRound | None = None
        self._rounds = 0
        self._sessions = first_session
        self._arrived: dict[int, Contribution] = {}
        self._totals: dict[int, tuple[list[float], dict[str, float]]] = {}
        self._window: list[float] = []
        self._window_shares = 0
        self._window_began: float | None = None
        self._window_seconds: dict[str, float] = {}
        self._num_counts = 0
        self.end: End | None = None
        self._set_fence()

    def join(self, rank: int, now: float) -> int:
        """A worker is here, in place of one of its rank; returns its session."""
        self.leave(rank)
        self._sessions += 1
        self.members[self._sessions] = Member(rank, now)
        return self._sessions

    def leave(self, rank: int) -> list[int]:
        """A worker is gone: what it held is handed out again. Returns the shares."""
        sessions = [session for session, member in self.members.items() if member.rank == rank]
        return [share for session in sessions for share in self._leave(session)]

    def _leave(self, session: int) -> list[int]:
        del self.members[session]
        shares = self.queue.leave(session)
        if self._is_round_broken_without(session):
            self._begin_round()
        if self.leader == session:
            self.leader = None
            if self.round is not None:
                self._begin_round()
        return shares

    def overdue(self, now: float) -> list[int]:
        """Ranks that hold shares and have been silent for too long, each named once; what they hold goes to others.

        Nobody waits for one that is silent and holds nothing either. Who leads a commit may take as long as it takes.
        """
        late = []
        for session, member in self.members.items():
            if member.overdue or now - member.heard <= self.course.hang_s:
                continue
            member.overdue = True
            broken = self._is_round_broken_without(session)
            if self.queue.leave(session) or broken:
                late.append(member.rank)
            if broken:
                self._begin_round()
        return late

    def hear(self, session: int, now: float) -> Member:
        """A worker says something. Raises: KeyError if its session is none."""
        member = self.members[session]
        member.heard, member.overdue = now, False
        return member

    def turn(self, session: int, now: float) -> Turn:
        """What a worker does next, beside what it holds; Wait if there is nothing now."""
        if self.phase == TRAINING and self.queue.settled:
            self._end_fence()
        if self.end is not None:
            return self.end
        if self.phase == EVALUATING:
            assert self.round is not None
            return Wait() if self.members[session].round == self.round.number else Evaluation(self.round.number)
        if self.phase == COMMITTING:
            if self.leader in (None, session) and self.round is None:  # asked again, it may not have heard the answer
                self.leader = session
                return Lead()
            return Wait()
        return self._share(session, now)

    def _share(self, session: int, now: float) -> Turn:
        held = self.queue.held_by(session)
        if len(held) > (0 if self.rule.one_each else self.course.in_store):
            return Wait()
        share = self.queue.peek()
        if share is None:
            share = None if held else self.queue.take_over(session, now)
        elif self.rule.admits(session, share, self._arrived, self._view):
            share = self.queue.lease(session, now)
        else:
            share = None
        if share is None:
            return Wait()
        if self._window_began is None:
            self._window_began = now
        return Share(self.epoch, share, self._step_of(share))

    def _step_of(self, share: int) -> int:
        return self.epoch * self.course.num_steps + share // self.rule.shares_a_step

    @property
    def _view(self) -> View:
        queue = self.queue
        num_workers = sum(not member.overdue for member in self.members.values())
        return View(self.version, queue.num_done, queue.num, queue.fence, num_workers)

    def contribute(
        self, contribution: Contribution, epoch: int, totals: list[float], seconds: dict[str, float]
    ) -> tuple[bool, list[Update]]:
        """A gradient is here: whether it may still be used, and the updates that are to be made now, in order."""
        share = contribution.share
        wanted = self.phase == TRAINING and epoch == self.epoch and self.queue.arrive(share)
        if wanted and self.rule.is_late(contribution, self._view):
            self.queue.give_back(share)
            wanted = False
        if not wanted:
            self.ledger.dropped += 1
            return False, []
        self._arrived[share] = contribution
        self._totals[share] = totals, seconds
        return True, self._updates()

    def _updates(self) -> list[Update]:
        updates = []
        while shares := self.rule.ready(self._arrived, self._view):
            used = [self._arrived.pop(share) for share in shares]
            staleness = [self.version - each.base for each in used]
            self.version += 1
            self.ledger.staleness.update(staleness)
            self.ledger.updates += 1
            for share in shares:
                self.queue.finish(share)
                self._note(share)
            late = [each for each in self._arrived.values() if self.rule.is_late(each, self._view)]
            for each in late:
                del self._arrived[each.share], self._totals[each.share]
                self.queue.give_back(each.share)
            self.ledger.dropped += len(late)
            lr = used[0].lr / (1 + staleness[0]) if self.course.scale_lr else used[0].lr
            parts = tuple(Part(each.key, float(each.samples), 1.0) for each in used)
            updates.append(Update(self.version, parts, lr, tuple(each.key for each in late)))
        return updates

    def _note(self, share: int) -> None:
        totals, seconds = self._totals.pop(share)
        self._num_counts = self._num_counts or max(0, len(totals) - 4)
        self.ledger.add(totals, self._num_counts)
        for phase, value in seconds.items():
            self._window_seconds[phase] = self._window_seconds.get(phase, 0.0) + value
        self._window = [a + b for a, b in zip(self._window or [0.0] * len(totals), totals, strict=True)]
        self._window_shares += 1

    def window(self, now: float) -> Window | None:
        """The totals of a global batch's worth of shares, once for each."""
        whole = self._window_shares >= self.rule.shares_a_step or (self._window_shares and self.queue.settled)
        if not whole:
            return None
        values, wall_s = self._window, now - (now if self._window_began is None else self._window_began)
        self.ledger.spend(self._window_seconds, wall_s)
        self._window, self._window_shares, self._window_began, self._window_seconds = [], 0, now, {}
        return Window(values, self.epoch, self.position()[2], self.ledger.epoch_replaced, wall_s)

    def want_stop(self) -> None:
        """End at the next step boundary."""
        self.stop_wanted = True
        if self.phase == TRAINING:
            self._set_fence()

    def _set_fence(self) -> None:
        """Up to the next commit; before that, where all that is handed out ends, if the run is to stop."""
        queue, a_step, every = self.queue, self.rule.shares_a_step, self.course.commit_every
        queue.fence = queue.num
        if every:
            next_step = (self.ledger.steps // every + 1) * every - self.epoch * self.course.num_steps
            queue.fence = min(queue.fence, next_step * a_step)
        if self.stop_wanted:
            queue.fence = min(queue.fence, -(-queue.handed_out // a_step) * a_step)

    def _end_fence(self) -> None:
        self._window_began = None
        if self.stop_wanted and self.position()[2] == self.ledger.steps:  # all that was trained is committed
            self.finish(End("stopped"))
        elif self.queue.num_done >= self.queue.num:
            self._begin_round()
        else:
            self.phase = COMMITTING

    def _is_round_broken_without(self, session: int) -> bool:
        return self.phase == EVALUATING and self.round is not None and self.round.is_broken_without(session)

    def _begin_round(self) -> None:
        self.phase, self.leader = EVALUATING, None
        self._rounds += 1
        self.round = EvaluationRound(self._rounds, self.course.val_shares)

    def evaluate_next(self, session: int, number: int, now: float) -> int | None:
        """The next share of the held-out samples; None if there is none. Raises: KeyError if the round is over."""
        member, current = self.members[session], self._current(number)
        member.round = number
        return current.lease(session, now)

    def evaluated(self, session: int, number: int, values: NDArray[np.float64]) -> None:
        """What a worker found on the shares that it took. Raises: KeyError if the round is over."""
        self._current(number).say(session, values)

    def evaluation(self, session: int, number: int) -> NDArray[np.float64] | None:
        """The sums over all workers, once all is evaluated. The first who is told leads the commit.

        Raises: KeyError if the round is over.
        """
        current = self._current(number)
        if not current.complete:
            return None
        if self.phase == EVALUATING:
            self.phase, self.leader = COMMITTING, session
        return current.sums()

    def _current(self, number: int) -> EvaluationRound:
        if self.round is None or self.round.number != number:
            raise KeyError(number)
        return self.round

    def committed(self, session: int, progress: dict[str, Any]) -> None:
        """The commit is whole: go on behind it. Raises: KeyError from another than who leads."""
        if session != self.leader or self.phase != COMMITTING:
            raise KeyError(session)
        self.ledger = self.ledger.of_next(progress, epoch_ended=self.round is not None)
        if self.round is not None:
            self.epoch += 1
            self.queue = WorkQueue(self.course.num_shares)
        self.round = self.leader = None
        self.phase, self._window_began = TRAINING, None
        self._set_fence()
        if self.epoch >= self.course.epochs:
            self.finish(End("finished"))
        elif self.stop_wanted:
            self.finish(End("stopped"))

    def finish(self, end: End) -> None:
        """Nothing is handed out any more; the first word counts."""
        self.phase = ENDED
        self.end = self.end or end

    def position(self) -> tuple[int, int, int]:
        """Epoch, step in it, and steps of the run, at a fence."""
        step = -(-self.queue.num_done // self.rule.shares_a_step)
        return self.epoch, step, self.epoch * self.course.num_steps + step

    def begin_at(self, epoch: int, num_done: int, progress: dict[str, Any]) -> None:
        """Begin, or go on, where a commit stands."""
        self.epoch = epoch
        self.queue = WorkQueue(self.course.num_shares, done=range(num_done))
        self.ledger = Ledger.at(progress, updates_lost=self.ledger.updates_lost)
        self._set_fence()
        if epoch >= self.course.epochs:
            self.finish(End("finished"))

    def state(self) -> dict[str, Any]:
        """What a snapshot of the weights of this version needs beside them, fit for JSON."""
        return {
            "version": self.version,
            "epoch": self.epoch,
            "done": self.queue.done_ranges(),
            "ledger": self.ledger.to_json(),
            "num_counts": self._num_counts,
            "stop_wanted": self.stop_wanted,
            "rounds": self._rounds,
            "end": None if self.end is None else [self.end.status, self.end.error],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a snapshot: what has been done since is handed out again. Nobody is a member any more."""
        self.version, self.epoch = state["version"], state["epoch"]
        done = (share for first, stop in state["done"] for share in range(first, stop))
        self.queue = WorkQueue(self.course.num_shares, done=done)
        self.ledger = Ledger.from_json(state["ledger"])
        self._num_counts = state["num_counts"]
        self._rounds = state["rounds"]
        self.members.clear()
        self._arrived.clear()
        self._totals.clear()
        self._window, self._window_shares, self._window_began, self._window_seconds = [], 0, None, {}
        self.phase, self.round, self.leader = TRAINING, None, None
        self.stop_wanted = self.stop_wanted or state["stop_wanted"]
        self._set_fence()
        if state["end"] is not None:
            self.finish(End(*state["end"]))
