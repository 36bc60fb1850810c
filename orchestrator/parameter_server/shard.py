"""One shard of a parameter server: a slice of the weights, changed by updates that are decided elsewhere.

All shards get the same updates in the same order, so that "version v" is the same on each (Li et al. 2014, OSDI, with
the order made explicit). Gradients come before it, in any order, and wait: they are parked.

Does not decide which gradients make an update, at what rate, nor when to save (snapshots.py writes what
`copy_for_saving` gives). Not thread-safe: every method is called under the caller's lock.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from orchestrator.errors import CheckpointError, RunError
from orchestrator.parameter_server.optimizer import BLOCK, FloatArray, Optimizer, OptimizerState, blocks
from orchestrator.parameter_server.snapshots import ShardState, Snapshot

Key = tuple[int, int]  # a gradient's: the worker's session, the number of its push


@dataclass(frozen=True)
class Part:
    """A gradient's part in an update. `weight` >= 0, such as its samples; `scale`: for its staleness, 1 for none."""

    key: Key
    weight: float
    scale: float


@dataclass(frozen=True)
class Update:
    """What makes `version` out of the one before: a step of rate `lr` along sum(scale * weight * g) / sum(weight).

    Without a part of weight > 0 nothing changes but the version. `dropped`: gradients that are used by none.
    `snapshot`: every shard saves this version.
    """

    version: int
    parts: tuple[Part, ...]
    lr: float
    dropped: tuple[Key, ...]
    snapshot: bool = False


_REMEMBERED = 2  # versions that a worker was given


class MissingUpdate(RunError):
    """Updates between the shard's version and the one that it was given are missing."""


class MissingGradient(RunError):
    """An update needs gradients that the shard was not given."""


class _Parked(NamedTuple):
    gradient: FloatArray
    then: FloatArray | None  # the weights that its worker was given before, if delay is compensated


