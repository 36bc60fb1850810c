"""What a server is told, and whom it tells."""

from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.parameter_server.ledger import Course
from orchestrator.parameter_server.optimizer import OptimizerRule
from orchestrator.parameter_server.rules import Rule


@dataclass(frozen=True)
class ServerSetup:
    """What a server is told. `folder`: where its snapshots are; `snapshot_every`: updates between two.

    `num_shards`: parts of the weights, of which the server itself has the first (`follower.py`).

    The rest is of the experiment: `train.optimizer`, `train.clip_grad_norm`, `train.ema_decay`, `strategy.compensate`.
    """

    rule: Rule
    course: Course
    optimizer: OptimizerRule
    folder: str
    snapshot_every: int = 100
    clip_grad_norm: float = 0.0
    ema_decay: float = 0.0
    compensate: float = 0.0
    patience_s: float = 10.0
    num_shards: int = 1


class Ears(Protocol):
    """Whom the server tells what happens."""

    def event(self, name: str, message: str, **fields: Any) -> None: ...

    def trace(self, step: int, rows: dict[str, list[Any]]) -> None:
        """The rows of all ranks since the last commit, up to a step that is about to be committed."""

    def step_taken(self, step: int) -> None: ...
