"""AlexNet's colour augmentation: light of another colour, along the principal components of the training set's pixels.

Source: Krizhevsky, Sutskever & Hinton 2012, "ImageNet classification with deep convolutional neural networks" (NIPS),
section 4.1; normal draws by Box & Muller 1958.
"""

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, Strict

from pipelines.augment.base import ColourAugmentation, uniforms
from pipelines.augment.colour_map import ColourMap
from pipelines.randomness import Draws

Triple = Annotated[tuple[float, float, float], Strict(False)]


class PcaColour(ColourAugmentation):
    """Add a1 l1 p1 + a2 l2 p2 + a3 l3 p3 to every pixel, a_i normal with `deviation`, drawn once an image and epoch.

    `deviation`: of a_i. `eigenvalues`: l_i, for pixels in [0, 1]. `eigenvectors`: three rows, one for each channel; the
    columns are p_i. The defaults are those of ImageNet that fb.resnet.torch published.
    """

    name: Literal["pca_colour"] = "pca_colour"
    colour_only: ClassVar[bool] = True
    deviation: float = Field(default=0.1, ge=0.0, le=10.0)
    eigenvalues: Triple = (0.2175, 0.0188, 0.0045)
    eigenvectors: Annotated[tuple[Triple, Triple, Triple], Strict(False)] = (
        (-0.5675, 0.7192, 0.4009),
        (-0.5808, -0.0045, -0.8140),
        (-0.5836, -0.6948, 0.4203),
    )

    def offsets(self, draws: Draws) -> NDArray[np.float64]:
        """What is added to each image's pixels: (N, 3)."""
        alphas = self.deviation * normals(draws, 3)
        added: NDArray[np.float64] = (alphas * np.array(self.eigenvalues)) @ np.array(self.eigenvectors).T
        return added

    def colours(self, channels: int, draws: Draws) -> ColourMap:
        offsets = self.offsets(draws)
        one = np.tile(np.eye(channels), (len(offsets), 1, 1))
        return ColourMap(one, np.zeros_like(one), offsets)


def normals(draws: Draws, num: int) -> NDArray[np.float64]:
    """Standard normal draws: (n, num), two for every two uniform ones."""
    pairs = -(-num // 2)
    drawn = uniforms(draws, 2 * pairs)
    radius = np.sqrt(-2 * np.log1p(-drawn[:, :pairs]))
    angle = 2 * np.pi * drawn[:, pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :num]
