"""The Ray Data stages: chunk numbers -> read, decode, augment -> blocks of uint8 pixels. The only list of them.

One operator does all of it on a pool of actors, fed by tasks that make the numbers; nothing but numbers and
finished blocks passes through the object store. A block is one row, one chunk; `target_max_block_size` of one
byte makes each leave its task as soon as it is made, neither merged with the next nor cut. Every chunk is a
fresh array: an array reused between yields would be overwritten while Ray still holds it.

Actors go to nodes with the label of FEEDERS first, to any other when those are full or there are none. Each works in
one thread. The tasks that make numbers claim no CPU, or nodes that are full of actors would leave them none.

Order: `preserve_order` keeps blocks in the order of their numbers and deals them round-robin to the ranks of
`streaming_split` (Ray 2.60, OutputSplitter: with preserve_order it ignores locality; the loader checks the
address of every chunk all the same). Train ignores a dataset's own execution options, hence `OrderedSplit`.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset, ExecutionOptions
from ray.data.block import BlockAccessor, BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.train import DataConfig

from pipelines.feed import blocks_of
from pipelines.layout import Layout, steps_per_chunk
from pipelines.order import Epoch, Position
from pipelines.produce import Recipe
from pipelines.quarantine import Replaced

FEEDERS = {"convoy/role": "data"}  # the label of nodes that decode and augment for those that train; docs/clusters.md
ANYWHERE: list[dict[str, Any]] = [{"label_selector": {}}]
MAX_CHUNKS_PER_TASK = 8  # between two tasks the executor leaves an actor idle for about 100 ms


@dataclass(frozen=True)
class Pool:
    """The actors that run a stream: at least and at most how many, and the CPUs that each holds.

    Between the two Ray Data adds actors while they are busy and there are CPUs, and takes away idle ones.
    """

    min_actors: int
    max_actors: int
    cpus_per_actor: float


@dataclass(frozen=True)
class Stream:
    """All batches of one purpose, from a position to the end of the run.

    `recipe` is a reference to a `Recipe` in the object store, so that every actor shares one copy.
    """

    recipe: "ray.ObjectRef[Recipe]"
    epoch: Epoch
    num_epochs: int
    start: Position
    sample_shape: tuple[int, int, int]
    pool: Pool

    def layout(self, world_size: int) -> Layout:
        sample_bytes = int(np.prod(self.sample_shape))
        return Layout(
            self.epoch,
            self.num_epochs,
            self.start,
            world_size,
            steps_per_chunk(self.epoch, world_size, sample_bytes),
        )

    def dataset(self, world_size: int) -> Dataset:
        """The stream as a dataset of one row a chunk, in the order of the layout."""
        layout = self.layout(world_size)
        dataset = ray.data.read_datasource(
            _ChunkNumbers(layout.num_chunks, _chunks_per_task(layout.num_chunks, self.pool.max_actors)),
            num_cpus=0,
            override_num_blocks=1,
        ).map_batches(
            _Produce,
            fn_constructor_args=(self.recipe, layout, self.sample_shape),
            batch_size=1,
            batch_format="numpy",
            num_cpus=self.pool.cpus_per_actor,
            compute=ActorPoolStrategy(min_size=self.pool.min_actors, max_size=self.pool.max_actors),
            label_selector=FEEDERS,
            fallback_strategy=ANYWHERE,
        )
        dataset.context.target_max_block_size = 1
        return dataset


class OrderedSplit(DataConfig):
    """Splits streams over the workers of a group, in order, for however many workers there are.

    The `datasets` of the trainer are callables that return a `Stream`: Ray calls them anew at each start of
    the group, which is where a stream's start comes from, and `configure` knows the group's size.
    """

    def __init__(self) -> None:
        super().__init__(execution_options=ExecutionOptions(preserve_order=True))

    def configure(self, datasets: dict[str, Stream], world_size: int, *args: Any, **kwargs: Any) -> Any:
        built = {name: stream.dataset(world_size) for name, stream in datasets.items()}
        return super().configure(built, world_size, *args, **kwargs)


def references(stream: Stream) -> Iterator[Any]:
    """References to the stream's blocks, for one rank, in order, as fast as they are taken (`feed.py`)."""
    dataset = stream.dataset(world_size=1)
    dataset.context.execution_options.preserve_order = True
    return blocks_of(dataset.iter_internal_ref_bundles())


