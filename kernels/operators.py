"""A convolution's three passes as operators that PyTorch knows: to autograd, torch.compile, DDP and checkpointing.

Each is linear in either of its two tensors, so the derivative of any of them is made of the other two, and they can be
differentiated any number of times. `torch.library.opcheck` passes for all (tests/unit/test_operators.py).

Arguments beside the tensors, in types that such operators may have: `size`, that of the result; `geometry`, of
`shapes.geometry_of`; `algorithms`, a `Choice` joined by commas.

A call costs about 6 us more than PyTorch's own, warm. `torch.library.custom_op` with `register_autograd` is the shorter
way to write this; it costs 22 us, which is a tenth of a small layer.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kernels import dispatch
from kernels.algorithms import ALGORITHMS, check_tensors
from kernels.layout import LAYOUTS, laid_out, layout_of
from kernels.passes import AUTO, Choice
from kernels.shapes import ConvShape

Ints = Sequence[int]

_LIBRARY: Any = torch.library.Library("convoy", "DEF")  # type: ignore[no-untyped-call]


class Operator:
    """convoy::`name`, called as a function. In eager mode what PyTorch's dispatcher would do is done at once.

    `compute`: the operator itself. `fake`: its result's size and layout. `backward`: of (ctx, gradient), one gradient
    for each argument.
    """

    def __init__(
        self,
        name: str,
        arguments: str,
        compute: Callable[..., Tensor],
        fake: Callable[..., Tensor],
        backward: Callable[..., tuple[Any, ...]],
    ) -> None:
        schema = f"{name}({arguments}, int[] geometry, str algorithms) -> Tensor"
        _LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
        _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
        _LIBRARY.impl(name, self._with_autograd, "Autograd")
        torch.library.register_fake(f"convoy::{name}", fake, lib=_LIBRARY)
        self.overload = getattr(torch.ops.convoy, name).default
        self._compute = compute
        # without setup_context, which torch.func would ask for: it makes every call 9 us longer
        methods = {"forward": staticmethod(self._saving), "backward": staticmethod(backward)}
        self._function: Any = type(name, (torch.autograd.Function,), methods)

    def __call__(self, *inputs: Any) -> Tensor:
        if not torch.compiler.is_compiling() and _is_plain(inputs[0]):
            return self._with_autograd(*inputs)
        result: Tensor = self.overload(*inputs)
        return result

    def _with_autograd(self, *inputs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return self._without_autograd(*inputs)
        result: Tensor = self._function.apply(*inputs)
        return result

    def _saving(self, ctx: Any, *inputs: Any) -> Tensor:
        ctx.save_for_backward(*inputs[:2])
        ctx.rest = inputs[-2:]
        return self._without_autograd(*inputs)

    def _without_autograd(self, *inputs: Any) -> Tensor:
        if _is_plain(inputs[0]):
            return self._compute(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = self.overload(*inputs)
        return result


def _is_plain(tensor: Tensor) -> bool:
    """Whether it holds numbers, and no mode watches what is computed."""
    return type(tensor) is Tensor and torch._C._len_torch_dispatch_stack() == 0


def _forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Ints, algorithms: str) -> Tensor:
    return _run("forward", algorithms, input, weight, _shape(input.shape, weight.shape, geometry), bias)


def _input_gradient(grad_output: Tensor, weight: Tensor, size: Ints, geometry: Ints, algorithms: str) -> Tensor:
    return _run("input_gradient", algorithms, grad_output, weight, _shape(size, weight.shape, geometry))


def _weight_gradient(grad_output: Tensor, input: Tensor, size: Ints, geometry: Ints, algorithms: str) -> Tensor:
    return _run("weight_gradient", algorithms, grad_output, input, _shape(input.shape, size, geometry))


def _fake_forward(input: Tensor, weight: Tensor, _bias: Tensor | None, geometry: Ints, _algorithms: str) -> Tensor:
    return _empty(ConvShape.between(input.shape, weight.shape, geometry).output_size, input, layout_of(input))


def _fake_input_gradient(grad_output: Tensor, weight: Tensor, size: Ints, geometry: Ints, _algorithms: str) -> Tensor:
    return _empty(ConvShape.between(size, weight.shape, geometry).input_size, grad_output, layout_of(grad_output))


def _fake_weight_gradient(_grad_output: Tensor, input: Tensor, size: Ints, geometry: Ints, _algorithms: str) -> Tensor:
    return _empty(ConvShape.between(input.shape, size, geometry).weight_size, input, "nchw")


def _forward_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (input, weight), rest = ctx.saved_tensors, ctx.rest
    needs_input, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    return (
        input_gradient(grad, weight, input.shape, *rest) if needs_input else None,
        weight_gradient(grad, input, weight.shape, *rest) if needs_weight else None,
        grad.sum((0, 2, 3)) if needs_bias else None,
        None,
        None,
    )


def _input_gradient_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (grad_output, weight), rest = ctx.saved_tensors, ctx.rest
    needs_output, needs_weight, *_ = ctx.needs_input_grad
    return (
        forward(grad, weight, None, *rest) if needs_output else None,
        weight_gradient(grad_output, grad, weight.shape, *rest) if needs_weight else None,
        None,
        None,
        None,
    )


def _weight_gradient_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (grad_output, input), rest = ctx.saved_tensors, ctx.rest
    needs_output, needs_input, *_ = ctx.needs_input_grad
    return (
        forward(input, grad, None, *rest) if needs_output else None,
        input_gradient(grad_output, grad, input.shape, *rest) if needs_input else None,
        None,
        None,
        None,
    )


forward = Operator(
    "conv2d", "Tensor input, Tensor weight, Tensor? bias", _forward, _fake_forward, _forward_backward
)  # fmt: skip
"""Shapes: input (N, C, H, W), weight (K, C / groups, R, S), bias (K,) -> (N, K, H', W')."""

input_gradient = Operator(
    "conv2d_input_gradient", "Tensor grad_output, Tensor weight, SymInt[] size", _input_gradient, _fake_input_gradient,
    _input_gradient_backward,
)  # fmt: skip
"""Shapes: grad_output (N, K, H', W'), weight (K, C / groups, R, S) -> (N, C, H, W)."""

weight_gradient = Operator(
    "conv2d_weight_gradient", "Tensor grad_output, Tensor input, SymInt[] size", _weight_gradient,
    _fake_weight_gradient, _weight_gradient_backward,
)  # fmt: skip
"""Shapes: grad_output (N, K, H', W'), input (N, C, H, W) -> (K, C / groups, R, S)."""


def _shape(input_size: Ints, weight_size: Ints, geometry: Ints) -> ConvShape:
    return _shape_between(tuple(input_size), tuple(weight_size), tuple(geometry))


_shape_between = functools.lru_cache(maxsize=4096)(ConvShape.between)


def _run(
    which: str, algorithms: str, first: Tensor, second: Tensor, shape: ConvShape, bias: Tensor | None = None
) -> Tensor:
    name: str = getattr(Choice(*algorithms.split(",")), which)
    if name == AUTO:
        name = dispatch.choose(which, shape, first)
    passes = ALGORITHMS[name]
    passes.check(shape)
    check_tensors(name, first, second)
    with_bias = () if bias is None else (bias,)
    result: Tensor = getattr(passes, which)(first, second, shape, *with_bias)
    return laid_out(result, "nchw" if which == "weight_gradient" else layout_of(first))


def _empty(size: Ints, like: Tensor, layout: str) -> Tensor:
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=LAYOUTS[layout])
