"""Runs that a parameter server leads: what makes the server, the feeds of samples, and what runs in every worker."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.train

from orchestrator.channel import ActorCalls, ActorChannel, Channel
from orchestrator.config.experiment import Experiment, OptimizerConfig
from orchestrator.config.strategy import AsyncConfig, BackupConfig, ServedConfig, StaleConfig
from orchestrator.parameter_server.client import Calls, Client, DirectCalls
from orchestrator.parameter_server.ledger import Course
from orchestrator.parameter_server.optimizer import OptimizerRule
from orchestrator.parameter_server.partition import partition
from orchestrator.parameter_server.rules import Each, First, Rule, WithinBound
from orchestrator.parameter_server.server import ParameterServer as Server
from orchestrator.parameter_server.setup import ServerSetup
from orchestrator.parameter_server.sharded_client import ShardedClient
from orchestrator.parameter_server.transport import WorkerEnd
from orchestrator.server_actors import Ears
from orchestrator.strategies.parameter_server import Fetch, ParameterServer
from orchestrator.worker import GroupSetup, Outcome, Setup, train_with
from orchestrator.worker_log import trace_rows
from pipelines.layout import Layout
from pipelines.loader import Batch, batches_of_chunk
from pipelines.order import Epoch, Position
from pipelines.produce import Recipe
from pipelines.stages import Stream, arrays_of

PURPOSES = ("train", "val")
FETCH_TIMEOUT_S = 60.0
CHUNKS_KEPT = 2


def server_setup(setup: Setup) -> ServerSetup:
    """What the server of a run is told."""
    experiment, config = setup.experiment, _served(setup.experiment)
    shares = share_epoch(setup, "train")
    course = Course(
        epochs=experiment.train.epochs,
        num_shares=shares.num_steps,
        num_steps=setup.train_epoch.num_steps,
        val_shares=share_epoch(setup, "val").num_steps,
        commit_every=experiment.checkpoint.every_steps,
        scale_lr=isinstance(config, AsyncConfig) and config.scale_lr,
        in_store=int(_overlaps(config)),
        hang_s=config.hang_s,
    )
    return ServerSetup(
        rule=rule_of(config),
        course=course,
        optimizer=optimizer_rule(experiment.train.optimizer),
        folder=setup.snapshots,
        snapshot_every=config.snapshot_every,
        clip_grad_norm=experiment.train.clip_grad_norm,
        ema_decay=experiment.train.ema_decay,
        compensate=config.compensate if isinstance(config, AsyncConfig) else 0.0,
        num_shards=setup.plan.server_shards,
    )


def rule_of(config: ServedConfig) -> Rule:
    """When gradients make an update."""
    match config:
        case BackupConfig():
            return First(config.num_shares)
        case StaleConfig():
            return WithinBound(config.num_shares, config.staleness)
        case AsyncConfig():
            return Each(config.num_shares)


def optimizer_rule(config: OptimizerConfig) -> OptimizerRule:
    """The section `train.optimizer` as the server has it."""
    said = config.model_dump(exclude={"lr"})
    return OptimizerRule(**said)


def share_epoch(setup: Setup, purpose: str) -> Epoch:
    """An epoch in the shares that are given out: a global batch has `num_shares` of them."""
    whole = setup.train_epoch if purpose == "train" else setup.val_epoch
    return Epoch(whole.num_samples, -(-whole.global_batch // _served(setup.experiment).num_shares))


def _served(experiment: Experiment) -> ServedConfig:
    assert isinstance(experiment.strategy, ServedConfig)
    return experiment.strategy


def _overlaps(config: ServedConfig) -> bool:
    """Whether a worker computes a gradient while the one before is under way, where its rule lets it."""
    match config:
        case AsyncConfig():
            return config.overlap
        case StaleConfig():
            return config.staleness > 0
        case BackupConfig():
            return False


@dataclass(frozen=True)
class ServedGroup:
    """What a worker is told beside the setup of a group. `feeds`: actors by purpose, and their layouts of chunks.

    `shards`: the server, which has the first part of the weights, and the followers that have the others.
    """

    group: GroupSetup
    shards: tuple[Any, ...]
    feeds: dict[str, tuple[Any, Layout]]

    @property
    def actors(self) -> tuple[Any, ...]:
        return (*self.shards, *(feed for feed, _ in self.feeds.values()))


def served_stream(group: GroupSetup, purpose: str, start: Position) -> Stream:
    """The stream of a purpose in shares, from a position of whole steps on."""
    shares = share_epoch(group.setup, purpose)
    if purpose == "train":
        start = Position(start.epoch, start.step * _served(group.setup.experiment).num_shares)
    stream = group.stream(purpose, start)
    return Stream(stream.recipe, shares, stream.num_epochs, stream.start, stream.sample_shape, stream.pool)


def train_in_served_group(served: ServedGroup) -> Outcome:
    """Train as one of the workers of a server: a replica group of Ray Train, which is replaced without the others."""
    setup, context = served.group.setup, ray.train.get_context()
    recipes: dict[str, Recipe] = {}

    def recipe(purpose: str) -> Recipe:
        if purpose not in recipes:
            recipes[purpose] = ray.get(served.group.train_recipe if purpose == "train" else served.group.val_recipe)
        return recipes[purpose]

    def made_here(purpose: str, epoch: int, number: int) -> Batch:
        return _make(recipe(purpose), share_epoch(setup, purpose), epoch, number)

    strategy = _strategy(
        setup,
        [ActorCalls(shard) for shard in served.shards],
        FedBatches(served.feeds, made_here),
        lambda epoch, positions: recipe("train").sample_ids(epoch, positions),
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
    )
    return train_with(
        setup,
        strategy,
        ActorChannel(served.group.run_log),
        _no_batches,
        lambda epoch, positions: recipe("train").sample_ids(epoch, positions),
    )


def train_served_here(setup: Setup, channel: Channel, train_recipe: Recipe, val_recipe: Recipe) -> Outcome:
    """Train as the only worker, in this process, which is the server's too."""
    recipes = {"train": train_recipe, "val": val_recipe}

    def made_here(purpose: str, epoch: int, number: int) -> Batch:
        return _make(recipes[purpose], share_epoch(setup, purpose), epoch, number)

    server = Server(server_setup(setup), Ears(channel, setup.experiment.faults, 0))
    strategy = _strategy(setup, [DirectCalls(server)], made_here, train_recipe.sample_ids, rank=0, world_size=1)
    return train_with(setup, strategy, channel, _no_batches, train_recipe.sample_ids)


