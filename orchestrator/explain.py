"""The plan as text, for `convoy train --explain`."""

from collections import Counter, defaultdict

from kernels.passes import AUTO, VENDOR
from orchestrator.config.experiment import (
    AdaGradConfig,
    AdamaxConfig,
    AdamWConfig,
    Experiment,
    OptimizerConfig,
    SgdConfig,
    ShiftAdamaxConfig,
)
from orchestrator.config.strategy import AsyncConfig, BackupConfig, ServedConfig, StaleConfig
from orchestrator.layer_formats import check_formats
from orchestrator.memory.forecast import Forecast
from orchestrator.parameter_server.keeper import KEPT
from orchestrator.plan import BYTES_PER_WEIGHT, ModelSize, Plan, Resources
from orchestrator.report.strategy import in_short
from orchestrator.training.tasks import TASKS
from orchestrator.tuning import check_kernels, chosen_by, measured
from pipelines.augment.program import compile_program


def explain_plan(experiment: Experiment, plan: Plan, model: ModelSize, resources: Resources, forecast: Forecast) -> str:
    """What would run where, in lines of `name: value`; the warnings last."""
    kind = "GPU" if plan.device == "cuda" else "CPU"
    plural = "" if resources.nodes == 1 else "s"
    lines = {
        "resources": f"{resources.cpus} CPUs, {resources.gpus} GPUs, {resources.nodes} node{plural}",
        "training": f"{_training(experiment, plan)}; on {kind}, {plan.threads_per_worker} threads each",
        "global batch": f"{experiment.train.global_batch}: {_shares(experiment, plan)}",
        "steps": f"{plan.steps_per_epoch} an epoch, {plan.total_steps} in all; evaluation {plan.val_steps}",
        "pipeline": _pipeline(plan),
        "a sample": "; ".join(compile_program(experiment.data.augment).describe()),
        "target": f"{plan.target}; the best commit by {TASKS[plan.target.kind].judge.title}",
        "model": f"{model.num_parameters:,} weights, {model.flops_per_sample / 1e6:,.1f} MFLOP an image forward",
        "memory a worker": _memory(experiment, forecast),
        "prefetched": f"{_mib(plan.prefetch_bytes)} a worker, on the host",
        **_server(experiment, model),
        "precision": _precision(experiment, plan),
        "kernels": _kernels(experiment, plan),
        "run folder": experiment.run.path,
    }
    width = max(map(len, lines))
    text = [f"{name:<{width}}  {value}" for name, value in lines.items()]
    return "\n".join(text + [f"warning: {warning}" for warning in plan.warnings])


def _memory(experiment: Experiment, forecast: Forecast) -> str:
    """The predicted peak by its parts, and what was done about it."""
    said = [
        f"{_mib(forecast.peak)} at the peak (predicted): {_mib(forecast.weights)} weights + {_mib(forecast.state)} "
        f"optimizer and averages + {_mib(forecast.activations)} activations + {_mib(forecast.rest)} gradients and the "
        f"work of operators; {_mib(forecast.evaluation)} in evaluation"
    ]
    memory = experiment.memory
    said += [f"budget {_mib(memory.budget)}"] if memory.budget else []
    said += [f"computed again: {', '.join(memory.checkpoint)}"] if memory.checkpoint else []
    said += ["the optimizer's state on the host, if this is a GPU"] if memory.offload == "optimizer" else []
    return "; ".join(said)


def _precision(experiment: Experiment, plan: Plan) -> str:
    """Each format with its layers, and the numbers of weights if they are not fp32."""
    precision, layers = experiment.precision, defaultdict[str, list[str]](list)
    if precision.is_by_layer:
        for name, chosen in check_formats(experiment, plan.target.width).items():
            layers[str(chosen)].append(name)
    said = [f"{chosen}: {', '.join(names)}" for chosen, names in layers.items()] or [str(precision.default)]
    if precision.optimizer.weights == "bf16":
        how = precision.optimizer
        said.append(f"weights without a copy in fp32, rounded {how.rounding}, their state in {how.state}")
    return "; ".join(said)


def _kernels(experiment: Experiment, plan: Plan) -> str:
    if experiment.kernels == {"default": VENDOR}:
        return "the vendor's"
    layers = Counter(check_kernels(experiment, plan.target.width).values())
    chosen = ", ".join(f"{number} by {name}" for name, number in layers.most_common())
    if AUTO not in layers:
        return chosen
    tables = "; ".join(measured()) or "nothing yet, see convoy tune"
    return f"{chosen}; their passes here: {chosen_by(experiment, plan)}; measured: {tables}"


def _training(experiment: Experiment, plan: Plan) -> str:
    who = _workers(plan) if plan.uses_ray else "in this process, without Ray"
    agree = in_short(experiment.strategy, plan.server_shards or None)
    return f"{who}, {agree}" if agree else who


def _shares(experiment: Experiment, plan: Plan) -> str:
    strategy = experiment.strategy
    if not isinstance(strategy, ServedConfig) or not plan.uses_ray:
        return f"{plan.share} samples a worker and step"
    shares = f"{strategy.num_shares} share{'s' if strategy.num_shares > 1 else ''} of {plan.share} samples"
    spare = f", {strategy.backup} of {plan.workers} workers to spare" if isinstance(strategy, BackupConfig) else ""
    return f"{shares}, handed to whoever is free{spare}"


def _server(experiment: Experiment, model: ModelSize) -> dict[str, str]:
    """What a parameter server takes, all its shards together."""
    strategy = experiment.strategy
    if not isinstance(strategy, ServedConfig):
        return {}
    weights = BYTES_PER_WEIGHT * model.num_parameters
    averaged = experiment.train.ema_decay > 0
    trained = weights * (1 + _states(experiment.train.optimizer) + averaged)
    what = "weights, state and average" if averaged else "weights and state"
    return {
        "memory of server": (
            f"{_mib(trained)} {what} + {_mib(trained)} copied for a snapshot "
            f"+ {_mib(weights * _under_way(strategy))} gradients and weights under way (estimate); "
            f"{KEPT} snapshots on disk, {_mib(KEPT * trained)}"
        )
    }


def _states(optimizer: OptimizerConfig) -> int:
    """Numbers that an optimizer remembers of a weight."""
    match optimizer:
        case SgdConfig():
            return int(optimizer.momentum > 0)
        case AdaGradConfig():
            return 1
        case AdamWConfig() | AdamaxConfig() | ShiftAdamaxConfig():
            return 2


def _under_way(strategy: ServedConfig) -> int:
    """Vectors of the size of the weights: each worker's gradient and weights, and what waits in the server."""
    workers = max(strategy.workers, 1)
    match strategy:
        case BackupConfig():
            return 2 * workers + strategy.num_shares
        case StaleConfig():
            return 2 * workers + strategy.num_shares * (1 + strategy.staleness)
        case AsyncConfig():
            return (4 if strategy.compensate else 2) * workers


def _workers(plan: Plan) -> str:
    if plan.min_workers != plan.workers:
        return f"{plan.min_workers} to {plan.workers} Ray Train workers"
    return f"{plan.workers} Ray Train worker{'s' if plan.workers > 1 else ''}"


def _pipeline(plan: Plan) -> str:
    if not plan.uses_ray:
        return f"{plan.threads_per_worker} threads"
    least, most = plan.train_actors
    actors = f"{least}" if least == most else f"{least} to {most}"
    return (
        f"{actors} actors for training, {plan.val_actors} for validation, {plan.cpus_per_actor} CPU and a thread each; "
        f"workers {plan.cpus_per_worker} CPU each; chunks of {plan.steps_per_chunk} steps"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
