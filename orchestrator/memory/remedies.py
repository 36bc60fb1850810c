"""Settings with which a step would fit, by the forecast: for who ran out of memory, or has too small a budget.

The first are those that cost least: what leaves the numbers as they are, or nearly so, before what changes them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch

from orchestrator.config.experiment import Experiment
from orchestrator.config.precision import Bf16, Fp32
from orchestrator.errors import OutOfMemory
from orchestrator.memory.fit import choose, with_memory
from orchestrator.memory.forecast import predict
from orchestrator.plan import Plan
from orchestrator.report.wording import size
from orchestrator.training.peak import available_bytes
from pipelines.sizes import size_in_bytes

MOST = 3
MARGIN = 0.8
"""Of the predicted peak that turned out too much: what is to fit must be so much less."""

_ALLOCATORS = ("DefaultCPUAllocator", "STATUS_ALLOC_FAILED")
"""In the message of a RuntimeError: of PyTorch on CPUs, of cuBLAS and cuDNN."""


@dataclass(frozen=True)
class Remedy:
    """Overrides of the experiment, as they are written, and the peak predicted with them."""

    overrides: str
    peak: int

    def __str__(self) -> str:
        return f"{self.overrides} (predicted {size(self.peak)})"


def remedies(experiment: Experiment, plan: Plan, limit: int) -> list[Remedy]:
    """At most three settings whose predicted peak is within `limit` bytes; two at once where one is not enough."""
    single = chain(
        _accumulated(experiment, plan, limit),
        _recomputed(experiment, plan, limit),
        _in_bf16(experiment, plan, limit),
        _offloaded(experiment, plan, limit),
    )
    found = list(single)[:MOST]
    if len(found) < MOST:
        found += _both(experiment, plan, limit) if not found else ()
        found += _smaller(experiment, plan, limit)
    return found[:MOST]


def told(found: list[Remedy]) -> str:
    """What to do, as a sentence."""
    if not found:
        return "No setting fits by the forecast: take a smaller model, or smaller images."
    return f"What would fit: {'; '.join(map(str, found))}."


@contextmanager
def explaining_memory(experiment: Experiment, plan: Plan, device: torch.device) -> Iterator[None]:
    """Say what would fit where memory runs out. Raises: OutOfMemory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        predicted = predict(experiment, plan).peak
        available = available_bytes(device)
        found = remedies(experiment, plan, int(min(available, MARGIN * predicted)))
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise OutOfMemory(
            f"memory: {device} ran out of memory: {first_line} The predicted peak of a worker is {size(predicted)}, "
            f"and {size(available)} are there. {told(found)} See docs/memory.md.",
            predicted_bytes=predicted,
            available_bytes=available,
            remedies=[remedy.overrides for remedy in found],
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(name in str(error) for name in _ALLOCATORS)


def _accumulated(experiment: Experiment, plan: Plan, limit: int) -> Iterator[Remedy]:
    """The fewest parts that fit, by doubling."""
    accumulate = 2 * experiment.train.accumulate
    while accumulate <= plan.share:
        changed = with_train(experiment, accumulate=accumulate)
        if fitting := _if_fits(f"train.accumulate={accumulate}", changed, plan, limit):
            yield from fitting
            return
        accumulate *= 2


def _recomputed(experiment: Experiment, plan: Plan, limit: int) -> Iterator[Remedy]:
    if experiment.train.compile or experiment.memory.checkpoint == "auto":
        return
    budget = written(limit)
    found, _ = choose(experiment, plan, size_in_bytes(budget))
    if found is not None and found[0].memory.checkpoint:
        yield Remedy(f"memory={{checkpoint: auto, budget: {budget}}}", found[1].peak)


def _in_bf16(experiment: Experiment, plan: Plan, limit: int) -> Iterator[Remedy]:
    precision = experiment.precision
    if isinstance(precision.default, Fp32) and not precision.is_by_layer:
        changed = experiment.model_copy(update={"precision": precision.model_copy(update={"default": Bf16()})})
        yield from _if_fits("precision=bf16", changed, plan, limit)


def _offloaded(experiment: Experiment, plan: Plan, limit: int) -> Iterator[Remedy]:
    if plan.device == "cpu" or experiment.strategy.name != "sync" or experiment.memory.offload != "none":
        return
    yield from _if_fits("memory.offload=optimizer", with_memory(experiment, offload="optimizer"), plan, limit)


def _both(experiment: Experiment, plan: Plan, limit: int) -> Iterator[Remedy]:
    """As many parts as there can be, and the modules to compute again."""
    accumulate = plan.share
    accumulated = with_train(experiment, accumulate=accumulate)
    for remedy in _recomputed(accumulated, plan, limit):
        yield replace(remedy, overrides=f"train.accumulate={accumulate} {remedy.overrides}")


def _smaller(experiment: Experiment, plan: Plan, limit: int) -> Iterator[Remedy]:
    """The largest share, by halving; it is another training."""
    share, batch = plan.share, experiment.train.global_batch
    while share > 1 and batch % 2 == 0:
        share, batch = -(-share // 2), batch // 2
        smaller = with_train(experiment, global_batch=batch)
        if batch % experiment.strategy.num_shares or experiment.train.accumulate > share:
            return
        if fitting := _if_fits(f"train.global_batch={batch}", smaller, replace(plan, share=share), limit):
            yield from fitting
            return


def _if_fits(overrides: str, experiment: Experiment, plan: Plan, limit: int) -> list[Remedy]:
    """`experiment`: with the overrides. Where `auto` stands, it chooses under the limit."""
    if experiment.memory.checkpoint == "auto":
        found, peak = choose(experiment, plan, limit)
        peak = peak if found is None else found[1].peak
    else:
        peak = predict(experiment, plan).peak
    return [Remedy(overrides, peak)] if peak <= limit else []


def with_train(experiment: Experiment, **settings: Any) -> Experiment:
    """The experiment with other settings of its section `train`."""
    return experiment.model_copy(update={"train": experiment.train.model_copy(update=settings)})


def written(limit: int) -> str:
    """A size as an experiment has it, not more than `limit`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if limit >= unit:
            return f"{limit * 100 // unit / 100:g}{name}"
    return f"{limit}B"
