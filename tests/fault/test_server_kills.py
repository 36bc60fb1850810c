"""Kills in a run that a parameter server leads: the others go on, and every sample is used once an epoch."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.conftest import events, trace_rows
from tests.fault.test_kills import committed, output_of, start, wait_for, worker_of
from tests.processes import own_processes

SLOW = "slow: [{rank: 0, extra_ms: 25}, {rank: 1, extra_ms: 25}]"
EPOCHS = 8


def positions(folder: Path) -> list[tuple[int, int]]:
    return [(epoch, position) for epoch, _, position, *_ in trace_rows(folder)]


def every_position_once() -> list[tuple[int, int]]:
    return [(epoch, position) for epoch in range(EPOCHS) for position in range(1437)]


def named(folder: Path, name: str) -> list[dict[str, object]]:
    return [event for event in events(folder) if event["event"] == name]


def test_a_worker_and_the_server_are_killed_as_planned_and_no_sample_is_missed_or_doubled(tmp_path: Path) -> None:
    run = tmp_path / "run"
    faults = f"faults={{{SLOW}, kill: [{{rank: 1, step: 20}}, {{shard: 0, step: 100}}]}}"
    strategy = "strategy={name: async, workers: 2, snapshot_every: 10}"
    process = start(run, strategy, f"train.epochs={EPOCHS}", "checkpoint.every_steps=0", faults)
    process.wait(timeout=500)
    assert process.returncode == 0, output_of(run).read_text()
    killed = [(fault.get("rank"), fault.get("shard")) for fault in named(run, "fault") if fault["kind"] == "kill"]
    assert killed == [(1, None), (None, 0)], "the faults did not fire"
    assert [event["rank"] for event in named(run, "left")] == [1]
    assert [event["rank"] for event in named(run, "restart")] == [1]
    assert len(named(run, "server")) == 1
    result = json.loads((run / "result.json").read_text())
    lost = [event["updates"] for event in named(run, "updates_lost")]
    assert result["updates_lost"] == max(lost, default=0)
    assert result["updates"] == EPOCHS * 45  # one for each share of 32 samples
    assert positions(run) == every_position_once()


@pytest.mark.parametrize("strategy", ["{name: async, workers: 2}", "{name: stale, workers: 2, staleness: 2}"])
def test_a_worker_is_killed_from_outside_and_the_other_goes_on_meanwhile(strategy: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(
        run, f"strategy={strategy}", f"train.epochs={EPOCHS}", "checkpoint.every_steps=5", f"faults={{{SLOW}}}"
    )
    wait_for(committed(run, 10), process)
    os.kill(worker_of(process.pid), signal.SIGKILL)
    process.wait(timeout=500)
    assert process.returncode == 0, output_of(run).read_text()
    failed, back = named(run, "failure"), named(run, "restart")
    assert len(failed) == 1, "the kill came too late"
    assert len(back) == 1
    between = [e for e in named(run, "commit") if failed[0]["time"] < e["time"] < back[0]["time"]]  # type: ignore[operator]
    assert between, "nothing was trained while the worker was gone"
    assert json.loads((run / "result.json").read_text())["updates_lost"] == 0
    assert positions(run) == every_position_once()


def test_a_further_shard_is_killed_from_outside_and_all_go_back_to_one_version(tmp_path: Path) -> None:
    run = tmp_path / "run"
    strategy = "strategy={name: async, workers: 2, shards: 2, snapshot_every: 10}"
    process = start(run, strategy, f"train.epochs={EPOCHS}", "checkpoint.every_steps=10", f"faults={{{SLOW}}}")
    wait_for(committed(run, 30), process)
    os.kill(next(own_processes(b"FollowerActor", process.pid)), signal.SIGKILL)
    process.wait(timeout=500)
    assert process.returncode == 0, output_of(run).read_text()
    assert named(run, "server"), "the kill came too late"
    lost = sum(int(str(event["updates"])) for event in named(run, "updates_lost"))
    assert json.loads((run / "result.json").read_text())["updates_lost"] == lost
    assert positions(run) == every_position_once()