def _strategy(
    setup: Setup,
    calls: Sequence[Calls],
    fetch: Fetch,
    sample_ids: Callable[[int, range], list[str]],
    *,
    rank: int,
    world_size: int,
) -> ParameterServer:
    config, traced = _served(setup.experiment), setup.experiment.trace.samples
    transport = "object_store" if isinstance(calls[0], DirectCalls) else config.transport

    def connect(num_weights: int) -> Client:
        sizes = map(len, partition(num_weights, len(calls)))
        ends = [WorkerEnd(transport, config.wire, size, top_k=config.top_k) for size in sizes]
        return Client(calls[0], rank, ends[0]) if len(calls) == 1 else ShardedClient(calls, rank, ends, num_weights)

    return ParameterServer(
        rank,
        world_size,
        connect,
        fetch,
        lambda batch, step: trace_rows(batch, step, rank, sample_ids) if traced else None,
        num_shares=config.num_shares,
        overlap=_overlaps(config),
    )


def _no_batches(purpose: str, start: Position) -> Iterator[Batch]:
    del purpose, start
    yield from ()


def _make(recipe: Recipe, shares: Epoch, epoch: int, number: int) -> Batch:
    positions = shares.positions(number)
    made = recipe.produce(epoch, positions)
    return Batch(epoch, number, positions, made.images, made.labels, made.keys, made.crc32, made.replaced)


class FedBatches:
    """Batches out of the chunks of feeds; what a feed does not have (any more) is made here."""

    def __init__(self, feeds: dict[str, tuple[Any, Layout]], made_here: Fetch) -> None:
        self._feeds, self._made_here = feeds, made_here
        self._chunks: dict[tuple[str, int], dict[int, Batch]] = {}

    def __call__(self, purpose: str, epoch: int, number: int) -> Batch:
        feed, layout = self._feeds[purpose]
        index = layout.chunk_of(epoch, number, 0)
        if index >= 0 and (purpose, index) not in self._chunks:
            self._get(purpose, feed, layout, index)
        batch = self._chunks.get((purpose, index), {}).get(number)
        return self._made_here(purpose, epoch, number) if batch is None else batch

    def _get(self, purpose: str, feed: Any, layout: Layout, index: int) -> None:
        try:
            references = ray.get(feed.chunk.remote(index), timeout=FETCH_TIMEOUT_S)
            if not references:
                return
            arrays = arrays_of(ray.get(references[0], timeout=FETCH_TIMEOUT_S))
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.GetTimeoutError):
            return
        self._chunks[purpose, index] = {batch.step: batch for batch in batches_of_chunk(arrays, layout)}
        kept = [key for key in self._chunks if key[0] == purpose]
        for key in kept[:-CHUNKS_KEPT]:
            del self._chunks[key]
