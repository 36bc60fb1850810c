"""Runs of a small experiment by the training loop itself: alone, and led by a parameter server in this process."""

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from local_runs import COMMON, CPU, EPOCH, EPOCHS, Notes, batch, batches
from numpy.typing import NDArray
from server_runs import Place
from torch import Tensor, nn

from orchestrator.config.load import load_experiment
from orchestrator.config.strategy import ServedConfig
from orchestrator.parameter_server.client import Client, Pending, ServerLost
from orchestrator.parameter_server.transport import WorkerEnd
from orchestrator.plan import Plan
from orchestrator.served import server_setup, share_epoch
from orchestrator.strategies.base import Strategy
from orchestrator.strategies.parameter_server import ParameterServer
from orchestrator.strategies.sync import OneWorker
from orchestrator.training.checkpoint_store import CheckpointStore
from orchestrator.training.learner import Learner
from orchestrator.training.loop import train
from orchestrator.training.progress import Progress
from orchestrator.training.training import Training
from orchestrator.worker import Setup
from pipelines.device import ToDevice
from pipelines.loader import Batch
from pipelines.order import Position
from pipelines.targets import Target
from tests.conftest import DIGITS

SYNC = "strategy={name: sync, workers: 0}"
STEPS = EPOCH.num_steps * EPOCHS


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


def convolutional() -> nn.Module:
    """The first filters have one channel: in whichever order, they lie alike in memory."""
    norm = nn.BatchNorm2d(4)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), norm, nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(96, 10)
    )


@dataclass(frozen=True)
class Trial:
    """A run to make in `folder`, from the newest commit that is there.

    `stop_at`: the step, from 1, in which a stop is asked for. `bad`: steps, from 0, whose fp16 gradients overflow.
    """

    folder: Path
    overrides: tuple[str, ...] = ()
    network: Callable[[], nn.Module] = dense
    stop_at: float = inf
    bad: tuple[int, ...] = ()

    @property
    def setup(self) -> Setup:
        experiment = load_experiment(DIGITS, [*COMMON, f"train.epochs={EPOCHS}", *self.overrides])
        return Setup(
            experiment=experiment,
            plan=cast(Plan, SimpleNamespace(server_shards=1)),
            checkpoints=str(self.folder / "checkpoints"),
            snapshots=str(self.folder / "snapshots"),
            classes=(),
            train_epoch=EPOCH,
            val_epoch=EPOCH,
            identity={},
            kernel_tables=(),
        )


@dataclass(frozen=True)
class Trained:
    """How a worker ended, the training that it had, and what it noted."""

    status: str
    training: Training
    records: list[dict[str, Any]]

    def noted(self, *names: str) -> list[tuple[Any, ...]]:
        """Of each step."""
        return [tuple(record[name] for name in names) for record in self.records if record["kind"] == "step"]


class Killed(Place):
    """A server that is killed at its `number`-th call of a method, before or after it has done it; it starts again."""

    def __init__(self, *given: Any, method: str, number: int, done: bool) -> None:
        super().__init__(*given)
        self.fatal, self.number, self.done = method, number, done

    def begin(self, method: str, *args: Any, **kwargs: Any) -> Pending:
        self.number -= method == self.fatal
        if method != self.fatal or self.number != 0:
            return super().begin(method, *args, **kwargs)
        if self.done:
            super().begin(method, *args, **kwargs)
        self.restart()
        raise ServerLost("killed")


class Watched(Place):
    """Keeps the newest batch statistics of each rank, and takes the first that evaluates a share for gone."""

    def __init__(self, *given: Any, loses: bool) -> None:
        super().__init__(*given)
        self.loses, self.lost = loses, list[int]()
        self.ranks: dict[int, int] = {}
        self.buffers: dict[int, NDArray[np.float32]] = {}

    def begin(self, method: str, *args: Any, **kwargs: Any) -> Pending:
        pending = super().begin(method, *args, **kwargs)
        answer = pending.result()
        if method == "join":
            self.ranks[answer.session] = args[0]
        elif method == "push":
            self.buffers[self.ranks[args[0]]] = args[1].buffers
        elif method == "evaluate_next" and isinstance(answer, int) and self.loses and not self.lost:
            self.lost.append(self.ranks[args[0]])
            super().begin("left", self.lost[0], "killed")
        return pending


