"""Local SGD in real process groups: against synchronous steps, against a loop by hand, and against itself resumed."""

import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_runs import (
    COMMON,
    CPU,
    EPOCH,
    STEPS,
    Trained,
    Trial,
    assert_equal,
    batches,
    files,
    network,
    train_alone,
    train_together,
)
from torch import Tensor, nn

from orchestrator.config.load import load_experiment
from orchestrator.config.strategy import LocalConfig, OuterConfig
from orchestrator.errors import NonFiniteGradients, NonFiniteLoss
from orchestrator.strategies.local import Local, outer_step
from orchestrator.strategies.sync import OneWorker
from pipelines.device import ToDevice
from pipelines.order import Position
from tests.conftest import DIGITS

MOMENTUM = "train.optimizer={name: sgd, lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0.001}"
PLAIN = "train.optimizer={name: sgd, lr: 0.1, momentum: 0}"
ADAMW = "train.optimizer={name: adamw, lr: 0.01}"
AVERAGE = "train.ema_decay=0.8"


def local(**options: Any) -> str:
    return f"strategy={ {'name': 'local', 'workers': 2} | options }"


def assert_close(ours: dict[str, Any], others: dict[str, Any]) -> None:
    """Sums of a few numbers in another order, over ten steps."""
    assert ours.keys() == others.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, others[name], rtol=1e-4, atol=1e-6, err_msg=name)


def losses(trained: Trained) -> list[float]:
    return [record["loss"] for record in trained.records if record["kind"] == "step"]


@pytest.mark.parametrize(
    ("options", "world_size", "overrides"),
    [({"every": 1}, 3, (PLAIN,)), ({"every": 1}, 2, (MOMENTUM, AVERAGE)), ({"from_epoch": 2}, 3, (MOMENTUM, AVERAGE))],
    ids=["plain", "momentum", "from a later epoch"],
)
def test_an_average_after_every_step_is_the_synchronous_step(
    options: dict[str, Any], world_size: int, overrides: tuple[str, ...], pool: ProcessPoolExecutor, tmp_path: Path
) -> None:
    ours = train_together(pool, Trial(tmp_path / "local", (*overrides, local(**options))), world_size)
    others = train_together(pool, Trial(tmp_path / "sync", (*overrides, "strategy.name=sync")), world_size)
    assert_close(ours[0].arrays, others[0].arrays)
    assert losses(ours[0]) == pytest.approx(losses(others[0]), rel=1e-5)
    for rank in range(1, world_size):
        assert_equal(ours[rank].arrays, ours[0].arrays)


OUTER = {"lr": 0.7, "momentum": 0.9}


@pytest.mark.parametrize(
    "config",
    [{"every": 4}, {"every": 3, "outer": OUTER}, {"every": 2, "from_epoch": 1, "outer": OUTER}],
    ids=["mean", "outer step", "outer step from the second epoch on"],
)
def test_averages_now_and_then_are_those_of_a_loop_by_hand(
    config: dict[str, Any], pool: ProcessPoolExecutor, tmp_path: Path
) -> None:
    overrides = ("train.optimizer={name: sgd, lr: 0.1, momentum: 0.9}", local(**config))
    ours = train_together(pool, Trial(tmp_path, overrides))
    found = {name: value for name, value in ours[0].arrays.items() if name.startswith("weight.")}
    assert_close(found, by_hand(LocalConfig.model_validate(config), overrides))
    assert_equal(ours[0].arrays, ours[1].arrays)


