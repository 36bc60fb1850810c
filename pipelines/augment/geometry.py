"""Moving pixels: every change of place is a map from output to input coordinates, and maps compose.

A sequence of geometric augmentations is one map, so an image is resampled once instead of once for each of them: that
is faster, and each resampling that is saved is a blur that is saved. Coordinates are (x, y) with pixel centres at
whole numbers; the middle of an image is ((W - 1) / 2, (H - 1) / 2). Bilinear, not antialiased: made for moderate
changes of scale.
Source: composition and backward warping are Wolberg 1990, "Digital Image Warping", section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.augment.base import CpuAugmentation, Level, Probability
from pipelines.randomness import Draws, mix

Floats = NDArray[np.float32]
Border = Literal["fill", "reflect"]


class Map(Protocol):
    """From places in the output to places in the input."""

    def __call__(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Shapes: (H, W) each -> (H, W) each."""
        ...


@dataclass(frozen=True)
class Matrix:
    """A homogeneous 3 x 3 matrix: affine, or perspective if its last row is not 0 0 1."""

    values: NDArray[np.float64]

    def __call__(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        m = self.values
        w = m[2, 0] * x + m[2, 1] * y + m[2, 2]
        return (
            ((m[0, 0] * x + m[0, 1] * y + m[0, 2]) / w).astype(np.float32),
            ((m[1, 0] * x + m[1, 1] * y + m[1, 2]) / w).astype(np.float32),
        )


class Geometric(CpuAugmentation):
    """A geometric augmentation; consecutive ones with the same border are resampled as one.

    `probability`: of being applied to an image.
    `border`: what lies outside the image: `fill`, or its mirror image. `fill`: the grey level of the former.
    """

    probability: Probability = 1.0
    border: Border = "fill"
    fill: Level = 0

    def maps(self, size: tuple[int, int], draws: Draws) -> Sequence[Map]:
        """The map of each image. `size` is (height, width)."""
        raise NotImplementedError

    def chosen_maps(self, size: tuple[int, int], draws: Draws) -> list[Map | None]:
        """The map of each image, None for those that `probability` leaves alone."""
        maps = self.maps(size, draws)
        if self.probability == 1.0:
            return list(maps)
        # A key of its own, so that an augmentation may use as many draws as it likes.
        coin = Draws(mix("coin", draws.seed), draws.epoch, draws.sample_keys, draws.augmentation).uniform()
        return [m if c < self.probability else None for m, c in zip(maps, coin, strict=True)]

    def apply(self, images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        return apply_as_one([self], images, [draws])


def apply_as_one(sequence: Sequence[Geometric], images: NDArray[np.uint8], draws: Sequence[Draws]) -> NDArray[np.uint8]:
    """Apply geometric augmentations in order with one resampling; all must have the border of the first.

    Shapes: images (N, H, W, C) -> (N, H, W, C), a new array.
    """
    size = images.shape[1:3]
    columns = [geometric.chosen_maps(size, d) for geometric, d in zip(sequence, draws, strict=True)]
    result = np.empty_like(images)
    for i, image in enumerate(images):
        maps = [column[i] for column in columns]
        result[i] = resample(image, [m for m in maps if m is not None], sequence[0].border, sequence[0].fill)
    return result


def resample(
    image: NDArray[np.uint8], maps: Sequence[Map], border: Border = "fill", fill: int = 0
) -> NDArray[np.uint8]:
    """Move the pixels of one image by maps in order, all at once; with no map it comes back as it is.

    Output place p shows maps[0](maps[1](... p)) of the input.
    """
    if not maps:
        return image
    height, width = image.shape[:2]
    mode = cv2.BORDER_CONSTANT if border == "fill" else cv2.BORDER_REFLECT_101
    outside = (float(fill),) * 4
    matrix = _product(maps)
    if matrix is None:
        x, y = _grid(height, width)
        for m in reversed(maps):
            x, y = m(x, y)
        moved = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=mode, borderValue=outside)
    else:
        warp = cv2.warpAffine if np.array_equal(matrix[2], (0.0, 0.0, 1.0)) else cv2.warpPerspective
        rows = matrix[:2] if warp is cv2.warpAffine else matrix
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        moved = warp(image, rows, (width, height), flags=flags, borderMode=mode, borderValue=outside)
    return np.asarray(moved, np.uint8).reshape(image.shape)


@lru_cache(maxsize=4)
def _grid(height: int, width: int) -> tuple[Floats, Floats]:
    y, x = np.indices((height, width), np.float32)
    x.flags.writeable = y.flags.writeable = False
    return x, y


def _product(maps: Sequence[Map]) -> NDArray[np.float64] | None:
    product = np.eye(3)
    for m in maps:
        if not isinstance(m, Matrix):
            return None
        product = product @ m.values
    return product


def about_centre(linear: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Turn 2 x 2 matrices into homogeneous ones that leave the middle of the image where it is.

    Shapes: linear (N, 2, 2) -> (N, 3, 3).
    """
    centre = np.array([(size[1] - 1) / 2, (size[0] - 1) / 2])
    matrices = np.zeros((len(linear), 3, 3))
    matrices[:, :2, :2] = linear
    matrices[:, :2, 2] = centre - linear @ centre
    matrices[:, 2, 2] = 1.0
    return matrices
