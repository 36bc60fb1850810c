"""Changes of colour as arithmetic: each is affine in a pixel and in its image's mean, and so is any sequence of them.

That colour operations are matrices is Haeberli 1993, "Matrix operations for image processing"; the mean is there for
contrast, which moves towards it. So a sequence of any length is one pass over the pixels, and only the mean has to
be looked at first. Here in numpy for uint8 pixels on the CPU; `on_device.py` has the device's pass.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ColourMap:
    """out = linear @ pixel + of_mean @ mean + constant, for each image; pixels and their mean are scaled to [0, 1].

    Shapes: linear, of_mean (N, C, C), constant (N, C).
    """

    linear: NDArray[np.float64]
    of_mean: NDArray[np.float64]
    constant: NDArray[np.float64]

    def then(self, after: "ColourMap") -> "ColourMap":
        """This change and another one after it, which meets the pixels and the mean that this one leaves, unclipped."""
        both = after.linear + after.of_mean
        return ColourMap(
            after.linear @ self.linear,
            after.linear @ self.of_mean + after.of_mean @ (self.linear + self.of_mean),
            (both @ self.constant[:, :, None])[:, :, 0] + after.constant,
        )

    def apply(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Change images, clip and round. OpenCV's fixed point keeps 10 bits: within 0.9 levels of the exact value.

        Shapes: (N, H, W, C) -> (N, H, W, C), a new array.
        """
        channels = images.shape[3]
        result = np.empty_like(images)
        for i, image in enumerate(images):
            mean = np.array(cv2.mean(image)[:channels]) / 255.0
            offset = 255.0 * (self.of_mean[i] @ mean + self.constant[i])
            matrix = np.concatenate([self.linear[i], offset[:, None]], axis=1)
            result[i] = np.asarray(cv2.transform(image, matrix), np.uint8).reshape(image.shape)
        return result
