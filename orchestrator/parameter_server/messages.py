"""What is said between workers and server: plain data, quick to pickle."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.parameter_server.shard import Update

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Share:
    """Compute the gradient of these positions of an epoch. `number`: of the share in it; `step`: of the run, from 0."""

    epoch: int
    number: int
    step: int


@dataclass(frozen=True)
class Evaluation:
    """Evaluate, all together; `round` tells one time from another."""

    round: int


@dataclass(frozen=True)
class Lead:
    """Commit in mid-epoch, alone."""


@dataclass(frozen=True)
class Wait:
    """Nothing to do now: ask again."""


@dataclass(frozen=True)
class End:
    """Nothing will be left to do. `status`: finished, stopped, or failed because of another worker's `error`."""

    status: str
    error: str | None = None


Turn = Share | Evaluation | Lead | Wait | End


@dataclass(frozen=True)
class Window:
    """The totals of one global batch's worth of shares, as the training loop's `Known`."""

    values: list[float]
    epoch: int
    step: int
    epoch_replaced: int
    wall_s: float


@dataclass(frozen=True)
class Welcome:
    """`session`: who the worker is from now on. `wants_state`: it must `offer` the state that training begins with.

    `shared`: whether numbers travel in the memory that was offered. `era`: of all shards, which began with the version
    `began_at`.
    """

    session: int
    incarnation: str
    version: int
    wants_state: bool
    shared: bool
    era: int = 0
    began_at: int = 0


@dataclass(frozen=True)
class Push:
    """A gradient on its way, of the mean loss of `samples` samples.

    `known`: the version up to which the updates are known to this worker's other shards.
    `base`: the version of the weights it was computed with. `gradient`: as the transport has it, None if it was not
    finite. `totals`, `buffers` (batch statistics), `seconds` by phase of the worker's last step, `rows` of the trace.
    """

    share: Share
    base: int
    samples: int
    lr: float
    gradient: Any
    totals: list[float]
    buffers: Floats | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    rows: dict[str, list[Any]] | None = None
    known: int = 0


@dataclass(frozen=True)
class Reply:
    """`weights`: as the transport has them, of `version`. `turn`: what to do after what the worker has in store.

    `updates`: for the other shards, those after what they are known to have; `step`: up to where training is.
    """

    version: int
    weights: Any
    turn: Turn
    window: Window | None = None
    updates: tuple[Update, ...] = ()
    step: int = 0


@dataclass
class State:
    """All that is trained, flat.

    `weights`, `average` (None without), `optimizer` by the names of torch, `buffers` (None without), `progress` as in a
    commit. `version` and `updates`: as in `Reply`.
    """

    weights: Floats
    optimizer: dict[str, Any]
    average: Floats | None
    buffers: Floats | None
    progress: dict[str, Any]
    version: int = 0
    updates: tuple[Update, ...] = ()


@dataclass(frozen=True)
class Refused:
    """The server does not know what was named: a `session`, so join again; a `round` of evaluation, so leave it."""

    what: str
