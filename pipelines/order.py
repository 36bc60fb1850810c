"""Which sample is read when, and by whom: arithmetic only, known everywhere without communication.

`order(seed, epoch, num_samples)` is a permutation. Step t of an epoch consumes positions
[t * global_batch, (t + 1) * global_batch) of it (the last step of an epoch may be smaller), and each rank takes
a contiguous share of them. So where a run stands in its data is (epoch, step, seed), resuming in
mid-epoch costs one seek, and nothing depends on how many workers, actors or blocks there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.randomness import mix, philox, words

_BLOCK = 2**15  # samples whose keys are made at once: what Philox works on stays in the processor's cache


@lru_cache(maxsize=4)
def order(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    """The permutation of one epoch: (num_samples,) sample indices, read-only.

    Samples are sorted by a 64-bit Philox key each, so the order is the same for ever on every machine and
    library version (numpy's own `permutation` promises no stable stream).
    """
    return _permutation(seed, epoch, num_samples)


def _permutation(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    keys = np.empty(num_samples, np.uint64)
    for start in range(0, num_samples, _BLOCK):
        numbers = np.arange(start, min(start + _BLOCK, num_samples), dtype=np.uint64)
        counter = np.zeros((len(numbers), 4), np.uint64)
        counter[:, 0] = numbers
        counter[:, 2] = epoch
        bits = philox(counter, words(mix("order", seed)))
        keys[start : start + _BLOCK] = (bits[:, 0] << np.uint64(32)) | bits[:, 1]
    permutation = np.argsort(keys, kind="stable")
    permutation.flags.writeable = False
    return permutation


def windowed_order(seed: int, epoch: int, shard_sizes: Sequence[int], window: int) -> NDArray[np.int64]:
    """The permutation of one epoch for storage that is read best in long runs: (sum of sizes,) rows, read-only.

    Shards are shuffled; then, of each `window` shards that follow each other in the shuffled order, the rows. So what
    is read at a time lies in at most `window` shards, and a window of all shards is a shuffle of everything. Rows count
    through the shards one after the other. How well it mixes: rows meet only rows of the same window.
    Raises: ValueError if `window` is below 1.
    """
    if window < 1:
        raise ValueError(f"window: got {window}, must be 1 or more. Give how many shards to mix at a time.")
    sizes = np.asarray(shard_sizes, np.int64)
    starts = np.cumsum(sizes) - sizes
    shards = _permutation(mix("shards", seed), epoch, len(sizes))
    mixed = []
    for number in range(-(-len(shards) // window)):
        members = shards[number * window : (number + 1) * window]
        rows = np.concatenate([np.arange(starts[shard], starts[shard] + sizes[shard]) for shard in members])
        mixed.append(rows[_permutation(mix("window", seed, number), epoch, len(rows))])
    permutation = np.concatenate(mixed) if mixed else np.empty(0, np.int64)
    permutation.flags.writeable = False
    return permutation


@dataclass(frozen=True, order=True)
class Position:
    """Where a run stands in its data: the next step to consume. With the seed it says all there is to say."""

    epoch: int
    step: int


@dataclass(frozen=True)
class Epoch:
    """How one pass over `num_samples` samples falls into steps of `global_batch`."""

    num_samples: int
    global_batch: int

    @property
    def num_steps(self) -> int:
        return -(-self.num_samples // self.global_batch)

    def positions(self, step: int) -> range:
        """The positions that all ranks together consume in a step."""
        start = step * self.global_batch
        return range(start, min(start + self.global_batch, self.num_samples))

    def share(self, step: int, rank: int, world_size: int) -> range:
        """The positions that one rank consumes in a step: contiguous, sizes differ by at most one.

        Lower ranks take the larger shares; in the last step of an epoch a share can be empty.
        """
        whole = self.positions(step)
        size, extra = divmod(len(whole), world_size)
        start = whole.start + rank * size + min(rank, extra)
        return range(start, start + size + (rank < extra))

    def largest_share(self, world_size: int) -> int:
        """The most samples that a rank consumes in a step."""
        return -(-min(self.global_batch, self.num_samples) // world_size)
