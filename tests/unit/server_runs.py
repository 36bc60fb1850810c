"""A whole parameter server, and workers that train a quadratic without torch; with a clock that moves as it is told.

Calls are pickled on the way, as to an actor. A worker acts when it is told to, and does then all up to its next push.
"""

import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.parameter_server.client import Answered, Client, Pending, Rejoin, ServerLost
from orchestrator.parameter_server.ledger import Course
from orchestrator.parameter_server.messages import End, Evaluation, Floats, Lead, Push, Reply, Share, State, Wait
from orchestrator.parameter_server.optimizer import OptimizerRule
from orchestrator.parameter_server.partition import partition
from orchestrator.parameter_server.rules import Each, First, Rule, WithinBound
from orchestrator.parameter_server.server import ParameterServer
from orchestrator.parameter_server.setup import ServerSetup
from orchestrator.parameter_server.sharded_client import ShardedClient
from orchestrator.parameter_server.transport import WorkerEnd

SIZE, RATE = 40, 0.3
START, GOAL = np.zeros(SIZE, np.float32), np.linspace(1.0, 2.0, SIZE, dtype=np.float32)
EPOCHS, NUM_SHARES, VAL_SHARES, HANG_S = 3, 6, 2, 100.0
BEGIN: dict[str, Any] = {"position": {"epoch": 0, "step": 0}, "steps": 0, "samples": 0}
RULES: dict[str, Rule] = {
    "async": Each(2),
    "stale 0": WithinBound(2, 0),
    "stale 2": WithinBound(2, 2),
    "backup": First(2),
}

Gradient = Callable[[Share, Floats], Floats]


def towards_goal(share: Share, weights: Floats) -> Floats:
    """Of |weights - goal|^2 / 2."""
    del share
    return weights - GOAL


def of_share(share: Share, weights: Floats) -> Floats:
    """Another for each share of each epoch, of small whole numbers: sums of them are exact."""
    del weights
    return np.random.default_rng((share.epoch, share.number)).integers(-8, 9, SIZE).astype(np.float32)


class Clock:
    """Each look at it takes `tick` seconds."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


class Heard:
    """Keeps what a server says; of steps that are done again, the trace that is told last, as a run log does."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._traces: dict[int, list[tuple[int, int]]] = {}
        self.steps: list[int] = []

    def event(self, name: str, message: str, **fields: Any) -> None:
        assert message
        self.events.append((name, fields))

    def trace(self, step: int, rows: dict[str, list[Any]]) -> None:
        self._traces = {until: known for until, known in self._traces.items() if until < step}
        self._traces[step] = [*zip(rows["epoch"], rows["share"], strict=True)]

    @property
    def rows(self) -> list[tuple[int, int]]:
        return [row for rows in self._traces.values() for row in rows]

    def step_taken(self, step: int) -> None:
        self.steps.append(step)

    def named(self, name: str) -> list[dict[str, Any]]:
        return [fields for each, fields in self.events if each == name]


