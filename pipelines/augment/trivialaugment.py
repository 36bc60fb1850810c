"""TrivialAugment: one operation at random, of a random magnitude, from a wide range.

Source: Mueller & Hutter 2021 (arXiv:2103.10158), section 3 and table 1, "wide".
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.augment.base import uniforms
from pipelines.augment.policy import SIGNED, Policy, Step, narrow_space
from pipelines.randomness import Draws

_BINS = 31


class TrivialAugment(Policy):
    """Apply one operation out of 14 at one of 31 magnitudes; all equally likely, and so are the two signs."""

    name: Literal["trivialaugment"] = "trivialaugment"

    def apply(self, images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        return self.run(images, self.steps(draws))

    def steps(self, draws: Draws) -> list[list[Step]]:
        space = wide_space()
        names = list(space)
        steps: list[list[Step]] = []
        for which, strength, sign in uniforms(draws, 3).tolist():
            name = names[int(which * len(names))]
            magnitude = float(space[name][int(strength * _BINS)])
            steps.append([(name, -magnitude if sign < 0.5 and name in SIGNED else magnitude)])
        return steps


def wide_space() -> dict[str, NDArray[np.float64]]:
    """The magnitudes of each operation, weakest first; translations in pixels, whatever the image's size."""
    return narrow_space(_BINS, (1, 1)) | {
        "shear_x": np.linspace(0.0, 0.99, _BINS),
        "shear_y": np.linspace(0.0, 0.99, _BINS),
        "translate_x": np.linspace(0.0, 32.0, _BINS),
        "translate_y": np.linspace(0.0, 32.0, _BINS),
        "rotate": np.linspace(0.0, 135.0, _BINS),
        "brightness": np.linspace(0.0, 0.99, _BINS),
        "color": np.linspace(0.0, 0.99, _BINS),
        "contrast": np.linspace(0.0, 0.99, _BINS),
        "sharpness": np.linspace(0.0, 0.99, _BINS),
        "posterize": 8 - np.rint(np.linspace(0.0, 6.0, _BINS)),
    }
