"""What each module of a network keeps for the backward pass, and what it costs to compute it again."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels import cost
from orchestrator.config.experiment import Experiment
from orchestrator.memory.forecast import Step, simulated
from orchestrator.models.zoo import outline_of
from orchestrator.plan import Plan


@dataclass(frozen=True)
class Block:
    """One call of a module, in the order in which calls begin.

    `end`: the place of the first call that begins after it has ended; those between are within it.
    `saved_bytes`: kept for the backward pass that would not be, if only its input were.
    `later_bytes`: kept by what comes after it.
    `operations`: to compute it again for one image: of convolutions and products, and one for each output of others.
    `can_repeat`: it is called once, has modules within it, and leaves its input as it is.
    """

    name: str
    end: int
    saved_bytes: int
    later_bytes: int
    operations: float
    can_repeat: bool


def blocks_of(experiment: Experiment, plan: Plan) -> list[Block]:
    """All calls of modules in one forward pass of a worker, nothing being computed again."""
    kept = experiment.model_copy(update={"memory": experiment.memory.model_copy(update={"checkpoint": ()})})
    with simulated(kept, plan) as step:
        calls = _watched(step, experiment)
    size = experiment.data.channels, experiment.data.image_size, experiment.data.image_size
    rows = cost.of_model(outline_of(experiment, plan.target.width), size)
    operations = {row.name: 0.0 for row in rows}
    for row in rows:
        operations[row.name] += 2 * row.multiply_adds + math.prod(row.output_size)
    counts = [call.name for call in calls]
    return [
        Block(
            name=call.name,
            end=call.end,
            saved_bytes=sum(size for key, size in call.saved.items() if key not in call.outside),
            later_bytes=call.later_bytes,
            operations=sum(number for name, number in operations.items() if _is_within(name, call.name)),
            can_repeat=call.end > place + 1 and call.leaves_input and counts.count(call.name) == 1,
        )
        for place, call in enumerate(calls)
    ]


class _Call:
    """A module's call while it is watched. `saved`: storages -> bytes; `outside`: those of its inputs and outputs."""

    def __init__(self, name: str, inputs: list[Tensor]) -> None:
        self.name, self.end, self.later_bytes = name, 0, 0
        self.saved: dict[int, int] = {}
        self.outside = {_key(tensor) for tensor in inputs}
        self.leaves_input = True
        self._inputs = [(tensor, tensor._version) for tensor in inputs]

    def finish(self, end: int, outputs: list[Tensor]) -> None:
        self.end = end
        self.outside |= {_key(tensor) for tensor in outputs}
        self.leaves_input = all(tensor._version == version for tensor, version in self._inputs)
        self._inputs = []


def _watched(step: Step, experiment: Experiment) -> list[_Call]:
    calls: list[_Call] = []
    running: list[_Call] = []
    total: dict[int, int] = {}
    resident = {_key(tensor) for tensor in (*step.model.parameters(), *step.model.buffers())}
    ended_at: list[tuple[_Call, int]] = []

    def begin(name: str, inputs: tuple[Any, ...]) -> None:
        calls.append(_Call(name, _tensors(inputs)))
        running.append(calls[-1])

    def finish(outputs: Any) -> None:
        call = running.pop()
        call.finish(len(calls), _tensors(outputs))
        ended_at.append((call, sum(total.values())))

    def note(tensor: Tensor) -> Tensor:
        key = _key(tensor)
        if key not in resident and key not in total:
            total[key] = tensor.untyped_storage().nbytes()
            for call in running:
                call.saved[key] = total[key]
        return tensor

    images = step.images().chunk(experiment.train.accumulate)[0]
    with _following(step.model, begin, finish), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = step.forward(images)
    for call, so_far in ended_at:
        call.later_bytes = sum(total.values()) - so_far
    del loss
    return calls


@contextmanager
def _following(model: nn.Module, begin: Any, finish: Any) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():
        if name:
            handles += [
                module.register_forward_pre_hook(lambda _, inputs, name=name: begin(name, inputs)),
                module.register_forward_hook(lambda _, __, outputs: finish(outputs)),
            ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(values: Any) -> list[Tensor]:
    values = values if isinstance(values, tuple | list) else (values,)
    return [value for value in values if isinstance(value, Tensor)]


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")
