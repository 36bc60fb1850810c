"""Evaluate the checkpoint of a run, in this process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kernels import inference
from orchestrator.config.experiment import Experiment
from orchestrator.config.memory import MemoryConfig
from orchestrator.errors import CheckpointError
from orchestrator.plan import Resources
from orchestrator.prepare import prepare
from orchestrator.process import settle
from orchestrator.run_folder import RunFolder
from orchestrator.strategies.sync import OneWorker
from orchestrator.training.checkpoint_store import CheckpointStore
from orchestrator.training.evaluate import evaluate
from orchestrator.worker import build_learner
from pipelines.device import ToDevice
from pipelines.loader import Batch, batches_from_threads
from pipelines.order import Position
from pipelines.quarantine import Replaced


def evaluate_run(folder: RunFolder, experiment: Experiment, resources: Resources, *, newest: bool) -> dict[str, Any]:
    """Evaluate a run's best checkpoint, or its newest, on `data.val`.

    Raises: CheckpointError if the run has no valid checkpoint.
    """
    alone = experiment.model_copy(
        update={"strategy": experiment.strategy.model_copy(update={"workers": 0}), "memory": MemoryConfig()}
    )
    prepared = prepare(alone, resources)
    setup = prepared.setup(folder)
    store = CheckpointStore(folder.checkpoints, keep=1)
    skipped: list[str] = []
    read = store.newest if newest else store.best
    snapshot = read(lambda path, reason: skipped.append(f"skipped {path}: {reason}"))
    if snapshot is None:
        raise CheckpointError(
            f"run.folder: {folder.path} has no valid checkpoint. Train first. {' '.join(skipped)}".strip()
        )
    settle(prepared.plan)
    device = torch.device(prepared.plan.device)
    learner = build_learner(setup, device)
    learner.restore(snapshot)
    inference.prepare(learner.model)
    batches = batches_from_threads(
        prepared.recipe(False),
        setup.val_epoch,
        1,
        Position(0, 0),
        threads=prepared.plan.threads_per_worker,
        ahead=8,
    )
    to_device = ToDevice(alone.data, alone.seed, device, channels_last=alone.train.channels_last)
    replaced: list[Replaced] = []

    def noted() -> Iterator[Batch]:
        for batch in batches:
            replaced.extend(batch.replaced)
            yield batch

    found = evaluate(learner, OneWorker(), noted(), setup.val_epoch, to_device)
    return {
        "figures": found.figures,
        "val_loss": found.mean_loss,
        "samples": found.samples,
        "step": snapshot.step,
        "skipped": skipped,
        "replaced": [f"{each.sample_id} cannot be read, {each.by} stands in: {each.reason}" for each in replaced],
        "folder": str(Path(folder.path)),
    }
