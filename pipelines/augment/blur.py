"""Blur and sharpen.

Source: Gaussian blur with a random deviation as in Chen et al. 2020 (SimCLR, arXiv:2002.05709), appendix A; sharpness
is Pillow's ImageEnhance.Sharpness, as in Cubuk et al. 2018 (arXiv:1805.09501).
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, Strict

from pipelines.augment import operations
from pipelines.augment.base import Factors, Sometimes, ordered
from pipelines.augment.operations import Image

Sigma = Annotated[float, Field(gt=0.0, le=50.0)]


class GaussianBlur(Sometimes):
    """Blur with `probability`.

    `sigma`: the Gaussian's deviation in pixels, uniform from the first to the second.
    """

    name: Literal["gaussian_blur"] = "gaussian_blur"
    sigma: Annotated[tuple[Sigma, Sigma], Strict(False), AfterValidator(ordered)] = (0.1, 2.0)

    def change(self, image: Image, uniform: float) -> Image:
        return operations.blur(image, self.sigma[0] + (self.sigma[1] - self.sigma[0]) * uniform)


class Sharpness(Sometimes):
    """Smooth or sharpen with `probability`.

    `factor`: uniform from the first to the second; 0 smooth, 1 the image, 2 sharp.
    """

    name: Literal["sharpness"] = "sharpness"
    factor: Factors = (0.0, 2.0)

    def change(self, image: Image, uniform: float) -> Image:
        return operations.sharpness(image, self.factor[0] + (self.factor[1] - self.factor[0]) * uniform)
