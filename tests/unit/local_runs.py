"""Runs of a small experiment by the training loop itself, in a process group of real processes, one a worker.

Five steps an epoch; of the one sample of the last step rank 0 has all, so the others take part with none.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.config.load import load_experiment
from orchestrator.config.strategy import LocalConfig
from orchestrator.strategies.base import Strategy
from orchestrator.strategies.local import Local
from orchestrator.strategies.sync import Sync
from orchestrator.training.checkpoint_store import CheckpointStore
from orchestrator.training.learner import STRATEGY, Learner
from orchestrator.training.loop import train
from orchestrator.training.progress import Progress
from orchestrator.training.training import Training
from pipelines.device import ToDevice
from pipelines.loader import Batch
from pipelines.order import Epoch, Position
from pipelines.quarantine import Replaced
from pipelines.targets import Target
from tests.conftest import DIGITS

EPOCH, EPOCHS = Epoch(num_samples=25, global_batch=6), 2
STEPS = EPOCH.num_steps * EPOCHS
CPU = torch.device("cpu")
COMMON = (
    "train.schedule={name: constant}",
    "train.label_smoothing=0",
    "checkpoint.keep=100",
    "strategy={name: local, workers: 2}",
)


@dataclass(frozen=True)
class Trial:
    """A run to make in `folder`, from the newest commit that is there.

    `stop`, `nan`, `overflow`: on which rank, in which steps, counted from 1, a stop is asked for, the loss is NaN or
    fp16's gradients overflow.
    """

    folder: Path
    overrides: tuple[str, ...]
    stop: tuple[int, tuple[int, ...]] = (0, ())
    nan: tuple[int, tuple[int, ...]] = (0, ())
    overflow: tuple[int, tuple[int, ...]] = (0, ())
    batch_norm: bool = False
    epochs: int = EPOCHS


@dataclass(frozen=True)
class Trained:
    """What a worker has in the end.

    `arrays`: those of its learner and what its strategy keeps, by name. `asked`: when each step asked whether to stop.
    """

    status: str
    arrays: dict[str, Any]
    records: list[dict[str, Any]]
    progress: dict[str, Any]
    asked: list[float]


class Notes:
    """A log that keeps the records."""

    def __init__(self, stops: Callable[[], bool]) -> None:
        self.records: list[dict[str, Any]] = []
        self.asked: list[float] = []
        self._stops = stops

    def stop_requested(self) -> bool:
        self.asked.append(time.time())
        return self._stops()

    def record(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def event(self, name: str, message: str, **fields: Any) -> None: ...

    def trace(self, batch: Batch, step: int, rank: int) -> None: ...

    def commit_trace(self, step: int) -> None: ...

    def quarantine(self, replaced: Sequence[Replaced]) -> None: ...

    def quarantined(self) -> list[str]:
        return []


def network(batch_norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    if batch_norm:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


def batch(epoch: int, step: int, positions: range) -> Batch:
    samples = np.array([(7 * position + epoch) % EPOCH.num_samples for position in positions], np.int64)
    images = np.random.default_rng(0).integers(0, 256, (EPOCH.num_samples, 8, 8, 1), np.uint8)[samples]
    return Batch(epoch, step, positions, images, samples % 10, samples.astype(np.uint64))


def batches(start: Position, rank: int, world_size: int, epochs: int = EPOCHS) -> Iterator[Batch]:
    for epoch in range(start.epoch, epochs):
        for step in range(start.step if epoch == start.epoch else 0, EPOCH.num_steps):
            yield batch(epoch, step, EPOCH.share(step, rank, world_size))


def train_alone(trial: Trial, strategy: Strategy) -> Trained:
    return _train(trial, strategy)


def train_together(pool: ProcessPoolExecutor, trial: Trial, world_size: int = 2) -> list[Trained]:
    """Train in `world_size` processes, and give what each has in the end."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    meeting = trial.folder / "meeting"
    meeting.unlink(missing_ok=True)
    ranks = [pool.submit(_train_in_group, trial, str(meeting), rank, world_size) for rank in range(world_size)]
    return [rank.result() for rank in ranks]


