"""What runs in every worker: builds the parts that the training loop needs, from tables of names.

`train_in_group` is Ray Train's `train_loop_per_worker`; `train_here` is the same in the calling process.
"""

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.train
import torch

from kernels import dispatch
from kernels.passes import AUTO
from kernels.table import Device, Table
from orchestrator.channel import ActorChannel, Channel
from orchestrator.config.experiment import Experiment
from orchestrator.errors import OutOfMemory, RunError
from orchestrator.memory.remedies import explaining_memory
from orchestrator.models.zoo import build_model
from orchestrator.plan import Plan
from orchestrator.process import settle
from orchestrator.run_log import WorkerPlace
from orchestrator.strategies.base import Strategy
from orchestrator.strategies.local import Local
from orchestrator.strategies.lock_step import LockStep
from orchestrator.strategies.sync import OneWorker, Sync
from orchestrator.training.checkpoint import Snapshot
from orchestrator.training.checkpoint_store import CheckpointStore
from orchestrator.training.faults import Faults
from orchestrator.training.learner import STRATEGY, Learner
from orchestrator.training.loop import train
from orchestrator.training.measures import prefixed
from orchestrator.training.progress import Progress
from orchestrator.training.training import Training
from orchestrator.worker_log import WorkerLog
from pipelines.device import ToDevice
from pipelines.loader import Batch, batches_from_blocks, batches_from_threads, begun
from pipelines.order import Epoch, Position
from pipelines.produce import Recipe
from pipelines.randomness import mix
from pipelines.stages import Pool, Stream

# strategy.name -> what makes a worker's, of the section `strategy` and the number of workers
STRATEGIES: dict[str, Callable[[Any, int], Strategy]] = {
    "sync": lambda _, workers: Sync() if workers > 1 else OneWorker(),
    "local": lambda config, _: Local(config),
}


@dataclass(frozen=True)
class Setup:
    """What a worker is told; small enough to send.

    `identity` says which run it is, for resuming. `kernel_tables`: what was measured on devices (`Table.to_json`).
    `snapshots`: where a parameter server keeps what it goes on from when it is killed.
    """

    experiment: Experiment
    plan: Plan
    checkpoints: str
    snapshots: str
    classes: tuple[str, ...]
    train_epoch: Epoch
    val_epoch: Epoch
    identity: dict[str, Any]
    kernel_tables: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Outcome:
    """How a worker's training ended: `finished`, `stopped`, or `failed` with an error that repeats itself."""

    status: str
    progress: dict[str, Any]
    error: str | None = None
    details: dict[str, Any] | None = None


@dataclass(frozen=True)
class GroupSetup:
    """What a worker of a Ray group is told beside its setup: where its data and its log are."""

    setup: Setup
    run_log: Any
    train_recipe: "ray.ObjectRef[Recipe]"
    val_recipe: "ray.ObjectRef[Recipe]"

    def stream(self, purpose: str, start: Position) -> Stream:
        """The stream of `train` or `val` from a position on; validation is read once an epoch."""
        setup, plan = self.setup, self.setup.plan
        config = setup.experiment.data
        training = purpose == "train"
        actors = plan.train_actors if training else (plan.val_actors, plan.val_actors)
        return Stream(
            recipe=self.train_recipe if training else self.val_recipe,
            epoch=setup.train_epoch if training else setup.val_epoch,
            num_epochs=setup.experiment.train.epochs,
            start=start if training else Position(start.epoch, 0),
            sample_shape=(config.image_size, config.image_size, config.channels),
            pool=Pool(*actors, plan.cpus_per_actor),
        )


def train_in_group(group: GroupSetup) -> Outcome:
    """Train as one worker of a Ray Train group."""
    setup = group.setup
    world_size = ray.train.get_context().get_world_size()
    strategy = _strategy(setup.experiment, world_size)
    recipe = ray.get(group.train_recipe) if strategy.rank == 0 or setup.experiment.trace.samples else None

    def batches(purpose: str, start: Position) -> Iterator[Batch]:
        stream = group.stream(purpose, start)
        shard = ray.train.get_dataset_shard(purpose)
        blocks = shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=setup.plan.prefetched)
        return batches_from_blocks(begun(iter(blocks)), stream.layout(world_size), strategy.rank)

    def sample_ids(epoch: int, positions: range) -> list[str]:
        return (recipe or ray.get(group.train_recipe)).sample_ids(epoch, positions)

    outcome = train_with(setup, strategy, ActorChannel(group.run_log), batches, sample_ids)
    # Once, for Ray's own records: every call waits for a poll of the controller, and commits are ours.
    ray.train.report({"status": outcome.status, **prefixed("val_", outcome.progress["val"])})
    return outcome


def train_here(setup: Setup, channel: Channel, train_recipe: Recipe, val_recipe: Recipe) -> Outcome:
    """Train as the only worker, in this process; the pipeline runs in threads."""
    threads = max(1, setup.plan.threads_per_worker)

    def batches(purpose: str, start: Position) -> Iterator[Batch]:
        training = purpose == "train"
        return batches_from_threads(
            train_recipe if training else val_recipe,
            setup.train_epoch if training else setup.val_epoch,
            setup.experiment.train.epochs,
            start if training else Position(start.epoch, 0),
            threads=threads,
            ahead=setup.plan.prefetched,
        )

    return train_with(setup, _strategy(setup.experiment, 1), channel, batches, train_recipe.sample_ids)


