"""Read streams in a Ray of their own, in several ways, and print what came as JSON. Run by test_streams.py."""

import json
import os
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray

from orchestrator.config.load import load_experiment
from pipelines.loader import Batch, batches_from_blocks, batches_from_threads
from pipelines.order import Epoch, Position
from pipelines.produce import Recipe
from pipelines.sources import open_source
from pipelines.stages import Pool, Stream

START = Position(0, 0)
STORE_BYTES = 200 * 2**20
CROP = "data.augment=[{random_crop: {padding: 1}}, horizontal_flip]"
Row = tuple[int, int, int, int]


def recipe(*overrides: str) -> Recipe:
    experiment = load_experiment(str(Path(__file__).parents[2] / "experiments" / "digits.yaml"), [CROP, *overrides])
    return Recipe(open_source("digits", "train"), experiment.data, 5, training=True, checksums=False)


def row(batch: Batch) -> Row:
    return batch.epoch, batch.positions.start, len(batch.positions), zlib.crc32(batch.images.tobytes())


def stream(made: Recipe, actors: int, epochs: int, start: Position = START) -> Stream:
    side, channels = made.config.image_size, made.config.channels
    epoch = Epoch(len(made.source.listing), 64)
    return Stream(ray.put(made), epoch, epochs, start, (side, side, channels), Pool(actors, 0.2))


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

    threads = [threading.Thread(target=consume, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(rows)


def kill_an_actor_at(count: int) -> Callable[[Batch], None]:
    """Kills a process of the pipeline by SIGKILL when the batch of that number has come."""
    seen = []

    def each(batch: Batch) -> None:
        seen.append(batch.step)
        if len(seen) == count:
            victim = next(p for p in Path("/proc").iterdir() if p.name.isdigit() and _is_pipeline_actor(p))
            os.kill(int(victim.name), signal.SIGKILL)

    return each


def _is_pipeline_actor(process: Path) -> bool:
    try:
        return b"MapWorker" in (process / "cmdline").read_bytes()
    except OSError:
        return False


def main(folder: Path) -> None:
    ray.init(num_cpus=2, object_store_memory=STORE_BYTES, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    made = recipe()
    epoch = Epoch(len(made.source.listing), 64)
    found = {"threads": [row(b) for b in batches_from_threads(made, epoch, 2, Position(0, 0), threads=2, ahead=4)]}
    for actors in (1, 2, 4):
        found[f"{actors} actors"] = read(stream(made, actors, 2), 1)
    found["an actor killed"] = read(stream(made, 2, 2), 1, kill_an_actor_at(9))
    late = Position(1, 7)
    found["threads, late"] = [row(b) for b in batches_from_threads(made, epoch, 2, late, threads=1, ahead=4)]
    found["resumed late"] = read(stream(made, 2, 2, late), 1)
    shares = read(stream(made, 2, 1), 2)
    found["2 ranks"] = [(number, start, size, 0) for number, start, size, _ in shares]
    large = recipe("data.image_size=224")
    found["large"] = read(stream(large, 2, 3), 1)
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    spilled = [str(path) for path in session.rglob("*spilled*") if path.is_dir() and any(path.iterdir())]
    (folder / "found.json").write_text(json.dumps({"rows": found, "spilled": spilled}))
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
