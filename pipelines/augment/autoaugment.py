"""AutoAugment: policies that were searched for on one data set.

Source: Cubuk, Zoph, Mane, Vasudevan & Le 2018 (arXiv:1805.09501), tables 7 (CIFAR-10) and 9 (ImageNet), in the order
and with the ten magnitudes that torchvision uses.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.augment.base import uniforms
from pipelines.augment.policy import SIGNED, Policy, Step, narrow_space
from pipelines.randomness import Draws

_BINS = 10

# A line is a sub-policy of two operations: name, probability, magnitude from 0 to 9, or - where it has none.
POLICIES = {
    "imagenet": """
        posterize 0.4 8, rotate 0.6 9
        solarize 0.6 5, autocontrast 0.6 -
        equalize 0.8 -, equalize 0.6 -
        posterize 0.6 7, posterize 0.6 6
        equalize 0.4 -, solarize 0.2 4
        equalize 0.4 -, rotate 0.8 8
        solarize 0.6 3, equalize 0.6 -
        posterize 0.8 5, equalize 1.0 -
        rotate 0.2 3, solarize 0.6 8
        equalize 0.6 -, posterize 0.4 6
        rotate 0.8 8, color 0.4 0
        rotate 0.4 9, equalize 0.6 -
        equalize 0.0 -, equalize 0.8 -
        invert 0.6 -, equalize 1.0 -
        color 0.6 4, contrast 1.0 8
        rotate 0.8 8, color 1.0 2
        color 0.8 8, solarize 0.8 7
        sharpness 0.4 7, invert 0.6 -
        shear_x 0.6 5, equalize 1.0 -
        color 0.4 0, equalize 0.6 -
        equalize 0.4 -, solarize 0.2 4
        solarize 0.6 5, autocontrast 0.6 -
        invert 0.6 -, equalize 1.0 -
        color 0.6 4, contrast 1.0 8
        equalize 0.8 -, equalize 0.6 -
    """,
    "cifar10": """
        invert 0.1 -, contrast 0.2 6
        rotate 0.7 2, translate_x 0.3 9
        sharpness 0.8 1, sharpness 0.9 3
        shear_y 0.5 8, translate_y 0.7 9
        autocontrast 0.5 -, equalize 0.9 -
        shear_y 0.2 7, posterize 0.3 7
        color 0.4 3, brightness 0.6 7
        sharpness 0.3 9, brightness 0.7 9
        equalize 0.6 -, equalize 0.5 -
        contrast 0.6 7, sharpness 0.6 5
        color 0.7 7, translate_x 0.5 8
        equalize 0.3 -, autocontrast 0.4 -
        translate_y 0.4 3, sharpness 0.2 6
        brightness 0.9 6, color 0.2 8
        solarize 0.5 2, invert 0.0 -
        equalize 0.2 -, autocontrast 0.6 -
        equalize 0.2 -, equalize 0.6 -
        color 0.9 9, equalize 0.6 -
        autocontrast 0.8 -, solarize 0.2 8
        brightness 0.1 3, color 0.7 0
        solarize 0.4 5, autocontrast 0.9 -
        translate_y 0.9 9, translate_y 0.7 9
        autocontrast 0.9 -, solarize 0.8 3
        equalize 0.8 -, invert 0.1 -
        translate_y 0.7 9, autocontrast 0.9 -
    """,
}


class AutoAugment(Policy):
    """Apply one of 25 pairs of operations, each with its own probability and magnitude.

    `policy`: which data set it was searched for.
    """

    name: Literal["autoaugment"] = "autoaugment"
    policy: Literal["imagenet", "cifar10"] = "imagenet"

    def apply(self, images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        return self.run(images, self.steps((images.shape[1], images.shape[2]), draws))

    def steps(self, size: tuple[int, int], draws: Draws) -> list[list[Step]]:
        space = narrow_space(_BINS, size) | {"invert": np.zeros(_BINS)}
        table = sub_policies(self.policy)
        steps: list[list[Step]] = []
        for which, *coins in uniforms(draws, 5).tolist():
            of_image: list[Step] = []
            for (name, probability, level), coin, sign in zip(
                table[int(which * len(table))], coins[:2], coins[2:], strict=True
            ):
                if coin < probability:
                    magnitude = float(space[name][level])
                    of_image.append((name, -magnitude if sign < 0.5 and name in SIGNED else magnitude))
            steps.append(of_image)
        return steps


def sub_policies(policy: str) -> list[list[tuple[str, float, int]]]:
    """The table of a policy: pairs of (operation, probability, magnitude)."""
    pairs = []
    for line in POLICIES[policy].split("\n")[1:-1]:
        operations = [operation.split() for operation in line.split(",")]
        pairs.append([(name, float(p), 0 if level == "-" else int(level)) for name, p, level in operations])
    return pairs
