"""What an augmentation is: a frozen pydantic model with a `name`, whose options are its fields.

One idea a file. To add one: a file here with a class like `RandomCrop`, its name in the table of
`pipelines/augment/table.py`, a test against an independent reference.

An image passes them in this order: a `Framing` says which part of the encoded image becomes pixels; `CpuAugmentation`s
change uint8 pixels; `ColourAugmentation`s are matrices, those that follow each other applied as one; a `Mixing` joins
samples of a batch on the device. None of them knows torch: what the device does with their draws is in `on_device.py`.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict

from pipelines.augment.colour_map import ColourMap
from pipelines.randomness import Draws, mix, philox, words


def ordered(pair: tuple[float, float]) -> tuple[float, float]:
    """Refuse an interval that ends before it begins."""
    if pair[0] > pair[1]:
        raise ValueError(f"got {list(pair)}, the first must be <= the second. Swap them.")
    return pair


# Options: from where to where a value is drawn.
Shares = Annotated[
    tuple[Annotated[float, Field(gt=0.0, le=1.0)], Annotated[float, Field(gt=0.0, le=1.0)]],
    Strict(False),
    AfterValidator(ordered),
]
Factors = Annotated[
    tuple[Annotated[float, Field(ge=0.0, le=100.0)], Annotated[float, Field(ge=0.0, le=100.0)]],
    Strict(False),
    AfterValidator(ordered),
]
Ratios = Annotated[
    tuple[Annotated[float, Field(gt=0.0, le=100.0)], Annotated[float, Field(gt=0.0, le=100.0)]],
    Strict(False),
    AfterValidator(ordered),
]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Level = Annotated[int, Field(ge=0, le=255)]


class _Augmentation(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    random: ClassVar[bool] = True
    colour_only: ClassVar[bool] = False

    name: str

    def check_form(self, path: str, channels: int, image_size: int) -> None:
        """Raise a ValueError that begins with `path` if it cannot work on images of this form."""
        if self.colour_only and channels == 1:
            raise ValueError(f"{path}: got data.channels=1, must be 3 for it. Remove it: grey images have no colour.")
        try:
            self.check(channels, image_size)
        except ValueError as error:
            raise ValueError(f"{path}.{error}") from error

    def check(self, channels: int, image_size: int) -> None:
        """Raise a ValueError, `OPTION: got ..., must be ...`, if its options do not fit images of this form."""


class Framing(_Augmentation):
    """Which part of an image is decoded and scaled to the size that the network takes."""

    def boxes(self, sizes: NDArray[np.int64], image_size: int, draws: Draws) -> NDArray[np.float64]:
        """Boxes in pixels of the upright images, each to be scaled to `image_size` x `image_size`.

        Shapes: sizes (N, 2) height, width -> (N, 4) left, top, width, height, inside the images.
        """
        raise NotImplementedError


class CpuAugmentation(_Augmentation):
    """A change of uint8 pixels on the CPU, drawn anew for every sample and epoch; skipped in evaluation."""

    def apply(self, images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        """Shapes: images (N, H, W, C) -> (N, H, W, C), a new array or the same one, never changed in place."""
        raise NotImplementedError


class Sometimes(CpuAugmentation):
    """Changes each image on its own, with `probability`."""

    probability: Probability = 0.5

    def apply(self, images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        result = images.copy()
        strengths = draws.uniform(1).tolist()
        for i in np.flatnonzero(draws.uniform(0) < self.probability):
            result[i] = self.change(images[i], strengths[i])
        return result

    def change(self, image: NDArray[np.uint8], uniform: float) -> NDArray[np.uint8]:
        """Shapes: (H, W, C) -> (H, W, C). `uniform` in [0, 1) says how strong it is, where that is drawn."""
        raise NotImplementedError


class ColourAugmentation(_Augmentation):
    """A change of colours that is affine in a pixel's values: one matrix an image, for pixels scaled to [0, 1].

    `where`: `device`, for the whole batch before it is normalised, or `cpu`, on uint8 pixels where the data is made.
    """

    where: Literal["device", "cpu"] = "device"

    def colours(self, channels: int, draws: Draws) -> ColourMap:
        """The change of each image, for images of `channels`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Mix:
    """How each sample of a batch is joined with its partner: pixels are blended, then a rectangle is the partner's.

    Shapes: weights (N,) of a sample's own pixels; boxes (N, 4) left, top, right, bottom of what is taken from the
    partner as it is, the last two excluded; shares (N,): what of the label stays the sample's own.
    """

    weights: NDArray[np.float64]
    boxes: NDArray[np.int64]
    shares: NDArray[np.float64]


class Mixing(_Augmentation):
    """Joins each sample of a batch with another one of its group, and their labels."""

    def plan(self, size: tuple[int, int], draws: Draws, groups: Draws) -> Mix:
        """How to mix a batch. `size` is (height, width); what `groups` draws is the same for all of a group."""
        raise NotImplementedError


def between(pair: tuple[float, float], uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Stretch draws from [0, 1) to [low, high)."""
    return pair[0] + (pair[1] - pair[0]) * uniform


def uniforms(draws: Draws, num: int) -> NDArray[np.float64]:
    """The first `num` draws of each sample at once: (n, num), column i is `draws.uniform(i)`."""
    blocks = np.arange(-(-num // 4), dtype=np.uint64)
    counter = np.empty((len(draws.sample_keys), len(blocks), 4), np.uint64)
    counter[..., 0] = (draws.sample_keys & np.uint64(0xFFFFFFFF))[:, None]
    counter[..., 1] = (draws.sample_keys >> np.uint64(32))[:, None]
    counter[..., 2] = draws.epoch
    counter[..., 3] = np.uint64(draws.augmentation << 16) | blocks
    bits = philox(counter, words(mix("augment", draws.seed)))
    return bits.reshape(len(counter), 4 * len(blocks))[:, :num].astype(np.float64) / 2.0**32


def nested(draws: Draws, number: int) -> Draws:
    """Draws of their own for part `number` of an augmentation that is made of others."""
    return Draws(mix("nested", draws.seed, draws.augmentation), draws.epoch, draws.sample_keys, number)


def subset(draws: Draws, chosen: NDArray[np.bool_]) -> Draws:
    """The same draws, for some of the samples."""
    return Draws(draws.seed, draws.epoch, draws.sample_keys[chosen], draws.augmentation)
