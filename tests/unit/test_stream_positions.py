"""A stream in whatever way it is cut: every position of every epoch once, in order, whoever makes and reads it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.config import PipelineConfig
from pipelines.layout import Layout
from pipelines.listing import Listing, Storage, listing_of, storage_of
from pipelines.loader import Batch, batches_from_blocks, batches_from_threads
from pipelines.order import Epoch, Position
from pipelines.produce import Recipe
from pipelines.stages import ChunkMaker

SHAPE = (2, 2, 1)


@dataclass(frozen=True, eq=False)
class Numbered:
    """Samples whose four pixels are their number in base 256; they lie in files of several sizes."""

    listing: Listing
    storage: Storage | None

    def read(self, index: int) -> NDArray[np.uint8]:
        return np.array([index >> shift & 255 for shift in (24, 16, 8, 0)], np.uint8).reshape(SHAPE)


@dataclass(frozen=True)
class Case:
    """A run that stops at `stops` and goes on with another number of workers each time."""

    sizes: list[int]
    window: int
    seed: int
    batch: int
    num_epochs: int
    steps_per_chunk: int
    stops: list[int]
    workers: list[int]

    @property
    def num(self) -> int:
        return sum(self.sizes)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    batch = draw(st.integers(1, 20))
    num_epochs = draw(st.integers(1, 3))
    last = num_epochs * Epoch(sum(sizes), batch).num_steps
    stops = sorted(draw(st.sets(st.integers(0, last), max_size=3)))
    workers = draw(st.lists(st.integers(1, 5), min_size=len(stops) + 1, max_size=len(stops) + 1))
    window, seed, steps = draw(st.integers(0, 7)), draw(st.integers(0, 2**63 - 1)), draw(st.integers(1, 6))
    return Case(sizes, window, seed, batch, num_epochs, steps, stops, workers)


def recipe_of(case: Case) -> Recipe:
    listing = listing_of([f"a/{number:03d}" for number in range(case.num)])
    files = np.repeat(np.arange(len(case.sizes)), case.sizes)[::-1]
    storage = storage_of(files, np.arange(case.num)) if case.window else None
    config = PipelineConfig(train="x", val="x", image_size=2, channels=1, window=case.window)
    return Recipe(Numbered(listing, storage), config, case.seed, training=True, checksums=True)


def steps_read(case: Case, recipe: Recipe, attempt: int) -> Iterator[list[Batch]]:
    """All ranks' batches of each step from one start to the next stop, by way of chunks."""
    epoch = Epoch(case.num, case.batch)
    bounds = [0, *case.stops, case.num_epochs * epoch.num_steps]
    first, stop = bounds[attempt], bounds[attempt + 1]
    start, world_size = Position(*divmod(first, epoch.num_steps)), case.workers[attempt]
    layout = Layout(epoch, case.num_epochs, start, world_size, case.steps_per_chunk)
    make = ChunkMaker(recipe, layout, SHAPE)
    ranks = [
        batches_from_blocks(
            ({name: values[np.newaxis] for name, values in make(number).items()} for number in layout.of_rank(rank)),
            layout,
            rank,
        )
        for rank in range(world_size)
    ]
    for _ in range(first, stop):
        yield [next(batches) for batches in ranks]
    if stop == bounds[-1]:
        assert [list(batches) for batches in ranks] == [[]] * world_size, "there is more than the run has steps"


@given(cases())
@settings(max_examples=250, deadline=None, derandomize=True)
def test_every_position_of_every_epoch_comes_once_and_in_order(case: Case) -> None:
    recipe = recipe_of(case)
    positions, samples = [], []
    for attempt in range(len(case.workers)):
        for of_step in steps_read(case, recipe, attempt):
            assert len({(batch.epoch, batch.step) for batch in of_step}) == 1
            for batch in of_step:
                positions += [(batch.epoch, position) for position in batch.positions]
                samples += numbers_of(batch)
    assert positions == [(epoch, position) for epoch in range(case.num_epochs) for position in range(case.num)]
    for start, stop in pairwise(range(0, len(samples) + 1, case.num)):
        assert sorted(samples[start:stop]) == list(range(case.num))
    uncut = Case(**{**vars(case), "stops": [], "workers": [1]})
    whole = [number for (batch,) in steps_read(uncut, recipe, 0) for number in numbers_of(batch)]
    assert samples == whole


@given(cases())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_threads_and_chunks_give_the_same_batches(case: Case) -> None:
    recipe, epoch = recipe_of(case), Epoch(case.num, case.batch)
    uncut = Case(**{**vars(case), "stops": [], "workers": [1]})
    chunks = [batch for (batch,) in steps_read(uncut, recipe, 0)]
    for threads in (1, 3):
        made = batches_from_threads(recipe, epoch, case.num_epochs, Position(0, 0), threads=threads, ahead=3)
        for batch, other in zip(made, chunks, strict=True):
            assert (batch.epoch, batch.step, batch.positions) == (other.epoch, other.step, other.positions)
            for name in ("images", "labels", "keys", "crc32"):
                assert np.array_equal(getattr(batch, name), getattr(other, name))


def numbers_of(batch: Batch) -> list[int]:
    """The samples of a batch, read from their pixels."""
    return [int.from_bytes(image.tobytes(), "big") for image in batch.images]