def arrays_of(block: Any) -> dict[str, np.ndarray]:
    """The arrays of the only chunk of a block."""
    arrays = BlockAccessor.for_block(block).to_numpy()
    return {name: values[0] for name, values in arrays.items()}


class _ChunkNumbers(Datasource):
    """The numbers 0..n-1 in blocks of `chunks_per_task`, each of which becomes a task of an actor.

    One read task yields them all and stays for the whole run. With a task a block, the process that runs them was
    ended whenever it had been idle for a second, and training waited 1.5 s for the next one to start.
    """

    def __init__(self, num_chunks: int, chunks_per_task: int) -> None:
        super().__init__()
        self._num_chunks = num_chunks
        self._chunks_per_task = chunks_per_task

    def estimate_inmemory_data_size(self) -> int:
        return 8 * self._num_chunks

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        num_chunks, step = self._num_chunks, self._chunks_per_task

        def read() -> Iterable[pa.Table]:
            for start in range(0, num_chunks, step):
                yield pa.table({"chunk": np.arange(start, min(start + step, num_chunks))})

        size = self.estimate_inmemory_data_size()
        return [ReadTask(read, BlockMetadata(num_rows=num_chunks, size_bytes=size, input_files=None, exec_stats=None))]


class _Produce:
    """The actor: makes the chunks that it is given the numbers of."""

    def __init__(self, recipe: "ray.ObjectRef[Recipe]", layout: Layout, sample_shape: tuple[int, int, int]) -> None:
        cv2.setNumThreads(1)  # the plan gave each actor its share of the CPUs; OpenCV would take them all
        self._fill: Callable[[int], dict[str, np.ndarray]] = ChunkMaker(ray.get(recipe), layout, sample_shape)

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        for index in batch["chunk"]:
            yield {name: values[np.newaxis] for name, values in self._fill(int(index)).items()}


@dataclass(frozen=True)
class ChunkMaker:
    """Makes chunk number i as arrays: what an actor yields and a loader takes apart.

    Shapes: address (4,) epoch, first step, steps, rank; images (steps_per_chunk, share, H, W, C) uint8;
    labels (steps_per_chunk, share, ...); keys and, if the recipe has checksums, crc32 (steps_per_chunk, share). Padding
    is zero. replaced (): the samples that could not be read and what replaces them, as JSON.
    """

    recipe: Recipe
    layout: Layout
    sample_shape: tuple[int, int, int]

    def __call__(self, index: int) -> dict[str, np.ndarray]:
        layout = self.layout
        chunk = layout.chunk(index)
        rows = (layout.steps_per_chunk, layout.share)
        arrays = {
            "address": np.array([chunk.epoch, chunk.first_step, chunk.num_steps, chunk.rank]),
            "images": np.empty((*rows, *self.sample_shape), np.uint8),
            "labels": self.recipe.source.listing.target.zeros(rows),
            "keys": np.zeros(rows, np.uint64),
        }
        if self.recipe.checksums:
            arrays["crc32"] = np.zeros(rows, np.uint32)
        arrays["images"][chunk.num_steps :] = 0
        replaced: list[Replaced] = []
        for i in range(chunk.num_steps):
            positions = layout.epoch.share(chunk.first_step + i, chunk.rank, layout.world_size)
            samples = self.recipe.produce(chunk.epoch, positions, into=arrays["images"][i, : len(positions)])
            arrays["labels"][i, : len(positions)] = samples.labels
            arrays["keys"][i, : len(positions)] = samples.keys
            replaced += samples.replaced
            arrays["images"][i, len(positions) :] = 0
            if samples.crc32 is not None:
                arrays["crc32"][i, : len(positions)] = samples.crc32
        arrays["replaced"] = np.array(json.dumps([astuple(each) for each in replaced]))
        return arrays


def _chunks_per_task(num_chunks: int, actors: int) -> int:
    """As many as keep every actor busy: up to MAX_CHUNKS_PER_TASK, but at least four tasks an actor."""
    return max(1, min(MAX_CHUNKS_PER_TASK, num_chunks // (4 * actors)))
