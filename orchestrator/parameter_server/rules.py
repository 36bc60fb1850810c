"""When gradients make an update, and who may begin what: the one thing in which async, stale and backup differ.

All sides of a rule are pure. What a rule looks at is a `View`: how far the epoch is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Contribution:
    """A gradient that is here. `share`: of what; `base`: the version of the weights that it was computed with.

    `samples`: how many it is the mean of, 0 where it could not be computed.
    """

    worker: int
    number: int
    share: int
    base: int
    samples: int
    lr: float

    @property
    def key(self) -> tuple[int, int]:
        """By which the shards know the gradient."""
        return self.worker, self.number


@dataclass(frozen=True)
class View:
    """How far an epoch is: updates of the run, shares done, shares of the epoch, up to where they are handed out, and
    how many workers there are now.
    """

    version: int
    num_done: int
    num: int
    fence: int
    num_workers: int


Arrived = Mapping[int, Contribution]
"""Share -> its gradient, in the order in which they came, of those that no update has used yet."""


class Rule(Protocol):
    """`shares_a_step`: shares that make up the global batch, and `one_each`: whether a worker holds one at a time."""

    @property
    def shares_a_step(self) -> int: ...

    @property
    def one_each(self) -> bool: ...

    def admits(self, worker: int, share: int, arrived: Arrived, view: View) -> bool:
        """Whether this worker may begin this share, with the weights as they are now."""

    def is_late(self, contribution: Contribution, view: View) -> bool:
        """Whether a gradient comes too late to be used; its samples are given out again."""

    def ready(self, arrived: Arrived, view: View) -> tuple[int, ...]:
        """The shares whose gradients make the next update; empty: it is not time."""


@dataclass(frozen=True)
class Each:
    """Asynchronous: each gradient is an update, as it comes.

    Source: Dean et al. 2012, "Large Scale Distributed Deep Networks", section 4.1 (Downpour SGD).
    """

    shares_a_step: int
    one_each: bool = False

    def admits(self, worker: int, share: int, arrived: Arrived, view: View) -> bool:
        del worker, share, arrived, view
        return True

    def is_late(self, contribution: Contribution, view: View) -> bool:
        del contribution, view
        return False

    def ready(self, arrived: Arrived, view: View) -> tuple[int, ...]:
        del view
        return tuple(arrived)[:1]


@dataclass(frozen=True)
class WithinBound:
    """Bounded staleness: updates are those of `sync`, in its order, and nobody computes for a step that lies more than
    `staleness` updates ahead of the weights.

    As in stale synchronous parallel, what is read misses no update but of the last `staleness` steps; unlike there,
    shares of a step go to whoever is free, so that a slow worker does less and not everybody as little, and a step is
    seen when it is complete, not in parts. With 0 every update is that of `sync`.
    Source: Ho et al. 2013, "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server".
    """

    shares_a_step: int
    staleness: int
    one_each: bool = False

    def admits(self, worker: int, share: int, arrived: Arrived, view: View) -> bool:
        del worker, arrived
        return share // self.shares_a_step <= view.num_done // self.shares_a_step + self.staleness

    def is_late(self, contribution: Contribution, view: View) -> bool:
        del contribution, view
        return False

    def ready(self, arrived: Arrived, view: View) -> tuple[int, ...]:
        first = view.num_done
        step = range(first, min(first + self.shares_a_step, view.num))
        return tuple(step) if all(share in arrived for share in step) else ()


@dataclass(frozen=True)
class First:
    """Backup workers: the first `shares_a_step` gradients of the newest weights make an update, later ones are dropped.

    Unlike in the paper, whose samples are drawn at random, those of a dropped gradient are given out again.
    Source: Chen et al. 2016 (arXiv:1604.00981), section 3.
    """

    shares_a_step: int
    one_each: bool = True

    def admits(self, worker: int, share: int, arrived: Arrived, view: View) -> bool:
        del share
        quota = -(-self.shares_a_step // max(1, view.num_workers))  # more than one while workers are missing
        return sum(each.worker == worker for each in arrived.values()) < quota

    def is_late(self, contribution: Contribution, view: View) -> bool:
        return contribution.base != view.version

    def ready(self, arrived: Arrived, view: View) -> tuple[int, ...]:
        wanted = min(self.shares_a_step, view.fence - view.num_done)
        return tuple(arrived)[:wanted] if 0 < wanted <= len(arrived) else ()
