"""What a strategy is: who does what next, and all that happens between `loss.backward()` and the next forward.

The training loop asks for these few things and does not know which strategy answers.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipelines.loader import Batch
from pipelines.order import Epoch, Position


@dataclass(frozen=True)
class Step:
    """Compute the gradients of `batch` and update.

    `number`: of the optimizer step that it is a share of, from 0 on over the whole run. `part`: which share of it, the
    rank in lock step. `samples`: by how many its loss is divided. `settle`: all workers must be alike after it.
    """

    batch: Batch
    number: int
    part: int
    samples: int
    settle: bool


@dataclass(frozen=True)
class Note:
    """Note totals that became known after the last step."""

    known: "Known"


@dataclass(frozen=True)
class EndEpoch:
    """All samples of the epoch are consumed: evaluate and commit."""


@dataclass(frozen=True)
class Commit:
    """Commit in mid-epoch."""


@dataclass(frozen=True)
class Stop:
    """End here, before the experiment does; what was trained is committed."""


Turn = Step | Note | EndEpoch | Commit | Stop


@dataclass(frozen=True)
class Known:
    """The totals of all workers' shares since the last time they were known.

    `values`: as given to `step_totals`, added up. `epoch`, `step`: up to where, steps counted from 1. `epoch_replaced`:
    unreadable samples of the epoch. `wall_s`: how long these steps took together; None if as long as this worker's.
    """

    values: list[float]
    epoch: int
    step: int
    epoch_replaced: int
    wall_s: float | None = None


@dataclass
class Books:
    """What a server noted of all workers' steps. `progress`: of the newest commit; all else since then, but for what is
    of the whole run: `updates`, `updates_lost`, gradients `dropped`, `staleness` of updates -> how often.
    """

    progress: dict[str, Any]
    position: Position
    steps: int
    loss: float = 0.0
    samples: int = 0
    counts: list[float] = field(default_factory=list)
    replaced: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    updates: int = 0
    updates_lost: int = 0
    dropped: int = 0
    staleness: dict[str, int] = field(default_factory=dict)


class Overtaken(Exception):
    """What a turn was about has been overtaken: another worker died, or the server went back to a snapshot."""


class Precise(Protocol):
    """The arithmetic of a learner: `training/precision.py`."""

    def step(self, optimizer: torch.optim.Optimizer, clip_grad_norm: float) -> bool: ...

    def unscale(self, optimizer: torch.optim.Optimizer) -> bool: ...


class Learns(Protocol):
    """What of a learner a strategy touches: `training/learner.py`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer

    @property
    def precision(self) -> Precise: ...

    @property
    def average(self) -> "Averaged | None": ...

    def average_weights(self) -> None: ...


class Averaged(Protocol):
    """The average of the weights: `training/regularize.py`."""

    def state(self) -> dict[str, Tensor]: ...

    def load(self, state: dict[str, Tensor]) -> None: ...


class Run(Protocol):
    """What of a run a strategy asks for: `training/loop.py`."""

    train_batches: Iterator[Batch]
    train_epoch: Epoch

    @property
    def position(self) -> Position: ...

    @property
    def steps(self) -> int: ...

    @property
    def num_epochs(self) -> int: ...

    @property
    def commit_every(self) -> int: ...

    @property
    def stopping(self) -> bool: ...

    @property
    def epoch_replaced(self) -> int: ...


class Strategy(Protocol):
    """How the workers of a run agree on one model.

    A worker's loss is already divided by `Step.samples`. `speaks`: whether this worker delivers records and events.
    """

    rank: int
    world_size: int

    @property
    def speaks(self) -> bool: ...

    phase_after_backward: str
    """What the time since the last mark was, when backward() returns: `backward` or `communication`."""

    def join(self, learner: Learns, progress: dict[str, Any]) -> tuple[bool, bool]:
        """Be there, before the first turn. `progress`: of the newest commit, whose state `learner` has.

        Returns: whether it is this worker with which the run begins, and whether it joins others that go on: for the
        first time, or because one of its rank was lost.
        """

    def turns(self, run: Run) -> Iterator[Turn]:
        """What this worker does, one after the other, to the end of the run."""

    def wrap(self, model: nn.Module, lap: Callable[[str], None]) -> nn.Module:
        """Make the module to call in training; `lap(phase)` says what the time since the last mark was."""

    def part(self, last: bool) -> AbstractContextManager[object]:
        """Surround forward and backward of a part of a step; gradients are exchanged in the last one."""

    def step_totals(self, values: Tensor, step: Step) -> Callable[[], Known | None]:
        """Begin to add a step's totals over all workers; what comes back waits for them. None: not known yet.

        The first is the loss, the last `world_size` say whose loss was not finite.
        """

    def update(self, learner: Learns, step: Step, *, lr: float, clip_grad_norm: float) -> None:
        """Update the weights by the gradients, whoever does that."""

    def spent(self, seconds: dict[str, float]) -> None:
        """Take note of the seconds of a step, by phase."""

    def settle(self, learner: Learns) -> None:
        """Make all workers alike, as evaluation and commits need them."""

    def evaluation_batches(self, batches: Iterator[Batch], epoch: Epoch) -> Iterator[Batch]:
        """This worker's part of the held-out samples, once. `batches`: of all epochs, where they are dealt before."""

    def sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Begin to add `values` over all workers, in place; call what comes back to wait for the sum."""

    def share_buffers(self, model: nn.Module) -> None:
        """Give every worker rank 0's buffers (batch statistics), as evaluation and checkpoint need them."""

    def leads(self) -> bool:
        """Whether it is this worker that notes and commits now."""

    def notes(self) -> bool:
        """Whether this worker notes what an epoch came to."""

    def books(self) -> Books | None:
        """What a server noted of all workers' steps, for who leads a commit; None for others, and without a server."""

    def committed(self, progress: dict[str, Any]) -> None:
        """Take note that a commit is whole."""

    def abandon(self, error: str) -> None:
        """Tell others that this worker ends for a reason that would only repeat itself."""

    def state(self) -> dict[str, Any]:
        """What a commit keeps of the strategy itself, tensors and numbers by name."""

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave, of a strategy of the same name."""

    def barrier(self) -> None:
        """Wait until every worker is here."""
