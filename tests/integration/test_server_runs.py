"""Runs that a parameter server leads, with two workers: what they compute, and that they stop and go on."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.conftest import DIGITS, SMALL, convoy, trace_rows
from tests.fault.test_kills import committed, output_of, start, wait_for

# Gradients are sums in another order, each off by a rounding of 2^-24; 46 steps with momentum 0.9 (up to 10 times a
# gradient) through a network whose losses are steep: 2e-3 of the largest weight, where other samples give 0.1 and more.
ROUNDING = 2e-3


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "checkpoints" / "step-00000046" / "model.safetensors")


def result(folder: Path) -> dict[str, object]:
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(
    "strategy", ["{name: stale, workers: 2, staleness: 0}", "{name: backup, workers: 2, backup: 0}"]
)
def test_without_staleness_or_backups_two_workers_train_as_sync_does(
    strategy: str, tmp_path: Path, alone: Path
) -> None:
    run = tmp_path / "run"
    done = convoy("train", DIGITS, *SMALL, f"strategy={strategy}", f"run.folder={run}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [(row[0], *row[2:]) for row in trace_rows(run)] == [(row[0], *row[2:]) for row in trace_rows(alone)]
    ours, theirs = weights(run), weights(alone)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert np.abs(ours[name] - weight).max() <= ROUNDING * np.abs(weight).max(), name
    said = result(run)
    assert said["staleness"] == {
        "mean": 0.0,
        "max": 0,
        "histogram": {"0": 90},
    }  # of the gradients of 45 shares an epoch
    assert (said["updates"], said["updates_lost"]) == (46, 0)


def test_an_asynchronous_run_stops_at_a_step_and_goes_on_with_other_strategies(tmp_path: Path, alone: Path) -> None:
    run = tmp_path / "run"
    slow = "faults={slow: [{rank: 0, extra_ms: 40}, {rank: 1, extra_ms: 40}]}"
    process = start(run, "strategy={name: async, workers: 2}", slow)
    wait_for(committed(run, 5), process)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=120)
    assert process.returncode == 0, output_of(run).read_text()
    stopped = result(run)
    assert stopped["status"] == "stopped"
    assert committed(run, int(str(stopped["steps"])))()
    under_sync = ("strategy={name: sync, workers: 0}", "faults={}")
    assert convoy("train", str(run), "--resume", *under_sync, cwd=tmp_path).returncode == 0
    assert [row[2:] for row in trace_rows(run)] == [row[2:] for row in trace_rows(alone)]
    assert result(run)["steps"] == 46


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strategy={name: stale, staleness: -1}"], "strategy.staleness: got -1, must be a whole number >= 0"),
        (
            ["strategy={name: backup, workers: 2, backup: 2}"],
            "strategy.backup: got 2, must be less than strategy.workers=2",
        ),
        (["strategy={name: async, every: 4}"], "strategy.every: not a setting of async, only of local"),
        (
            ["strategy={name: async, compensate: 0.1}", "train.optimizer={name: adamw, lr: 0.01}"],
            "strategy.compensate: got 0.1 with train.optimizer.name=adamw, must be 0",
        ),
        (["faults={kill: {shard: 0, step: 3}}"], "which has no parameter server"),
        (
            ["strategy={name: async, workers: 2, shards: 2}", "train.clip_grad_norm=1"],
            "train.clip_grad_norm: got 1 with 2 shards",
        ),
    ],
)
def test_what_a_strategy_cannot_do_is_one_message(overrides: list[str], message: str, tmp_path: Path) -> None:
    done = convoy("train", DIGITS, "--explain", *overrides, f"run.folder={tmp_path / 'run'}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