def served(trial: Trial, place: Place | None = None) -> Trained:
    """By one worker. What another server kept is gone, as in a new run of the command."""
    setup = trial.setup
    if place is None:
        shutil.rmtree(setup.snapshots, ignore_errors=True)
    return _train(trial, strategy(setup, place or Place(server_setup(setup)), 0, 1))


def served_by_two(trial: Trial, place: Place | None = None) -> list[Trained]:
    """By two workers, in threads; both are there before either begins."""
    setup, trained = trial.setup, {}
    place = place or Place(server_setup(setup))
    both = threading.Barrier(2)

    def work(rank: int) -> None:
        trained[rank] = _train(trial, strategy(setup, place, rank, 2), both.wait)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [trained[rank] for rank in range(2)]


def alone(trial: Trial) -> Trained:
    """Synchronously, by one worker."""
    return _train(Trial(trial.folder, (*trial.overrides, SYNC), trial.network, trial.stop_at, trial.bad), OneWorker())


def strategy(setup: Setup, place: Place, rank: int, world_size: int) -> ParameterServer:
    config = setup.experiment.strategy
    assert isinstance(config, ServedConfig)
    wire, top_k = config.wire, config.top_k

    def fetch(purpose: str, epoch: int, number: int) -> Batch:
        return batch(epoch, number, share_epoch(setup, purpose).positions(number))

    return ParameterServer(
        rank,
        world_size,
        lambda size: Client(
            place,
            rank,
            WorkerEnd("object_store", wire, size, top_k=top_k),
            sleep=lambda _: None,  # time to start again
        ),
        fetch,
        lambda *_: None,
        num_shares=config.num_shares,
        overlap=place.setup.course.in_store > 0,
    )


def _train(trial: Trial, strategy: Strategy, meet: Callable[[], object] = lambda: None) -> Trained:
    setup = trial.setup
    experiment = setup.experiment
    with _MAKING:  # the generator is everybody's
        torch.manual_seed(0)
        learner = Learner(experiment, trial.network(), CPU, Target("class", 10))
    store = CheckpointStore(setup.checkpoints, keep=experiment.checkpoint.keep)
    newest = store.newest(lambda *_: None)
    progress = Progress()
    if newest is not None:  # as orchestrator/worker.py does
        progress = Progress.from_json(newest.state["progress"])
        learner.restore(newest)
    strategy.join(learner, progress.to_json())
    meet()
    log = Notes(lambda: training.steps + 1 >= trial.stop_at)
    training = Training(
        experiment=experiment,
        learner=learner,
        strategy=strategy,
        train_epoch=EPOCH,
        val_epoch=EPOCH,
        train_batches=batches(progress.position, 0, 1),
        val_batches=batches(Position(progress.position.epoch, 0), 0, 1),
        to_device=ToDevice(experiment.data, experiment.seed, CPU, channels_last=experiment.train.channels_last),
        sample_ids=lambda _, positions: [f"sample-{position}" for position in positions],
        store=store,
        log=log,
        identity={},
        progress=progress,
    )
    _disturb(trial, training)
    return Trained(train(training), training, log.records)


_MAKING = threading.Lock()


def _disturb(trial: Trial, training: Training) -> None:
    """Gradients as the trial says; and a look at each forward pass, whether it is as it should be."""

    def looked_at(module: nn.Module, *_: Any) -> None:
        assert module.training == torch.is_grad_enabled()

    training.learner.model.register_forward_hook(looked_at)

    def overflowing(gradient: Tensor) -> Tensor:
        return gradient * (float("inf") if training.steps in trial.bad else 1.0)

    if trial.bad:
        for parameter in training.learner.model.parameters():
            parameter.register_hook(overflowing)


def committed(trial: Trial) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays of the newest commit by name, each as it lies in memory, and its progress."""
    newest = CheckpointStore(trial.setup.checkpoints, keep=100).newest(lambda *_: None)
    assert newest is not None
    found = dict(_named("model", newest.model)) | dict(_named("optimizer", newest.optimizer))
    return found | dict(_named("average", newest.ema)), newest.state["progress"]


def _named(name: str, tree: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _named(f"{name}.{key}", value)
    elif isinstance(tree, list | tuple):
        for key, value in enumerate(tree):
            yield from _named(f"{name}.{key}", value)
    elif isinstance(tree, Tensor):
        yield name, tree.numpy()
    elif isinstance(tree, int | float) and tree is not None:
        yield name, np.array(float(tree))
