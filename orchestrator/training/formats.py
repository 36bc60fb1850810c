"""Formats of numbers by layer: in which arithmetic each computes, and what of it is rounded to fixed point.

A layer is a module with parameters of its own. In fp32, bf16 or fp16 it computes under an autocast of its own where
that is not the model's. In fixed point its numbers are fp32 that lie on a grid <IL, FL>: the outputs as they leave it,
the gradients as they come back and those of its weights before the update, the weights after it. So there is no copy of
the weights with more bits: steps below half of the grid are lost to nearest, and made with their probability by chance.

Source: Gupta et al. 2015, "Deep Learning with Limited Numerical Precision" (arXiv:1502.02551), section 3.

Random numbers are a function of the run's seed, the update, the layer, what is rounded, and where of outputs and their
gradients the rank and the call; so a run resumes to the same bits, and all workers round weights alike. In evaluation
outputs are rounded to nearest: the same network gives the same answers.
"""

import difflib
import fnmatch
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kernels.binary import BinaryConv2d, BinaryLinear
from kernels.rounding import round_fixed, stream
from orchestrator.config.precision import Binary, Fixed, Format, Fp32, PrecisionConfig

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_UPDATES = "updates"
# What is rounded, as part of a seed.
_WEIGHTS, _WEIGHT_GRADIENTS, _OUTPUTS, _GRADIENTS = range(4)


def formats_of(model: nn.Module, config: PrecisionConfig) -> dict[str, Format]:
    """Layer -> format: of the first rule that matches, else the default.

    Binary are only convolutions and linear layers, and by default neither the first nor the last of them.
    Raises: ValueError for a rule that matches no layer, and for a layer that its rule does not suit.
    """
    layers = {name: module for name, module in model.named_modules() if _own(module)}
    names = list(layers)
    for glob in config.layers:
        if not fnmatch.filter(names, glob):
            near = difflib.get_close_matches(glob, [*names, "default", "optimizer"], n=1) or names[:1]
            hint = f"Did you mean {near[0]!r}?" if near else "Leave it out: the model has no layers with weights."
            raise ValueError(f"got {glob!r}, must match the name of a layer with weights. {hint}")
    products = [name for name, layer in layers.items() if isinstance(layer, nn.Conv2d | nn.Linear)]
    spared = {*products[:1], *products[-1:]} if isinstance(config.default, Binary) else set()
    found: dict[str, Format] = {}
    for name, layer in layers.items():
        rule = next((glob for glob in config.layers if fnmatch.fnmatchcase(name, glob)), None)
        chosen = config.default if rule is None else config.layers[rule]
        if isinstance(chosen, Binary) and (name not in products or (rule is None and name in spared)):
            chosen = Fp32()
        if isinstance(chosen, Binary) and getattr(layer, "groups", 1) != 1:
            raise ValueError(
                f"got binary for {name!r}, which has groups={layer.groups}, must be another. Add a rule for it."
            )
        found[name] = chosen
    return found


class Draws:
    """Which random numbers come next: those of an update of a run, of a rank."""

    def __init__(self, seed: int, rank: int) -> None:
        self._seed, self._rank = seed, rank
        self.updates = 0
        self._calls: dict[tuple[int, int], int] = {}

    def shared(self, layer: int, what: int, number: int) -> int:
        """A seed that all ranks have alike."""
        return stream(self._seed, self.updates, layer, what, number)

    def own(self, layer: int, what: int) -> int:
        """A seed of this rank, another one at each call."""
        call = self._calls[layer, what] = self._calls.get((layer, what), -1) + 1
        return stream(self._seed, self.updates, layer, what, call, self._rank)

    def mark(self) -> dict[tuple[int, int], int]:
        """What `again` needs to draw the same numbers as from here on."""
        return dict(self._calls)

    @contextmanager
    def again(self, mark: dict[tuple[int, int], int]) -> Iterator[None]:
        """Draw for a pass that is computed again (`recompute.py`) what was drawn after `mark`."""
        now, self._calls = self._calls, dict(mark)
        try:
            yield
        finally:
            self._calls = now

    def begin_update(self, updates: int) -> None:
        self.updates = updates
        self._calls.clear()