def train_with(
    setup: Setup,
    strategy: Strategy,
    channel: Channel,
    batches: Callable[[str, Position], Iterator[Batch]],
    sample_ids: Callable[[int, range], list[str]],
) -> Outcome:
    """Train as one worker, from the newest commit on, with whatever `batches` yields for `train` and `val`.

    `sample_ids` names the samples at positions of an epoch. The outcome says how it ended; failures that starting anew
    would only repeat are in it, others are raised.
    """
    experiment = setup.experiment
    settle(setup.plan)
    device = _device(setup.plan)
    store = CheckpointStore(setup.checkpoints, keep=experiment.checkpoint.keep)
    traced = experiment.trace.samples and isinstance(strategy, LockStep)  # a server traces what it uses
    log = WorkerLog(channel, strategy.rank, sample_ids if traced else None, speaks=strategy.speaks)
    channel.call("place", _place(strategy.rank))
    newest = _newest(store, log)
    progress = Progress() if newest is None else Progress.from_json(newest.state["progress"])
    # Before anything that takes time: a pipeline starts for seconds.
    train_batches, val_batches = batches("train", progress.position), batches("val", progress.position)
    learner = build_learner(setup, device)
    if AUTO in experiment.kernels.values():
        channel.call("event_once", "kernels", *_what_auto_chooses_by(setup, Device.of(device)))
    if newest is not None:
        learner.restore(newest)
        strategy.load(newest.optimizer.get(STRATEGY, {}))
    begins, joins = strategy.join(learner, progress.to_json())
    if begins:
        channel.call("begin", progress.position.epoch, progress.steps, strategy.world_size)
    elif joins:
        channel.call("rejoin", strategy.rank)
    strategy.barrier()
    training = Training(
        experiment=experiment,
        learner=learner,
        strategy=strategy,
        train_epoch=setup.train_epoch,
        val_epoch=setup.val_epoch,
        train_batches=train_batches,
        val_batches=val_batches,
        to_device=ToDevice(experiment.data, experiment.seed, device, channels_last=experiment.train.channels_last),
        sample_ids=sample_ids,
        store=store,
        log=log,
        identity=setup.identity,
        progress=progress,
        faults=Faults(experiment.faults, seed=experiment.seed, rank=strategy.rank, fire=partial(channel.call, "fire")),
    )
    try:
        return _outcome(training, setup.plan)
    finally:
        channel.call("peak", training.meter.peak_bytes)
        log.close()
        for iterator in (train_batches, val_batches):
            iterator.close()  # type: ignore[attr-defined]


def _outcome(training: Training, plan: Plan) -> Outcome:
    strategy, progress = training.strategy, training.progress
    try:
        with explaining_memory(training.experiment, plan, training.learner.device):
            return Outcome(train(training), progress.to_json())
    except RunError as error:  # it would only repeat itself: ended here, so that Ray does not start the group anew
        if isinstance(error, OutOfMemory) and isinstance(strategy, LockStep) and strategy.world_size > 1:
            raise  # the others do not know of it, and wait
        strategy.abandon(error.message)
        return Outcome("failed", progress.to_json(), error.message, error.details)


def _strategy(experiment: Experiment, num_workers: int) -> Strategy:
    return STRATEGIES[experiment.strategy.name](experiment.strategy, num_workers)


def build_learner(setup: Setup, device: torch.device) -> Learner:
    """The learner before its first step: the same on every worker, from the experiment's seed."""
    experiment = setup.experiment
    dispatch.use(map(Table.from_json, setup.kernel_tables), device)
    torch.manual_seed(mix("init", experiment.seed))
    model = build_model(
        experiment.model,
        num_classes=setup.plan.target.width,
        channels=experiment.data.channels,
        image_size=experiment.data.image_size,
    )
    return Learner(experiment, model, device, setup.plan.target)


def _what_auto_chooses_by(setup: Setup, device: Device) -> tuple[str, dict[str, Any]]:
    """An event's message and fields."""
    tables = map(Table.from_json, setup.kernel_tables)
    passes = sum(len(table.rows) for table in tables if table.device == device)
    by = f"by {passes} measured passes" if passes else "nothing of this network is measured there, see convoy tune"
    return f"auto on {device}: {by}; else by defaults or the vendor's", {"device": str(device), "measured": passes}


def _newest(store: CheckpointStore, log: WorkerLog) -> Snapshot | None:
    return store.newest(
        lambda path, reason: log.event(
            "skipped_checkpoint", f"skipped the damaged checkpoint {path}: {reason}", path=path, reason=reason
        )
    )


def _device(plan: Plan) -> torch.device:
    if plan.device == "cpu":
        return torch.device("cpu")
    if plan.uses_ray:
        return torch.device(ray.train.torch.get_device())
    return torch.device("cuda", 0)


def _place(rank: int) -> WorkerPlace:
    node = ray.util.get_node_ip_address() if ray.is_initialized() else socket.gethostname()
    return WorkerPlace(rank, node, os.getpid(), os.path.realpath("/proc/self/fd/2"))
