"""Shift images by padding and cropping at random."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.augment.base import CpuAugmentation
from pipelines.randomness import Draws


class RandomCrop(CpuAugmentation):
    """Pad every side by `padding` pixels of value `fill` and cut out the original size at a random place.

    Each of the (2 * padding + 1)^2 places is equally likely.
    Source: He, Zhang, Ren & Sun 2016 (arXiv:1512.03385), section 4.2, with padding 4 on CIFAR-10.
    """

    name: Literal["random_crop"] = "random_crop"
    padding: int = Field(ge=1, le=256)
    fill: int = Field(default=0, ge=0, le=255)

    def apply(self, images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        num, height, width, channels = images.shape
        pad = self.padding
        padded = np.full((num, height + 2 * pad, width + 2 * pad, channels), self.fill, np.uint8)
        padded[:, pad : pad + height, pad : pad + width] = images
        tops = draws.integers(2 * pad + 1, 0).tolist()
        lefts = draws.integers(2 * pad + 1, 1).tolist()
        cropped = np.empty_like(images)
        for i, (top, left) in enumerate(zip(tops, lefts, strict=True)):
            cropped[i] = padded[i, top : top + height, left : left + width]
        return cropped
