"""The one entry to convolution: which algorithm computes each pass is an argument."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import dispatch, operators
from kernels.algorithms import check_name
from kernels.autocast import as_autocast_wants
from kernels.layout import LAYOUTS, layout_of
from kernels.passes import VENDOR, Choice
from kernels.shapes import IntOrPair, UnsupportedShape, geometry_of

_VENDOR = Choice.of(VENDOR)
_AUTOCAST_TYPES = (torch.bfloat16, torch.float16)


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
    return _convolved(input, weight, bias, (stride, padding, dilation, groups), algorithm)[0]


def _convolved(
    input: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...], algorithm: str | Choice
) -> tuple[Tensor, bool]:
    """The result, and whether it is PyTorch's own. `options`: stride, padding, dilation, groups."""
    choice = Choice.of(algorithm)
    for name in choice:
        check_name(name)
    if choice == _VENDOR:
        return F.conv2d(input, weight, bias, *options), True
    if torch.is_autocast_enabled(input.device.type):
        input, weight, bias = as_autocast_wants(input, weight, bias)
    try:
        images = input.unsqueeze(0) if input.dim() == 3 else input
        geometry = geometry_of((weight.shape[2], weight.shape[3]), *options)
        if not torch.compiler.is_compiling():
            choice = dispatch.resolved(choice, images, weight, geometry)
        only_forward = choice.forward == VENDOR and not torch.is_grad_enabled()
        if choice == _VENDOR or only_forward or not _alike(input, weight, bias):
            return F.conv2d(input, weight, bias, *options), True  # which says what does not fit
        output = operators.forward(images, weight, bias, geometry, ",".join(choice))
    except UnsupportedShape:
        raise
    except (ValueError, IndexError):
        F.conv2d(input, weight, bias, *options)  # which says what does not fit
        raise
    return (output.squeeze(0) if input.dim() == 3 else output), False


class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d, computed by `algorithm`: a name, or a `Choice` of one for each pass.

    Parameters, hooks, state_dict and the other arguments are those of nn.Conv2d.
    """

    prepared: Callable[[Tensor], Tensor | None] | None = None
    """Of `inference.prepare`; None: nothing is."""
    _vendors: tuple[torch.Size, tuple[int, ...] | None, bool, bool] | None = None
    """Sizes of images that are PyTorch's own; their strides, unless however they lie; whether so with gradients, and
    under autocast."""

    def __init__(self, *args: Any, algorithm: str | Choice = "auto", **options: Any) -> None:
        super().__init__(*args, **options)
        self.algorithm = algorithm

    @property
    def algorithm(self) -> str | Choice:
        return self._algorithm

    @algorithm.setter
    def algorithm(self, algorithm: str | Choice) -> None:
        self._algorithm = algorithm
        self.forget()

    def forget(self) -> None:
        """Choose anew at the next call."""
        self._vendors = None

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # In caches that other layers filled each look at a tensor takes a microsecond or two, and a whole choice 25: a
        # tenth of a small layer's time. So as little as possible is looked at where it cannot be but PyTorch's.
        if self._vendors is not None:
            size, strides, with_gradients, with_autocast = self._vendors
            if (
                input.shape == size
                and (strides is None or input.stride() == strides)
                and (with_gradients or not torch.is_grad_enabled())
                and (with_autocast or not torch.is_autocast_enabled(input.device.type))
            ):
                return super()._conv_forward(input, weight, bias)
        padded = input
        if self.padding_mode != "zeros":
            padded = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        if torch.compiler.is_compiling():
            return conv2d(padded, weight, bias, *options_of(self), algorithm=self.algorithm)
        if self.prepared:
            output = self.prepared(padded)
            if output is not None:
                return output
        output, by_vendor = _convolved(padded, weight, bias, options_of(self), self.algorithm)
        if by_vendor and self.prepared is None:
            self._remember(input, padded, weight)
        return output

    def _remember(self, input: Tensor, padded: Tensor, weight: Tensor) -> None:
        """Where it is PyTorch's own: with gradients or without, under autocast or not, in any layout or in this one."""
        if padded.dim() != 4 or weight.dim() != 4:
            return
        geometry = geometry_of((weight.shape[2], weight.shape[3]), *options_of(self))
        choice, sizes = Choice.of(self.algorithm), (padded.shape, weight.shape)
        for passes, types in itertools.product((Choice._fields, ("forward",)), (_AUTOCAST_TYPES, ())):
            layouts = dispatch.vendors_layouts(choice, passes, (weight.dtype, *types), *sizes, tuple(geometry))
            if layout_of(padded) in layouts:
                strides = None if len(layouts) == len(LAYOUTS) else input.stride()
                self._vendors = input.shape, strides, len(passes) > 1, bool(types)
                dispatch.remembering.add(self)
                return

    def _apply(self, *args: Any, **options: Any) -> "Conv2d":
        self.forget()  # the weight may have another type now
        moved: Conv2d = super()._apply(*args, **options)  # type: ignore[no-untyped-call]
        return moved

    def train(self, mode: bool = True) -> "Conv2d":
        if mode:
            self.prepared = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("prepared", "_vendors")}

    def extra_repr(self) -> str:
        inherited: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{inherited}, algorithm={self.algorithm!r}"


def options_of(conv: nn.Conv2d) -> tuple[Any, ...]:
    """Stride, padding, dilation, groups of a layer, whose input is padded already unless it is so with zeros."""
    padding: Any = conv.padding if conv.padding_mode == "zeros" else 0
    return conv.stride, padding, conv.dilation, conv.groups


def _alike(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    tensors = [tensor for tensor in (input, weight, bias) if tensor is not None]
    of_one_kind = all((each.dtype, each.device) == (input.dtype, input.device) for each in tensors)
    return (
        of_one_kind and weight.dim() == 4 and input.dim() in (3, 4) and (bias is None or bias.shape == weight.shape[:1])
    )