def setup(folder: Path, rule: Rule | None = None, **options: Any) -> ServerSetup:
    """`options`: of the setup, and of its course."""
    rule = rule or Each(2)
    what = Course(EPOCHS, NUM_SHARES, 0, VAL_SHARES, hang_s=HANG_S)
    what = replace(what, **{name: options.pop(name) for name in list(options) if hasattr(what, name)})
    what = replace(what, num_steps=-(-what.num_shares // rule.shares_a_step))
    return ServerSetup(
        rule, what, folder=str(folder), **({"optimizer": OptimizerRule("sgd"), "patience_s": 0.0} | options)
    )


class Remote:
    """Calls to what may be killed. A snapshot is on the disk when a call has returned."""

    server: Any = None

    def kill(self) -> None:
        self.server = None

    def begin(self, method: str, *args: Any, **kwargs: Any) -> Pending:
        if self.server is None:
            raise ServerLost("killed")
        args, kwargs = pickle.loads(pickle.dumps((args, kwargs)))
        answer = pickle.loads(pickle.dumps(getattr(self.server, method)(*args, **kwargs)))
        saving = self.server._keeper._saving  # of a public name there is no need but this
        if saving is not None:
            saving.result()
        return Answered(answer)


class Place(Remote):
    """Where a server runs, and may be started again. `losses`, `commits`: of all workers, in order."""

    def __init__(self, what: ServerSetup, clock: Clock | None = None) -> None:
        self.setup, self.clock, self.heard = what, clock or Clock(), Heard()
        self.losses: list[float] = []
        self.commits: list[dict[str, Any]] = []
        self.start()

    def start(self) -> None:
        assert self.server is None
        self.server = ParameterServer(self.setup, self.heard, clock=self.clock)

    def restart(self) -> None:
        self.kill()
        self.start()


class Puppet:
    """A worker that computes gradients by a formula. `shards`: further ones than the place's own."""

    def __init__(
        self,
        place: Place,
        rank: int,
        gradient: Gradient = towards_goal,
        *,
        transport: str = "object_store",
        shards: Sequence[Remote] = (),
    ) -> None:
        self.place, self.rank, self.gradient = place, rank, gradient
        calls = [place, *shards]
        ends = [WorkerEnd(transport, "fp32", len(part), top_k=1.0) for part in partition(SIZE, len(calls))]
        self.client = ShardedClient(calls, rank, ends, SIZE) if shards else Client(place, rank, ends[0])
        self.weights = START
        self.share: Share | None = None
        self.end: End | None = None
        self.join()

    def join(self) -> None:
        self.share = None
        state = State(START, {}, None, None, BEGIN)
        self.welcome = self.client.join(lambda: (state, SIZE))

    def act(self) -> None:
        """Ask what to do, and do it; of a share, compute its gradient and send it the next time."""
        try:
            if self.share is not None:
                self.push()
            elif self.end is None:
                self.do(self.client.next())
        except Rejoin:
            self.join()

    def push(self, **fields: Any) -> None:
        self.do(self.send(**fields))

    def send(self, **fields: Any) -> Reply:
        """Send the gradient of the share, with other `fields`; returns the answer."""
        assert self.share is not None
        share, self.share = self.share, None
        version, gradient = self.client.version, self.gradient(share, self.weights)
        rows = {"epoch": [share.epoch], "share": [share.number]}
        totals = [0.0, 1.0, 0.0, 0.0]
        push = Push(share, version, 1, RATE, self.client.encode(gradient), totals, rows=rows)
        self.client.push(replace(push, **fields))
        return self.client.answer()

    def do(self, reply: Reply) -> None:
        if (weights := self.client.weights(reply)) is not None:
            self.weights, self.client.version = weights.copy(), reply.version
        match reply.turn:
            case Share():
                self.share = reply.turn
            case Evaluation(number):
                self.evaluate(number)
            case Lead():
                self.commit()
            case End():
                self.end = reply.turn
            case Wait():
                pass

    def evaluate(self, number: int) -> None:
        values = np.zeros(2)
        weights = self.client.state(whole=False).weights
        while isinstance(share := self.client.evaluate_next(number), int):
            values += float(((weights - GOAL) ** 2).sum()), 1.0
            assert share < VAL_SHARES
        sums = self.client.evaluated(number, values)
        if isinstance(sums, np.ndarray):
            assert sums[1] == VAL_SHARES
            self.commit(loss=float(sums[0]))

    def commit(self, loss: float | None = None) -> None:
        books = self.client.books()
        if books is None:
            return
        step, epoch = books["step"], books["epoch"]
        ended = step == self.place.setup.course.num_steps
        position = {"epoch": epoch + 1, "step": 0} if ended else {"epoch": epoch, "step": step}
        samples = books["progress"]["samples"] + books["samples"]
        kept = {name: books[name] for name in ("steps", "updates", "updates_lost", "staleness")}
        progress = kept | {"position": position, "samples": samples}
        assert self.client.committed(progress)
        self.place.commits.append(progress)
        if loss is not None:
            self.place.losses.append(loss)


def train(*puppets: Puppet) -> None:
    """Let them act in turn, to the end."""
    for _ in range(100 * EPOCHS * NUM_SHARES):
        for puppet in puppets:
            puppet.act()
        if all(puppet.end is not None for puppet in puppets):
            return
    raise AssertionError("it does not end")


def each_share_once() -> Counter[tuple[int, int]]:
    return Counter((epoch, share) for epoch in range(EPOCHS) for share in range(NUM_SHARES))
