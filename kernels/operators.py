"""A convolution's three passes as operators that PyTorch knows: to autograd, torch.compile, DDP and checkpointing.

Each is linear in either of its two tensors, so the derivative of any of them is made of the other two, and they can be
differentiated any number of times. `torch.library.opcheck` passes for all (tests/unit/test_operators.py).

Arguments beside the tensors, in types that such operators may have: `size`, that of the result; `geometry`, of
`shapes.geometry_of`; `algorithms`, a `Choice` joined by commas.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels import dispatch
from kernels.algorithms import ALGORITHMS, check_tensors
from kernels.layout import LAYOUTS, laid_out, layout_of
from kernels.passes import AUTO, Choice
from kernels.shapes import ConvShape

Ints = Sequence[int]


@torch.library.custom_op("convoy::conv2d", mutates_args=())
def forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Ints, algorithms: str) -> Tensor:
    """Shapes: input (N, C, H, W), weight (K, C / groups, R, S), bias (K,) -> (N, K, H', W')."""
    return _run("forward", algorithms, input, weight, ConvShape.between(input.shape, weight.shape, geometry), bias)


@torch.library.custom_op("convoy::conv2d_input_gradient", mutates_args=())
def input_gradient(grad_output: Tensor, weight: Tensor, size: Ints, geometry: Ints, algorithms: str) -> Tensor:
    """Shapes: grad_output (N, K, H', W'), weight (K, C / groups, R, S) -> (N, C, H, W)."""
    return _run("input_gradient", algorithms, grad_output, weight, ConvShape.between(size, weight.shape, geometry))


@torch.library.custom_op("convoy::conv2d_weight_gradient", mutates_args=())
def weight_gradient(grad_output: Tensor, input: Tensor, size: Ints, geometry: Ints, algorithms: str) -> Tensor:
    """Shapes: grad_output (N, K, H', W'), input (N, C, H, W) -> (K, C / groups, R, S)."""
    return _run("weight_gradient", algorithms, grad_output, input, ConvShape.between(input.shape, size, geometry))


@forward.register_fake
def _(input: Tensor, weight: Tensor, _bias: Tensor | None, geometry: Ints, _algorithms: str) -> Tensor:
    return _empty(ConvShape.between(input.shape, weight.shape, geometry).output_size, input, layout_of(input))


@input_gradient.register_fake
def _(grad_output: Tensor, weight: Tensor, size: Ints, geometry: Ints, _algorithms: str) -> Tensor:
    return _empty(ConvShape.between(size, weight.shape, geometry).input_size, grad_output, layout_of(grad_output))


@weight_gradient.register_fake
def _(_grad_output: Tensor, input: Tensor, size: Ints, geometry: Ints, _algorithms: str) -> Tensor:
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


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs[:2])
    ctx.rest = inputs[-2:]


forward.register_autograd(_forward_backward, setup_context=_save)
input_gradient.register_autograd(_input_gradient_backward, setup_context=_save)
weight_gradient.register_autograd(_weight_gradient_backward, setup_context=_save)


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
