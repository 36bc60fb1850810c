"""Mixup or cutmix: one of several ways to mix, drawn anew for every group of samples that are mixed with each other.

Source: timm's Mixup (Wightman 2019, its `switch_prob`) draws mixup or cutmix for a whole batch; here each group of 8
positions draws, so that the choice, too, is the same on any number of workers.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field, Strict

from pipelines.augment.base import Mix, Mixing, Probability, nested
from pipelines.augment.mixing import Cutmix, Mixup
from pipelines.augment.shorthand import ShorthandSchema, expand_shorthand
from pipelines.randomness import Draws

Entry = Annotated[Mixup | Cutmix, Field(discriminator="name"), BeforeValidator(expand_shorthand), ShorthandSchema()]


class RandomMixing(Mixing):
    """Mix each group of 8 samples by one of several mixings, all equally likely; listed twice is twice as likely.

    One that has a `probability` of its own may still leave a sample alone.
    `of`: the mixings, written as `augment` is. `probability`: of a group being mixed at all.
    """

    name: Literal["random_mixing"] = "random_mixing"
    of: Annotated[tuple[Entry, ...], Strict(False)] = Field(min_length=1, max_length=64)
    probability: Probability = 1.0

    def plan(self, size: tuple[int, int], draws: Draws, groups: Draws) -> Mix:
        num = len(draws.sample_keys)
        weights, boxes, shares = np.ones(num), np.zeros((num, 4), np.int64), np.ones(num)
        choice = np.where(groups.uniform(1) < self.probability, groups.integers(len(self.of), 0), -1)
        for index, mixing in enumerate(self.of):
            part = mixing.plan(size, nested(draws, index), nested(groups, index))
            chosen = choice == index
            weights[chosen], boxes[chosen], shares[chosen] = (
                part.weights[chosen],
                part.boxes[chosen],
                part.shares[chosen],
            )
        return Mix(weights, boxes, shares)
