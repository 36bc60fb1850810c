"""Changes of grey levels that look at no neighbours: invert, solarize, posterize, equalize, autocontrast, grey.

The set is that of Cubuk et al. 2018 (AutoAugment, arXiv:1805.09501), table 6, which took it from Pillow; solarize and
grey with their probabilities are also in Grill et al. 2020 (BYOL, arXiv:2006.07733), appendix B.
"""

from typing import ClassVar, Literal

from pydantic import Field

from pipelines.augment import operations
from pipelines.augment.base import Probability, Sometimes
from pipelines.augment.operations import Image


class Invert(Sometimes):
    """Turn an image into its negative with `probability`."""

    name: Literal["invert"] = "invert"

    def change(self, image: Image, uniform: float) -> Image:  # noqa: ARG002
        return operations.invert(image)


class Solarize(Sometimes):
    """Invert the levels from `threshold` on, with `probability`."""

    name: Literal["solarize"] = "solarize"
    threshold: int = Field(default=128, ge=0, le=256)

    def change(self, image: Image, uniform: float) -> Image:  # noqa: ARG002
        return operations.solarize(image, self.threshold)


class Posterize(Sometimes):
    """Keep the upper `bits` of each level, with `probability`."""

    name: Literal["posterize"] = "posterize"
    bits: int = Field(default=4, ge=1, le=8)

    def change(self, image: Image, uniform: float) -> Image:  # noqa: ARG002
        return operations.posterize(image, self.bits)


class Equalize(Sometimes):
    """Flatten the histogram of each channel with `probability`."""

    name: Literal["equalize"] = "equalize"

    def change(self, image: Image, uniform: float) -> Image:  # noqa: ARG002
        return operations.equalize(image)


class Autocontrast(Sometimes):
    """Stretch each channel to the whole range with `probability`."""

    name: Literal["autocontrast"] = "autocontrast"

    def change(self, image: Image, uniform: float) -> Image:  # noqa: ARG002
        return operations.autocontrast(image)


class Grayscale(Sometimes):
    """Make an image grey, in three equal channels, with `probability`."""

    name: Literal["grayscale"] = "grayscale"
    colour_only: ClassVar[bool] = True
    probability: Probability = 0.1

    def change(self, image: Image, uniform: float) -> Image:  # noqa: ARG002
        return operations.grey(image)
