"""Experiments and plans whose memory is predicted."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from orchestrator.config.experiment import Experiment
from orchestrator.config.load import load_experiment
from orchestrator.launch import run
from orchestrator.memory.forecast import predict
from orchestrator.plan import DataSize, ModelSize, Plan, Resources, make_plan
from pipelines.targets import Target
from tests.conftest import DIGITS

CPU = torch.device("cpu")
ALONE = "strategy.workers=0"
LARGE = ("data.image_size=32", "model.name=resnet20", "model.options={}", ALONE)


def experiment(*overrides: str) -> Experiment:
    return load_experiment(DIGITS, overrides or (ALONE,))


def plan_of(chosen: Experiment) -> Plan:
    return make_plan(chosen, Resources(2, 0), DataSize(1437, 360, Target("class", 10)), ModelSize(1, 1))


def peak(chosen: Experiment) -> int:
    return predict(chosen, plan_of(chosen)).peak


def run_once(folder: Path, *overrides: str) -> dict[str, Any]:
    """What result.json says of a run of one epoch in this process."""
    small = (
        "data.train=digits?per_class=20",
        "train.epochs=1",
        "train.schedule={name: constant}",
        "data.image_size=16",
    )
    chosen = experiment(ALONE, *small, f"run.folder={json.dumps(str(folder))}", *overrides)
    return run(chosen, resume=False, overwrite=True, watch=lambda *_: nullcontext())
