"""What an algorithm is: how it computes each of the three passes of a convolution."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from kernels.shapes import ConvShape, UnsupportedShape

# Names that are no file: what was measured as fastest, and what PyTorch chooses.
AUTO, VENDOR = "auto", "vendor"

Pass = Callable[[Tensor, Tensor, ConvShape], Tensor]


class Forward(Protocol):
    """input (N, C, H, W), weight (K, C / groups, R, S), the sizes, bias (K,) or None -> output (N, K, H', W')."""

    def __call__(self, input: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None, /) -> Tensor: ...


class Prepare(Protocol):
    """weight (K, C / groups, R, S), the sizes -> the forward pass with it: images (N, C, H, W), the sizes, bias."""

    def __call__(self, weight: Tensor, shape: ConvShape, /) -> Callable[[Tensor, ConvShape, Tensor | None], Tensor]: ...


class Passes(NamedTuple):
    """An algorithm: how each pass is computed, from two tensors of the three, in any memory layout.

    `check`: raises UnsupportedShape, with the reason, for what it does not do.
    `forward`: input (N, C, H, W), weight (K, C / groups, R, S), bias (K,) or None -> output (N, K, H', W').
    `input_gradient`: the output's gradient, weight -> the input's gradient.
    `weight_gradient`: the output's gradient, input -> the weight's gradient.
    `prepare`: what of the forward pass depends on weights only is done beforehand, for inference; None if nothing does.

    What autograd, torch.compile and autocast must know is the same for all: `operators.py`.
    """

    check: Callable[[ConvShape], None]
    forward: Forward
    input_gradient: Pass
    weight_gradient: Pass
    prepare: Prepare | None = None

    def takes(self, shape: ConvShape) -> bool:
        """Whether it does this convolution."""
        try:
            self.check(shape)
        except UnsupportedShape:
            return False
        return True


class Choice(NamedTuple):
    """The name of the algorithm of each pass."""

    forward: str
    input_gradient: str
    weight_gradient: str

    @classmethod
    def of(cls, algorithm: "str | Choice") -> "Choice":
        """The same one for all three, or what is a choice already."""
        return cls(algorithm, algorithm, algorithm) if isinstance(algorithm, str) else algorithm


def adding_bias(compute: Pass) -> Forward:
    """A forward pass of an algorithm that has no bias of its own: added afterwards."""

    def computed(input: Tensor, weight: Tensor, shape: ConvShape, bias: Tensor | None = None, /) -> Tensor:
        output = compute(input, weight, shape)
        return output if bias is None else output.add_(bias.view(-1, 1, 1))

    return computed
