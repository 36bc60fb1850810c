"""Brightness, contrast, saturation and hue as one matrix an image.

Source: the four factors and their random order are those of torchvision's ColorJitter (Howard 2013, arXiv:1312.5402,
section 2.1, has the first three); how matrices become one is in `colour_map.py`.
Two differences from torchvision: values are clipped to [0, 1] once, after all colour augmentations, instead of
after each; and hue turns colours about the grey axis in YIQ, which keeps the luma and the amount of colour, where HSV
keeps the largest of the three values and is not affine. Positive hue goes from red to yellow, as HSV's does.
"""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.augment.base import ColourAugmentation, uniforms
from pipelines.augment.colour_map import ColourMap
from pipelines.randomness import Draws

# ITU-R 601 luma, and the axes I and Q of NTSC.
LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])

Range = Annotated[float, Field(ge=0.0, le=10.0)]

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


class ColourJitter(ColourAugmentation):
    """Change brightness, contrast, saturation and hue by random amounts, in an order drawn for each image.

    `brightness`, `contrast`, `saturation`: x draws a factor uniformly from [max(0, 1 - x), 1 + x].
    `hue`: x draws a shift uniformly from [-x, x], 0.5 is half the colour circle.
    """

    name: Literal["colour_jitter"] = "colour_jitter"
    brightness: Range = 0.4
    contrast: Range = 0.4
    saturation: Range = 0.4
    hue: float = Field(default=0.0, ge=0.0, le=0.5)

    def check(self, channels: int, image_size: int) -> None:  # noqa: ARG002
        for option in ("saturation", "hue"):
            if channels == 1 and getattr(self, option) != 0.0:
                raise ValueError(
                    f"{option}: got {getattr(self, option)}, must be 0 for data.channels=1, which has no colour. Set "
                    "it to 0."
                )

    def factors(self, draws: Draws) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """What is done to each image: (N, 4) brightness, contrast, saturation, hue, and (N, 4) in which order."""
        drawn = uniforms(draws, 8)
        low = np.array([*(max(0.0, 1 - x) for x in (self.brightness, self.contrast, self.saturation)), -self.hue])
        high = np.array([1 + self.brightness, 1 + self.contrast, 1 + self.saturation, self.hue])
        return low + (high - low) * drawn[:, :4], np.argsort(drawn[:, 4:], axis=1, kind="stable")

    def colours(self, channels: int, draws: Draws) -> ColourMap:
        linear, of_mean = jitter_matrices(*self.factors(draws), channels=channels)
        return ColourMap(linear, of_mean, np.zeros(linear.shape[:2]))


def jitter_matrices(
    factors: NDArray[np.float64], orders: NDArray[np.int64], channels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The jitter as out = A pixel + B mean, with the mean pixel of the image before it.

    All but contrast are linear; contrast c mixes in (1 - c) of the mean grey of what came before it. With Q the matrix
    before contrast and P the one after: A = c P Q, B = (1 - c) P 1 (luma Q).
    Shapes: factors, orders (N, 4) -> A, B (N, channels, channels).
    """
    num = len(factors)
    luma = LUMA if channels == 3 else np.ones(1)
    one = np.eye(channels)
    grey = np.outer(np.ones(channels), luma)
    scale = factors[:, _BRIGHTNESS, None, None] * one
    saturate = grey + factors[:, _SATURATION, None, None] * (one - grey)
    contrast = factors[:, _CONTRAST, None, None]
    total, spread = np.tile(one, (num, 1, 1)), np.zeros((num, channels, channels))
    steps = {_BRIGHTNESS: scale, _SATURATION: saturate, _CONTRAST: contrast * one}
    if channels == 3:
        steps[_HUE] = _hue_rotations(factors[:, _HUE])
    for place in range(4):
        for operation, matrices in steps.items():
            chosen = orders[:, place] == operation
            if operation == _CONTRAST:
                spread[chosen] = ((1 - contrast) * (grey @ total))[chosen]
            else:
                spread[chosen] = matrices[chosen] @ spread[chosen]
            total[chosen] = matrices[chosen] @ total[chosen]
    return total, spread


def _hue_rotations(shifts: NDArray[np.float64]) -> NDArray[np.float64]:
    angles = -2 * np.pi * shifts
    turn = np.zeros((len(shifts), 3, 3))
    turn[:, 0, 0] = 1.0
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angles)
    turn[:, 2, 1] = np.sin(angles)
    turn[:, 1, 2] = -turn[:, 2, 1]
    rotations: NDArray[np.float64] = np.linalg.inv(_YIQ) @ turn @ _YIQ
    return rotations
