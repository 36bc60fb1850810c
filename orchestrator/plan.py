"""The plan of a run: who does what with which resources. A pure function of its inputs; it starts nothing.

What cannot work is refused here, before anything runs, with a message that says what would.
"""

import math
from dataclasses import dataclass

from orchestrator.config.experiment import Experiment
from orchestrator.config.mistake import show
from orchestrator.config.strategy import BackupConfig, ServedConfig
from orchestrator.errors import InputError
from orchestrator.parameter_server.partition import shards_for
from pipelines.layout import steps_per_chunk
from pipelines.order import Epoch
from pipelines.targets import Target

BYTES_PER_WEIGHT = 4
PIPELINE_SHARE = 0.25  # of the CPUs, where training itself runs on them
MAX_PREFETCHED = 8  # chunks, or batches without Ray: more than that hides no hiccup


@dataclass(frozen=True)
class Resources:
    """What there is to run on: a machine or a whole cluster. `memory_bytes` 0 means unknown."""

    cpus: int
    gpus: int
    nodes: int = 1
    memory_bytes: int = 0


@dataclass(frozen=True)
class ModelSize:
    """What a model costs: weights, and operations of a forward pass for one sample."""

    num_parameters: int
    flops_per_sample: int


@dataclass(frozen=True)
class DataSize:
    """How much there is to read: samples to train on and to validate on, and what their labels are."""

    num_train: int
    num_val: int
    target: Target


@dataclass(frozen=True)
class Plan:
    """Who does what, to learn which target. Sizes in bytes, CPUs as Ray counts them (fractions are allowed).

    `train_actors`: at least and at most how many make the training samples. `server_shards`: parts of the parameter
    server; 0 without one.
    """

    target: Target
    device: str
    workers: int
    min_workers: int
    share: int
    steps_per_epoch: int
    total_steps: int
    val_steps: int
    threads_per_worker: int
    cpus_per_worker: float
    train_actors: tuple[int, int]
    val_actors: int
    cpus_per_actor: float
    server_shards: int
    steps_per_chunk: int
    prefetched: int
    prefetch_bytes: int
    warnings: tuple[str, ...] = ()

    @property
    def uses_ray(self) -> bool:
        return self.workers > 0


