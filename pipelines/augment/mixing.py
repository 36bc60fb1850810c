"""Join two samples and their labels: mixup and cutmix, on the device, and who is joined with whom.

Sources: Zhang, Cisse, Dauphin & Lopez-Paz 2017 (mixup, arXiv:1710.09412), eq. 1; Yun et al. 2019 (CutMix,
arXiv:1905.04899), eqs. 1-2. Both are label-mixing: the loss needs two labels and a share. Unlike the papers' code,
which draws one share a batch, each sample draws its own.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pipelines.augment.base import Mixing, Probability, to_device, uniforms
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

    def mix(self, images: Tensor, partners: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        shares = symmetric_beta(self.alpha, draws.uniform(0))
        share = to_device(np.where(draws.uniform(1) < self.probability, shares, 1.0), images)
        # Not torch.lerp, whose rounding leaves an image at share 1 only nearly alone.
        weight = share[:, None, None, None]
        return images * weight + images[partners] * (1 - weight), share


class Cutmix(Mixing):
    """Replace a rectangle of each image by its partner's; a label's share is the area's, to the pixel.

    The rectangle has the image's shape and covers 1 - Beta(alpha, alpha) of it, less what reaches outside.
    `alpha`: 1 is uniform. `probability`: of being mixed at all.
    """

    name: Literal["cutmix"] = "cutmix"
    alpha: float = Field(default=1.0, ge=0.01, le=32.0)
    probability: Probability = 1.0

    def mix(self, images: Tensor, partners: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        height, width = images.shape[2:]
        boxes = self.boxes((height, width), draws)
        left, top, right, bottom = torch.from_numpy(boxes.T).to(images.device, non_blocking=True)[..., None, None, None]
        x = torch.arange(width, device=images.device)
        y = torch.arange(height, device=images.device)[:, None]
        inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        share = to_device(1 - areas / (height * width), images)
        return torch.where(inside, images[partners], images), share

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
