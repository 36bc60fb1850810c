"""A lens that bends straight lines: radial distortion of the first order.

Source: Brown 1966, "Decentering distortion of lenses", Photogrammetric Engineering 32(3), the term k1 of the radial
series. Tangential terms and higher orders are left out.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from pipelines.augment.base import between
from pipelines.augment.geometry import Floats, Geometric
from pipelines.randomness import Draws


class LensDistortion(Geometric):
    """Read a pixel at distance r from the middle at r (1 + k r^2); k is uniform in [-strength, strength].

    r = 1 at the corners; k > 0 is a barrel (the image shrinks towards its edges), k < 0 a pincushion.
    `strength`: the largest k either way; below 1/3, so that no two places read the same one.
    """

    name: Literal["lens_distortion"] = "lens_distortion"
    strength: float = Field(default=0.2, ge=0.0, le=0.33)

    def maps(self, size: tuple[int, int], draws: Draws) -> list["Radial"]:
        centre = ((size[1] - 1) / 2, (size[0] - 1) / 2)
        corner = float(np.hypot(size[1], size[0])) / 2
        return [Radial(k, centre, corner) for k in between((-self.strength, self.strength), draws.uniform()).tolist()]


@dataclass(frozen=True)
class Radial:
    """r -> r (1 + k1 r^2) about `centre`, with r = 1 at a distance of `unit` pixels."""

    k1: float
    centre: tuple[float, float]
    unit: float

    def __call__(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        from_x, from_y = x - np.float32(self.centre[0]), y - np.float32(self.centre[1])
        factor = 1 + np.float32(self.k1 / self.unit**2) * (from_x * from_x + from_y * from_y)
        return from_x * factor + np.float32(self.centre[0]), from_y * factor + np.float32(self.centre[1])
