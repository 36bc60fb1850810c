"""RandAugment: a few operations at random, all of one magnitude.

Source: Cubuk, Zoph, Shlens & Le 2019 (arXiv:1909.13719), section 3; bins and default magnitude are torchvision's.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipelines.augment.base import uniforms
from pipelines.augment.policy import SIGNED, Policy, Step, narrow_space
from pipelines.randomness import Draws


class RandAugment(Policy):
    """Apply `operations` operations, drawn with replacement out of 14, at `magnitude` out of `bins` steps.

    `magnitude`: 0 nothing, `bins` - 1 the strongest; operations with a sign take either with equal probability.
    """

    name: Literal["randaugment"] = "randaugment"
    operations: int = Field(default=2, ge=1, le=16)
    magnitude: int = Field(default=9, ge=0, le=100)
    bins: int = Field(default=31, ge=2, le=101)

    @model_validator(mode="after")
    def _check(self) -> "RandAugment":
        if self.magnitude >= self.bins:
            raise ValueError(f"magnitude: got {self.magnitude}, must be < bins={self.bins}. Lower it or raise bins.")
        return self

    def apply(self, images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        return self.run(images, self.steps((images.shape[1], images.shape[2]), draws))

    def steps(self, size: tuple[int, int], draws: Draws) -> list[list[Step]]:
        space = narrow_space(self.bins, size)
        names = list(space)
        drawn = uniforms(draws, 2 * self.operations)
        chosen = (drawn[:, : self.operations] * len(names)).astype(np.int64).tolist()
        negative = (drawn[:, self.operations :] < 0.5).tolist()
        return [
            [
                (name, float(space[name][self.magnitude]) * (-1 if minus and name in SIGNED else 1))
                for name, minus in zip((names[k] for k in row), signs, strict=True)
            ]
            for row, signs in zip(chosen, negative, strict=True)
        ]
