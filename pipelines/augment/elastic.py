"""Elastic deformation: every pixel moves a little, its neighbours nearly the same way.

Source: Simard, Steinkraus & Platt 2003, "Best practices for convolutional neural networks applied to visual document
analysis" (ICDAR), section 2: uniform noise, smoothed by a Gaussian and scaled. Here the noise lives on a grid of
sigma instead of every pixel, scaled so that displacements keep their variance and correlation (to 2 exp(-pi^2), which
is 1e-4); it costs a fraction of the draws.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.augment.base import uniforms
from pipelines.augment.geometry import Floats, Geometric
from pipelines.randomness import Draws

_TAPS = (
    8  # cells on whose noise a pixel depends: those within 4 sigma, beyond which a Gaussian is below 0.04% of its peak
)
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
        num = 2 * _num_cells(image_size, self.sigma) ** 2
        if num > _MAX_DRAWS:
            raise ValueError(
                f"sigma: got {self.sigma}, needs {num} random numbers for data.image_size={image_size}, must need <= "
                f"{_MAX_DRAWS}. Raise sigma."
            )

    def maps(self, size: tuple[int, int], draws: Draws) -> list["Field2d"]:
        shape = (-1, 2, _num_cells(size[0], self.sigma), _num_cells(size[1], self.sigma))
        noise = 2 * uniforms(draws, 2 * shape[2] * shape[3]).reshape(shape) - 1
        return [Field2d(_smooth(image, size, self.sigma)) for image in (self.alpha * noise).astype(np.float32)]


@dataclass(frozen=True)
class Field2d:
    """A displacement for every pixel, (H, W, 2); interpolated between pixels, outside the image the edge's."""

    displacements: Floats

    def __call__(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        here = cv2.remap(self.displacements, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return (x + here[..., 0]).astype(np.float32), (y + here[..., 1]).astype(np.float32)


def _smooth(noise: Floats, size: tuple[int, int], sigma: float) -> Floats:
    """From noise on cells to displacements of pixels: (2, rows, columns) -> (H, W, 2).

    Sums in a fixed order, not a matrix product, whose rounding and threads would be those of the machine's BLAS.
    """
    cells, weights = _taps(size[1], sigma)
    wide = noise[:, :, cells[0]] * weights[0]
    for k in range(1, _TAPS):
        wide += noise[:, :, cells[k]] * weights[k]
    cells, weights = _taps(size[0], sigma)
    whole = wide[:, cells[0]] * weights[0, :, None]
    for k in range(1, _TAPS):
        whole += wide[:, cells[k]] * weights[k, :, None]
    return np.ascontiguousarray(whole.transpose(1, 2, 0))


def _num_cells(side: int, sigma: float) -> int:
    return int((side - 1) / sigma) + _TAPS


@lru_cache(maxsize=16)
def _taps(side: int, sigma: float) -> tuple[NDArray[np.int64], Floats]:
    """Which cells reach each pixel along one axis, and how much of their noise: (8, side) each."""
    pixels = np.arange(side)
    cells = (pixels / sigma).astype(np.int64) + np.arange(_TAPS)[:, None]
    distances = pixels / sigma - (cells - (_TAPS // 2 - 1))
    density = np.exp(-0.5 * distances**2) / (np.sqrt(2 * np.pi) * sigma)
    # A cell stands for sigma pixels, whose noises add up by variance.
    return cells, (density * np.sqrt(sigma)).astype(np.float32)
