"""The section `strategy` of an experiment in words: how workers agree on one model."""

from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestrator.config.strategy import (
    AsyncConfig,
    BackupConfig,
    LocalConfig,
    ServedConfig,
    StaleConfig,
    StrategyConfig,
    SyncConfig,
)

_STRATEGY: TypeAdapter[StrategyConfig] = TypeAdapter(StrategyConfig)


def read_strategy(experiment: dict[str, Any]) -> StrategyConfig | None:
    """The section of a parsed experiment.yaml; None if that is missing, or has a section of another version."""
    try:
        return _STRATEGY.validate_python(experiment.get("strategy", {})) if experiment else None
    except ValidationError:
        return None


def in_short(strategy: StrategyConfig, num_shards: int | None = None) -> str:
    """A phrase to be read after who trains: `a parameter server, asynchronous`; empty if there is nothing to agree on.

    `num_shards`: of the server, if it is known.
    """
    if isinstance(strategy, ServedConfig):
        shards = "" if num_shards is None else f" of {_number(num_shards, 'shard')}"
        return ", ".join([f"a parameter server{shards}", *_rule(strategy), *_wire(strategy)])
    if isinstance(strategy, LocalConfig):
        return ", ".join(_averages(strategy))
    return "all-reduce" if strategy.max_workers > 1 else ""


def in_full(strategy: StrategyConfig) -> str:
    """What that means, in a sentence or two."""
    match strategy:
        case SyncConfig():
            return (
                "Every step is the step of the whole global batch: all workers add up their gradients, so all wait for "
                "the slowest."
            )
        case LocalConfig():
            return (
                "Workers take steps by themselves. The mean of their weights makes them alike again; between two means "
                "nothing is sent, and nobody waits."
            )
        case BackupConfig():
            return (
                "A step does not wait for the gradients that come last: they are dropped, and their samples are given "
                "out again. No gradient is stale."
            )
        case StaleConfig():
            return (
                "Steps are those of sync, in the same order. Who is faster computes ahead, with weights that are a "
                "bounded number of updates old."
            )
        case AsyncConfig():
            return (
                "Every gradient is an update, as it comes, and nobody waits. A gradient is stale by the updates that "
                "were made while it was computed and sent."
            )


def _rule(strategy: ServedConfig) -> list[str]:
    match strategy:
        case BackupConfig():
            first = "first gradient" if strategy.num_shares == 1 else f"first {strategy.num_shares} gradients"
            return [f"the {first} of a step"]
        case StaleConfig():
            return [f"at most {_number(strategy.staleness, 'update')} stale" if strategy.staleness else "never stale"]
        case AsyncConfig():
            return [
                "asynchronous",
                *(["rate divided by 1 + staleness"] if strategy.scale_lr else []),
                *([f"delay compensated by {strategy.compensate:g}"] if strategy.compensate else []),
                *([] if strategy.overlap else ["without overlap"]),
            ]


def _wire(strategy: ServedConfig) -> list[str]:
    if strategy.wire == "fp32":
        return []
    kept = f"the largest {100 * strategy.top_k:g} %" if strategy.wire == "top_k" else strategy.wire
    return [f"gradients sent as {kept}"]


def _averages(strategy: LocalConfig) -> list[str]:
    often = "every step" if strategy.every == 1 else f"every {strategy.every} steps"
    outer = strategy.outer
    steps = [] if (outer.lr, outer.momentum) == (1.0, 0.0) else [f"rate {outer.lr:g}, momentum {outer.momentum:g}"]
    if strategy.max_workers <= 1:
        return [f"an outer step {often}: {step}" for step in steps]
    before = f", before epoch {strategy.from_epoch} every step" if strategy.from_epoch and strategy.every > 1 else ""
    return [f"weights averaged {often}{before}", *(f"outer step of {step}" for step in steps)]


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
