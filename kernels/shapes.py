"""What a convolution is: its sizes, and what they cost in arithmetic and memory.

Letters follow Lavin & Gray (arXiv:1509.09308): N batch, C input channels, K output channels, H W image, R S
filter. Every algorithm of this folder takes its sizes from a `ConvShape`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Pair = tuple[int, int]
Sides = tuple[Pair, Pair]
IntOrPair = int | tuple[int, ...]  # of one or two


class UnsupportedShape(ValueError):
    """An algorithm does not do this convolution; another one does."""


@dataclass(frozen=True, kw_only=True)
class ConvShape:
    """The sizes of one convolution, in the numbers that decide how fast it can be.

    `stride`, `dilation`: (rows, columns). `padding`: zeros added, ((top, bottom), (left, right)); the sides
    differ for padding="same" with an even filter. `linear`: it is an nn.Linear over pixels, channels last.
    Raises: ValueError if no such convolution exists.
    """

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: Pair = (1, 1)
    padding: Sides = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1
    linear: bool = False

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError(f"n: got {self.n}, must be >= 0. Give the number of images in the batch.")
        for name in ("c", "h", "w", "k", "r", "s", "groups"):
            _check_at_least(1, name, getattr(self, name))
        for name, least in (("stride", 1), ("dilation", 1)):
            _check_at_least(least, name, *getattr(self, name))
        _check_at_least(0, "padding", *self.padding[0], *self.padding[1])
        for name in ("c", "k"):
            if getattr(self, name) % self.groups:
                raise ValueError(
                    f"groups: got {self.groups}, must divide {name}={getattr(self, name)}. "
                    "Use a divisor of both numbers of channels."
                )
        if self.out_h < 1 or self.out_w < 1:
            raise ValueError(
                f"h, w: got {self.h} x {self.w}, must hold a filter of {self.r} x {self.s} at "
                f"padding={self.padding} and dilation={self.dilation}. Use a smaller filter or more padding."
            )

    @classmethod
    def of(
        cls,
        input: Tensor,
        weight: Tensor,
        stride: IntOrPair = 1,
        padding: IntOrPair | str = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
    ) -> "ConvShape":
        """The shape of `conv2d(input, weight, ...)`, its arguments as in torch.nn.functional.conv2d.

        Shapes: input (N, C, H, W), weight (K, C / groups, R, S).
        Raises: ValueError if the tensors do not fit each other.
        """
        if input.dim() != 4 or weight.dim() != 4:
            raise ValueError(
                f"input, weight: got {input.dim()} and {weight.dim()} dimensions, must be 4 each: "
                "(N, C, H, W) and (K, C / groups, R, S). Add the dimensions of size 1."
            )
        geometry = geometry_of((weight.shape[2], weight.shape[3]), stride, padding, dilation, groups)
        return cls.between(input.shape, weight.shape, geometry)

    @classmethod
    def between(cls, input_size: Sequence[int], weight_size: Sequence[int], geometry: Sequence[int]) -> "ConvShape":
        """The shape between tensors of these sizes: (N, C, H, W) and (K, C / groups, R, S). `geometry`: `geometry_of`.

        Raises: ValueError if they do not fit each other.
        """
        n, c, h, w = input_size
        k, c_group, r, s = weight_size
        stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w, groups, *linear = geometry
        _check_at_least(1, "groups", groups)
        if c != c_group * groups:
            raise ValueError(
                f"weight: got {c_group} input channels a group, must be C / groups = {c} / {groups}. "
                "Use a weight of shape (K, C / groups, R, S)."
            )
        return cls(
            n=n, c=c, h=h, w=w, k=k, r=r, s=s, stride=(stride_h, stride_w), padding=((top, bottom), (left, right)),
            dilation=(dilation_h, dilation_w), groups=groups, linear=bool(linear),
        )  # fmt: skip

    @classmethod
    def of_module(cls, conv: nn.Conv2d, input: Tensor) -> "ConvShape":
        """The shape of `conv(input)`.

        Raises: UnsupportedShape if the module pads with anything but zeros.
        """
        if conv.padding_mode != "zeros":
            raise UnsupportedShape(
                f"padding_mode: got {conv.padding_mode!r}, must be 'zeros'. Pad the input before the convolution."
            )
        options: dict[str, Any] = {name: getattr(conv, name) for name in ("stride", "padding", "dilation", "groups")}
        return cls.of(input, conv.weight, **options)

    @classmethod
    def of_linear(cls, linear: nn.Linear, input: Tensor) -> "ConvShape":
        """The shape of `linear(input)`. Shapes: input (N, H, W, C) or (N, W, C)."""
        n, *height, w, c = input.shape
        return cls(n=n, c=c, h=height[0] if height else 1, w=w, k=linear.out_features, r=1, s=1, linear=True)

    @property
    def geometry(self) -> list[int]:
        """As of `geometry_of`, and a tenth number if it is linear."""
        numbers = [*self.stride, *self.padding[0], *self.padding[1], *self.dilation, self.groups]
        return [*numbers, 1] if self.linear else numbers

    @property
    def padded_h(self) -> int:
        return self.h + sum(self.padding[0])

    @property
    def padded_w(self) -> int:
        return self.w + sum(self.padding[1])

    @property
    def out_h(self) -> int:
        return (self.padded_h - self.dilation[0] * (self.r - 1) - 1) // self.stride[0] + 1

    @property
    def out_w(self) -> int:
        return (self.padded_w - self.dilation[1] * (self.s - 1) - 1) // self.stride[1] + 1

    @property
    def input_size(self) -> tuple[int, int, int, int]:
        return self.n, self.c, self.h, self.w

    @property
    def weight_size(self) -> tuple[int, int, int, int]:
        return self.k, self.c // self.groups, self.r, self.s

    @property
    def output_size(self) -> tuple[int, int, int, int]:
        return self.n, self.k, self.out_h, self.out_w

    @property
    def flops(self) -> int:
        """Operations of the direct algorithm, for each of the three passes; a multiply-add is two.

        Products with padding zeros count: all algorithms are compared by this one figure.
        """
        return 2 * self.n * self.k * self.out_h * self.out_w * (self.c // self.groups) * self.r * self.s

    def parameter_bytes(self, element_bytes: int = 4) -> int:
        """Bytes of the weight."""
        return self.k * (self.c // self.groups) * self.r * self.s * element_bytes

    def activation_bytes(self, element_bytes: int = 4) -> int:
        """Bytes of input and output together."""
        num_inputs = self.n * self.c * self.h * self.w
        return (num_inputs + self.n * self.k * self.out_h * self.out_w) * element_bytes

    def intensity(self, element_bytes: int = 4) -> float:
        """Operations for each byte that must move at least: every tensor once.

        Below the ratio of a machine's arithmetic to its memory rate, memory is the bound.
        Source: Williams, Waterman & Patterson 2009, "Roofline" (CACM 52(4)).
        """
        return self.flops / (self.parameter_bytes(element_bytes) + self.activation_bytes(element_bytes))


def check_allowed(algorithm: str, *settings: tuple[str, object, object]) -> None:
    """For an algorithm that does one kind of convolution. `settings`: name, what it got, what it must be.

    Raises: UnsupportedShape.
    """
    for name, got, allowed in settings:
        if got != allowed:
            raise UnsupportedShape(f"{algorithm}: got {name} {got}, must be {allowed}. Use another algorithm.")


def pair(value: IntOrPair) -> Pair:
    """(value, value) for one number."""
    values = (value,) if isinstance(value, int) else tuple(value)
    rows, columns = values * 2 if len(values) == 1 else values
    return rows, columns


def geometry_of(
    filter_size: Pair, stride: IntOrPair, padding: IntOrPair | str, dilation: IntOrPair, groups: int
) -> list[int]:
    """What conv2d is told beside its tensors, as 9 numbers: stride, top, bottom, left, right, dilation, groups.

    Arguments as in torch.nn.functional.conv2d. Raises: ValueError for another word than 'same' or 'valid', or 'same'
    with a stride.
    """
    stride, dilation = pair(stride), pair(dilation)
    rows, columns = _padding_sides(padding, filter_size, stride, dilation)
    return [*stride, *rows, *columns, *dilation, groups]


def _padding_sides(padding: IntOrPair | str, filter_size: Pair, stride: Pair, dilation: Pair) -> Sides:
    """((top, bottom), (left, right)); \'same\' puts an odd one last."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        if stride != (1, 1):
            raise ValueError(
                f"padding: got 'same' with stride={stride}, must be with stride 1. Give the padding as numbers."
            )
        rows, columns = (step * (size - 1) for size, step in zip(filter_size, dilation, strict=True))
        return (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)
    if isinstance(padding, str):
        raise ValueError(f"padding: got {padding!r}, must be numbers, 'same' or 'valid'. Correct the word.")
    rows, columns = pair(padding)
    return (rows, rows), (columns, columns)


def _check_at_least(least: int, name: str, *values: int) -> None:
    if min(values) < least:
        got = values[0] if len(values) == 1 else values
        raise ValueError(f"{name}: got {got}, must be >= {least}. Correct the sizes of the convolution.")
