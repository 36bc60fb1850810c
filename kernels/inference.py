"""What convolutions make of their weights alone, made once: for models that are evaluated and no longer trained."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kernels import dispatch
from kernels.algorithms import ALGORITHMS
from kernels.conv import Conv2d, options_of
from kernels.passes import Choice
from kernels.shapes import ConvShape, geometry_of

Forward = Callable[[Tensor, ConvShape, Tensor | None], Tensor]


def prepare(model: nn.Module) -> nn.Module:
    """Have the model's `kernels.conv.Conv2d` keep their weights as their algorithms need them; returns the model.

    Used without gradients, outside of torch.compile, and as long as the weight is the same tensor of the same version:
    what is changed through `.data` is not noticed. `model.train()` forgets it. Takes up to 7 times the weights' memory.
    """
    for module in model.modules():
        if isinstance(module, Conv2d):
            module.prepared = Prepared(module)
    return model


class Prepared:
    """The forward pass of one layer, by algorithms that were met, each with its form of the weight."""

    def __init__(self, conv: Conv2d) -> None:
        self._conv = conv
        self._passes: dict[str, Forward] = {}
        self._seen = self._identity()

    def __call__(self, input: Tensor) -> Tensor | None:
        """Shapes: input (N, C, H, W) -> (N, K, H', W'); None where nothing is gained by weights made beforehand."""
        conv = self._conv
        if torch.is_grad_enabled() or torch.is_autocast_enabled(input.device.type) or input.dim() != 4:
            return None
        if input.dtype != conv.weight.dtype or input.device != conv.weight.device or input.shape[1] != conv.in_channels:
            return None
        if self._identity() != self._seen:
            self._passes.clear()
            self._seen = self._identity()
        geometry = geometry_of((conv.weight.shape[2], conv.weight.shape[3]), *options_of(conv))
        try:
            shape = ConvShape.between(input.shape, conv.weight.shape, geometry)
        except ValueError:
            return None  # and PyTorch says what does not fit
        name = dispatch.resolved(Choice.of(conv.algorithm), input, conv.weight, geometry).forward
        prepare = ALGORITHMS[name].prepare
        if prepare is None:
            return None
        if name not in self._passes:
            self._passes[name] = prepare(conv.weight.detach(), shape)
        return self._passes[name](input, shape, conv.bias)

    def _identity(self) -> tuple[int, int]:
        return self._conv.weight.data_ptr(), self._conv.weight._version
