"""A worker that a parameter server leads: against synchronous steps in one process, against itself resumed, and when
the server is killed.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_runs import EPOCH, EPOCHS
from numpy.typing import NDArray
from server_runs import Place
from strategy_runs import STEPS, Killed, Trial, Watched, alone, committed, convolutional, dense, served, served_by_two
from torch import nn

from orchestrator.served import server_setup

ASYNC = "strategy={name: async, workers: 0, overlap: false}"
STALE = "strategy={name: stale, workers: 0, staleness: 0}"
BACKUP = "strategy={name: backup, workers: 0, backup: 0}"
STALE_BY_TWO = "strategy={name: stale, workers: 2, staleness: 0}"
BACKUP_BY_TWO = "strategy={name: backup, workers: 2, backup: 0}"

MOMENTUM = "train.optimizer={name: sgd, lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0.001}"
ADAMW = "train.optimizer={name: adamw, lr: 0.01, weight_decay: 0.05}"
ADAGRAD = "train.optimizer={name: adagrad, lr: 0.05, weight_decay: 0.001}"
AVERAGE, CLIP, CHANNELS_LAST = "train.ema_decay=0.8", "train.clip_grad_norm=0.5", "train.channels_last=true"
OFTEN = "checkpoint.every_steps=2"

Arrays = dict[str, NDArray[Any]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small sums are not worth waking others for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_close(ours: tuple[Arrays, dict[str, Any]], others: tuple[Arrays, dict[str, Any]]) -> None:
    """Commits that are alike but for rounding: of each step some eps, which ten steps make a thousand times larger."""
    (arrays, progress), (expected, other) = ours, others
    assert arrays.keys() == expected.keys()
    eps = float(np.finfo(np.float32).eps)
    for name, array in arrays.items():
        assert in_memory(array) == in_memory(expected[name]), name
        np.testing.assert_allclose(array, expected[name], rtol=1e3 * eps, atol=10 * eps, err_msg=name)
    for name in ("position", "steps", "samples", "epoch_replaced"):
        assert progress[name] == other[name], name
    assert progress["val_loss"] == pytest.approx(other["val_loss"], rel=1e3 * eps)


def in_memory(array: NDArray[Any]) -> list[int]:
    """The strides that say something."""
    return [stride for stride, size in zip(array.strides, array.shape, strict=True) if size > 1]


@pytest.mark.parametrize("strategy", [ASYNC, STALE, BACKUP])
@pytest.mark.parametrize(
    ("overrides", "network"),
    [
        ((MOMENTUM,), dense),
        ((MOMENTUM, AVERAGE, CLIP), dense),
        ((ADAMW, AVERAGE), dense),
        ((ADAGRAD,), dense),
        ((MOMENTUM,), convolutional),
        ((MOMENTUM, CHANNELS_LAST, OFTEN), convolutional),
        ((ADAMW, CHANNELS_LAST), convolutional),
    ],
    ids=["momentum", "average, clip", "adamw", "adagrad", "batch norm", "channels last", "adamw, channels last"],
)
def test_a_worker_alone_trains_as_synchronously(
    strategy: str, overrides: tuple[str, ...], network: Callable[[], nn.Module], tmp_path: Path
) -> None:
    ours = Trial(tmp_path / "served", (*overrides, strategy), network)
    others = Trial(tmp_path / "sync", overrides, network)
    trained, expected = served(ours), alone(others)
    assert (trained.status, expected.status) == ("finished", "finished")
    assert_close(committed(ours), committed(others))
    names = ("epoch", "step", "samples", "lr")
    assert trained.noted(*names) == expected.noted(*names)
    assert np.ravel(trained.noted("loss")) == pytest.approx(np.ravel(expected.noted("loss")), rel=1e-4)
    _, progress = committed(ours)
    assert (progress["updates"], progress["staleness"]) == (STEPS, {"0": STEPS})


@pytest.mark.parametrize("strategy", [STALE_BY_TWO, BACKUP_BY_TWO])
@pytest.mark.parametrize("overrides", [(MOMENTUM, OFTEN), (ADAMW, AVERAGE, CLIP)], ids=["momentum", "adamw"])
def test_two_workers_whose_steps_miss_nothing_train_as_one_does_synchronously(
    strategy: str, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    ours, others = Trial(tmp_path / "served", (*overrides, strategy)), Trial(tmp_path / "sync", overrides)
    assert [trained.status for trained in served_by_two(ours)] == ["finished"] * 2
    assert alone(others).status == "finished"
    assert_close(committed(ours), committed(others))


def test_when_a_worker_is_lost_in_evaluation_all_evaluate_again(tmp_path: Path) -> None:
    ours, others = Trial(tmp_path / "served", (MOMENTUM, STALE_BY_TWO)), Trial(tmp_path / "sync", (MOMENTUM,))
    place = Watched(server_setup(ours.setup), loses=True)
    assert [trained.status for trained in served_by_two(ours, place)] == ["finished"] * 2
    assert [event["rank"] for event in place.heard.named("left")] == place.lost != []
    alone(others)
    assert_close(committed(ours), committed(others))


def test_a_commit_has_the_mean_of_the_workers_batch_statistics(tmp_path: Path) -> None:
    trial = Trial(tmp_path, (MOMENTUM, BACKUP_BY_TWO), convolutional)  # of each step each does a share
    place = Watched(server_setup(trial.setup), loses=False)
    served_by_two(trial, place)
    arrays, _ = committed(trial)
    statistics = np.concatenate([arrays["model.1.running_mean"], arrays["model.1.running_var"]])
    assert np.array_equal(statistics, np.mean([*place.buffers.values()], axis=0, dtype=np.float32))
    assert not np.array_equal(*place.buffers.values())


@pytest.mark.parametrize("wire", ["fp32", "bf16", "top_k"])
@pytest.mark.parametrize("strategy", ["async, overlap: true", "stale, staleness: 2", "backup, backup: 1"])
def test_workers_that_do_not_wait_for_each_other_train_on_every_sample_once(
    strategy: str, wire: str, tmp_path: Path
) -> None:
    trial = Trial(tmp_path, (MOMENTUM, OFTEN, f"strategy={{name: {strategy}, workers: 2, wire: {wire}, top_k: 0.3}}"))
    assert [trained.status for trained in served_by_two(trial)] == ["finished"] * 2
    _, progress = committed(trial)
    assert progress["steps"] == STEPS
    assert progress["samples"] == EPOCH.num_samples * EPOCHS
    assert progress["val_loss"] < np.log(10), "of guessing"


def test_with_overlap_a_gradient_is_of_weights_that_miss_the_one_before(tmp_path: Path) -> None:
    trial = Trial(tmp_path, (MOMENTUM, "strategy={name: async, workers: 0}"))
    trained = served(trial)
    _, progress = committed(trial)
    assert progress["staleness"] == {"0": EPOCHS, "1": STEPS - EPOCHS}, "an epoch begins on the newest weights"
    assert len(trained.noted("step")) == STEPS


@pytest.mark.parametrize("strategy", [ASYNC, STALE])
def test_steps_whose_gradients_overflow_are_left_out_as_synchronously(strategy: str, tmp_path: Path) -> None:
    overrides, bad = (MOMENTUM, "precision=fp16"), (1, 2, 6)
    ours = Trial(tmp_path / "served", (*overrides, strategy), bad=bad)
    others = Trial(tmp_path / "sync", overrides, bad=bad)
    trained, expected = served(ours), alone(others)
    assert trained.training.learner.precision.state() == expected.training.learner.precision.state()
    weights, others_weights = committed(ours)[0], committed(others)[0]
    for name, value in weights.items():  # what is rounded to 11 bits on the way may be so to either side
        np.testing.assert_allclose(value, others_weights[name], rtol=2**-8, atol=2**-10, err_msg=name)


RUNS = {"async": (served, ASYNC), "stale": (served, STALE), "sync": (alone, "strategy.workers=0")}


@pytest.mark.parametrize(
    ("first", "then"),
    [("async", "async"), ("async", "sync"), ("sync", "async"), ("stale", "stale"), ("sync", "stale")],
)
@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAMW, ADAGRAD], ids=["momentum", "adamw", "adagrad"])
@pytest.mark.parametrize("stop_at", [3, EPOCH.num_steps], ids=["in mid-epoch", "at the end of an epoch"])
def test_a_run_goes_on_with_any_strategy_from_the_commit_at_which_another_stopped(
    first: str, then: str, optimizer: str, stop_at: int, tmp_path: Path
) -> None:
    common = (optimizer, AVERAGE)
    begin, strategy = RUNS[first]
    begun = begin(Trial(tmp_path / "run", (*common, strategy), stop_at=stop_at))
    assert begun.status == "stopped"
    go_on, strategy = RUNS[then]
    trial = Trial(tmp_path / "run", (*common, strategy))
    assert committed(trial)[1]["steps"] == stop_at
    assert go_on(trial).status == "finished"
    whole = Trial(tmp_path / "whole", common)
    alone(whole)
    assert_close(committed(trial), committed(whole))
    _, progress = committed(trial)
    assert progress["updates"] == (None if first == then == "sync" else STEPS)


def test_a_run_that_is_finished_is_finished_at_once_when_it_goes_on(tmp_path: Path) -> None:
    trial = Trial(tmp_path, (MOMENTUM, ASYNC))
    served(trial)
    before = committed(trial)
    again = served(trial)
    assert again.status == "finished"
    assert again.noted("step") == []
    assert_close(committed(trial), before)


@pytest.mark.parametrize("done", [False, True], ids=["asked", "answered"])
@pytest.mark.parametrize(
    ("method", "number"),
    [
        ("join", 1), ("offer", 1), ("next", 1), ("push", 1), ("push", 5), ("state", 1), ("state", 2), ("state", 6),
        ("evaluate_next", 1), ("evaluate_next", 6), ("evaluated", 1), ("books", 2), ("books", 3), ("committed", 2),
        ("committed", 3), ("committed", 5),
    ],
)  # fmt: skip
def test_a_server_that_is_killed_changes_nothing_of_what_is_trained(
    method: str, number: int, done: bool, tmp_path: Path
) -> None:
    overrides = (MOMENTUM, OFTEN, "strategy={name: stale, workers: 0, staleness: 0, snapshot_every: 3}")
    ours = Trial(tmp_path / "served", overrides)
    place = Killed(server_setup(ours.setup), method=method, number=number, done=done)
    trained = served(ours, place)
    assert place.number <= 0, "it was killed"
    assert trained.status == "finished"
    others = Trial(tmp_path / "sync", (MOMENTUM, OFTEN))
    alone(others)
    assert_close(committed(ours), committed(others))
    _, progress = committed(ours)
    lost = max((event["updates"] for event in place.heard.named("updates_lost")), default=0)
    assert (progress["updates"], progress["updates_lost"]) == (STEPS, lost)


def test_a_worker_that_comes_when_the_run_is_over_is_told_how_it_ended(tmp_path: Path) -> None:
    trial = Trial(tmp_path, (MOMENTUM, ASYNC))
    place = Place(server_setup(trial.setup))
    first = served(Trial(tmp_path, trial.overrides, stop_at=3), place)
    assert first.status == "stopped"
    assert served(trial, place).status == "stopped"
