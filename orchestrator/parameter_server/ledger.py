"""What a coordinator knows beside its queue: what there is to do, who does it, what was trained."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Course:
    """What there is to do. `num_shares`, `num_steps`: of an epoch; `val_shares`: of an evaluation.

    `commit_every`: steps between commits in mid-epoch, 0 without. `scale_lr`: divide an update's rate by 1 + staleness.
    `in_store`: shares that a worker holds beside the one it computes. `hang_s`: silence after which the shares of a
    worker go to others.
    """

    epochs: int
    num_shares: int
    num_steps: int
    val_shares: int
    commit_every: int = 0
    scale_lr: bool = False
    in_store: int = 0
    hang_s: float = 120.0


@dataclass
class Member:
    """A worker. `pushes`: gradients that it has sent; `round`: of evaluation in which it last took part, 0 for none."""

    rank: int
    heard: float
    pushes: int = 0
    round: int = 0
    overdue: bool = False


@dataclass
class Ledger:
    """What was trained since the newest commit, and what no commit forgets: staleness -> how often, updates."""

    progress: dict[str, Any] = field(default_factory=dict)
    loss: float = 0.0
    samples: int = 0
    counts: list[float] = field(default_factory=list)
    replaced: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    staleness: Counter[int] = field(default_factory=Counter)
    updates: int = 0
    updates_lost: int = 0
    dropped: int = 0
    epoch_replaced: int = 0

    def add(self, totals: list[float], num_counts: int) -> None:
        """Take the totals of a share: loss, samples, stop, replaced samples, counts, and what else there is."""
        loss, samples, _, replaced, *rest = totals
        self.loss += loss
        self.samples += int(samples)
        self.replaced += int(replaced)
        self.epoch_replaced += int(replaced)
        self.counts = [a + b for a, b in zip(self.counts or [0.0] * num_counts, rest[:num_counts], strict=True)]

    def spend(self, seconds: dict[str, float], wall_s: float) -> None:
        """Take the seconds of several workers, by phase, for `wall_s` seconds of the run."""
        total = sum(seconds.values())
        for phase, value in seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + (value * wall_s / total if total else 0.0)

    def of_next(self, progress: dict[str, Any], *, epoch_ended: bool) -> "Ledger":
        """What goes on behind a commit."""
        return Ledger(
            progress=progress,
            staleness=self.staleness,
            updates=self.updates,
            updates_lost=self.updates_lost,
            dropped=self.dropped,
            epoch_replaced=0 if epoch_ended else self.epoch_replaced,
        )

    @classmethod
    def at(cls, progress: dict[str, Any], *, updates_lost: int) -> "Ledger":
        """Of a run that begins, or goes on, with a commit, whoever made it. `updates_lost`: since then."""
        updates = progress.get("updates")
        return cls(
            progress=progress,
            staleness=Counter({int(steps): times for steps, times in progress.get("staleness", {}).items()}),
            updates=progress.get("steps", 0) if updates is None else updates,
            updates_lost=progress.get("updates_lost", 0) + updates_lost,
            epoch_replaced=progress.get("epoch_replaced", 0),
        )

    @property
    def steps(self) -> int:
        """Of the run, up to the newest commit."""
        return int(self.progress.get("steps", 0))

    def to_json(self) -> dict[str, Any]:
        """A copy: it may be written while training goes on."""
        staleness = {str(steps): times for steps, times in self.staleness.items()}
        return dict(self.__dict__) | {"staleness": staleness, "seconds": dict(self.seconds)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Ledger":
        staleness = Counter({int(steps): times for steps, times in values["staleness"].items()})
        return cls(**(values | {"staleness": staleness}))
