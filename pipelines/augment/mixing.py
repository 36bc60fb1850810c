"""Join two samples and their labels: mixup and cutmix, as numbers for the device, and who is joined with whom.

Sources: Zhang, Cisse, Dauphin & Lopez-Paz 2017 (mixup, arXiv:1710.09412), eq. 1; Yun et al. 2019 (CutMix,
arXiv:1905.04899), eqs. 1-2. Both are label-mixing: the loss needs two labels and a share. Unlike the papers' code,
which draws one share a batch, each sample draws its own.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.augment.base import Mix, Mixing, Probability, uniforms
from pipelines.augment.beta import symmetric_beta
from pipelines.randomness import Draws, mix

GROUP = 8


class Mixup(Mixing):
    """Replace each image by share * itself + (1 - share) * its partner, share ~ Beta(alpha, alpha).

    `alpha`: small leaves most images nearly alone, 1 is uniform. `probability`: of being mixed at all.
    """

    name: Literal["mixup"] = "mixup"
    alpha: float = Field(default=0.2, ge=0.01, le=32.0)
    probability: Probability = 1.0

    def plan(self, size: tuple[int, int], draws: Draws, groups: Draws) -> Mix:  # noqa: ARG002
        shares = np.where(draws.uniform(1) < self.probability, symmetric_beta(self.alpha, draws.uniform(0)), 1.0)
        return Mix(shares, np.zeros((len(shares), 4), np.int64), shares)


class Cutmix(Mixing):
    """Replace a rectangle of each image by its partner's; a label's share is the area's, to the pixel.

    The rectangle has the image's shape and covers 1 - Beta(alpha, alpha) of it, less what reaches outside.
    `alpha`: 1 is uniform. `probability`: of being mixed at all.
    """

    name: Literal["cutmix"] = "cutmix"
    alpha: float = Field(default=1.0, ge=0.01, le=32.0)
    probability: Probability = 1.0

    def plan(self, size: tuple[int, int], draws: Draws, groups: Draws) -> Mix:  # noqa: ARG002
        boxes = self.boxes(size, draws)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return Mix(np.ones(len(boxes)), boxes, 1 - areas / (size[0] * size[1]))

    def boxes(self, size: tuple[int, int], draws: Draws) -> NDArray[np.int64]:
        """The rectangles: (N, 4) left, top, right, bottom, the last two excluded."""
        height, width = size
        half = 0.5 * np.sqrt(1 - symmetric_beta(self.alpha, draws.uniform(0)))
        half_w, half_h = (half * width).astype(np.int64), (half * height).astype(np.int64)
        x, y = draws.integers(width, 1), draws.integers(height, 2)
        corners = [
            np.clip(x - half_w, 0, width),
            np.clip(y - half_h, 0, height),
            np.clip(x + half_w, 0, width),
            np.clip(y + half_h, 0, height),
        ]
        boxes = np.stack(corners, axis=1)
        boxes[draws.uniform(3) >= self.probability] = 0
        return boxes


def of_groups(positions: range, seed: int, epoch: int, number: int) -> Draws:
    """Draws that all positions of a group of 8 share; the groups are those of `partners_of`."""
    groups = np.arange(positions.start, positions.stop, positions.step) // GROUP
    return Draws(mix("groups", seed), epoch, groups.astype(np.uint64), number)


def partners_of(positions: range, seed: int, epoch: int, number: int) -> NDArray[np.int64]:
    """Who is mixed with whom: the index, within the batch, of each sample's partner.

    The positions of an epoch's order fall into groups of 8 (position // 8); a group is a circle in random order, and
    each one's partner is the next. So nobody is its own partner, unless alone, and every other one of the group is
    equally likely. Because shares are contiguous, any number of workers whose shares begin at multiples of 8 makes the
    same pairs; where a share cuts a group, each part is a circle of its own.
    Shapes: N positions -> (N,) in [0, N).
    """
    places = np.arange(positions.start, positions.stop, positions.step)
    groups, of_group = np.unique(places // GROUP, return_inverse=True)
    keys = uniforms(Draws(mix("partners", seed), epoch, groups.astype(np.uint64), number), GROUP)
    order = np.lexsort((keys[of_group, places % GROUP], of_group))
    sizes = np.bincount(of_group, minlength=len(groups))
    ends = np.cumsum(sizes)
    following = np.arange(1, len(places) + 1)
    following[ends - 1] = ends - sizes
    partners = np.empty(len(places), np.int64)
    partners[order] = order[following]
    return partners
