"""The worker's side of a pipeline: from blocks (Ray Data) or threads (no Ray) to batches in the order of steps.

Both ways yield the same batches. What arrives from Ray is checked against the arithmetic, so a block that was
lost, doubled or dealt to the wrong rank stops the run instead of training on it.
"""

import json
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.layout import Chunk, Layout
from pipelines.order import Epoch, Position
from pipelines.produce import Recipe, Samples
from pipelines.quarantine import Replaced
from pipelines.targets import Labels

Item = TypeVar("Item")


@dataclass(frozen=True)
class Batch:
    """One rank's share of one step.

    Shapes: images (n, H, W, C) uint8, labels (n, ...) as `targets.py` says, keys (n,) uint64, crc32 (n,) uint32
    or None; n may be 0.
    The arrays may be views of memory that others read too: they are not to be written to.
    """

    epoch: int
    step: int
    positions: range
    images: NDArray[np.uint8]
    labels: Labels
    keys: NDArray[np.uint64]
    crc32: NDArray[np.uint32] | None = None
    replaced: tuple[Replaced, ...] = ()


def begun(items: Iterator[Item]) -> Iterator[Item]:
    """Begin to fetch the first item now, in a thread, so that what makes it starts before it is asked for."""
    first: Future[Item | None] = Future()

    def fetch() -> None:
        try:
            first.set_result(next(items, None))
        except BaseException as error:  # raised again where the item is asked for
            first.set_exception(error)

    threading.Thread(target=fetch, name="pipeline-start", daemon=True).start()
    return _all(first, items)


def _all(first: "Future[Item | None]", items: Iterator[Item]) -> Iterator[Item]:
    item = first.result()
    if item is not None:
        yield item
        yield from items


class OutOfOrderError(RuntimeError):
    """A block of the data pipeline is not the one that comes next."""


def batches_from_blocks(blocks: Iterable[dict[str, NDArray[Any]]], layout: Layout, rank: int) -> Iterator[Batch]:
    """Take chunks apart into the batches of one rank, from `layout.start` on.

    `blocks` are those of `pipelines.stages`, one chunk each.
    Raises: OutOfOrderError if a chunk is not the next one of this rank, or one is missing at the end.
    """
    numbers = iter(layout.of_rank(rank))
    for block in blocks:
        for row in range(len(block["address"])):
            arrays = {name: values[row] for name, values in block.items()}
            _check_address(arrays["address"], layout, next(numbers, None))
            yield from batches_of_chunk(arrays, layout)
    missing = next(numbers, None)
    if missing is not None:
        raise OutOfOrderError(f"the data pipeline ended before {layout.chunk(missing)} of {layout.num_chunks} chunks.")


def batches_from_threads(
    recipe: Recipe, epoch: Epoch, num_epochs: int, start: Position, *, threads: int, ahead: int
) -> Iterator[Batch]:
    """Make the batches of the only rank in threads of this process, `ahead` of them before they are asked for."""
    with ThreadPoolExecutor(threads, thread_name_prefix="pipeline") as pool:
        pending: deque[tuple[Position, range, Future[Samples]]] = deque()
        try:
            for position in _positions(epoch, num_epochs, start):
                share = epoch.positions(position.step)
                pending.append((position, share, pool.submit(recipe.produce, position.epoch, share)))
                if len(pending) > ahead:
                    yield _batch(*pending.popleft())
            while pending:
                yield _batch(*pending.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _positions(epoch: Epoch, num_epochs: int, start: Position) -> Iterator[Position]:
    for number in range(start.epoch, num_epochs):
        for step in range(start.step if number == start.epoch else 0, epoch.num_steps):
            yield Position(number, step)


def _batch(position: Position, share: range, future: "Future[Samples]") -> Batch:
    samples = future.result()
    return Batch(
        position.epoch,
        position.step,
        share,
        samples.images,
        samples.labels,
        samples.keys,
        samples.crc32,
        samples.replaced,
    )


def _check_address(address: NDArray[np.int64], layout: Layout, expected: int | None) -> None:
    got = Chunk(*(int(word) for word in address))
    wanted = None if expected is None else layout.chunk(expected)
    if got != wanted:
        raise OutOfOrderError(f"the data pipeline delivered {got}, but next is {wanted or 'the end of the run'}.")


def batches_of_chunk(arrays: dict[str, Any], layout: Layout) -> Iterator[Batch]:
    """The batches of a chunk, step by step. `arrays`: of `pipelines.stages.ChunkMaker`."""
    chunk = Chunk(*(int(word) for word in arrays["address"]))
    replaced = [Replaced(*values) for values in json.loads(str(arrays["replaced"]))]
    for i in range(chunk.num_steps):
        step = chunk.first_step + i
        positions = layout.epoch.share(step, chunk.rank, layout.world_size)
        of_step = {name: arrays[name][i, : len(positions)] for name in ("images", "labels", "keys")}
        crc32 = arrays["crc32"][i, : len(positions)] if "crc32" in arrays else None
        here = tuple(each for each in replaced if each.position in positions)
        yield Batch(chunk.epoch, step, positions, **of_step, crc32=crc32, replaced=here)
