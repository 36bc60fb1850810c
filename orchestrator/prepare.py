"""Everything that is decided before a run starts: data opened, model sized, plan made. It starts nothing."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ray
import torch

from orchestrator.config.experiment import Experiment
from orchestrator.errors import InputError
from orchestrator.layer_formats import check_formats
from orchestrator.memory.budget import check_modules, within_budget
from orchestrator.memory.forecast import Forecast, predict
from orchestrator.models.size import measure
from orchestrator.models.zoo import check_model
from orchestrator.plan import DataSize, ModelSize, Plan, Resources, make_plan
from orchestrator.run_folder import RunFolder
from orchestrator.training.tasks import check_loss
from orchestrator.tuning import check_kernels, kernel_tables
from orchestrator.worker import Setup
from pipelines.augment.trial import try_functions
from pipelines.listing import check_same_targets
from pipelines.order import Epoch
from pipelines.produce import Recipe
from pipelines.sources import Source, Split, open_source


@dataclass(frozen=True)
class Prepared:
    """An experiment whose data is open and whose plan is made; nothing is started yet.

    In `experiment`, what `memory.checkpoint: auto` has chosen stands in its place.
    """

    experiment: Experiment
    plan: Plan
    model: ModelSize
    train: Source
    val: Source

    @cached_property
    def forecast(self) -> Forecast:
        """What a worker needs of its device's memory."""
        return predict(self.experiment, self.plan)

    def recipe(self, training: bool) -> Recipe:
        source = self.train if training else self.val
        experiment = self.experiment
        checksums = training and experiment.trace.samples
        return Recipe(source, experiment.data, experiment.seed, training, checksums)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on from a commit."""
        experiment = self.experiment
        return {
            "seed": experiment.seed,
            "data.train": self.train.listing.fingerprint,
            "train.global_batch": experiment.train.global_batch,
            "data.image_size": experiment.data.image_size,
            "data.channels": experiment.data.channels,
            "data.resize": experiment.data.resize,
            "data.window": experiment.data.window,
            "model": experiment.model.model_dump(mode="json"),
            "data.augment": [a.model_dump(mode="json") for a in experiment.data.augment],
        }

    def setup(self, folder: RunFolder) -> Setup:
        batch = self.experiment.train.global_batch
        return Setup(
            experiment=self.experiment,
            plan=self.plan,
            checkpoints=folder.checkpoints,
            snapshots=str(folder.snapshots),
            classes=self.train.listing.classes,
            train_epoch=Epoch(len(self.train.listing), batch),
            val_epoch=Epoch(len(self.val.listing), batch),
            identity=self.identity,
            kernel_tables=kernel_tables(self.experiment, self.plan, folder),
        )


def prepare(experiment: Experiment, resources: Resources) -> Prepared:
    """Open the data, size the model and make the plan.

    Raises: InputError if anything that the experiment names does not exist or cannot work.
    """
    check_model(experiment.model)
    train = _open("data.train", experiment.data.train, "train")
    val = _open("data.val", experiment.data.val, "val")
    try:
        check_same_targets(train.listing, val.listing)
    except ValueError as error:
        raise InputError(f"data.val: {error}") from error
    target, data = train.listing.target, experiment.data
    check_loss(target, experiment.train.loss, experiment.train.label_smoothing)
    if data.window and train.storage is None:
        raise InputError(
            f"data.window: got {data.window}, must be 0 with data.train={data.train}, whose samples do not lie "
            "in a row. Leave it out, or pack them: convoy pack."
        )
    try:
        try_functions(data.augment, data.channels, data.image_size)
    except ValueError as error:
        raise InputError(f"data.{error}") from error
    check_kernels(experiment, target.width)
    if experiment.precision.is_by_layer:
        check_formats(experiment, target.width)
    model = measure(experiment.model, num_classes=target.width, channels=data.channels, image_size=data.image_size)
    size = DataSize(len(train.listing), len(val.listing), target)
    check_modules(experiment, target.width)
    plan = make_plan(experiment, resources, size, model)
    return Prepared(within_budget(experiment, plan), plan, model, train, val)


def _open(setting: str, spec: str, split: Split) -> Source:
    try:
        return open_source(spec, split)
    except ValueError as error:
        raise InputError(f"{setting}: {error}") from error


def resources_here() -> Resources:
    """What this machine has, or the cluster that this process is connected to."""
    if ray.is_initialized():
        total = ray.cluster_resources()
        nodes = sum(node["Alive"] for node in ray.nodes())
        return Resources(int(total.get("CPU", 0)), int(total.get("GPU", 0)), nodes, int(total.get("memory", 0)))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Resources(len(os.sched_getaffinity(0)), gpus)
