"""The affine changes of place: translate, rotate, stretch, shear.

Each as in the augmentations of Simard, Steinkraus & Platt 2003 ("Best practices for convolutional neural networks
applied to visual document analysis", ICDAR) and Ciresan, Meier & Schmidhuber 2012 (arXiv:1202.2745), section 2.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from pipelines.augment.base import Ratios, between
from pipelines.augment.geometry import Geometric, Matrix, about_centre
from pipelines.randomness import Draws


class Translate(Geometric):
    """Shift by up to a share of the width and of the height, uniform, not rounded to whole pixels.

    `horizontal`, `vertical`: the largest shift either way, as a share of the side.
    """

    name: Literal["translate"] = "translate"
    horizontal: float = Field(default=0.1, ge=0.0, le=1.0)
    vertical: float = Field(default=0.1, ge=0.0, le=1.0)

    def maps(self, size: tuple[int, int], draws: Draws) -> list[Matrix]:
        matrices = np.tile(np.eye(3), (len(draws.sample_keys), 1, 1))
        matrices[:, 0, 2] = -between((-self.horizontal, self.horizontal), draws.uniform(0)) * size[1]
        matrices[:, 1, 2] = -between((-self.vertical, self.vertical), draws.uniform(1)) * size[0]
        return [Matrix(matrix) for matrix in matrices]


class Rotate(Geometric):
    """Turn about the middle by an angle that is uniform in [-degrees, degrees]; positive is clockwise.

    `degrees`: the largest angle either way.
    """

    name: Literal["rotate"] = "rotate"
    degrees: float = Field(default=15.0, ge=0.0, le=180.0)

    def maps(self, size: tuple[int, int], draws: Draws) -> list[Matrix]:
        angles = np.deg2rad(between((-self.degrees, self.degrees), draws.uniform()))
        cos, sin = np.cos(angles), np.sin(angles)
        linear = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], axis=1)
        return [Matrix(matrix) for matrix in about_centre(linear, size)]


class Stretch(Geometric):
    """Stretch width and height by two factors, each uniform in its logarithm; above 1 the image grows.

    `horizontal`, `vertical`: the smallest and the largest factor.
    """

    name: Literal["stretch"] = "stretch"
    horizontal: Ratios = (0.8, 1.25)
    vertical: Ratios = (0.8, 1.25)

    def maps(self, size: tuple[int, int], draws: Draws) -> list[Matrix]:
        linear = np.zeros((len(draws.sample_keys), 2, 2))
        for axis, (low, high) in enumerate((self.horizontal, self.vertical)):
            linear[:, axis, axis] = np.exp(-between((float(np.log(low)), float(np.log(high))), draws.uniform(axis)))
        return [Matrix(matrix) for matrix in about_centre(linear, size)]


class Shear(Geometric):
    """Slant along each axis by an angle that is uniform in [-angle, angle].

    `horizontal`: degrees by which vertical lines lean to the right. `vertical`: degrees by which horizontal ones sink.
    """

    name: Literal["shear"] = "shear"
    horizontal: float = Field(default=10.0, ge=0.0, le=44.0)
    vertical: float = Field(default=0.0, ge=0.0, le=44.0)

    def maps(self, size: tuple[int, int], draws: Draws) -> list[Matrix]:
        slants = [
            np.tan(np.deg2rad(between((-angle, angle), draws.uniform(axis))))
            for axis, angle in enumerate((self.horizontal, self.vertical))
        ]
        forward = np.tile(np.eye(2), (len(draws.sample_keys), 1, 1))
        forward[:, 0, 1], forward[:, 1, 0] = slants
        # The determinant is 1 - tan(a) tan(b): above zero, because both angles are below 45 degrees.
        inverse = np.asarray(np.linalg.inv(forward), np.float64)
        return [Matrix(matrix) for matrix in about_centre(inverse, size)]
