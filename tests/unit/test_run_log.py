"""The run log where a parameter server leads: workers that come back alone, and steps that are traced twice."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from orchestrator.run_folder import RunFolder
from orchestrator.run_log import RunLog


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(str(tmp_path))
    folder.write("experiment.yaml", "")
    return folder


def restarts(folder: RunFolder) -> list[tuple[int | None, int]]:
    """The rank of each, and the number of failures by then."""
    events = [json.loads(line) for line in (folder.local / "events.jsonl").read_text().splitlines()]
    return [(event.get("rank"), event["count"]) for event in events if event["event"] == "restart"]


def test_each_worker_that_was_lost_is_back_when_it_joins_and_nobody_else(folder: RunFolder) -> None:
    log = RunLog(folder, {"workers": 3})
    log.begin(0, 0, workers=3)
    for rank in (1, 2):
        log.rejoin(rank)  # the first time: they were never lost
    log.failure("workers", "killed", [1])
    log.failure("workers", "killed", [0])
    log.rejoin(2)
    assert restarts(folder) == []
    log.rejoin(1)
    log.rejoin(0)
    log.rejoin(0)
    assert restarts(folder) == [(1, 2), (0, 2)]
    assert log.view().restarts == 2


def test_a_worker_that_was_lost_twice_before_it_came_back_is_back_once(folder: RunFolder) -> None:
    log = RunLog(folder, {"workers": 3})
    log.begin(0, 0, workers=2)
    log.failure("workers", "killed", [1])
    log.failure("workers", "killed again", [1])
    log.rejoin(1)
    assert restarts(folder) == [(1, 2)]


def test_a_group_that_begins_anew_answers_all_failures_before(folder: RunFolder) -> None:
    log = RunLog(folder, {"workers": 3})
    log.begin(0, 0, workers=2)
    log.failure("workers", "killed", [1])
    log.failure("setup", "no room", [])
    log.begin(0, 10, workers=2)
    log.rejoin(1)
    assert restarts(folder) == [(None, 1)]


def rows(*positions: int) -> dict[str, Any]:
    return {"epoch": [0] * len(positions), "position": list(positions)}


def test_steps_that_a_server_does_again_are_traced_once(folder: RunFolder) -> None:
    """It had been at step 4 when it was killed, went back behind step 2, and was asked to stop at step 3."""
    log = RunLog(folder, {})
    log.begin(0, 0, workers=2)
    log.trace(0, 2, rows(0, 1))
    log.event("commit", "step 2", step=2)
    log.trace(0, 4, rows(2, 3))
    log.event("commit", "step 4", step=4)
    log.trace(0, 2, rows(1, 0))
    log.event("commit", "step 2", step=2)
    log.trace(0, 3, rows(2))
    log.event("commit", "step 3", step=3)
    log.finish_trace()
    assert pq.read_table(folder.local / "trace.parquet")["position"].to_pylist() == [0, 1, 2]
