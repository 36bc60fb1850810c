"""Batch normalization by powers of two, so that hardware shifts bits where it would multiply and divide.

AP2(x) = sign(x) 2^round(log2 |x|) is the power of two that is nearest to x in ratio. The variance is the mean of
C(x) AP2(C(x)), where C(x) = x - mean(x); what is centred is multiplied by AP2(1 / sqrt(variance + eps)) and by
AP2(gamma), then beta is added. Gradients pass AP2 as if it were the identity (straight through).

Source: Courbariaux, Hubara, Soudry, El-Yaniv & Bengio 2016, "Binarized Neural Networks" (arXiv:1602.02830), section 1.3
and Algorithm 3. Here it is computed in fp32, where a product with a power of two is exact: to learn what it does to a
network, not for speed.
"""

from typing import Any

import torch
from torch import Tensor, nn

_MANTISSA, _EXPONENT = 0x007F_FFFF, -0x0080_0000  # the bits of fp32; the sign is among the latter
_SQRT2 = 0x0035_04F3  # the mantissa of the largest number below the square root of 2


def power_of_two(x: Tensor) -> Tensor:
    """AP2: sign(x) 2^round(log2 |x|); zero, infinity and NaN as they are. Gradients pass it as the identity.

    Shapes: any, in fp32. Of subnormal numbers the smaller become zero, the larger 2^-126.
    """
    result: Tensor = _PowerOfTwo.apply(x)
    return result


class _PowerOfTwo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        # A mantissa above that of sqrt(2) carries into the exponent.
        rounded = (x.view(torch.int32) + (_MANTISSA - _SQRT2)) & _EXPONENT
        return torch.where(x.isfinite(), rounded.view(torch.float32), x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        del ctx
        return grads[0]


class ShiftBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization by powers of two. Options, parameters and buffers are nn.BatchNorm2d's.

    `running_var` averages the approximate variance, which is that of the batch and not the unbiased one.
    Shapes: (N, C, ...) -> the same.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"input: got {input.dim()} dimensions, must be (N, C, ...). Add that of the batch.")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        over = [dim for dim in range(input.dim()) if dim != 1]
        batch = self.training or self.running_mean is None
        mean = input.mean(over) if batch else self.running_mean
        centred = input - _along(mean, input)
        variance = (centred * power_of_two(centred)).mean(over) if batch else self.running_var
        assert mean is not None
        assert variance is not None
        if self.training and self.running_mean is not None:
            self._average(mean.detach(), variance.detach())
        result = centred * _along(power_of_two(torch.rsqrt(variance + self.eps)), input)
        if not self.affine:
            return result
        return result * _along(power_of_two(self.weight), input) + _along(self.bias, input)

    @torch.no_grad()
    def _average(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class ShiftBatchNorm1d(ShiftBatchNorm, nn.BatchNorm1d):
    """Shapes: (N, C) or (N, C, L) -> the same."""


class ShiftBatchNorm2d(ShiftBatchNorm, nn.BatchNorm2d):
    """Shapes: (N, C, H, W) -> the same."""


def _along(values: Tensor | None, input: Tensor) -> Tensor:
    """Values of channels, to go with images. Shapes: (C,) -> (C, 1, ...)."""
    assert values is not None
    return values.view(-1, *[1] * (input.dim() - 2))
