"""The three passes of a convolution, joined to what autograd differentiates.

An algorithm says what it does not do and how it computes each pass; all else, here, is the same for all of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.shapes import ConvShape

Pass = Callable[[Tensor, Tensor, ConvShape], Tensor]


class Passes(NamedTuple):
    """An algorithm: how each pass is computed, from two tensors of the three.

    `check`: raises UnsupportedShape, with the reason, for what it does not do.
    `forward`: input (N, C, H, W), weight (K, C / groups, R, S) -> output (N, K, H', W').
    `input_gradient`: the output's gradient, weight -> the input's gradient.
    `weight_gradient`: the output's gradient, input -> the weight's gradient.
    """

    check: Callable[[ConvShape], None]
    forward: Pass
    input_gradient: Pass
    weight_gradient: Pass


def convolve(passes: Passes, input: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape) -> Tensor:
    """Convolve by `passes`, with gradients by them (no second ones).

    Raises: UnsupportedShape if they do not do this convolution.
    """
    passes.check(shape)
    output: Tensor = _Convolution.apply(input, weight, shape, passes)
    return output if bias is None else output + bias.view(1, -1, 1, 1)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, shape: ConvShape, passes: Passes) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.shape, ctx.passes = shape, passes
        return passes.forward(input, weight, shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, *_ = ctx.needs_input_grad
        return (
            ctx.passes.input_gradient(grad_output, weight, ctx.shape) if needs_input else None,
            ctx.passes.weight_gradient(grad_output, input, ctx.shape) if needs_weight else None,
            None,
            None,
        )
