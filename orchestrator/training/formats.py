"""Formats of numbers by layer: in which arithmetic each computes, and what of it is rounded to fixed point.

A layer is a module with parameters of its own. In fp32, bf16 or fp16 it computes under an autocast of its own where
that is not the model's. In fixed point its numbers are fp32 that lie on a grid <IL, FL>: the outputs as they leave it,
the gradients as they come back and those of its weights before the update, the weights after it. So there is no copy of
the weights with more bits: steps below half of the grid are lost to nearest, and made with their probability by chance.
In dynamic fixed point each tensor has a grid of its own (`moving_points.py`). A guard gives layers wider formats whose
gradients do not fit (`guard.py`).

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
from pydantic import TypeAdapter
from torch import Tensor, nn

from kernels.binary import BinaryConv2d, BinaryLinear
from kernels.rounding import Grid, round_to_grid, stream
from kernels.shift_norm import ShiftBatchNorm1d, ShiftBatchNorm2d
from orchestrator.config.precision import (
    Bf16,
    Binary,
    DynamicFixed,
    Fixed,
    Format,
    Fp8,
    Fp32,
    OnGrid,
    PrecisionConfig,
    Shift,
)
from orchestrator.training import float8
from orchestrator.training.guard import OVERFLOW, Guard, wider
from orchestrator.training.moving_points import Key, MovingPoints

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
_UPDATES, _POINTS, _GUARD, _WIDENED = _STATE = ("updates", "points", "guard", "widened")
_FORMAT: TypeAdapter[Format] = TypeAdapter(Format)
# What is rounded, as part of a seed.
_WEIGHTS, _WEIGHT_GRADIENTS, _OUTPUTS, _GRADIENTS = range(4)


def formats_of(model: nn.Module, config: PrecisionConfig) -> dict[str, Format]:
    """Layer -> format: of the first rule that matches, else the default.

    Binary are only convolutions and linear layers, and by default neither the first nor the last of them; shift are
    only batch norms. In fp8 are linear layers of suitable sizes; others in bf16.
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
        if isinstance(chosen, Shift) and not isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            if rule is not None:
                raise ValueError(
                    f"got shift for {name!r}, a {type(layer).__name__}, must be another: shift is for batch norms. Let "
                    "the glob match norms only."
                )
            chosen = Fp32()
        if isinstance(chosen, Fp8) and not float8.suits(layer):
            chosen = Bf16()
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
        self.repeats = False
        """Whether a pass is under way that has been computed before (`recompute.py`)."""
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
        """Draw for a pass that is computed again what was drawn after `mark`."""
        now, self._calls, self.repeats = self._calls, dict(mark), True
        try:
            yield
        finally:
            self._calls, self.repeats = now, False

    def begin_update(self, updates: int) -> None:
        self.updates = updates
        self._calls.clear()


