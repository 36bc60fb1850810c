"""The one entry to convolution: which algorithm computes each pass is an argument."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import dispatch, operators
from kernels.algorithms import check_name
from kernels.passes import VENDOR, Choice
from kernels.shapes import IntOrPair, UnsupportedShape, geometry_of


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    *,
    algorithm: str | Choice = "auto",
) -> Tensor:
    """Convolve as torch.nn.functional.conv2d does, by the algorithm of that name, or one of its own for each pass.

    'auto' takes for each pass what `convoy tune` measured as fastest for this shape on this device, else what
    `defaults.py` says, else the vendor's.
    The output lies in memory as the input does (NCHW or NHWC). All are differentiable any number of times.

    Shapes: input (N, C, H, W) or (C, H, W), weight (K, C / groups, R, S), bias (K,) -> (N, K, H', W') or (K, H', W').
    Raises: UnsupportedShape if the algorithm does not do this convolution; ValueError for an unknown name; what PyTorch
    raises for tensors that fit no convolution.
    """
    choice = Choice.of(algorithm)
    for name in choice:
        check_name(name)
    options: tuple[Any, ...] = (stride, padding, dilation, groups)
    if choice == Choice.of(VENDOR):
        return F.conv2d(input, weight, bias, *options)
    input, weight, bias = _as_autocast_wants(input, weight, bias)
    if not _alike(input, weight, bias):
        return F.conv2d(input, weight, bias, *options)  # which says what does not fit
    try:
        images = input.unsqueeze(0) if input.dim() == 3 else input
        geometry = geometry_of((weight.shape[2], weight.shape[3]), *options)
        if not torch.compiler.is_compiling():
            choice = dispatch.resolved(choice, images, weight, geometry)
        if choice == Choice.of(VENDOR):
            return F.conv2d(input, weight, bias, *options)
        output = operators.forward(images, weight, bias, geometry, ",".join(choice))
    except UnsupportedShape:
        raise
    except ValueError:
        F.conv2d(input, weight, bias, *options)  # which says what does not fit
        raise
    return output.squeeze(0) if input.dim() == 3 else output


class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d, computed by `algorithm`: a name, or a `Choice` of one for each pass.

    Parameters, hooks, state_dict and the other arguments are those of nn.Conv2d.
    """

    algorithm: str | Choice
    prepared: Callable[[Tensor], Tensor | None] | None = None
    """Of `inference.prepare`; None: nothing is."""

    def __init__(self, *args: Any, algorithm: str | Choice = "auto", **options: Any) -> None:
        super().__init__(*args, **options)
        self.algorithm = algorithm

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        if self.prepared and not torch.compiler.is_compiling():
            output = self.prepared(input)
            if output is not None:
                return output
        return conv2d(input, weight, bias, *options_of(self), algorithm=self.algorithm)

    def train(self, mode: bool = True) -> "Conv2d":
        if mode:
            self.prepared = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "prepared"}

    def extra_repr(self) -> str:
        inherited: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{inherited}, algorithm={self.algorithm!r}"


def options_of(conv: nn.Conv2d) -> tuple[Any, ...]:
    """Stride, padding, dilation, groups of a layer, whose input is padded already unless it is so with zeros."""
    padding: Any = conv.padding if conv.padding_mode == "zeros" else 0
    return conv.stride, padding, conv.dilation, conv.groups


def _as_autocast_wants(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors, in autocast's type inside such a region: PyTorch lists convolutions among what it casts."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        tensor.to(dtype) if tensor is not None and tensor.is_floating_point() else tensor for tensor in tensors
    )


def _alike(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    tensors = [tensor for tensor in (input, weight, bias) if tensor is not None]
    of_one_kind = all((each.dtype, each.device) == (input.dtype, input.device) for each in tensors)
    return (
        of_one_kind and weight.dim() == 4 and input.dim() in (3, 4) and (bias is None or bias.shape == weight.shape[:1])
    )
