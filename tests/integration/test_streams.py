"""Streams through Ray Data: the same batches whoever makes them, after a kill, from any start; memory stays bounded."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import environment

SCRIPT = Path(__file__).parent / "streams_on_ray.py"
NUM, BATCH = 1437, 64
LARGE_EPOCHS, LARGE_BYTES, STORE_BYTES = 3, 224 * 224, 200 * 2**20
# Ray Data gives a pipeline half of the store. Beyond that is what is in hand when it is full: of each of two actors the
# block that it makes and two that wait behind it (Ray Data's buffer for a task); and what the split hands over, what
# the reader fetches ahead and what it reads, of each also the next, which comes before the last is let go.
CHUNK_BYTES = 128 * LARGE_BYTES
HIGH_WATER_BYTES = STORE_BYTES // 2 + (2 * 3 + 3 * 2) * CHUNK_BYTES
# A process that kept one chunk in eight of what passed through it between two epochs would grow by more.
GROWTH_BYTES = 8 * 2**20


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("streams")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], env=environment(), capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return outcome


@pytest.mark.parametrize("way", ["1 thread", "1 actors", "2 actors", "4 actors", "an actor killed"])
def test_batches_are_those_of_two_threads(way: str, found: dict[str, Any]) -> None:
    assert found["rows"][way] == found["rows"]["threads"]
    assert len(found["rows"]["threads"]) == 2 * -(-NUM // BATCH)


def test_batches_are_the_same_while_actors_come_and_go(found: dict[str, Any]) -> None:
    sizes = found["sizes"]
    assert sizes[0] == 1
    assert 1 < max(sizes) <= 4, "the pool did not grow, or past its bound"
    assert sizes[-1] < max(sizes), "the pool did not shrink"
    assert found["rows"]["1 to 4 actors"] == found["rows"]["threads, middle"]


def test_a_stream_that_starts_late_gives_the_rest(found: dict[str, Any]) -> None:
    rest = [row for row in found["rows"]["threads"] if row[0] == 1 and row[1] >= 7 * BATCH]
    assert found["rows"]["resumed late"] == found["rows"]["threads, late"] == rest


def test_two_ranks_get_every_position_once(found: dict[str, Any]) -> None:
    covered = [position for _, start, size, _ in found["rows"]["2 ranks"] for position in range(start, start + size)]
    assert covered == list(range(NUM))


def test_what_is_larger_than_the_object_store_passes_through_it_without_spilling(found: dict[str, Any]) -> None:
    rows = found["rows"]["large"]
    assert sum(size for _, _, size, _ in rows) == LARGE_EPOCHS * NUM
    assert LARGE_EPOCHS * NUM * LARGE_BYTES > STORE_BYTES
    assert found["spilled"] == []
    assert found["footprint"]["spilled_bytes"] == 0


def test_a_reader_that_pauses_stops_the_pipeline_before_the_object_store_is_full(found: dict[str, Any]) -> None:
    measured = found["footprint"]["store_bytes"]
    assert STORE_BYTES // 4 < max(measured) < HIGH_WATER_BYTES


def test_memory_of_actors_and_reader_is_as_large_in_the_third_epoch_as_in_the_first(found: dict[str, Any]) -> None:
    first, third = (largest_by_process(found["footprint"]["private_bytes"], epoch) for epoch in (0, 2))
    assert len(first) == 3, "two actors and the reader"
    assert third.keys() <= first.keys()
    assert len(third) > 1, "no actor was left in the third epoch to be measured"
    for process, largest in third.items():
        assert largest - first[process] < GROWTH_BYTES


def largest_by_process(measured: list[tuple[int, dict[str, int]]], epoch: int) -> dict[str, int]:
    largest: dict[str, int] = {}
    for number, sizes in measured:
        for process, size in sizes.items():
            if number == epoch:
                largest[process] = max(size, largest.get(process, 0))
    return largest