def _train_in_group(trial: Trial, meeting: str, rank: int, world_size: int) -> Trained:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(meeting, world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60))
    try:
        config = load_experiment(DIGITS, [*COMMON, *trial.overrides]).strategy
        return _train(trial, Local(config) if isinstance(config, LocalConfig) else Sync())
    finally:
        dist.destroy_process_group()


def _train(trial: Trial, strategy: Strategy) -> Trained:
    experiment = load_experiment(DIGITS, [*COMMON, f"train.epochs={trial.epochs}", *trial.overrides])
    learner = Learner(experiment, network(trial.batch_norm), CPU, Target("class", 10))
    store = CheckpointStore(str(trial.folder / "checkpoints"), keep=experiment.checkpoint.keep)
    newest = store.newest(lambda *_: None)
    progress = Progress()
    if newest is not None:  # as orchestrator/worker.py does
        progress = Progress.from_json(newest.state["progress"])
        learner.restore(newest)
        strategy.load(newest.optimizer.get(STRATEGY, {}))
    log = Notes(lambda: _is_at(trial.stop, strategy, training))
    training = Training(
        experiment=experiment,
        learner=learner,
        strategy=strategy,
        train_epoch=EPOCH,
        val_epoch=EPOCH,
        train_batches=batches(progress.position, strategy.rank, strategy.world_size, trial.epochs),
        val_batches=batches(Position(progress.position.epoch, 0), strategy.rank, strategy.world_size, trial.epochs),
        to_device=ToDevice(experiment.data, experiment.seed, CPU, channels_last=False),
        sample_ids=lambda _, positions: [f"sample-{position}" for position in positions],
        store=store,
        log=log,
        identity={},
        progress=progress,
    )
    _disturb(trial, training)
    status = train(training)
    return Trained(status, arrays(learner, strategy), log.records, progress.to_json(), log.asked)


def _is_at(fault: tuple[int, tuple[int, ...]], strategy: Strategy, training: Training) -> bool:
    rank, steps = fault
    return strategy.rank == rank and training.steps + 1 in steps


def _disturb(trial: Trial, training: Training) -> None:
    def outputs(*call: Any) -> Tensor:
        bad = training.learner.model.training and _is_at(trial.nan, training.strategy, training)
        return call[-1] * (float("nan") if bad else 1.0)

    def overflowing(gradient: Tensor) -> Tensor:
        return gradient * (float("inf") if _is_at(trial.overflow, training.strategy, training) else 1.0)

    training.learner.model.register_forward_hook(outputs)
    for parameter in training.learner.model.parameters():
        parameter.register_hook(overflowing)


def arrays(learner: Learner, strategy: Strategy) -> dict[str, Any]:
    found = {f"weight.{name}": value for name, value in learner.model.named_parameters()}
    for name, value in learner.model.named_parameters():
        state = learner.optimizer.state.get(value, {})
        found |= {f"optimizer.{name}.{key}": each for key, each in state.items() if isinstance(each, Tensor)}
    if learner.average is not None:
        averages = learner.average.state()
        found |= {f"average.{name}": averages[name] for name, _ in learner.model.named_parameters()}
    found |= {f"strategy.{name}": value for name, value in strategy.state().items()}
    for name, value in learner.precision.state().items():
        as_bytes = isinstance(value, dict | list)
        found[f"precision.{name}"] = torch.tensor(
            list(json.dumps(value, sort_keys=True).encode()) if as_bytes else value
        )
    return {name: _exact(value).numpy().copy() for name, value in found.items()}


def _exact(value: Tensor) -> Tensor:
    """In a type that NumPy has too."""
    return value.detach().float() if value.dtype == torch.bfloat16 else value.detach()


def assert_equal(ours: dict[str, Any], others: dict[str, Any]) -> None:
    """Bit for bit."""
    assert ours.keys() == others.keys()
    assert [name for name in ours if ours[name].tobytes() != others[name].tobytes()] == []


def files(run: Path, step: int) -> dict[str, bytes]:
    """The tensors of a commit."""
    return {path.name: path.read_bytes() for path in (run / "checkpoints" / f"step-{step:08d}").glob("*.safetensors")}
