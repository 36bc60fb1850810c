"""A round of evaluation, shared out like training: shares to whoever is free, and the sums of what they found."""

import numpy as np
from numpy.typing import NDArray

from orchestrator.parameter_server.work_queue import WorkQueue


class EvaluationRound:
    """The shares 0 to num - 1 of the held-out samples, and the sums over them.

    What a worker found is known when it says so; a worker that leaves before has its shares done again, all of them,
    by a round that begins anew: the others may have ended theirs.
    """

    def __init__(self, number: int, num_shares: int) -> None:
        self.number = number
        self._queue = WorkQueue(num_shares)
        self._taken: dict[int, list[int]] = {}
        self._said: dict[int, NDArray[np.float64]] = {}

    def lease(self, worker: int, now: float) -> int | None:
        share = self._queue.lease(worker, now)
        if share is not None:
            self._queue.arrive(share)
            self._taken.setdefault(worker, []).append(share)
        return share

    def say(self, worker: int, values: NDArray[np.float64]) -> None:
        """Note the sums of all shares that a worker took."""
        self._said[worker] = values
        for share in self._taken.pop(worker, []):
            self._queue.finish(share)

    @property
    def complete(self) -> bool:
        return self._queue.settled

    def sums(self) -> NDArray[np.float64]:
        """Of all workers, in the order of their numbers: the same for everyone who asks."""
        return np.sum([self._said[worker] for worker in sorted(self._said)], axis=0)

    def is_broken_without(self, worker: int) -> bool:
        """Whether a worker that leaves takes what nobody else knows."""
        return worker in self._taken
