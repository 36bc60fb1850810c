"""torch.nn.Linear over pixels that lie channels last, as in ConvNeXt: a 1 x 1 convolution by another name.

For the vendor it stays a matrix product; what else computes 1 x 1 convolutions may be chosen in its place.
"""

from typing import Any

import torch
from torch import Tensor, nn

from kernels import dispatch, operators
from kernels.autocast import as_autocast_wants
from kernels.passes import VENDOR, Choice

GEOMETRY = [1, 1, 0, 0, 0, 0, 1, 1, 1, 1]
"""Of `shapes.geometry_of`, and that it is linear."""

_VENDOR = Choice.of(VENDOR)


class Linear(nn.Linear):
    """torch.nn.Linear, over pixels computed by `algorithm`: a name, or a `Choice` of one for each pass.

    Pixels are inputs (N, H, W, C) or (N, W, C), contiguous; whatever else, and under torch.compile, is PyTorch's.
    """

    algorithm: str | Choice

    def __init__(self, *args: Any, algorithm: str | Choice = "auto", **options: Any) -> None:
        super().__init__(*args, **options)
        self.algorithm = algorithm

    def forward(self, input: Tensor) -> Tensor:
        """Shapes: input (..., C) -> (..., K)."""
        pixels, weight, bias = input, self.weight, self.bias
        if torch.is_autocast_enabled(input.device.type):
            pixels, weight, bias = as_autocast_wants(input, weight, bias)
        choice = _VENDOR if torch.compiler.is_compiling() else self._choice(pixels, weight)
        if choice == _VENDOR:
            result: Tensor = super().forward(input)
            return result
        images, filters = _as_images(pixels), weight[:, :, None, None]
        output = operators.forward(images, filters, bias, GEOMETRY, ",".join(choice))
        return output.permute(0, 2, 3, 1).view(*input.shape[:-1], self.out_features)

    def _choice(self, pixels: Tensor, weight: Tensor) -> Choice:
        taken = pixels.dim() in (3, 4) and pixels.is_contiguous() and pixels.shape[-1] == self.in_features
        alike = (pixels.dtype, pixels.device) == (weight.dtype, weight.device)
        if not taken or not alike or not pixels.is_floating_point() or not pixels.numel():
            return _VENDOR
        return dispatch.resolved(Choice.of(self.algorithm), _as_images(pixels), weight[:, :, None, None], GEOMETRY)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, algorithm={self.algorithm!r}"


def _as_images(pixels: Tensor) -> Tensor:
    """Shapes: (N, H, W, C) or (N, W, C) -> (N, C, H, W), the same memory."""
    return (pixels if pixels.dim() == 4 else pixels.unsqueeze(1)).permute(0, 3, 1, 2)
