"""Evaluate the checkpoint of a run, in this process, or export its weights to a file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from kernels import inference
from kernels.binary_packed import Packing, pack_for_evaluation
from orchestrator.config.experiment import Experiment
from orchestrator.config.memory import MemoryConfig
from orchestrator.errors import CheckpointError, InputError
from orchestrator.plan import Resources
from orchestrator.prepare import Prepared, prepare
from orchestrator.process import settle
from orchestrator.run_folder import RunFolder
from orchestrator.strategies.sync import OneWorker
from orchestrator.training.checkpoint_store import CheckpointStore
from orchestrator.training.evaluate import evaluate
from orchestrator.training.learner import Learner
from orchestrator.training.measures import MEASURES
from orchestrator.worker import Setup, build_learner
from pipelines.device import ToDevice
from pipelines.loader import Batch, batches_from_threads
from pipelines.order import Position
from pipelines.quarantine import Replaced


@dataclass(frozen=True)
class Restored:
    """A checkpoint of a run, of step `step`, as the learner that it was. `skipped`: damaged ones, in words."""

    prepared: Prepared
    setup: Setup
    learner: Learner
    step: int
    skipped: tuple[str, ...]

    def batches(self) -> Iterator[Batch]:
        """The validation samples, once, in order."""
        return batches_from_threads(
            self.prepared.recipe(False),
            self.setup.val_epoch,
            1,
            Position(0, 0),
            threads=self.prepared.plan.threads_per_worker,
            ahead=8,
        )

    def to_device(self) -> ToDevice:
        experiment = self.prepared.experiment
        return ToDevice(
            experiment.data, experiment.seed, self.learner.device, channels_last=experiment.train.channels_last
        )

    def take_average(self) -> nn.Module:
        """Put the average of the weights, if there is one, in their place for good; returns the model to evaluate."""
        learner = self.learner
        if learner.average is not None:
            state = {**dict(learner.model.named_parameters()), **dict(learner.model.named_buffers())}
            with torch.no_grad():
                for name, average in learner.average.state().items():
                    state[name].copy_(average)
            learner.average = None
        return learner.model.eval()


def restore_run(folder: RunFolder, experiment: Experiment, resources: Resources, *, newest: bool) -> Restored:
    """The learner of a run as its best checkpoint, or its newest, has it.

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
    learner = build_learner(setup, torch.device(prepared.plan.device))
    learner.restore(snapshot)
    return Restored(prepared, setup, learner, snapshot.step, tuple(skipped))


def evaluate_run(
    folder: RunFolder, experiment: Experiment, resources: Resources, *, newest: bool, packed: bool = False
) -> dict[str, Any]:
    """Evaluate a run's best checkpoint, or its newest, on `data.val`; `packed`, with its binary layers as bits.

    Raises: CheckpointError if the run has no valid checkpoint; InputError if there are no binary layers to pack.
    """
    restored = restore_run(folder, experiment, resources, newest=newest)
    size = pack(restored) if packed else None
    inference.prepare(restored.learner.model)
    replaced: list[Replaced] = []

    def noted() -> Iterator[Batch]:
        for batch in restored.batches():
            replaced.extend(batch.replaced)
            yield batch

    found = evaluate(restored.learner, OneWorker(), noted(), restored.setup.val_epoch, restored.to_device())
    return {
        "figures": found.figures,
        "val_loss": found.mean_loss,
        "samples": found.samples,
        "step": restored.step,
        "skipped": restored.skipped,
        "replaced": [f"{each.sample_id} cannot be read, {each.by} stands in: {each.reason}" for each in replaced],
        "packed": str(size) if size else None,
        "folder": str(Path(folder.path)),
    }


def in_words(found: dict[str, Any]) -> str:
    """What `evaluate_run` found, but for what was skipped and replaced."""
    judged = ((MEASURES[name], value) for name, value in found["figures"].items())
    figures = ", ".join(f"{measure.title} {measure.text(value)}" for measure, value in judged)
    about = (
        f"validation {figures}, loss {found['val_loss']:.4f} "
        f"on {found['samples']} samples, checkpoint of step {found['step']}"
    )
    return f"{found['packed']}\n{about}" if found["packed"] else about


@dataclass(frozen=True)
class PackedSize:
    """Bytes of a packed model's tensors, and of the same before."""

    packing: Packing
    before: int
    after: int

    @property
    def ratio(self) -> float:
        return self.before / self.after

    def __str__(self) -> str:
        layers, folded = len(self.packing.layers), len(self.packing.folded)
        untraced = self.packing.untraced
        why = f" (the forward pass cannot be followed: {untraced})" if untraced else ""
        return (
            f"{layers} binary layer{'s' if layers > 1 else ''} packed, {folded} with norms folded into thresholds{why}"
            f": {self.after:,} bytes instead of {self.before:,}, 1/{self.ratio:.1f}"
        )


def pack(restored: Restored) -> PackedSize:
    """Keep the binary layers of a restored model as bits, of their average where there is one.

    Raises: InputError if the model has none.
    """
    model = restored.take_average()
    before = num_bytes(model.state_dict())
    packing = pack_for_evaluation(model)
    if not packing.layers:
        chosen = restored.prepared.experiment.precision.default
        raise InputError(
            f"--packed: got a run with precision.default={chosen}, which has no binary layers, must be one that "
            "has. Leave it out, or train with precision: binary."
        )
    return PackedSize(packing, before, num_bytes(model.state_dict()))


def num_bytes(state: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in state.values())


def export_run(
    folder: RunFolder, experiment: Experiment, resources: Resources, path: Path, *, newest: bool, packed: bool
) -> str:
    """Write the weights that are evaluated of a run's checkpoint to a file of safetensors, by their names.

    Returns: what was done, in words.
    Raises: as `evaluate_run`.
    """
    restored = restore_run(folder, experiment, resources, newest=newest)
    size = pack(restored) if packed else None
    state = restored.take_average().state_dict()
    about = {"run": experiment.run.name, "step": str(restored.step), "form": "packed" if packed else "plain"}
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({name: each.cpu().contiguous() for name, each in state.items()}, path, metadata=about)
    written = f"written: {path}, {path.stat().st_size:,} bytes, checkpoint of step {restored.step}"
    return "\n".join([*restored.skipped, *([str(size)] if size else []), written])