def by_hand(config: LocalConfig, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Two models, trained and averaged in plain sight."""
    models = [network(), network()]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in models]
    theta = [parameter.detach().clone().requires_grad_() for parameter in models[0].parameters()]
    outer = torch.optim.SGD(
        theta, lr=config.outer.lr, momentum=config.outer.momentum, nesterov=config.outer.momentum > 0
    )
    to_device = ToDevice(load_experiment(DIGITS, [*COMMON, *overrides]).data, 0, CPU, channels_last=False)
    had = [0, 0]
    both = zip(batches(Position(0, 0), 0, 2), batches(Position(0, 0), 1, 2), strict=True)
    for number, shares in enumerate(both, start=1):
        for rank, share in enumerate(shares):
            images, targets = to_device(share, training=True)
            outputs = models[rank](images if len(targets) else torch.zeros(1, 1, 8, 8))
            loss = nn.functional.cross_entropy(outputs, targets.labels) if len(targets) else 0.0 * outputs.sum()
            optimizers[rank].zero_grad()
            loss.backward()
            optimizers[rank].step()
            had[rank] += len(targets)
        epoch, last = shares[0].epoch, shares[0].step + 1 == EPOCH.num_steps
        if number % config.every == 0 or last or epoch < config.from_epoch:
            step = outer if epoch >= config.from_epoch else torch.optim.SGD(theta, lr=1.0)
            average(models, optimizers, theta, step, [count / sum(had) for count in had])
            had = [0, 0]
    return {f"weight.{name}": value.detach().numpy() for name, value in models[0].named_parameters()}


@torch.no_grad()
def average(
    models: list[nn.Module],
    optimizers: list[torch.optim.SGD],
    theta: list[Tensor],
    outer: torch.optim.Optimizer,
    parts: list[float],
) -> None:
    """One outer step on theta minus the mean, as DiLoCo's algorithm 1 says it; the momentum becomes its mean."""
    for start, *workers in zip(theta, *(model.parameters() for model in models), strict=True):
        start.grad = start - sum(part * worker for part, worker in zip(parts, workers, strict=True))
        states = [optimizer.state[worker] for optimizer, worker in zip(optimizers, workers, strict=True)]
        momentum = sum(part * state["momentum_buffer"] for part, state in zip(parts, states, strict=True))
        for state in states:
            state["momentum_buffer"].copy_(momentum)
    outer.step()
    for model in models:
        for parameter, start in zip(model.parameters(), theta, strict=True):
            parameter.copy_(start)


def test_the_outer_step_is_torchs_nesterov_and_without_it_the_mean_bit_for_bit() -> None:
    torch.manual_seed(1)
    theta, first, second = torch.randn(3, 1000).unbind()
    mean, momentum = first.clone(), torch.zeros(1000)
    outer_step(theta, mean, momentum, OuterConfig(lr=1.0, momentum=0.0))
    assert torch.equal(mean, first)
    there = theta.clone().requires_grad_()
    nesterov = torch.optim.SGD([there], lr=0.7, momentum=0.9, nesterov=True)
    here, momentum = theta.clone(), torch.zeros(1000)
    for target in (first, second):
        there.grad = there.detach() - target
        nesterov.step()
        mean = target.clone()
        outer_step(here, mean, momentum, OuterConfig(lr=0.7, momentum=0.9))
        here = mean
        torch.testing.assert_close(here, there.detach(), rtol=1e-6, atol=1e-6)


CASES = {
    "outer step": (MOMENTUM, local(every=4, outer=OUTER)),
    "mean": (MOMENTUM, AVERAGE, local(every=4)),
    "adamw": (ADAMW, AVERAGE, local(every=4)),
    "fp16": (MOMENTUM, "precision=fp16", local(every=4)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_resumed_in_the_middle_goes_on_bit_for_bit(case: str, pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    overrides = ("checkpoint.every_steps=3", *CASES[case])
    whole = train_together(pool, Trial(tmp_path / "whole", overrides, batch_norm=True))
    assert_equal(whole[0].arrays, whole[1].arrays)
    commit = "checkpoints/step-00000006"
    shutil.copytree(tmp_path / "whole" / commit, tmp_path / "resumed" / commit)
    resumed = train_together(pool, Trial(tmp_path / "resumed", overrides, batch_norm=True))
    assert_equal(resumed[1].arrays, whole[1].arrays)
    assert files(tmp_path / "resumed", STEPS) == files(tmp_path / "whole", STEPS)
    assert losses(resumed[0]) == losses(whole[0])[-len(losses(resumed[0])) :]


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_one_worker_is_asked_to_stop_goes_on_from_an_average_as_if_it_had_not(
    case: str, pool: ProcessPoolExecutor, tmp_path: Path
) -> None:
    whole = train_together(pool, Trial(tmp_path / "whole", CASES[case], batch_norm=True))
    stopped = train_together(pool, Trial(tmp_path / "run", CASES[case], stop=(1, (6,)), batch_norm=True))
    assert [(rank.status, rank.progress["steps"]) for rank in stopped] == [("stopped", 8), ("stopped", 8)]
    resumed = train_together(pool, Trial(tmp_path / "run", CASES[case], batch_norm=True))
    assert [rank.status for rank in resumed] == ["finished", "finished"]
    assert_equal(resumed[1].arrays, whole[1].arrays)
    assert files(tmp_path / "run", STEPS) == files(tmp_path / "whole", STEPS)


def test_what_is_known_later_adds_up_to_what_is_known_at_once(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    """The rate is so small that both have the same weights, bit for bit, throughout."""
    still = "train.optimizer={name: sgd, lr: 1.0e-30, momentum: 0}"
    ours = train_together(pool, Trial(tmp_path / "local", (still, local(every=4))))
    others = train_together(pool, Trial(tmp_path / "sync", (still, "strategy.name=sync")))
    groups = [range(4), range(4, 5), range(5, 8), range(8, 10)]
    steps = [record for record in ours[0].records if record["kind"] == "step"]
    each = [record for record in others[0].records if record["kind"] == "step"]
    assert [record["step"] for record in steps] == [4, 5, 8, 10]
    assert [record["epoch"] for record in steps] == [0, 0, 1, 1]
    for record, group in zip(steps, groups, strict=True):
        samples = [each[number]["samples"] for number in group]
        assert record["samples"] == sum(samples)
        for name in ("loss", "accuracy"):
            mean = sum(each[number][name] * count for number, count in zip(group, samples, strict=True)) / sum(samples)
            assert record[name] == pytest.approx(mean, rel=1e-6)
        assert record["step_s"] == pytest.approx(sum(record["seconds"].values()))
        before, there = [0.0, *ours[0].asked][group.start], ours[0].asked[group.start]
        assert before < record["time"] <= there, "when its first step began"
    assert sum(record["step_s"] for record in steps) == pytest.approx(sum(ours[0].progress["seconds"].values()))
    for name in ("train_loss", "train_accuracy", "samples", "val_loss", "val_accuracy"):
        epochs = [[record[name] for record in run[0].records if record["kind"] == "epoch"] for run in (ours, others)]
        assert epochs[0] == pytest.approx(epochs[1], rel=1e-6), name
    assert ours[0].progress["samples"] == 2 * EPOCH.num_samples


def test_a_loss_that_is_not_finite_ends_all_workers_at_the_next_average(
    pool: ProcessPoolExecutor, tmp_path: Path
) -> None:
    with pytest.raises(NonFiniteLoss, match="on rank 1") as failure:
        train_together(pool, Trial(tmp_path, (MOMENTUM, local(every=4)), nan=(1, (6,))))
    assert failure.value.details["ranks"] == [1]
    assert not (tmp_path / "checkpoints" / "step-00000008").exists()


def test_fp16_gradients_that_overflow_on_one_worker_leave_all_alike(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    """At first, when it has no momentum yet, and later."""
    overrides = ("precision=fp16", ADAMW, local(every=2))
    ranks = train_together(pool, Trial(tmp_path, overrides, overflow=(1, (1, 2, 7))))
    assert_equal(ranks[0].arrays, ranks[1].arrays)
    assert ranks[0].arrays["precision.scale"] == 2.0**13


def test_fp16_gradients_that_no_scale_keeps_finite_on_one_worker_end_all(
    pool: ProcessPoolExecutor, tmp_path: Path
) -> None:
    overrides = ("precision=fp16", MOMENTUM, local(every=2))
    with pytest.raises(NonFiniteGradients, match="up to step 42"):
        train_together(pool, Trial(tmp_path, overrides, overflow=(1, tuple(range(99))), epochs=9))


def test_a_single_worker_without_a_group_trains_as_if_alone(tmp_path: Path) -> None:
    overrides = (MOMENTUM, AVERAGE, local(every=3, workers=0))
    ours = train_alone(Trial(tmp_path / "local", overrides), Local(LocalConfig(every=3, workers=0)))
    assert_equal(ours.arrays, train_alone(Trial(tmp_path / "alone", overrides), OneWorker()).arrays)
