"""Look at an image from another side: a random homography.

Source: the corners move as in torchvision's RandomPerspective; the eight equations are those of Hartley & Zisserman
2004, "Multiple View Geometry", section 4.1.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.augment.base import uniforms
from pipelines.augment.geometry import Geometric, Matrix
from pipelines.randomness import Draws


class Perspective(Geometric):
    """Move each corner inwards by up to `distortion` / 2 of the width and of the height, uniform and independent.

    `distortion`: 0 nothing, 1 up to the middle.
    """

    name: Literal["perspective"] = "perspective"
    distortion: float = Field(default=0.2, ge=0.0, lt=1.0)

    def maps(self, size: tuple[int, int], draws: Draws) -> list[Matrix]:
        width, height = size[1], size[0]
        # Of pixels' edges, not centres, so that even a row of pixels has four corners.
        corners = np.array([(0.0, 0.0), (width, 0.0), (width, height), (0.0, height)]) - 0.5
        inwards = np.array([(1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0), (1.0, -1.0)])
        shares = uniforms(draws, 8).reshape(-1, 4, 2) * self.distortion / 2
        moved = corners + inwards * shares * (width, height)
        return [Matrix(matrix) for matrix in homographies(moved, np.broadcast_to(corners, moved.shape))]


def homographies(sources: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """The projective maps that take four points to four others.

    Shapes: sources, targets (N, 4, 2) x, y -> (N, 3, 3), the last entry of each 1.
    """
    equations = np.zeros((len(sources), 8, 8))
    for k in range(4):
        x, y = sources[:, k, 0], sources[:, k, 1]
        for axis in range(2):
            row, target = 2 * k + axis, targets[:, k, axis]
            equations[:, row, 3 * axis] = x
            equations[:, row, 3 * axis + 1] = y
            equations[:, row, 3 * axis + 2] = 1.0
            equations[:, row, 6] = -x * target
            equations[:, row, 7] = -y * target
    solved = np.linalg.solve(equations, targets.reshape(-1, 8, 1))[..., 0]
    return np.concatenate([solved, np.ones((len(solved), 1))], axis=1).reshape(-1, 3, 3)
