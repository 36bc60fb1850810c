"""Training led by a parameter server, on Ray: samples and commits of `sync`, and its weights where nothing is stale."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.conftest import DIGITS, SMALL, events, result_of, step_losses, trace_rows
from tests.one_ray import OneRay

STRATEGIES = {
    "async": "strategy={name: async, workers: 2}",
    "stale": "strategy={name: stale, workers: 2, staleness: 0}",
    "backup": "strategy={name: backup, workers: 2, backup: 0}",
}
LIKE_SYNC = ("stale", "backup")
ALONE = "strategy={name: sync, workers: 0}"
COMMITS = "checkpoint={every_steps: 10, keep: 100}"
STEPS, SHARES, SAMPLES = 46, 90, 2 * 1437  # the last step of an epoch is of 29 samples, which are one share
SLOW = "faults.slow=[{rank: 0, extra_ms: 60}, {rank: 1, extra_ms: 60}]"

MISTAKES = {
    "negative": (["strategy={name: stale, staleness: -1}"], "strategy.staleness: got -1, must be a whole number >= 0"),
    "nobody to wait for": (
        ["strategy={name: backup, workers: 2, backup: 2}"],
        "strategy.backup: got 2, must be less than strategy.workers=2",
    ),
    "another strategy's": (
        ["strategy={name: async, workers: 2, every: 3}"],
        "strategy.every: not a setting of async, only of local",
    ),
    "another optimizer": (
        ["strategy={name: async, compensate: 0.1}", "train.optimizer={name: adamw, lr: 0.1}"],
        "strategy.compensate: got 0.1 with train.optimizer.name=adamw, must be 0 with all but sgd",
    ),
    "no server to kill": (
        ["faults.kill={shard: 0, step: 3}"],
        "faults.kill.0.shard: got 0 with strategy.name=sync, which has no parameter server",
    ),
    "a norm over shards": (
        ["strategy={name: async, workers: 2, shards: 2}", "train.clip_grad_norm=1"],
        "train.clip_grad_norm: got 1 with 2 shards",
    ),
    "uneven shares": (
        [STRATEGIES["backup"], "train.global_batch=63"],
        "train.global_batch: got 63, must be divisible by strategy.workers less strategy.backup, which is 2",
    ),
}


@pytest.fixture(scope="module")
def runs(one_ray: OneRay, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, strategy in STRATEGIES.items():
        train(one_ray, folder / name, strategy)
    return {name: folder / name for name in STRATEGIES}


def train(one_ray: OneRay, run: Path, *overrides: str) -> None:
    ended = one_ray.run("train", DIGITS, *SMALL, COMMITS, f"run.folder={run}", *overrides)
    assert ended.code == 0, ended.stderr


def go_on(one_ray: OneRay, run: Path, *overrides: str) -> None:
    ended = one_ray.run("train", str(run), "--resume", *overrides)
    assert ended.code == 0, ended.stderr


def cut(run: Path, step: int, into: Path) -> Path:
    """What a run would have left if it had ended at the commit of `step`."""
    shutil.copytree(run, into)
    for commit in (into / "checkpoints").glob("step-*"):
        if int(commit.name.split("-")[1]) > step:
            shutil.rmtree(commit)
    for name in ("trace.parquet", "result.json"):
        (into / name).unlink()
    return into


def samples(run: Path) -> list[tuple[Any, ...]]:
    """The trace without the steps: epoch, position, sample_id, pixels_crc32."""
    return [(epoch, *rest) for epoch, _, *rest in trace_rows(run)]


def assert_same_weights(run: Path, other: Path) -> None:
    """Their gradients are sums of 64 samples in another order, so off by 64 * 2^-24 of their size at most; SGD makes
    lr / (1 - momentum) = 1 of that a change of the weights, over 46 steps, and gradients are below 1.
    """
    mine, others = (
        load_file(each / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors") for each in (run, other)
    )
    assert mine.keys() == others.keys()
    for name, values in mine.items():
        np.testing.assert_allclose(values, others[name], rtol=0, atol=STEPS * 64 * 2.0**-24, err_msg=name)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_sample_is_trained_once_an_epoch_with_the_pixels_of_a_run_alone(
    name: str, runs: dict[str, Path], alone: Path
) -> None:
    assert samples(runs[name]) == samples(alone)
    if name in LIKE_SYNC:
        assert trace_rows(runs[name]) == trace_rows(alone)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_result_says_what_was_updated_and_how_stale_gradients_were(name: str, runs: dict[str, Path]) -> None:
    result = result_of(runs[name])
    staleness = result["staleness"]
    assert (result["status"], result["steps"], result["samples_seen"]) == ("finished", STEPS, SAMPLES)
    assert (result["updates_lost"], result["restarts"]) == (0, 0)
    assert result["samples_per_s"] > 0
    assert sum(staleness["histogram"].values()) == SHARES
    assert staleness["max"] == max(map(int, staleness["histogram"]))
    mean = sum(int(value) * times for value, times in staleness["histogram"].items()) / SHARES
    assert staleness["mean"] == pytest.approx(mean)
    if name in LIKE_SYNC:
        assert (result["updates"], staleness["max"]) == (STEPS, 0)
    else:
        assert (result["updates"], staleness["max"] > 0) == (SHARES, True), "with overlap, every second is stale"


@pytest.mark.parametrize("name", LIKE_SYNC)
def test_weights_and_losses_are_those_of_sync_where_nothing_is_stale(
    name: str, runs: dict[str, Path], alone: Path
) -> None:
    assert_same_weights(runs[name], alone)
    ours, reference = step_losses(runs[name]), step_losses(alone)
    assert ours.keys() == reference.keys()
    assert ours == pytest.approx(reference, rel=1e-3)


def test_a_run_goes_on_with_and_without_a_server_to_the_weights_of_one_that_never_changed(
    one_ray: OneRay, runs: dict[str, Path], alone: Path, tmp_path: Path
) -> None:
    """From the middle of the second epoch: the momentum of one is the momentum of the other."""
    train(one_ray, tmp_path / "sync", ALONE)
    to_server = cut(tmp_path / "sync", 30, tmp_path / "to server")
    go_on(one_ray, to_server, STRATEGIES["stale"])
    to_sync = cut(runs["stale"], 30, tmp_path / "to sync")
    go_on(one_ray, to_sync, ALONE)
    for run in (to_server, to_sync):
        assert [event["step"] for event in events(run) if event["event"] == "start"] == [0, 30]
        assert trace_rows(run) == trace_rows(alone)
        assert_same_weights(run, alone)
        assert (result_of(run)["updates"], result_of(run)["updates_lost"]) == (STEPS, 0)


def test_ctrl_c_commits_at_a_step_boundary_and_the_run_goes_on_with_or_without_the_server(
    one_ray: OneRay, alone: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    one_ray.start("train", DIGITS, *SMALL, STRATEGIES["async"], SLOW, f"run.folder={run}")
    one_ray.wait_for(lambda: (run / "events.jsonl").exists() and any(e["event"] == "fault" for e in events(run)))
    one_ray.press_ctrl_c()
    ended = one_ray.end()
    assert ended.code == 0, ended.stderr
    stopped = result_of(run)
    assert (stopped["status"], stopped["updates_lost"]) == ("stopped", 0)
    assert 0 < stopped["steps"] < STEPS, "Ctrl-C came too late"
    assert (run / "checkpoints" / f"step-{stopped['steps']:08d}").exists()
    reference = [row for row in trace_rows(alone) if row[1] <= stopped["steps"]]
    assert trace_rows(run) == reference, "whole steps, whoever did which share of them"

    without = shutil.copytree(run, tmp_path / "without")
    go_on(one_ray, run, "faults={}")
    go_on(one_ray, without, "faults={}", ALONE)
    for resumed in (run, without):
        assert samples(resumed) == samples(alone)
        assert (result_of(resumed)["status"], result_of(resumed)["steps"]) == ("finished", STEPS)
    assert result_of(run)["updates"] == SHARES
    assert result_of(without)["updates"] == stopped["updates"] + STEPS - stopped["steps"]


def test_a_loss_that_is_not_finite_ends_all_workers_with_one_message(
    one_ray: OneRay, alone: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    overrides = [STRATEGIES["async"], "train.optimizer.lr=1e30", f"run.folder={run}"]
    ended = one_ray.run("train", DIGITS, *SMALL, *overrides)
    assert ended.code == 1
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    named = re.search(
        r"NaN or infinite in step (\d+) \(epoch 0\) on rank [01], whose samples were (.*) and", ended.stderr
    )
    assert named, ended.stderr
    of_step = {sample_id for _, step, _, sample_id, _ in trace_rows(alone) if step == int(named[1])}
    assert set(named[2].split(", ")) < of_step
    result = result_of(run)
    assert (result["status"], result["restarts"]) == ("failed", 0), "it would only diverge again"
    assert f"convoy: {result['error']}\n" == ended.stderr
    assert {event["event"] for event in events(run)} == {"start", "finish"}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_message_and_nothing_starts(name: str, one_ray: OneRay, tmp_path: Path) -> None:
    overrides, message = MISTAKES[name]
    run = tmp_path / "run"
    ended = one_ray.run("train", DIGITS, *overrides, f"run.folder={run}")
    assert ended.code == 2
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not (run / "events.jsonl").exists()
