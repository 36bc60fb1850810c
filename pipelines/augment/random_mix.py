"""A random choice out of a list of augmentations, anew for each image."""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, Strict, model_validator

from pipelines.augment.base import CpuAugmentation, nested, subset, uniforms
from pipelines.augment.shorthand import ShorthandSchema, expand_shorthand
from pipelines.augment.table import Operation
from pipelines.randomness import Draws

Entry = Annotated[Operation, Field(discriminator="name"), BeforeValidator(expand_shorthand), ShorthandSchema()]


class RandomMix(CpuAugmentation):
    """Apply `choose` different ones of a list of CPU augmentations to each image, in random order.

    All choices are equally likely; one that has a `probability` of its own may still leave the image alone.
    `choose`: how many. `of`: the list, written as `augment` is.
    """

    name: Literal["random_mix"] = "random_mix"
    choose: int = Field(default=1, ge=1, le=64)
    of: Annotated[tuple[Entry, ...], Strict(False)] = Field(min_length=1, max_length=64)

    @model_validator(mode="after")
    def _check(self) -> "RandomMix":
        if self.choose > len(self.of):
            raise ValueError(
                f"choose: got {self.choose}, must be <= {len(self.of)}, as many as `of` lists. Lower it or list more."
            )
        return self

    def check(self, channels: int, image_size: int) -> None:
        for index, augmentation in enumerate(self.of):
            augmentation.check_form(f"of.{index}.{augmentation.name}", channels, image_size)

    def apply(self, images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        order = np.argsort(uniforms(draws, len(self.of)), axis=1, kind="stable")[:, : self.choose]
        result = images.copy()
        for place in range(self.choose):
            for index, augmentation in enumerate(self.of):
                chosen = order[:, place] == index
                if chosen.any():
                    result[chosen] = augmentation.apply(result[chosen], nested(subset(draws, chosen), index))
        return result
