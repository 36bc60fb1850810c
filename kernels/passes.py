"""What an algorithm is: how it computes each of the three passes of a convolution."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from kernels.shapes import ConvShape

# Names that are no file: what was measured as fastest, and what PyTorch chooses.
AUTO, VENDOR = "auto", "vendor"

Pass = Callable[[Tensor, Tensor, ConvShape], Tensor]


class Passes(NamedTuple):
    """An algorithm: how each pass is computed, from two tensors of the three, in any memory layout.

    `check`: raises UnsupportedShape, with the reason, for what it does not do.
    `forward`: input (N, C, H, W), weight (K, C / groups, R, S) -> output (N, K, H', W').
    `input_gradient`: the output's gradient, weight -> the input's gradient.
    `weight_gradient`: the output's gradient, input -> the weight's gradient.

    What autograd, torch.compile and autocast must know is the same for all: `operators.py`.
    """

    check: Callable[[ConvShape], None]
    forward: Pass
    input_gradient: Pass
    weight_gradient: Pass


class Choice(NamedTuple):
    """The name of the algorithm of each pass."""

    forward: str
    input_gradient: str
    weight_gradient: str

    @classmethod
    def of(cls, algorithm: "str | Choice") -> "Choice":
        """The same one for all three, or what is a choice already."""
        return cls(algorithm, algorithm, algorithm) if isinstance(algorithm, str) else algorithm
