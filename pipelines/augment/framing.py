"""Which part of an image becomes the network's input: Inception's crop, ResNet's, and the central one.

They give boxes only; cutting out, scaling and decoding no more than that is `pipelines/decode.py`'s work.
"""

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, Strict

from pipelines.augment.base import Framing, Ratios, Shares, between, ordered, uniforms
from pipelines.randomness import Draws

_ATTEMPTS = 10

Side = Annotated[int, Field(ge=1, le=16384)]


class RandomResizedCrop(Framing):
    """Cut out a rectangle of random area and shape and scale it to the square that the network takes.

    `scale`: area over the image's, uniform. `ratio`: width over height, uniform in its logarithm.
    A rectangle that does not fit in the image is drawn again, 10 times; then the largest central one within `ratio`.
    Boxes are whole pixels, as those of torchvision's RandomResizedCrop.
    Source: Szegedy et al. 2014 (arXiv:1409.4842), section 6; 10 attempts are those of its public implementations.
    """

    name: Literal["random_resized_crop"] = "random_resized_crop"
    scale: Shares = (0.08, 1.0)
    ratio: Ratios = (3.0 / 4.0, 4.0 / 3.0)

    def boxes(self, sizes: NDArray[np.int64], image_size: int, draws: Draws) -> NDArray[np.float64]:  # noqa: ARG002
        num = len(sizes)
        heights, widths = sizes[:, 0], sizes[:, 1]
        drawn = uniforms(draws, 2 * _ATTEMPTS + 2)
        areas = (heights * widths)[:, None] * between(self.scale, drawn[:, 0 : 2 * _ATTEMPTS : 2])
        log_ratio = (float(np.log(self.ratio[0])), float(np.log(self.ratio[1])))
        ratios = np.exp(between(log_ratio, drawn[:, 1 : 2 * _ATTEMPTS : 2]))
        tried_w, tried_h = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
        fits = (tried_w > 0) & (tried_w <= widths[:, None]) & (tried_h > 0) & (tried_h <= heights[:, None])
        first, any_fits = fits.argmax(axis=1), fits.any(axis=1)
        central_w, central_h = self._central(heights, widths)
        rows = np.arange(num)
        w = np.where(any_fits, tried_w[rows, first], central_w)
        h = np.where(any_fits, tried_h[rows, first], central_h)
        left = np.where(any_fits, np.floor(drawn[:, -2] * (widths - w + 1)), (widths - w) // 2)
        top = np.where(any_fits, np.floor(drawn[:, -1] * (heights - h + 1)), (heights - h) // 2)
        return np.stack([left, top, w, h], axis=1)

    def _central(
        self, heights: NDArray[np.int64], widths: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Width and height of the whole image, cut to the nearest allowed ratio."""
        low, high = self.ratio
        ratios = widths / heights
        w = np.where(ratios > high, np.rint(heights * high), widths)
        h = np.where(ratios < low, np.rint(widths / low), heights)
        return np.maximum(w, 1.0), np.maximum(h, 1.0)


class ScaleJitter(Framing):
    """Scale the short side to a random length and cut out a random square of the size that the network takes.

    `short_side`: pixels, from and to, both included; each whole number is equally likely.
    In the image's own pixels that is a square of side image_size / length * short side at a uniform place, so that one
    resampling does both; its place and side are not whole pixels.
    Source: Simonyan & Zisserman 2014 (arXiv:1409.1556), section 3.1; He et al. 2015 (arXiv:1512.03385), section 3.4.
    """

    name: Literal["scale_jitter"] = "scale_jitter"
    short_side: Annotated[tuple[Side, Side], Strict(False), AfterValidator(ordered)] = (256, 480)

    def check(self, channels: int, image_size: int) -> None:  # noqa: ARG002
        if self.short_side[0] < image_size:
            raise ValueError(
                f"short_side: got {list(self.short_side)}, must be >= data.image_size={image_size}, "
                "or the patch would not fit into the scaled image. Raise short_side or lower data.image_size."
            )

    def boxes(self, sizes: NDArray[np.int64], image_size: int, draws: Draws) -> NDArray[np.float64]:
        low, high = self.short_side
        lengths = low + draws.integers(high - low + 1, 0)
        sides = image_size / lengths * sizes.min(axis=1)
        left = draws.uniform(1) * (sizes[:, 1] - sides)
        top = draws.uniform(2) * (sizes[:, 0] - sides)
        return np.stack([left, top, sides, sides], axis=1)


class CenterCrop(Framing):
    """Take the central square, its side `share` of the image's short side; the same in training and evaluation.

    Share 0.875 is the usual "short side to 256, central 224".
    """

    name: Literal["center_crop"] = "center_crop"
    random: ClassVar[bool] = False
    share: float = Field(default=1.0, gt=0.0, le=1.0)

    def boxes(self, sizes: NDArray[np.int64], image_size: int, draws: Draws | None = None) -> NDArray[np.float64]:  # noqa: ARG002
        sides = sizes.min(axis=1) * self.share
        return np.stack([(sizes[:, 1] - sides) / 2, (sizes[:, 0] - sides) / 2, sides, sides], axis=1)