class LayerFormat:
    """How a layer computes. `number`: of the layer in its model."""

    def __init__(self, chosen: Format, number: int, draws: Draws, points: MovingPoints, device_type: str) -> None:
        self.number = number
        self._draws, self._points, self._device_type = draws, points, device_type
        self.become(chosen)

    def become(self, chosen: Format) -> None:
        """Compute in another format from here on."""
        self.chosen = chosen
        self._on_grid = chosen if isinstance(chosen, OnGrid) else None
        self._dtype = _DTYPES.get(chosen.name)

    def forward(self, module: nn.Module, compute: Any, input: Tensor) -> Tensor:
        if self._dtype is None:
            input = input.float()
        with torch.autocast(self._device_type, self._dtype or torch.bfloat16, enabled=self._dtype is not None):
            output: Tensor = compute(input)
        if self._on_grid is None or not {"activations", "gradients"} & set(self._on_grid.of):
            return output
        rounded: Tensor = _Rounded.apply(output, self, module.training)
        return rounded

    def round_outputs(self, output: Tensor, *, training: bool) -> Tensor:
        if not self._rounds("activations"):
            return output.view_as(output)
        seed = self._draws.own(self.number, _OUTPUTS) if training else None
        return self._round(output, (self.number, _OUTPUTS, 0), seed)

    def round_gradients(self, grad: Tensor) -> Tensor:
        if not self._rounds("gradients"):
            return grad
        return self._round(grad, (self.number, _GRADIENTS, 0), self._draws.own(self.number, _GRADIENTS))

    def round_weight_gradients(self, module: nn.Module) -> None:
        self._in_place([p.grad for p in _own(module)], "gradients", _WEIGHT_GRADIENTS)

    def round_weights(self, module: nn.Module) -> None:
        if isinstance(module, BinaryConv2d | BinaryLinear):
            module.clip_()
        self._in_place([p.data for p in _own(module)], "weights", _WEIGHTS)

    def fit_weights(self, module: nn.Module) -> None:
        """Put the points of weights to where they need to be."""
        if isinstance(self.chosen, DynamicFixed) and self._rounds("weights"):
            for number, parameter in enumerate(_own(module)):
                self._points.fit((self.number, _WEIGHTS, number), parameter)

    def gradient_grid(self, number: int) -> Grid | None:
        """The grid of the gradient of a weight of that number; None where it is not rounded."""
        return self._grid((self.number, _WEIGHT_GRADIENTS, number)) if self._rounds("gradients") else None

    def _in_place(self, tensors: list[Tensor | None], role: str, what: int) -> None:
        if not self._rounds(role):
            return
        for number, tensor in enumerate(tensors):
            if tensor is not None:
                seed = self._draws.shared(self.number, what, number)
                self._round(tensor, (self.number, what, number), seed, out=tensor)

    def _rounds(self, role: str) -> bool:
        return self._on_grid is not None and role in self._on_grid.of

    def _grid(self, key: Key) -> Grid:
        if isinstance(self.chosen, Fixed):
            # Numbers times a power of two, on a grid, are those numbers on a grid whose point is elsewhere.
            scaled = self.chosen.gradient_scale.bit_length() - 1 if key[1] == _GRADIENTS else 0
            return Grid(self.chosen.integer_bits - scaled, self.chosen.fraction_bits + scaled)
        assert isinstance(self.chosen, DynamicFixed)
        of_weights = self.chosen.weight_bits if key[1] == _WEIGHTS else None
        return self._points.grid(key, of_weights or self.chosen.bits)

    def _round(self, values: Tensor, key: Key, seed: int | None, out: Tensor | None = None) -> Tensor:
        """To nearest without a seed, in evaluation."""
        assert self._on_grid is not None
        if seed is not None and isinstance(self.chosen, DynamicFixed) and not self._draws.repeats:
            self._points.count(key, values)
        how = self._on_grid.rounding if seed is not None else "nearest"
        return round_to_grid(values, self._grid(key), how, seed=seed or 0, out=out)


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
        self._guard = Guard(config.guard) if config.guard else None
        self._names: dict[int, str] = {}
        self._widened: dict[int, Format] = {}
        self._unsaid: list[str] = []
        modules: dict[str, Any] = dict(model.named_modules())
        formats = formats_of(model, config)
        self._points = MovingPoints(_moving(formats, modules), next(model.parameters()).device)
        self._layers: list[tuple[nn.Module, LayerFormat]] = []
        for number, (name, chosen) in enumerate(formats.items()):
            module = modules[name]
            self._names[number] = name
            if isinstance(chosen, Fp8):
                float8.become_float8(module, device_type)
            if config.layers or config.guard or isinstance(chosen, OnGrid | Binary | Shift):
                layer = LayerFormat(chosen, number, self.draws, self._points, device_type)
                kind: Any = type(module)
                module.__class__ = _with_format(kind, chosen.name)
                module.layer_format = layer
                if isinstance(chosen, Binary):
                    module.scaled = chosen.scaled
                self._layers.append((module, layer))
            if config.optimizer.weights == "bf16" and chosen.name == "bf16":
                for parameter in _own(module):
                    if parameter.ndim > 1:  # norms and biases are few, and steps of theirs are small
                        parameter.data = parameter.data.bfloat16()
        for module, layer in self._layers:
            layer.fit_weights(module)
        self.round_weights()

    def before_update(self) -> None:
        """Gradients are whole: sums over all workers, without a scale."""
        for module, layer in self._layers:
            if self._guard is None or wider(layer.chosen, OVERFLOW) is None:
                layer.round_weight_gradients(module)
            else:
                self._round_under_guard(self._guard, module, layer)

    def after_update(self) -> None:
        """Collective where points move."""
        self.draws.begin_update(self.draws.updates + 1)
        self.round_weights()
        self._points.settle(self.draws.updates)

    def widened(self) -> list[str]:
        """What the guard did since this was last asked, in words."""
        said, self._unsaid = self._unsaid, []
        return said

    def state(self) -> dict[str, Any]:
        """What is remembered between steps, fit for JSON: nothing where nothing is rounded."""
        if not self._layers:
            return {}
        state: dict[str, Any] = {_UPDATES: self.draws.updates}
        if self._points:
            state[_POINTS] = self._points.state()
        if self._guard is not None:
            state[_GUARD] = self._guard.state()
            state[_WIDENED] = {str(number): chosen.model_dump() for number, chosen in self._widened.items()}
        return state

    def load(self, state: dict[str, Any]) -> dict[str, Any]:
        """Go on from what `state()` gave among others; returns the others."""
        self.draws.begin_update(int(state.get(_UPDATES, 0)))
        if self._points and _POINTS in state:
            self._points.load(state[_POINTS])
        if self._guard is not None:
            self._guard.load(state.get(_GUARD, {}))
        for _, layer in self._layers:
            if (said := state.get(_WIDENED, {}).get(str(layer.number))) is not None:
                self._widen(layer, _FORMAT.validate_python(said))
        return {name: value for name, value in state.items() if name not in _STATE}

    @torch.no_grad()
    def round_weights(self) -> None:
        for module, layer in self._layers:
            layer.round_weights(module)

    def _round_under_guard(self, guard: Guard, module: nn.Module, layer: LayerFormat) -> None:
        gradients = {number: p.grad for number, p in enumerate(_own(module)) if p.grad is not None}
        before = {number: gradient.clone() for number, gradient in gradients.items()}
        layer.round_weight_gradients(module)
        seen = [(before[number], gradient, layer.gradient_grid(number)) for number, gradient in gradients.items()]
        why = guard.look(layer.number, seen)
        if why is None or (chosen := wider(layer.chosen, why)) is None:
            return
        self._unsaid.append(f"{self._names[layer.number]}: gradients {why} in {layer.chosen}, goes on in {chosen}")
        self._widen(layer, chosen)

    def _widen(self, layer: LayerFormat, chosen: Format) -> None:
        layer.become(chosen)
        self._widened[layer.number] = chosen


def _moving(formats: dict[str, Format], modules: dict[str, Any]) -> dict[Key, DynamicFixed]:
    """The tensors whose points move."""
    found: dict[Key, DynamicFixed] = {}
    for number, (name, chosen) in enumerate(formats.items()):
        if isinstance(chosen, DynamicFixed):
            found |= {(number, what, 0): chosen for what in (_OUTPUTS, _GRADIENTS)}
            own = range(len(_own(modules[name])))
            found |= {(number, what, which): chosen for what in (_WEIGHTS, _WEIGHT_GRADIENTS) for which in own}
    return found


@functools.cache
def _with_format(kind: Any, name: str) -> Any:
    """The class of a layer that computes in its `layer_format`, of that name."""
    if name == "binary":
        kind = BinaryConv2d if issubclass(kind, nn.Conv2d) else BinaryLinear
    if name == "shift":
        kind = ShiftBatchNorm2d if issubclass(kind, nn.BatchNorm2d) else ShiftBatchNorm1d

    def forward(self: Any, input: Tensor) -> Tensor:
        result: Tensor = self.layer_format.forward(self, functools.partial(kind.forward, self), input)
        return result

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _own(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))
