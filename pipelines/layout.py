"""How a stream of steps is cut into chunks, and the chunks dealt to ranks: arithmetic only.

A chunk is what one task of the data pipeline makes: the shares of one rank in a few consecutive steps of an
epoch. Chunks are numbered step group by step group, within a group rank by rank, so dealing them round-robin
gives every rank its own; all have the same shape, so equal splitting truncates nothing.
"""

from dataclasses import dataclass
from functools import cached_property

from pipelines.order import Epoch, Position

MIN_CHUNK_ROWS = 128  # below that, a task's overhead outweighs its work (32-row blocks halved the throughput)
MAX_CHUNK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Chunk:
    """The shares of `rank` in steps [first_step, first_step + num_steps) of `epoch`."""

    epoch: int
    first_step: int
    num_steps: int
    rank: int


@dataclass(frozen=True)
class Layout:
    """All chunks from `start` to the end of the last of `num_epochs` epochs, for `world_size` ranks."""

    epoch: Epoch
    num_epochs: int
    start: Position
    world_size: int
    steps_per_chunk: int

    @property
    def share(self) -> int:
        """Samples that a chunk has room for in a step; smaller shares are padded."""
        return self.epoch.largest_share(self.world_size)

    @cached_property
    def num_chunks(self) -> int:
        if self.start.epoch >= self.num_epochs:
            return 0
        whole_epochs = self.num_epochs - self.start.epoch - 1
        return self.world_size * (self._first_groups + whole_epochs * self._groups)

    def chunk(self, index: int) -> Chunk:
        group, rank = divmod(index, self.world_size)
        if group < self._first_groups:
            epoch, first_step = self.start.epoch, self.start.step + group * self.steps_per_chunk
        else:
            later, group = divmod(group - self._first_groups, self._groups)
            epoch, first_step = self.start.epoch + 1 + later, group * self.steps_per_chunk
        num_steps = min(self.steps_per_chunk, self.epoch.num_steps - first_step)
        return Chunk(epoch, first_step, num_steps, rank)

    def chunk_of(self, epoch: int, step: int, rank: int) -> int:
        """The number of the chunk that holds a rank's share of a step; below 0 if it lies before `start`."""
        if epoch == self.start.epoch:
            group = (step - self.start.step) // self.steps_per_chunk
        else:
            group = self._first_groups + (epoch - self.start.epoch - 1) * self._groups + step // self.steps_per_chunk
        return group * self.world_size + rank

    def of_rank(self, rank: int) -> "range":
        """The indices of one rank's chunks, in the order of their steps."""
        return range(rank, self.num_chunks, self.world_size)

    @cached_property
    def _groups(self) -> int:
        return -(-self.epoch.num_steps // self.steps_per_chunk)

    @cached_property
    def _first_groups(self) -> int:
        return -(-(self.epoch.num_steps - self.start.step) // self.steps_per_chunk)


def steps_per_chunk(epoch: Epoch, world_size: int, sample_bytes: int) -> int:
    """Choose the fewest steps that make a chunk worth a task, within MAX_CHUNK_BYTES and the epoch."""
    share = epoch.largest_share(world_size)
    wanted = -(-MIN_CHUNK_ROWS // share)
    affordable = max(1, MAX_CHUNK_BYTES // (share * sample_bytes))
    return max(1, min(wanted, affordable, epoch.num_steps))
