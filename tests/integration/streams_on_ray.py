"""Read streams in a Ray of their own, in several ways, and write what came as JSON. Run by test_streams.py."""

import json
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray._private.internal_api import node_stats

from orchestrator.config.load import load_experiment
from pipelines.loader import Batch, batches_from_blocks, batches_from_threads
from pipelines.order import Epoch, Position
from pipelines.produce import Recipe
from pipelines.sources import open_source
from pipelines.stages import Pool, Stream
from tests.processes import pipeline_actors, private_bytes

START = Position(0, 0)
STORE_BYTES = 200 * 2**20
PATIENCE_S = 120
CROP = "data.augment=[{random_crop: {padding: 1}}, horizontal_flip]"
Row = tuple[int, int, int, int]


def recipe(*overrides: str) -> Recipe:
    experiment = load_experiment(str(Path(__file__).parents[2] / "experiments" / "digits.yaml"), [CROP, *overrides])
    return Recipe(open_source("digits", "train"), experiment.data, 5, training=True, checksums=False)


def row(batch: Batch) -> Row:
    return batch.epoch, batch.positions.start, len(batch.positions), zlib.crc32(batch.images.tobytes())


def by_threads(made: Recipe, epochs: int, start: Position = START, *, threads: int) -> list[Row]:
    epoch = Epoch(len(made.source.listing), 64)
    return [row(batch) for batch in batches_from_threads(made, epoch, epochs, start, threads=threads, ahead=4)]


def stream(
    made: Recipe, actors: int | tuple[int, int], epochs: int, start: Position = START, *, cpus_per_actor: float = 0.2
) -> Stream:
    least, most = actors if isinstance(actors, tuple) else (actors, actors)
    side, channels = made.config.image_size, made.config.channels
    epoch = Epoch(len(made.source.listing), 64)
    return Stream(ray.put(made), epoch, epochs, start, (side, side, channels), Pool(least, most, cpus_per_actor))


def read(of: Stream, world_size: int, each: Callable[[Batch], None] = lambda _: None) -> list[Row]:
    """Read all ranks at once, as the workers of a group do."""
    dataset = of.dataset(world_size)
    dataset.context.execution_options.preserve_order = True
    shards = dataset.streaming_split(world_size, equal=True)
    rows: list[Row] = []

    def consume(rank: int) -> None:
        blocks: Iterator[Any] = iter(shards[rank].iter_batches(batch_size=None, batch_format="numpy"))
        for batch in batches_from_blocks(blocks, of.layout(world_size), rank):
            rows.append(row(batch))
            each(batch)

    with ThreadPoolExecutor(world_size) as pool:
        list(pool.map(consume, range(world_size)))
    return sorted(rows)


def kill_an_actor_at(count: int) -> Callable[[Batch], None]:
    """Kills a process of the pipeline by SIGKILL when the batch of that number has come."""
    seen = []

    def each(batch: Batch) -> None:
        seen.append(batch.step)
        if len(seen) == count:
            os.kill(pipeline_actors()[0], signal.SIGKILL)

    return each


def grow_and_shrink(sizes: list[int]) -> Callable[[Batch], None]:
    """Waits after the first batch for more actors than one, and before the last for fewer than there were."""

    def each(batch: Batch) -> None:
        sizes.append(len(pipeline_actors()))
        if (batch.epoch, batch.step) == (0, 0):
            wait_until(lambda: len(pipeline_actors()) > 1)
        if (batch.epoch, batch.step) == (7, 20):
            most = max(sizes)
            wait_until(lambda: len(pipeline_actors()) < most)

    return each


class Footprint:
    """What memory a stream takes at each of its batches; pauses once, until the pipeline has stopped by itself."""

    def __init__(self) -> None:
        self.store_bytes: list[int] = []
        self.spilled_bytes = 0
        self.private_bytes: list[tuple[int, dict[int, int]]] = []

    def each(self, batch: Batch) -> None:
        if (batch.epoch, batch.step) == (0, 2):
            wait_until(self._is_idle)
        self._measure()
        processes = [os.getpid(), *pipeline_actors()]
        self.private_bytes.append((batch.epoch, {process: private_bytes(process) for process in processes}))

    def _is_idle(self) -> bool:
        before = self._measure()
        time.sleep(1)
        return self._measure() == before

    def _measure(self) -> int:
        node = ray._private.worker.global_worker.node
        stats = node_stats(node.node_ip_address, node.node_manager_port, include_memory_info=False).store_stats
        self.store_bytes.append(stats.object_store_bytes_used)
        self.spilled_bytes = stats.spilled_bytes_total + stats.object_store_bytes_fallback
        return int(stats.cumulative_created_bytes)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not happen")
        time.sleep(0.05)


def main(folder: Path) -> None:
    ray.init(num_cpus=2, object_store_memory=STORE_BYTES, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    made = recipe()
    found = {"threads": by_threads(made, 2, threads=2), "1 thread": by_threads(made, 2, threads=1)}
    for actors in (1, 2, 4):
        found[f"{actors} actors"] = read(stream(made, actors, 2), 1)
    found["an actor killed"] = read(stream(made, 2, 2), 1, kill_an_actor_at(9))
    late = Position(1, 7)
    found["threads, late"] = by_threads(made, 2, late, threads=1)
    found["resumed late"] = read(stream(made, 2, 2, late), 1)
    shares = read(stream(made, 2, 1), 2)
    found["2 ranks"] = [(number, start, size, 0) for number, start, size, _ in shares]
    middle, sizes = recipe("data.image_size=64"), list[int]()
    found["threads, middle"] = by_threads(middle, 8, threads=2)
    found["1 to 4 actors"] = read(stream(middle, (1, 4), 8), 1, grow_and_shrink(sizes))
    large, footprint = recipe("data.image_size=224"), Footprint()
    found["large"] = read(stream(large, 2, 3), 1, footprint.each)
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    spilled = [str(path) for path in session.rglob("*spilled*") if path.is_dir() and any(path.iterdir())]
    outcome = {"rows": found, "spilled": spilled, "sizes": sizes, "footprint": vars(footprint)}
    (folder / "found.json").write_text(json.dumps(outcome))
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
