"""What one worker trains with, and where it says what happens."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.config.experiment import Experiment
from orchestrator.strategies.base import Strategy
from orchestrator.training.accounting import Seconds, no_seconds
from orchestrator.training.checkpoint_store import CheckpointStore
from orchestrator.training.faults import Faults
from orchestrator.training.learner import Learner
from orchestrator.training.peak import PeakMeter
from orchestrator.training.progress import Progress
from pipelines.device import ToDevice
from pipelines.loader import Batch
from pipelines.order import Epoch, Position
from pipelines.quarantine import Replaced

LOSS_AND_FLAGS = 4
"""Of a step's totals: loss, samples, stop, replaced samples; then the task's counts, and a flag for each rank."""


class Log(Protocol):
    """Where a worker says what happens."""

    def record(self, record: dict[str, Any]) -> None:
        """Note a step or an epoch (docs/run-folder.md); cheap, never waits."""

    def event(self, name: str, message: str, **fields: Any) -> None:
        """Note an event, in order with the records."""

    def trace(self, batch: Batch, step: int, rank: int) -> None:
        """Note which samples a step consumed; written down by `commit_trace`."""

    def commit_trace(self, step: int) -> None:
        """Write down the trace up to a step that is about to be committed."""

    def quarantine(self, replaced: Sequence[Replaced]) -> None:
        """Note samples that could not be read."""

    def quarantined(self) -> list[str]:
        """All samples of the run that could not be read, and why."""

    def stop_requested(self) -> bool:
        """Whether the run should commit and end at the next step boundary."""


@dataclass
class Training:
    """What one worker trains with. `identity` is stored in commits to tell whether a run may go on from them.

    `stopping`: all workers agree to end at the next step boundary. `unnoted`, `unnoted_since`: the seconds of steps
    that are in no record yet, and when the first of them began. `meter`: of the device's memory.
    """

    experiment: Experiment
    learner: Learner
    strategy: Strategy
    train_epoch: Epoch
    val_epoch: Epoch
    train_batches: Iterator[Batch]
    val_batches: Iterator[Batch]
    to_device: ToDevice
    sample_ids: Callable[[int, range], list[str]]
    store: CheckpointStore
    log: Log
    identity: dict[str, Any]
    progress: Progress = field(default_factory=Progress)
    faults: Faults = field(default_factory=Faults)
    stopping: bool = False
    lr: float = 0.0
    unnoted: Seconds = field(default_factory=no_seconds)
    unnoted_since: float = math.inf
    meter: PeakMeter = field(init=False)

    def __post_init__(self) -> None:
        self.meter = PeakMeter(self.learner.device)

    @property
    def position(self) -> Position:
        return self.progress.position

    @property
    def steps(self) -> int:
        return self.progress.steps

    @property
    def num_epochs(self) -> int:
        return self.experiment.train.epochs

    @property
    def commit_every(self) -> int:
        return self.experiment.checkpoint.every_steps

    @property
    def epoch_replaced(self) -> int:
        return self.progress.epoch_replaced
