"""How far a run has come: the part of its state that is no tensor."""

from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.training.accounting import Seconds, no_seconds
from pipelines.order import Position


@dataclass
class Sums:
    """Loss and hits added up over samples; means are exact, whatever the sizes of steps and shares."""

    loss: float = 0.0
    correct: float = 0.0
    samples: int = 0

    def add(self, loss: float, correct: float, samples: int) -> None:
        self.loss += loss
        self.correct += correct
        self.samples += samples

    @property
    def mean_loss(self) -> float:
        return self.loss / max(self.samples, 1)

    @property
    def accuracy(self) -> float:
        return self.correct / max(self.samples, 1)


@dataclass
class Progress:
    """What a commit says about the run beside its tensors.

    `position`: the next step to take. `steps`: optimizer steps taken. `samples`: samples consumed.
    `epoch_sums`, `epoch_seconds`, `epoch_replaced` (samples that could not be read): of the running epoch so far.
    `seconds`: of all steps so far.
    """

    position: Position = field(default_factory=lambda: Position(0, 0))
    steps: int = 0
    samples: int = 0
    epoch_sums: Sums = field(default_factory=Sums)
    epoch_seconds: Seconds = field(default_factory=no_seconds)
    epoch_replaced: int = 0
    seconds: Seconds = field(default_factory=no_seconds)
    evaluation_s: float = 0.0
    val_loss: float | None = None
    val_accuracy: float | None = None
    best_val_accuracy: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        known = dict(values)
        known["position"] = Position(**known["position"])
        known["epoch_sums"] = Sums(**known["epoch_sums"])
        return cls(**known)

    def add_seconds(self, seconds: Seconds) -> None:
        for phase, value in seconds.items():
            self.epoch_seconds[phase] += value
            self.seconds[phase] += value

    def begin_epoch(self) -> None:
        self.epoch_sums = Sums()
        self.epoch_seconds = no_seconds()
        self.epoch_replaced = 0