class Shard:
    """The weights of shard `index` of `count`, and what makes each version of them from the one before.

    `weights`, flat float32, are copied; `optimizer` is for as many. All gradients and states are of their shape.
    `clip_grad_norm`: the largest 2-norm of an update's gradient, as torch.nn.utils.clip_grad_norm_ clips; 0 is off.
    `ema_decay`: of an average of the weights, average <- decay * average + (1 - decay) * weights after each update that
        has a part; it begins with the weights and is not corrected for that; 0 is off.
    `compensate`: lambda of DC-ASGD, g <- g + lambda * g * g * (w_now - w_then), where w_then is what the gradient's
        worker was given by `pulled` last before the gradient was parked; 0 is off and copies nothing. g is the loss's
        gradient, without weight decay. Zheng et al. 2017 (arXiv:1609.08326), eq. 10 and Algorithm 2.
    Raises: ValueError for clip_grad_norm with several shards, none of which sees the norm.
    """

    def __init__(
        self,
        weights: FloatArray,
        optimizer: Optimizer,
        *,
        index: int = 0,
        count: int = 1,
        clip_grad_norm: float = 0.0,
        ema_decay: float = 0.0,
        compensate: float = 0.0,
    ) -> None:
        if clip_grad_norm > 0.0 and count > 1:
            raise ValueError(
                f"train.clip_grad_norm: got {clip_grad_norm:g} with {count} shards of weights, must be 0, because no "
                "shard sees the norm of the whole gradient. Use one shard, or do not clip."
            )
        self.index, self.count, self.version = index, count, 0
        self._clip_grad_norm, self._ema_decay, self._compensate = clip_grad_norm, ema_decay, compensate
        self._weights = np.array(weights, np.float32)
        self._average = self._weights.copy() if ema_decay > 0.0 else None
        self._optimizer = optimizer
        self._blocks = blocks(0, self._weights.size)
        self._scratch = np.empty(min(self._weights.size, BLOCK), np.float32)
        self._sum: FloatArray | None = None
        self._parked: dict[Key, _Parked | None] = {}
        self._settled_early: set[Key] = set()
        self._given: dict[int, dict[int, FloatArray]] = {}

    @property
    def weights(self) -> FloatArray:
        """Read-only, and not a copy: the next update changes it."""
        return _read_only(self._weights)

    @property
    def average(self) -> FloatArray | None:
        """Read-only, and not a copy; None without ema_decay."""
        return None if self._average is None else _read_only(self._average)

    @property
    def parked(self) -> frozenset[Key]:
        """The keys of what waits for an update."""
        return frozenset(self._parked)

    def pulled(self, worker: int) -> FloatArray:
        """Give a worker (the session of its keys) the weights, read-only.

        With `compensate` it is a copy that is remembered, one for all workers that are given the same version, with the
        one before: a worker may be given weights while it computes with those. Else it is `weights`, which the next
        update changes.
        """
        if not self._compensate:
            return self.weights
        same = (given[self.version] for given in self._given.values() if self.version in given)
        copy = next(same, None)
        if copy is None:
            copy = _read_only(self._weights.copy())
        given = self._given.setdefault(worker, {})
        given[self.version] = copy
        for version in sorted(given)[:-_REMEMBERED]:
            del given[version]
        return copy

    def forget(self, worker: int) -> None:
        """Forget what a worker was given. What it has parked stays until an update uses or drops it."""
        self._given.pop(worker, None)

    def park(self, key: Key, gradient: FloatArray | None, *, base: int | None = None) -> None:
        """Keep a gradient, not a copy, until an update uses or drops it; None for a part of weight 0.

        `base`: the version of the weights that it was computed with; None: those that its worker was given last.
        What an update has dropped before it came is not kept. A key that is there already is replaced.
        Raises: ValueError for another shape or type than that of the weights, or if delay is to be compensated and the
            worker was never given weights.
        """
        if key in self._settled_early:
            self._settled_early.remove(key)
            return
        if gradient is None:
            self._parked[key] = None
            return
        if gradient.shape != self._weights.shape or gradient.dtype != np.float32:
            raise ValueError(
                f"gradient {key}: got {gradient.dtype} {gradient.shape}, must be float32 {self._weights.shape}, as the "
                f"weights of shard {self.index} of {self.count}. Send the shard its own slice."
            )
        if self._compensate and key[0] not in self._given:
            raise ValueError(
                f"gradient {key}: its delay cannot be compensated, because session {key[0]} was not given weights or "
                f"was forgotten; given: {sorted(self._given)}. Pull before pushing."
            )
        then = None
        if self._compensate:
            given = self._given[key[0]]
            then = given.get(max(given) if base is None else base, given[min(given)])
        self._parked[key] = _Parked(gradient, then)

    def keep(self, key: Key) -> None:
        """Copy a gradient that waits: the memory that it lies in is about to be written to."""
        if parked := self._parked.get(key):
            self._parked[key] = parked._replace(gradient=parked.gradient.copy())

    def discard(self, key: Key) -> None:
        """Forget a gradient that no update will use."""
        self._parked.pop(key, None)

    def advance(self, updates: Iterable[Update]) -> int:
        """Apply updates in order, but for those already applied; returns the version.

        Numbers that are not finite pass through, as in torch.
        Raises: MissingUpdate if versions are left out, MissingGradient if a part of weight > 0 was not parked; the
            shard then has the last version before that, and may go on when it has what is missing.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            for update in updates:
                if update.version > self.version:
                    self._check(update)
                    self._apply(update)
        return self.version

    def state(self) -> ShardState:
        """Not copies: the next update changes them."""
        return {
            "version": self.version,
            "weights": self._weights,
            "optimizer": self._optimizer.state(),
            "average": self._average,
        }

    def load(self, state: ShardState) -> None:
        """Go on from a copy of a state; what was parked or given is forgotten.

        Raises: CheckpointError if it is of another number of weights or another optimizer, or lacks the average.
        """
        average = state["average"] if self._ema_decay else None
        saved, needed = _shapes(state["weights"], average), _shapes(self._weights, self._average)
        if saved != needed:
            raise CheckpointError(
                f"shard {self.index} of {self.count}: the snapshot of version {state['version']} does not fit: got "
                f"{saved}, must be {needed}. Go on with the model, number of shards and train.ema_decay that the run "
                "began with."
            )
        self._optimizer.load(state["optimizer"])
        self._weights[:] = state["weights"]
        if self._average is not None and average is not None:
            self._average[:] = average
        self.version = state["version"]
        self._parked, self._settled_early, self._given = {}, set(), {}

    def copy_for_saving(self, extra: dict[str, Any] | None = None) -> Snapshot:
        """Copy what `save` writes, which may then go on in another thread while updates do."""
        optimizer: OptimizerState = {
            name: value if isinstance(value, int) else value.copy() for name, value in self._optimizer.state().items()
        }
        state: ShardState = {
            "version": self.version,
            "weights": self._weights.copy(),
            "optimizer": optimizer,
            "average": None if self._average is None else self._average.copy(),
        }
        return Snapshot(self.index, self.count, state, extra or {})

    def _check(self, update: Update) -> None:
        where = f"shard {self.index} of {self.count}, version {self.version}"
        if update.version != self.version + 1:
            raise MissingUpdate(
                f"{where}: got the update to version {update.version}, must be {self.version + 1}. Send those between.",
                version=self.version,
            )
        missing = [part.key for part in update.parts if part.weight > 0 and self._parked.get(part.key) is None]
        if missing:
            raise MissingGradient(
                f"{where}: the update to version {update.version} needs gradients that were not parked here: "
                f"{missing}. Send them, or drop them for all shards.",
                keys=missing,
            )

    def _apply(self, update: Update) -> None:
        parts = [part for part in update.parts if part.weight > 0]
        if parts:
            self._optimizer.step(self._weights, self._clipped(self._combined(parts)), float(update.lr))
            self._follow()
        for key in (*(part.key for part in update.parts), *update.dropped):
            if key in self._parked:
                del self._parked[key]
            else:
                self._settled_early.add(key)
        self.version = update.version

    def _combined(self, parts: Sequence[Part]) -> FloatArray:
        """sum(scale * weight * g) / sum(weight); of a single part scale * g, for scale 1 the gradient itself."""
        parked = [waiting for part in parts if (waiting := self._parked[part.key]) is not None]
        if len(parts) == 1:
            if parts[0].scale == 1.0 and not self._compensate:
                return parked[0].gradient
            factors, divisor = [float(parts[0].scale)], 1.0
        else:
            # Python's floats: a float64 of NumPy, a float too to the type checker, would make the arrays' type float64.
            factors = [float(part.scale * part.weight) for part in parts]
            divisor = float(sum(part.weight for part in parts))
        result = self._whole()
        for block in self._blocks:
            total, scratch = result[block], self._scratch[: block.stop - block.start]
            total[:] = 0.0
            for waiting, factor in zip(parked, factors, strict=True):
                total += np.multiply(self._compensated(waiting, block, scratch), factor, out=scratch)
            if divisor != 1.0:
                total /= divisor
        return result

    def _compensated(self, parked: _Parked, block: slice, scratch: FloatArray) -> FloatArray:
        g = parked.gradient[block]
        if parked.then is None:
            return g
        np.subtract(self._weights[block], parked.then[block], out=scratch)
        scratch *= g
        scratch *= g
        scratch *= self._compensate
        scratch += g
        return scratch

    def _clipped(self, gradient: FloatArray) -> FloatArray:
        if not self._clip_grad_norm:
            return gradient
        # Not a dot product of BLAS, whose threads would make the last bit depend on the machine.
        squares = (np.square(gradient[block], out=self._scratch[: block.stop - block.start]) for block in self._blocks)
        norm = math.sqrt(sum(float(square.sum()) for square in squares))
        coefficient = self._clip_grad_norm / (norm + 1e-6)
        return gradient if coefficient >= 1.0 else np.multiply(gradient, coefficient, out=self._whole())

    def _follow(self) -> None:
        if self._average is None:
            return
        for block in self._blocks:
            scratch = self._scratch[: block.stop - block.start]
            change = np.subtract(self._weights[block], self._average[block], out=scratch)
            change *= 1.0 - self._ema_decay
            self._average[block] += change

    def _whole(self) -> FloatArray:
        """A buffer of the size of the weights, made when first needed."""
        if self._sum is None:
            self._sum = np.empty_like(self._weights)
        return self._sum


def _read_only(array: FloatArray) -> FloatArray:
    view = array.view()
    view.flags.writeable = False
    return view


def _shapes(weights: FloatArray, average: FloatArray | None) -> dict[str, tuple[int, ...]]:
    return {"weights": weights.shape} if average is None else {"weights": weights.shape, "average": average.shape}