def make_plan(experiment: Experiment, resources: Resources, data: DataSize, model: ModelSize) -> Plan:
    """Decide who does what.

    Raises: InputError if the experiment cannot run on these resources; the message says what would.
    """
    strategy, train = experiment.strategy, experiment.train
    workers = max(strategy.max_workers, 1)
    _refuse_too_many_workers(experiment, resources)
    _refuse_formats_without_device(experiment, resources)
    _refuse_uneven_batch(experiment)
    epoch = Epoch(data.num_train, train.global_batch)
    val_epoch = Epoch(data.num_val, train.global_batch)
    use_gpu = resources.gpus > 0
    pool = _pipeline_pool(experiment, resources)
    share = epoch.largest_share(strategy.num_shares)
    sample_bytes = experiment.data.image_size**2 * experiment.data.channels
    if isinstance(strategy, ServedConfig):  # shares go to whoever is free, one after the other
        chunk_steps = steps_per_chunk(Epoch(data.num_train, share), 1, sample_bytes)
    else:
        chunk_steps = steps_per_chunk(epoch, workers, sample_bytes)
    chunk_bytes = chunk_steps * share * sample_bytes
    prefetched = min(max(1, experiment.data.prefetch_mib * 2**20 // chunk_bytes), MAX_PREFETCHED)
    return Plan(
        target=data.target,
        device="cuda" if use_gpu else "cpu",
        workers=strategy.max_workers,
        min_workers=strategy.min_workers,
        share=share,
        steps_per_epoch=epoch.num_steps,
        total_steps=epoch.num_steps * train.epochs,
        val_steps=val_epoch.num_steps,
        threads_per_worker=max(1, resources.cpus // workers),
        cpus_per_worker=pool.cpus_per_worker,
        train_actors=pool.train_actors,
        val_actors=pool.val_actors,
        cpus_per_actor=pool.cpus_per_actor,
        server_shards=_server_shards(experiment, model),
        steps_per_chunk=chunk_steps,
        prefetched=prefetched,
        prefetch_bytes=(1 + prefetched) * chunk_bytes,
        warnings=_warnings(experiment, resources),
    )


@dataclass(frozen=True)
class _Pool:
    cpus_per_worker: float
    train_actors: tuple[int, int]
    val_actors: int
    cpus_per_actor: float


def _pipeline_pool(experiment: Experiment, resources: Resources) -> _Pool:
    """Split the CPUs. With GPUs a worker holds one CPU and the pipeline the rest; else the pipeline has a share.

    The claims of the actors that a run starts with never exceed what workers leave: Ray Data waits for ever, without
    a word, for a CPU that never comes free. Where training runs on CPUs that holds for the most actors too; with GPUs
    those beyond the first come when there are CPUs for them, as when nodes join.
    Raises: InputError if data.actors does not fit.
    """
    workers = max(experiment.strategy.max_workers, 1)
    spare = resources.cpus - workers if resources.gpus > 0 else 0
    pipeline = float(spare) if spare > 0 else resources.cpus * PIPELINE_SHARE
    wanted = max(1, round(pipeline)) if resources.gpus > 0 else resources.cpus
    actors = experiment.data.actors
    if actors == "auto":
        val_actors = max(1, wanted // 4)
        fewest = most = max(1, wanted - val_actors) if resources.gpus > 0 else wanted
    else:
        fewest, most = actors if isinstance(actors, tuple) else (actors, actors)
        val_actors = max(1, fewest // 4)
    claims = val_actors + (fewest if resources.gpus > 0 else most)
    # With GPUs 1, 1/2, 1/3 ...: what workers leave of a node is whole CPUs, so no part of one is lost at its edge.
    per_actor = _floor_to_hundredth(1 / math.ceil(claims / spare) if spare > 0 else pipeline / claims)
    if per_actor == 0:
        raise InputError(
            f"data.actors: got {show(actors)}, which leaves each less than 0.01 of the {pipeline:g} CPUs beside the "
            "workers. Set data.actors to a few for each CPU, or to auto."
        )
    return _Pool(
        cpus_per_worker=_floor_to_hundredth((resources.cpus - pipeline) / workers),
        train_actors=(fewest, most),
        val_actors=val_actors,
        cpus_per_actor=per_actor,
    )


def _server_shards(experiment: Experiment, model: ModelSize) -> int:
    """Raises: InputError if gradients are to be clipped, whose norm no shard of several sees."""
    strategy, clip = experiment.strategy, experiment.train.clip_grad_norm
    if not isinstance(strategy, ServedConfig):
        return 0
    wanted = shards_for(BYTES_PER_WEIGHT * model.num_parameters) if strategy.shards == "auto" else strategy.shards
    shards = wanted if strategy.workers > 0 else 1
    if shards > 1 and clip > 0:
        raise InputError(
            f"train.clip_grad_norm: got {clip:g} with {shards} shards of the parameter server, must be 0, because none "
            "of them sees the norm of a whole gradient. Set strategy.shards to 1, or do not clip."
        )
    return shards


def _floor_to_hundredth(value: float) -> float:
    return int(value * 100) / 100


def _refuse_too_many_workers(experiment: Experiment, resources: Resources) -> None:
    least = experiment.strategy.min_workers
    kind, there = ("GPU", resources.gpus) if resources.gpus > 0 else ("CPU", resources.cpus)
    if least > there:
        raise InputError(
            f"strategy.workers: got {_shown_workers(experiment)}, but there {_are(there, kind)} for them, "
            f"one each. Set strategy.workers to {there} or less, or run on more nodes."
        )


def _are(count: int, kind: str) -> str:
    return f"is 1 {kind}" if count == 1 else f"are {count} {kind}s"


def _shown_workers(experiment: Experiment) -> str:
    workers = experiment.strategy.workers
    return str(list(workers)) if isinstance(workers, tuple) else str(workers)


def _refuse_formats_without_device(experiment: Experiment, resources: Resources) -> None:
    if experiment.precision.default.name == "tf32" and resources.gpus == 0:
        raise InputError(
            "precision: got tf32, must be fp32, bf16, fp8, fixed, dynamic_fixed or binary on CPUs: tf32 is arithmetic "
            "of GPUs from compute capability 8.0."
        )


def _refuse_uneven_batch(experiment: Experiment) -> None:
    strategy, batch = experiment.strategy, experiment.train.global_batch
    shares, backup = strategy.num_shares, isinstance(strategy, BackupConfig)
    if batch % shares:
        below, above = batch // shares * shares, -(-batch // shares) * shares
        good = " or ".join(str(size) for size in (below, above) if size > 0)
        less = " less strategy.backup, which is " if backup else "="
        raise InputError(
            f"train.global_batch: got {batch}, must be divisible by strategy.workers{less}{shares}. "
            f"Set train.global_batch to {good}, or change strategy.workers."
        )


def _warnings(experiment: Experiment, resources: Resources) -> tuple[str, ...]:
    warnings = []
    if resources.nodes > 1 and "://" not in experiment.run.path:
        warnings.append(
            f"run.folder is the local path {experiment.run.path} on a cluster of {resources.nodes} nodes: it must lie "
            "on storage that all of them share, or be a URI such as s3://bucket/run."
        )
    if experiment.data.actors != "auto" and experiment.strategy.max_workers == 0:
        warnings.append("data.actors is not used with strategy.workers=0: samples are made in threads of this process.")
    if experiment.precision.default.name == "fp16" and resources.gpus == 0:
        warnings.append(
            "precision: fp16 on CPUs without fp16 arithmetic is many times slower than fp32. bf16 or fp32 is faster."
        )
    return tuple(warnings)
