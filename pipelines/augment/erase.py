"""Hide a part of the image, so that the network looks at the rest."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.augment.base import CpuAugmentation, Level, Probability, Ratios, Shares, between, uniforms
from pipelines.randomness import Draws

_ATTEMPTS = 10


class Erasing(CpuAugmentation):
    """Fill a rectangle of random area, shape and place with `fill`, with `probability`.

    `share`: its area over the image's, uniform. `ratio`: height over width, uniform in its logarithm (the paper draws
    it uniformly; torchvision does as here). A rectangle that is as high or as wide as the image is drawn again, 10
    times; then the image is left alone. `fill`: one grey level; the paper's random noise is not done.
    Source: Zhong, Zheng, Kang, Li & Yang 2017 (arXiv:1708.04896), algorithm 1.
    """

    name: Literal["erasing"] = "erasing"
    probability: Probability = 0.5
    share: Shares = (0.02, 0.33)
    ratio: Ratios = (0.3, 3.3)
    fill: Level = 0

    def apply(self, images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        result = images.copy()
        for i, box in enumerate(self._boxes(images.shape[1:3], draws).tolist()):
            left, top, width, height = box
            result[i, top : top + height, left : left + width] = self.fill
        return result

    def _boxes(self, size: tuple[int, int], draws: Draws) -> NDArray[np.int64]:
        """Shapes: (N, 4) left, top, width, height; 0, 0, 0, 0 where nothing is erased."""
        height, width = size
        drawn = uniforms(draws, 2 * _ATTEMPTS + 3)
        areas = height * width * between(self.share, drawn[:, 0 : 2 * _ATTEMPTS : 2])
        log_ratio = (float(np.log(self.ratio[0])), float(np.log(self.ratio[1])))
        ratios = np.exp(between(log_ratio, drawn[:, 1 : 2 * _ATTEMPTS : 2]))
        tried_h, tried_w = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
        fits = (tried_h < height) & (tried_w < width)
        rows, first = np.arange(len(drawn)), fits.argmax(axis=1)
        h, w = tried_h[rows, first], tried_w[rows, first]
        place_x, place_y, coin = drawn[:, -3:].T
        left, top = np.floor(place_x * (width - w + 1)), np.floor(place_y * (height - h + 1))
        boxes = np.stack([left, top, w, h], axis=1).astype(np.int64)
        boxes[~fits.any(axis=1) | (coin >= self.probability)] = 0
        return boxes


class Cutout(CpuAugmentation):
    """Fill a square whose middle is anywhere in the image with `fill`; what reaches outside is cut off.

    `side`: of the square, in pixels.
    Source: DeVries & Taylor 2017 (arXiv:1708.04552), section 3.2: side 16 for CIFAR-10, 8 for CIFAR-100.
    """

    name: Literal["cutout"] = "cutout"
    side: int = Field(ge=1, le=4096)
    fill: Level = 0
    probability: Probability = 1.0

    def apply(self, images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        height, width = images.shape[1:3]
        tops = draws.integers(height, 0) - self.side // 2
        lefts = draws.integers(width, 1) - self.side // 2
        result = images.copy()
        for i in np.flatnonzero(draws.uniform(2) < self.probability):
            rows = slice(max(int(tops[i]), 0), max(int(tops[i]) + self.side, 0))
            columns = slice(max(int(lefts[i]), 0), max(int(lefts[i]) + self.side, 0))
            result[i, rows, columns] = self.fill
        return result
