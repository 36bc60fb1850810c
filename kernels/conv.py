"""The one entry to convolution: which algorithm computes it is an argument.

An algorithm is one file of this folder, which gives its `Passes`, and one row of `ALGORITHMS`. It raises
`UnsupportedShape` for what it does not do, and is never replaced silently by another.
"""

import torch.nn.functional as F
from torch import Tensor

from kernels import depthwise, direct, winograd
from kernels.passes import Passes, convolve
from kernels.shapes import ConvShape, IntOrPair

ALGORITHMS: dict[str, Passes | None] = {
    "vendor": None,  # what PyTorch chooses: cuDNN, oneDNN, ...
    "direct": direct.PASSES,
    "depthwise": depthwise.PASSES,
    "winograd": winograd.PASSES,
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
    passes = ALGORITHMS[algorithm]
    if passes is None:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return convolve(passes, input, weight, bias, ConvShape.of(input, weight, stride, padding, dilation, groups))
