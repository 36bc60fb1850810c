"""Nodes that only feed: the actors of the pipeline go there first, also while a stream is being read."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import environment

SCRIPT = Path(__file__).parent / "feeders_on_ray.py"
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # what makes Ray's nodes use 127.0.0.1


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("feeders")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        env=environment() | LOOPBACK,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return outcome


def test_without_such_a_node_actors_run_beside_the_gpu(found: dict[str, Any]) -> None:
    assert found["actors"]["before"] == [1]


def test_a_node_that_joins_is_filled_while_the_stream_is_read(found: dict[str, Any]) -> None:
    assert found["actors"]["joined"] == [1, 2]


def test_actors_leave_the_node_with_the_gpu_alone_where_there_is_room_elsewhere(found: dict[str, Any]) -> None:
    assert found["actors"]["2 actors"] == [0, 2]


def test_actors_for_whom_there_is_no_room_elsewhere_run_beside_the_gpu(found: dict[str, Any]) -> None:
    assert found["actors"]["3 actors"] == [1, 2]


def test_where_actors_run_changes_no_pixel(found: dict[str, Any]) -> None:
    rows = found["rows"]
    assert rows["joined"] == rows["threads"]
    assert rows["2 actors"] == rows["3 actors"] == [row for row in rows["threads"] if row[0] == 0]
