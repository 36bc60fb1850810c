"""A coordinator and workers that do what a schedule says: act, die, fall silent, come back; with a clock of their own.

Workers compute nothing. What is checked at every update, commit and end of an evaluation is in `World`; what is true in
the end, the tests ask.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.parameter_server.coordinator import COMMITTING, Coordinator
from orchestrator.parameter_server.ledger import Course
from orchestrator.parameter_server.messages import End, Evaluation, Lead, Share, Turn
from orchestrator.parameter_server.rules import Contribution, Each, First, Rule, WithinBound
from orchestrator.parameter_server.shard import Key, Update

HANG_S = 100.0
PATIENCE = 60  # times that all act one after the other for each share that there is; what takes longer is for ever


def course(rule: Rule, **options: Any) -> Course:
    """Of 2 epochs of 7 shares and evaluations of 3; steps as the rule has them."""
    given = {"epochs": 2, "num_shares": 7, "val_shares": 3, "hang_s": HANG_S} | options
    return Course(num_steps=-(-given["num_shares"] // rule.shares_a_step), **given)


def samples_of(share: int) -> int:
    return share + 1


@dataclass
class Worker:
    """What a worker knows. `store`: shares, and the version of the weights that came with each."""

    session: int
    version: int
    store: list[tuple[Share, int]] = field(default_factory=list)
    computing: tuple[Share, int] | None = None
    waits: bool = False
    round: int | None = None
    found: NDArray[np.float64] | None = None
    said: bool = False
    leads: bool = False
    dead: bool = False


@dataclass(frozen=True)
class Made:
    """An update that was made: of which epoch and shares, with gradients of which versions, at which rate."""

    epoch: int
    shares: tuple[int, ...]
    bases: tuple[int, ...]
    lr: float


class World:
    """`eager`: workers compute with the newest weights that they were given, else with those that came with a share."""

    def __init__(self, rule: Rule, what: Course, *, eager: bool = True) -> None:
        self.rule, self.course, self.eager = rule, what, eager
        self.coordinator = Coordinator(rule, what)
        self.coordinator.begin_at(0, 0, {"steps": 0, "samples": 0})
        self.now = 0.0
        self.workers: dict[int, Worker] = {}
        self.updates: list[Made] = []
        self.commits: list[int] = []
        self.evaluated: list[int] = []
        self.late: list[int] = []
        self.windows: list[float] = []
        self.ended: dict[int, End] = {}
        self._contributions: dict[Key, tuple[int, Contribution]] = {}
        self._pushes = 0
        self._snapshot = self.coordinator.state()

    # --- what happens to workers

    def join(self, rank: int) -> None:
        session = self.coordinator.join(rank, self.now)
        self.workers[rank] = Worker(session, self.coordinator.version)

    def die(self, rank: int) -> None:
        """Silently."""
        if rank in self.workers:
            self.workers[rank].dead = True

    def leave(self, rank: int) -> list[int]:
        self.workers.pop(rank, None)
        return self.coordinator.leave(rank)

    def silence(self) -> list[int]:
        """So much time passes that all are late that hold something; they may come back."""
        self.now += HANG_S + 1
        late = self.coordinator.overdue(self.now)
        assert self.coordinator.overdue(self.now) == [], "each is named once"
        self.late += late
        return late

    def stop(self) -> None:
        self.coordinator.want_stop()

    def snapshot(self) -> None:
        """As a server keeps it: through JSON."""
        state = json.loads(json.dumps(self.coordinator.state()))
        done = {share for first, stop in state["done"] for share in range(first, stop)}
        used = [share for made in self.updates if made.epoch == state["epoch"] for share in made.shares]
        assert sorted(used) == sorted(done), "what a snapshot has as done is what was used up to its version"
        assert state["version"] == len(self.updates)
        self._snapshot = state

    def restart(self) -> None:
        """From the newest snapshot; workers find that they are not known."""
        sessions = max((worker.session for worker in self.workers.values()), default=0)
        self.coordinator = Coordinator(self.rule, self.course, first_session=sessions + 1000)
        self.coordinator.load(self._snapshot)
        self.updates = self.updates[: self.coordinator.version]

    # --- what a worker does

    def act(self, rank: int) -> None:
        """The next thing that this worker would do, as the strategy does."""
        self.now += 1.0
        worker = self.workers.get(rank)
        if worker is None or worker.dead or rank in self.ended:
            return
        if worker.session not in self.coordinator.members:
            self.join(rank)
            return
        self.coordinator.hear(worker.session, self.now)
        if worker.leads:
            self._commit(worker)
        elif worker.round is not None:
            self._evaluate(worker)
        elif worker.computing is not None:
            self._push(worker)
        elif worker.store and (len(worker.store) > self._in_store or worker.waits):
            share, version = worker.store.pop(0)
            worker.computing = share, worker.version if self.eager else version
        else:
            self._told(rank, worker, self._ask(worker))

    @property
    def _in_store(self) -> int:
        return 0 if self.rule.one_each else self.course.in_store

    def _ask(self, worker: Worker) -> Turn:
        turn = self.coordinator.turn(worker.session, self.now)
        worker.version = self.coordinator.version
        worker.waits = not isinstance(turn, Share)
        if isinstance(turn, Share):
            assert turn.step == turn.epoch * self.course.num_steps + turn.number // self.rule.shares_a_step
            worker.store.append((turn, worker.version))
        return turn

    def _told(self, rank: int, worker: Worker, turn: Turn) -> None:
        if isinstance(turn, End):
            self.ended[rank] = turn
        if worker.store:
            return  # whatever it was, it is asked for again when all is computed
        if isinstance(turn, Evaluation):
            worker.round, worker.found, worker.said = turn.round, np.zeros(self.course.val_shares), False
        elif isinstance(turn, Lead):
            others = [each for each in self.workers.values() if each.leads and each.session in self.coordinator.members]
            assert others == [], "one leads"
            worker.leads = True

    def _push(self, worker: Worker) -> None:
        assert worker.computing is not None
        (share, base), worker.computing = worker.computing, None
        self._pushes += 1
        contribution = Contribution(
            worker.session, self._pushes, share.number, base, samples_of(share.number), 1.0 + share.step
        )
        self._contributions[contribution.key] = share.epoch, contribution
        totals = [float(share.number), float(samples_of(share.number)), 0.0, 1.0, 2.0]
        accepted, updates = self.coordinator.contribute(contribution, share.epoch, totals, {"forward": 1.0})
        assert accepted or not updates
        for update in updates:
            self._note(update)
        if (window := self.coordinator.window(self.now)) is not None:
            self.windows.append(window.values[1])
        self._ask(worker)  # the answer: of it only a share is heeded, as without overlap

    def _note(self, update: Update) -> None:
        assert update.version == len(self.updates) + 1
        given = [self._contributions.pop(part.key) for part in update.parts]  # a key that was used is gone
        for key in update.dropped:
            del self._contributions[key]
        epochs, used = {epoch for epoch, _ in given}, [contribution for _, contribution in given]
        assert epochs == {self.coordinator.epoch}
        assert [part.weight for part in update.parts] == [each.samples for each in used]
        made = Made(*epochs, tuple(each.share for each in used), tuple(each.base for each in used), update.lr)
        self._check(made, update)
        self.updates.append(made)

    def _check(self, made: Made, update: Update) -> None:
        """What a rule promises of an update."""
        before, a_step = update.version - 1, self.rule.shares_a_step
        done = sum(len(each.shares) for each in self.updates if each.epoch == made.epoch)
        staleness = [before - base for base in made.bases]
        assert min(staleness) >= 0
        match self.rule:
            case Each():
                assert len(made.shares) == 1
            case WithinBound(staleness=bound):
                assert max(staleness) <= bound
                assert made.shares == tuple(range(done, min(done + a_step, self.course.num_shares)))
            case First():
                assert staleness == [0] * len(made.shares)
                assert len(made.shares) == min(a_step, self.course.num_shares - done)

    def _evaluate(self, worker: Worker) -> None:
        assert worker.round is not None
        assert worker.found is not None
        try:
            if not worker.said:
                share = self.coordinator.evaluate_next(worker.session, worker.round, self.now)
                if share is not None:
                    worker.found[share] += 1.0
                    return
                self.coordinator.evaluated(worker.session, worker.round, worker.found)
                worker.said = True
            sums = self.coordinator.evaluation(worker.session, worker.round)
        except KeyError:  # the round is over
            worker.round = None
            return
        if sums is not None:
            assert sums.tolist() == [1.0] * self.course.val_shares, "each held-out share counts once"
            self.evaluated.append(self.coordinator.epoch)
            worker.round, worker.leads = None, self.coordinator.leader == worker.session

    def _commit(self, worker: Worker) -> None:
        coordinator = self.coordinator
        worker.leads = False
        assert coordinator.phase == COMMITTING
        epoch, step, steps = coordinator.position()
        done = min(step * self.rule.shares_a_step, self.course.num_shares)
        assert coordinator.queue.done_ranges() == ([(0, done)] if done else []), "a whole number of steps"
        books = coordinator.ledger.to_json()
        samples = books["progress"]["samples"] + books["samples"]
        assert samples == sum(samples_of(share) for made in self.updates for share in made.shares)
        replaced = sum(len(made.shares) for made in self.updates if made.epoch == epoch)
        assert books["epoch_replaced"] == replaced, "one of each share"
        assert books["updates"] == len(self.updates)
        assert sum(books["staleness"].values()) == sum(len(made.shares) for made in self.updates)
        if coordinator.round is not None:
            epoch, step = epoch + 1, 0
        coordinator.committed(
            worker.session, {"steps": steps, "samples": samples, "position": {"epoch": epoch, "step": step}}
        )
        self.commits.append(steps)
        assert coordinator.ledger.samples == 0

    # --- to the end

    def finish(self, *, told: bool = True) -> str:
        """Let all who live act in turn until the run has ended for each; returns how.

        `told`: of the dead the coordinator hears at once; else they are only silent, but for who leads a commit.
        """
        rounds = PATIENCE * self.course.epochs * (self.course.num_shares + self.course.val_shares)
        for number in range(rounds):
            for rank, worker in list(self.workers.items()):
                if worker.dead and (told or worker.session == self.coordinator.leader):
                    self.leave(rank)
            if not told and number % 10 == 9:
                self.silence()
            alive = {rank for rank, worker in self.workers.items() if not worker.dead}
            assert alive, "somebody has to live"
            for rank in alive:
                self.act(rank)
            if alive <= self.ended.keys():
                (status,) = {self.ended[rank].status for rank in alive}
                return status
        raise AssertionError(f"for ever {self.coordinator.phase}: {self.workers}")

    def used(self) -> Counter[tuple[int, int]]:
        """How often each share of each epoch made part of an update that counts."""
        return Counter((made.epoch, share) for made in self.updates for share in made.shares)


def everything(world: World) -> Counter[tuple[int, int]]:
    """Each share of each epoch, once."""
    return Counter((epoch, share) for epoch in range(world.course.epochs) for share in range(world.course.num_shares))
