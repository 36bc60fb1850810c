"""How far a run has come: the part of its state that is no tensor."""

from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.strategies.base import Books
from orchestrator.training.accounting import Seconds, no_seconds
from orchestrator.training.measures import Figures
from pipelines.order import Position


@dataclass
class Sums:
    """Loss and a task's counts added up over samples; means are exact, whatever the sizes of steps and shares."""

    loss: float = 0.0
    samples: int = 0
    counts: list[float] = field(default_factory=list)

    def add(self, loss: float, samples: int, counts: list[float]) -> None:
        self.loss += loss
        self.samples += samples
        self.counts = [a + b for a, b in zip(self.counts or [0.0] * len(counts), counts, strict=True)]

    @property
    def mean_loss(self) -> float:
        return self.loss / max(self.samples, 1)


@dataclass
class Progress:
    """What a commit says about the run beside its tensors.

    `position`: the next step to take. `steps`: optimizer steps taken. `samples`: samples consumed.
    `epoch_sums`, `epoch_seconds`, `epoch_replaced` (samples that could not be read): of the running epoch so far.
    `seconds`: of all steps so far. `val`, `best_val`: the figures of the newest evaluation by name, the best so far of
    the one that decides.
    `updates`: of the weights, None if as many as steps; `updates_lost`: of those, how many were lost and made again;
    `dropped`: gradients that came too late; `staleness`: how many updates old the weights of one were -> how often.
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
    val: Figures = field(default_factory=dict)
    best_val: float | None = None
    updates: int | None = None
    updates_lost: int = 0
    dropped: int = 0
    staleness: dict[str, int] = field(default_factory=dict)

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

    def take(self, books: Books) -> None:
        """Become what a server noted: the progress of its newest commit, and the steps since then."""
        self.__dict__.update(Progress.from_json(books.progress).__dict__)
        self.position, self.steps = books.position, books.steps
        self.samples += books.samples
        self.epoch_sums.add(books.loss, books.samples, books.counts)
        self.epoch_replaced += books.replaced
        self.add_seconds(books.seconds)
        self.updates, self.updates_lost, self.staleness = books.updates, books.updates_lost, books.staleness
        self.dropped = books.dropped

    def begin_epoch(self) -> None:
        self.epoch_sums = Sums()
        self.epoch_seconds = no_seconds()
        self.epoch_replaced = 0
