"""What an augmentation is: a frozen pydantic model with a `name`, whose options are its fields.

One idea a file. To add one: a file here with a class like `RandomCrop`, its name in the table of
`pipelines/config.py`, a test against an independent reference.

An image passes them in this order: a `Framing` says which part of the encoded image becomes pixels; `CpuAugmentation`s
change uint8 pixels; `ColourAugmentation`s are matrices, which the device applies as one; a `Mixing` joins samples of a
batch there.
"""

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from pipelines.randomness import Draws


class _Augmentation(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    random: ClassVar[bool] = True


class Framing(_Augmentation):
    """Which part of an image is decoded and scaled to the size that the network takes."""

    def boxes(self, sizes: NDArray[np.int64], draws: Draws) -> NDArray[np.float64]:
        """Boxes in pixels of the upright images.

        Shapes: sizes (N, 2) height, width -> (N, 4) left, top, width, height, inside the images.
        """
        raise NotImplementedError


class CpuAugmentation(_Augmentation):
    """A change of uint8 pixels on the CPU, drawn anew for every sample and epoch; skipped in evaluation."""

    def apply(self, images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        """Shapes: images (N, H, W, C) -> (N, H, W, C), a new array or the same one, never changed in place."""
        raise NotImplementedError


class ColourAugmentation(_Augmentation):
    """A change of colours that is affine in a pixel's values: one matrix an image, for pixels scaled to [0, 1]."""

    def matrices(self, means: Tensor, draws: Draws) -> Tensor:
        """The matrix of each image, given what its pixels' mean is before this augmentation.

        Shapes: means (N, C) -> (N, C, C + 1) on the device of `means`; out = m[:, :C] @ pixel + m[:, C].
        """
        raise NotImplementedError


class Mixing(_Augmentation):
    """Joins each sample of a batch with another one, and their labels."""

    def mix(self, images: Tensor, partners: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Mix images[i] with images[partners[i]].

        Shapes: images (N, C, H, W) float, partners (N,) int64 -> mixed (N, C, H, W), and (N,) float32: what share of
        the label stays that of sample i; the rest is its partner's.
        """
        raise NotImplementedError


def to_device(values: NDArray[np.float64], like: Tensor) -> Tensor:
    """Draws, as float32 on the device of `like`."""
    return torch.from_numpy(values.astype(np.float32)).to(like.device, non_blocking=True)
