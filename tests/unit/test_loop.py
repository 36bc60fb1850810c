"""The loop by itself: what it does when arithmetic breaks down. That it trains is seen in the integration tests."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator.config.load import load_experiment
from orchestrator.errors import NonFiniteGradients, NonFiniteLoss
from orchestrator.strategies.sync import OneWorker
from orchestrator.training.breakdown import MAX_SKIPPED_STEPS
from orchestrator.training.checkpoint_store import CheckpointStore
from orchestrator.training.learner import Learner
from orchestrator.training.loop import train
from orchestrator.training.training import Training
from pipelines.device import ToDevice
from pipelines.loader import Batch
from pipelines.order import Epoch
from pipelines.quarantine import Replaced
from pipelines.targets import Target
from tests.conftest import DIGITS

EPOCH = Epoch(num_samples=4 * 100, global_batch=4)


class Silent:
    """A log that keeps nothing and never asks to stop."""

    def record(self, record: dict[str, Any]) -> None: ...

    def event(self, name: str, message: str, **fields: Any) -> None: ...

    def trace(self, batch: Batch, step: int, rank: int) -> None: ...

    def commit_trace(self, step: int) -> None: ...

    def quarantine(self, replaced: Sequence[Replaced]) -> None: ...

    def quarantined(self) -> list[str]:
        return []

    def stop_requested(self) -> bool:
        return False


def batches() -> Iterator[Batch]:
    for step in range(EPOCH.num_steps):
        images, labels = np.full((4, 8, 8, 1), step, np.uint8), np.arange(4)
        yield Batch(0, step, EPOCH.positions(step), images, labels, np.arange(4, dtype=np.uint64))


def training(folder: Path, *overrides: str) -> Training:
    experiment = load_experiment(
        DIGITS, ["strategy.workers=0", "train.epochs=1", "train.schedule.warmup_epochs=0", *overrides]
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return Training(
        experiment=experiment,
        learner=Learner(experiment, model, torch.device("cpu"), Target("class", 10)),
        strategy=OneWorker(),
        train_epoch=EPOCH,
        val_epoch=EPOCH,
        train_batches=batches(),
        val_batches=batches(),
        to_device=ToDevice(experiment.data, 0, torch.device("cpu"), channels_last=False),
        sample_ids=lambda _, positions: [f"sample-{position}" for position in positions],
        store=CheckpointStore(str(folder), keep=1),
        log=Silent(),
        identity={},
    )


def test_a_loss_that_is_not_finite_ends_the_run_and_names_step_samples_and_checkpoint(tmp_path: Path) -> None:
    run = training(tmp_path, "checkpoint.every_steps=2")
    run.learner.model.register_forward_hook(lambda *call: call[-1] * (float("nan") if run.progress.steps == 2 else 1.0))
    with pytest.raises(NonFiniteLoss, match="NaN or infinite in step 3") as failure:
        train(run)
    assert failure.value.details["sample_ids"] == ["sample-8", "sample-9", "sample-10", "sample-11"]
    assert "step-00000002" in failure.value.message


def test_fp16_gradients_that_no_scale_keeps_finite_end_the_run(tmp_path: Path) -> None:
    run = training(tmp_path, "precision=fp16")
    for parameter in run.learner.model.parameters():
        parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteGradients, match=f"up to step {MAX_SKIPPED_STEPS + 1}"):
        train(run)


def test_fp16_gradients_that_overflow_now_and_then_do_not_end_the_run(tmp_path: Path) -> None:
    run = training(tmp_path, "precision=fp16")
    for parameter in run.learner.model.parameters():
        parameter.register_hook(lambda gradient: gradient * (float("inf") if run.progress.steps % 3 == 0 else 1.0))
    assert train(run) == "finished"
