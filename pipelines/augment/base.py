"""What an augmentation is: a frozen pydantic model with a `name`, whose options are its fields.

One idea a file. To add one: a file here with a class like `RandomCrop`, its name in the table of
`pipelines/config.py`, a test against an independent reference.
"""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipelines.randomness import Draws


class CpuAugmentation(BaseModel):
    """A change of uint8 pixels on the CPU, drawn anew for every sample and epoch; skipped in evaluation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    random: ClassVar[bool] = True

    def apply(self, images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        """Shapes: images (N, H, W, C) -> (N, H, W, C), a new array or the same one, never changed in place."""
        raise NotImplementedError
