"""The one entry to convolution: which algorithm computes it is an argument.

An algorithm is one file of this folder and one row of `ALGORITHMS`. It has the signature of torch's own
conv2d, raises `UnsupportedShape` for what it does not do, and is never replaced silently by another.
"""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from kernels import direct, winograd
from kernels.shapes import IntOrPair


class Algorithm(Protocol):
    """A differentiable convolution of (N, C, H, W) images."""

    def __call__(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: IntOrPair,
        padding: IntOrPair | str,
        dilation: IntOrPair,
        groups: int,
        /,
    ) -> Tensor: ...


ALGORITHMS: dict[str, Algorithm] = {
    "vendor": F.conv2d,  # what PyTorch chooses: cuDNN, oneDNN, ...
    "direct": direct.conv2d,
    "winograd": winograd.conv2d,
}


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    *,
    algorithm: str = "vendor",
) -> Tensor:
    """Convolve as torch.nn.functional.conv2d does, by the algorithm of that name.

    Shapes: input (N, C, H, W), weight (K, C / groups, R, S), bias (K,) -> (N, K, H', W').
    Raises: UnsupportedShape if the algorithm does not do this convolution; ValueError for an unknown name.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"algorithm: got {algorithm!r}, must be one of {', '.join(sorted(ALGORITHMS))}. "
            "Use 'vendor' for the one that PyTorch chooses."
        )
    return ALGORITHMS[algorithm](input, weight, bias, stride, padding, dilation, groups)