class LayerFormat:
    """How a layer computes. `number`: of the layer in its model."""

    def __init__(self, chosen: Format, number: int, draws: Draws, device_type: str) -> None:
        self._grid = chosen if isinstance(chosen, Fixed) else None
        self._dtype = _DTYPES.get(chosen.name)
        self._number, self._draws, self._device_type = number, draws, device_type

    def forward(self, module: nn.Module, compute: Any, input: Tensor) -> Tensor:
        if self._dtype is None:
            input = input.float()
        with torch.autocast(self._device_type, self._dtype or torch.bfloat16, enabled=self._dtype is not None):
            output: Tensor = compute(input)
        if self._grid is None or not {"activations", "gradients"} & set(self._grid.of):
            return output
        rounded: Tensor = _Rounded.apply(output, self, module.training)
        return rounded

    def round_outputs(self, output: Tensor, *, training: bool) -> Tensor:
        if not self._rounds("activations"):
            return output.view_as(output)
        return self._round(output, self._draws.own(self._number, _OUTPUTS) if training else None)

    def round_gradients(self, grad: Tensor) -> Tensor:
        return self._round(grad, self._draws.own(self._number, _GRADIENTS)) if self._rounds("gradients") else grad

    def round_weight_gradients(self, module: nn.Module) -> None:
        self._in_place([p.grad for p in _own(module)], "gradients", _WEIGHT_GRADIENTS)

    def round_weights(self, module: nn.Module) -> None:
        if isinstance(module, BinaryConv2d | BinaryLinear):
            module.clip_()
        self._in_place([p.data for p in _own(module)], "weights", _WEIGHTS)

    def _in_place(self, tensors: list[Tensor | None], role: str, what: int) -> None:
        if not self._rounds(role):
            return
        for number, tensor in enumerate(tensors):
            if tensor is not None:
                self._round(tensor, self._draws.shared(self._number, what, number), out=tensor)

    def _rounds(self, role: str) -> bool:
        return self._grid is not None and role in self._grid.of

    def _round(self, values: Tensor, seed: int | None, out: Tensor | None = None) -> Tensor:
        grid = self._grid
        assert grid is not None
        how = grid.rounding if seed is not None else "nearest"
        return round_fixed(values, grid.integer_bits, grid.fraction_bits, how, seed=seed or 0, out=out)


class _Rounded(torch.autograd.Function):
    """Outputs on the grid, with the gradient as if they had not been rounded, itself on the grid."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, layer: LayerFormat, training: bool) -> Tensor:
        ctx.layer = layer
        return layer.round_outputs(output, training=training)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.layer.round_gradients(grads[0]), None, None


class Formats:
    """A model's layers with formats of their own, and when their weights and gradients are rounded."""

    def __init__(self, model: nn.Module, config: PrecisionConfig, seed: int, rank: int, device_type: str) -> None:
        self.draws = Draws(seed, rank)
        self._layers: list[tuple[nn.Module, LayerFormat]] = []
        modules: dict[str, Any] = dict(model.named_modules())
        for number, (name, chosen) in enumerate(formats_of(model, config).items()):
            module = modules[name]
            if config.layers or isinstance(chosen, Fixed | Binary):
                layer = LayerFormat(chosen, number, self.draws, device_type)
                kind: Any = type(module)
                module.__class__ = _with_format(kind, binary=isinstance(chosen, Binary))
                module.layer_format = layer
                if isinstance(chosen, Binary):
                    module.scaled = chosen.scaled
                self._layers.append((module, layer))
            if config.optimizer.weights == "bf16" and chosen.name == "bf16":
                for parameter in _own(module):
                    if parameter.ndim > 1:  # norms and biases are few, and steps of theirs are small
                        parameter.data = parameter.data.bfloat16()
        self.round_weights()

    def before_update(self) -> None:
        """Gradients are whole: sums over all workers, without a scale."""
        for module, layer in self._layers:
            layer.round_weight_gradients(module)

    def after_update(self) -> None:
        self.draws.begin_update(self.draws.updates + 1)
        self.round_weights()

    def state(self) -> dict[str, float | int]:
        """What is remembered between steps: nothing where nothing is rounded."""
        return {_UPDATES: self.draws.updates} if self._layers else {}

    def load(self, state: dict[str, float | int]) -> dict[str, float | int]:
        """Go on from what `state()` gave among others; returns the others."""
        self.draws.begin_update(int(state.get(_UPDATES, 0)))
        return {name: value for name, value in state.items() if name != _UPDATES}

    @torch.no_grad()
    def round_weights(self) -> None:
        for module, layer in self._layers:
            layer.round_weights(module)


@functools.cache
def _with_format(kind: Any, *, binary: bool) -> Any:
    """The class of a layer that computes in its `layer_format`."""
    if binary:
        kind = BinaryConv2d if issubclass(kind, nn.Conv2d) else BinaryLinear

    def forward(self: Any, input: Tensor) -> Tensor:
        result: Tensor = self.layer_format.forward(self, functools.partial(kind.forward, self), input)
        return result

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _own(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))
