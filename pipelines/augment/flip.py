"""Mirror images at random: left to right, top to bottom."""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.augment.base import CpuAugmentation
from pipelines.randomness import Draws


class HorizontalFlip(CpuAugmentation):
    """Mirror an image left to right with `probability`.

    Not for digits or text: a mirrored 3 is no 3.
    Source: Krizhevsky, Sutskever & Hinton 2012 (AlexNet), section 4.1.
    """

    name: Literal["horizontal_flip"] = "horizontal_flip"
    probability: float = Field(default=0.5, ge=0.0, le=1.0)

    def apply(self, images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        flipped = draws.uniform() < self.probability
        result = images.copy()
        for i in np.flatnonzero(flipped):
            # By OpenCV: a tenth of the time of numpy, which moves three bytes at a time.
            result[i] = cv2.flip(images[i], 1).reshape(images.shape[1:])
        return result


class VerticalFlip(CpuAugmentation):
    """Mirror an image top to bottom with `probability`: for microscopy, aerial photographs and the like."""

    name: Literal["vertical_flip"] = "vertical_flip"
    probability: float = Field(default=0.5, ge=0.0, le=1.0)

    def apply(self, images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        flipped = draws.uniform() < self.probability
        result = images.copy()
        result[flipped] = images[flipped, ::-1]
        return result
