"""Streams through Ray Data: the same batches for any number of actors, after a kill, from any start; nothing spills."""

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


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("streams")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], env=environment(), capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return outcome


@pytest.mark.parametrize("way", ["1 actors", "2 actors", "4 actors", "an actor killed"])
def test_batches_are_those_of_threads(way: str, found: dict[str, Any]) -> None:
    assert found["rows"][way] == found["rows"]["threads"]
    assert len(found["rows"]["threads"]) == 2 * -(-NUM // BATCH)


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
