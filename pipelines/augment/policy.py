"""The operations that published policies are made of, by name, each with a magnitude.

RandAugment, TrivialAugment and AutoAugment are in the files beside this one. Geometry is bilinear (Pillow's and
torchvision's default for policies is the nearest pixel) and, as in their code, each operation resamples on its own;
outside the image is `fill`. On images of one channel, `color` does nothing.
Source: Cubuk et al. 2018 (arXiv:1805.09501), table 6; magnitudes as torchvision reads them.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipelines.augment import operations
from pipelines.augment.base import CpuAugmentation, Level
from pipelines.augment.geometry import Matrix, about_centre, resample
from pipelines.augment.operations import Image

# One step of one image: an operation's name and its magnitude.
Step = tuple[str, float]


class Policy(CpuAugmentation):
    """A policy: what it draws for an image is a list of steps.

    `fill`: the grey level of what lies outside the image.
    """

    fill: Level = 0

    def run(self, images: NDArray[np.uint8], steps: list[list[Step]]) -> NDArray[np.uint8]:
        result = images.copy()
        for i, of_image in enumerate(steps):
            image = images[i]
            for operation, magnitude in of_image:
                image = OPERATIONS[operation](image, magnitude, self.fill)
            result[i] = image
        return result


def _shear_x(image: Image, slope: float, fill: int) -> Image:
    """x_in = x + slope * (y + 0.5): the image's top edge stays where it is."""
    return resample(image, [Matrix(np.array([[1, slope, 0.5 * slope], [0, 1, 0], [0, 0, 1]]))], fill=fill)


def _shear_y(image: Image, slope: float, fill: int) -> Image:
    return resample(image, [Matrix(np.array([[1, 0, 0], [slope, 1, 0.5 * slope], [0, 0, 1]]))], fill=fill)


def _translate_x(image: Image, pixels: float, fill: int) -> Image:
    return resample(image, [Matrix(np.array([[1.0, 0, -int(pixels)], [0, 1, 0], [0, 0, 1]]))], fill=fill)


def _translate_y(image: Image, pixels: float, fill: int) -> Image:
    return resample(image, [Matrix(np.array([[1.0, 0, 0], [0, 1, -int(pixels)], [0, 0, 1]]))], fill=fill)


def _rotate(image: Image, degrees: float, fill: int) -> Image:
    """Counter-clockwise."""
    angle = np.deg2rad(degrees)
    linear = np.array([[[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]])
    return resample(image, [Matrix(about_centre(linear, (image.shape[0], image.shape[1]))[0])], fill=fill)


OPERATIONS: dict[str, Callable[[Image, float, int], Image]] = {
    "identity": lambda image, magnitude, fill: image,  # noqa: ARG005
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": lambda image, magnitude, fill: operations.brightness(image, 1 + magnitude),  # noqa: ARG005
    "color": lambda image, magnitude, fill: operations.saturation(image, 1 + magnitude),  # noqa: ARG005
    "contrast": lambda image, magnitude, fill: operations.contrast(image, 1 + magnitude),  # noqa: ARG005
    "sharpness": lambda image, magnitude, fill: operations.sharpness(image, 1 + magnitude),  # noqa: ARG005
    "posterize": lambda image, magnitude, fill: operations.posterize(image, int(magnitude)),  # noqa: ARG005
    "solarize": lambda image, magnitude, fill: operations.solarize(image, magnitude),  # noqa: ARG005
    "autocontrast": lambda image, magnitude, fill: operations.autocontrast(image),  # noqa: ARG005
    "equalize": lambda image, magnitude, fill: operations.equalize(image),  # noqa: ARG005
    "invert": lambda image, magnitude, fill: operations.invert(image),  # noqa: ARG005
}

# Operations whose magnitude has either sign.
SIGNED = frozenset(
    ("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast", "sharpness")
)


def narrow_space(num_bins: int, size: tuple[int, int]) -> dict[str, NDArray[np.float64]]:
    """The magnitudes of each operation, weakest first, as in AutoAugment and RandAugment; (height, width) in pixels."""
    return {
        "identity": np.zeros(num_bins),
        "shear_x": np.linspace(0.0, 0.3, num_bins),
        "shear_y": np.linspace(0.0, 0.3, num_bins),
        "translate_x": np.linspace(0.0, 150 / 331 * size[1], num_bins),
        "translate_y": np.linspace(0.0, 150 / 331 * size[0], num_bins),
        "rotate": np.linspace(0.0, 30.0, num_bins),
        "brightness": np.linspace(0.0, 0.9, num_bins),
        "color": np.linspace(0.0, 0.9, num_bins),
        "contrast": np.linspace(0.0, 0.9, num_bins),
        "sharpness": np.linspace(0.0, 0.9, num_bins),
        "posterize": 8 - np.rint(np.linspace(0.0, 4.0, num_bins)),
        "solarize": np.linspace(255.0, 0.0, num_bins),
        "autocontrast": np.zeros(num_bins),
        "equalize": np.zeros(num_bins),
    }
