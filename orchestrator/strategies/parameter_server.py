"""Training led by a parameter server: asynchronous, with bounded staleness, or with backup workers.

A worker asks what to do next, computes a gradient, sends it, and takes the weights that come back. Which gradients make
an update is the server's matter (orchestrator/parameter_server/rules.py). In which order a worker does things:

    without overlap   compute g0 | push g0, wait | compute g1 on the answer | push g1, wait | ...
    with overlap      compute g0 | push g0 | compute g1 | answer to g0, push g1 | compute g2 on that answer | ...

With overlap a worker holds one share more than it computes, whose samples are fetched meanwhile.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from orchestrator.errors import RunError
from orchestrator.parameter_server.client import Client, Rejoin
from orchestrator.parameter_server.messages import End, Evaluation, Lead, Push, Refused, Reply, Share, State
from orchestrator.parameter_server.messages import Turn as Told
from orchestrator.strategies.base import Books, Commit, EndEpoch, Known, Learns, Note, Overtaken, Run, Step, Stop, Turn
from orchestrator.strategies.flat import FlatModel
from pipelines.loader import Batch
from pipelines.order import Epoch, Position

Rows = dict[str, list[Any]]


class Fetch(Protocol):
    """Gets the samples of a share, wherever they are made; called in a thread."""

    def __call__(self, purpose: str, epoch: int, number: int) -> Batch: ...


class ParameterServer:
    """One worker of a run that a parameter server leads. `connect` makes its client, for so many weights.

    `num_shares`: of a global batch. `fetch` gets the samples of one.

    `rows`: of a batch in a step for the trace, None without.
    """

    phase_after_backward = "backward"
    speaks = True

    def __init__(
        self,
        rank: int,
        world_size: int,
        connect: Callable[[int], Client],
        fetch: Fetch,
        rows: Callable[[Batch, int], Rows | None],
        *,
        num_shares: int,
        overlap: bool,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self._connect, self._fetch, self._rows = connect, fetch, rows
        self._num_shares, self._in_store = num_shares, int(overlap)
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="fetch")
        self._store: list[tuple[Share, Future[Batch]]] = []
        self._share: Share | None = None
        self._base = 0
        self._end: End | None = None
        self._lost = False
        self._totals: Tensor | None = None
        self._window: Known | None = None
        self._seconds: dict[str, float] = {}
        self._round, self._epoch = 0, 0
        self._leads = False
        self._lap: Callable[[str], None] = _nothing

    def join(self, learner: Learns, progress: dict[str, Any]) -> tuple[bool, bool]:
        """Join the server, before the first turn. `progress`: of the newest commit, whose state `learner` has.

        Returns: whether the server begins with it, and whether others go on with the server's.
        """
        self._learner = learner
        self._flat = FlatModel(learner.model, learner.optimizer)
        self._client = self._connect(self._flat.size)
        average = learner.average
        self._first = State(
            self._flat.weights(),
            self._flat.optimizer_state(),
            None if average is None else self._flat.flat_of(average.state()),
            self._flat.buffers(),
            progress,
        )
        return self._join()

    def _join(self) -> tuple[bool, bool]:
        self._store, self._lost, self._leads = [], False, False
        welcome = self._client.join(lambda: (self._first, self._flat.num_decayed))
        return welcome.wants_state, not welcome.wants_state

    # --- turns

    def turns(self, run: Run) -> Iterator[Turn]:
        del run
        while True:
            try:
                told = self._next()
            except Rejoin:
                self._lost = True
            if self._lost:
                self._join()
                continue
            self._lap("communication")
            if told is not None and self._window is not None:
                window, self._window = self._window, None
                yield Note(window)
            match told:
                case None:
                    self._share, batch = self._store.pop(0)
                    self._base = self._client.version
                    part, samples = self._share.number % self._num_shares, max(1, len(batch.result().positions))
                    yield Step(batch.result(), self._share.step, part, samples, settle=False)
                case Evaluation():
                    self._round = told.round
                    yield EndEpoch()
                case Lead():
                    yield Commit()
                case End(status="failed"):
                    raise RunError(told.error or "another worker failed")
                case End(status=status):
                    if status == "stopped":
                        yield Stop()
                    return
                case _:
                    raise AssertionError(told)

    def _next(self) -> Told | None:
        """Ask until there is a share in store, which is None, or something else to do. Raises: Rejoin."""
        while self._end is None:
            if self._store:
                if len(self._store) <= self._in_store and not self._client.pushing:
                    self._take(self._client.next())
                return None
            told = self._take(self._client.answer() if self._client.pushing else self._client.next())
            if isinstance(told, Evaluation | Lead):
                return told
        return self._end

    def _take(self, reply: Reply) -> Told:
        """Take the weights of an answer, and what it gives to do."""
        weights = self._client.weights(reply)
        if weights is not None:
            self._flat.set_weights(weights)
            self._client.version = reply.version
        if (window := reply.window) is not None:
            values = [*window.values, *[0.0] * self.world_size]
            self._window = Known(values, window.epoch, window.step, window.epoch_replaced, window.wall_s)
        told = reply.turn
        if isinstance(told, Share):
            self._epoch = told.epoch
            self._store.append((told, self._loader.submit(self._fetch, "train", told.epoch, told.number)))
        elif isinstance(told, End):
            self._end = told
        return told

    # --- a step

    def wrap(self, model: nn.Module, lap: Callable[[str], None]) -> nn.Module:
        self._lap = lap
        return model

    def part(self, last: bool) -> AbstractContextManager[object]:
        del last
        return nullcontext()

    def step_totals(self, values: Tensor, step: Step) -> Callable[[], Known | None]:
        self._totals = values

        def known() -> Known | None:
            if not self._is_finite:  # the loss of this worker: `update` has sent nothing
                return Known(values.tolist(), step.batch.epoch, step.number + 1, int(values[3]))
            window, self._window = self._window, None
            return window

        return known

    @property
    def _is_finite(self) -> bool:
        assert self._totals is not None, "step_totals comes before update"
        return not self._totals[-self.world_size :].any()

    def update(self, learner: Learns, step: Step, *, lr: float, clip_grad_norm: float) -> None:
        del clip_grad_norm  # the server's
        assert self._totals is not None
        assert self._share is not None
        if not self._is_finite:
            return
        finite = learner.precision.unscale(learner.optimizer)
        gradient = self._flat.gradient() if finite else None
        buffers = self._flat.buffers()
        totals = self._totals[: -self.world_size].tolist()
        self._lap("optimizer")
        try:
            if self._client.pushing:
                self._take(self._client.answer())
            encoded = None if gradient is None else self._client.encode(gradient)
            samples = int(totals[1]) if finite else 0
            rows, seconds = self._rows(step.batch, step.number + 1), self._seconds
            self._client.push(Push(self._share, self._base, samples, lr, encoded, totals, buffers, seconds, rows))
            if not self._in_store:
                self._take(self._client.answer())
        except Rejoin:
            self._lost = True
        self._lap("communication")

    def spent(self, seconds: dict[str, float]) -> None:
        self._seconds = dict(seconds)

    # --- evaluation and commits

    def settle(self, learner: Learns) -> None:
        self._become(self._known(lambda: self._client.state(whole=False)), learner)

    def evaluation_batches(self, batches: Iterator[Batch], epoch: Epoch) -> Iterator[Batch]:
        del batches, epoch
        ahead: Future[Batch] | None = None
        while True:
            share = self._known(lambda: self._client.evaluate_next(self._round))
            following = None if share is None else self._loader.submit(self._fetch, "val", self._epoch, share)
            if ahead is not None:
                yield ahead.result()
            if following is None:
                return
            ahead = following

    def sum(self, values: Tensor) -> Callable[[], Tensor]:
        found = self._known(lambda: self._client.evaluated(self._round, values.double().cpu().numpy().ravel()))
        values.copy_(values.new_tensor(np.asarray(found)).view(values.shape))
        return lambda: values

    def books(self) -> Books | None:
        said = self._known(self._client.books)
        self._leads = said is not None
        if said is None:
            return None
        self._become(self._known(lambda: self._client.state(whole=True)), self._learner)
        return Books(
            progress=said["progress"],
            position=Position(said["epoch"], said["step"]),
            **{name: said[name] for name in _OF_LEDGER},
        )

    def leads(self) -> bool:
        return self._leads

    def notes(self) -> bool:
        return self._leads

    def committed(self, progress: dict[str, Any]) -> None:
        self._leads = False
        self._known(lambda: self._client.committed(progress))

    def _become(self, state: State, learner: Learns) -> None:
        self._flat.set_weights(state.weights)
        self._flat.set_buffers(state.buffers)
        self._client.version = -1  # what a share is computed with comes with it
        if state.optimizer:
            self._flat.set_optimizer_state(state.optimizer)
        if learner.average is not None and state.average is not None:
            buffers = {name: buffer.detach() for name, buffer in learner.model.named_buffers()}
            learner.average.load(buffers | self._flat.named(state.average))

    def _known(self, ask: Callable[[], Any]) -> Any:
        """Ask the server. Raises: Overtaken if it has begun anew, or goes on with something else."""
        try:
            answer = ask()
        except Rejoin as lost:
            self._lost = True
            raise Overtaken from lost
        if isinstance(answer, Refused):
            raise Overtaken
        return answer

    # --- what all strategies have

    def share_buffers(self, model: nn.Module) -> None:
        del model  # `settle` has

    def abandon(self, error: str) -> None:
        self._client.fail(error)

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        del state

    def barrier(self) -> None:
        pass


def _nothing(phase: str) -> None:
    del phase


_OF_LEDGER = (
    "steps", "loss", "samples", "counts", "replaced", "seconds", "updates", "updates_lost", "dropped", "staleness",
)  # fmt: skip
