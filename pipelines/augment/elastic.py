"""Elastic deformation: every pixel moves a little, its neighbours nearly the same way.

Source: Simard, Steinkraus & Platt 2003, "Best practices for convolutional neural networks applied to visual document
analysis" (ICDAR), section 2: uniform noise, smoothed by a Gaussian and scaled. Here the noise lives on a grid of half
sigma instead of every pixel and is scaled so that the displacements keep their variance and nearly their
correlation; it costs a fraction of the draws.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from pydantic import Field

from pipelines.augment.base import uniforms
from pipelines.augment.geometry import Floats, Geometric
from pipelines.randomness import Draws

_CELLS_A_SIGMA = 2
_MARGIN_SIGMAS = 4  # how far outside the image noise is drawn: beyond, the Gaussian is below 0.04% of its peak
_MAX_DRAWS = 4 * 2**16


class Elastic(Geometric):
    """Move pixels by smooth noise.

    `alpha`: the noise is uniform in [-alpha, alpha] pixels before smoothing; what is left of it after, as a root mean
    square, is alpha / (6.1 sigma). `sigma`: of the Gaussian, in pixels.
    """

    name: Literal["elastic"] = "elastic"
    alpha: float = Field(default=34.0, ge=0.0, le=10000.0)
    sigma: float = Field(default=4.0, ge=1.0, le=256.0)

    def check(self, channels: int, image_size: int) -> None:  # noqa: ARG002
        num = 2 * _smoothing(image_size, self.sigma).shape[1] ** 2
        if num > _MAX_DRAWS:
            raise ValueError(
                f"sigma: got {self.sigma}, needs {num} random numbers for data.image_size={image_size}, must need <= "
                f"{_MAX_DRAWS}. Raise sigma."
            )

    def maps(self, size: tuple[int, int], draws: Draws) -> list["Field2d"]:
        rows, columns = _smoothing(size[0], self.sigma), _smoothing(size[1], self.sigma)
        shape = (-1, 2, rows.shape[1], columns.shape[1])
        noise = 2 * uniforms(draws, 2 * shape[2] * shape[3]).reshape(shape) - 1
        moved = (self.alpha * (rows @ noise @ columns.T)).astype(np.float32)
        return [Field2d(image[0], image[1]) for image in moved]


@dataclass(frozen=True)
class Field2d:
    """A displacement for every pixel; between pixels it is interpolated, outside the image the edge's holds."""

    dx: Floats
    dy: Floats

    def __call__(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        dx, dy = (cv2.remap(d, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for d in (self.dx, self.dy))
        return (x + dx).astype(np.float32), (y + dy).astype(np.float32)


@lru_cache(maxsize=16)
def _smoothing(side: int, sigma: float) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """How much of each cell's noise reaches each pixel, along one axis: (side, number of cells)."""
    spacing = max(1.0, sigma / _CELLS_A_SIGMA)
    margin = int(np.ceil(_MARGIN_SIGMAS * sigma / spacing))
    cells = spacing * np.arange(-margin, int(np.ceil((side - 1) / spacing)) + margin + 1)
    density = np.exp(-0.5 * ((np.arange(side)[:, None] - cells) / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
    weights = density * np.sqrt(spacing)  # a cell stands for `spacing` pixels, whose noises add up by variance
    weights.flags.writeable = False
    return weights
