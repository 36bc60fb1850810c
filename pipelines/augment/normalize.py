"""Scale pixels to zero mean and unit deviation, on the device."""

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator


class Normalize(BaseModel):
    """Compute (pixel / 255 - mean) / std, a value for each channel; applied in training and evaluation alike."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    random: ClassVar[bool] = False

    name: Literal["normalize"] = "normalize"
    mean: Annotated[tuple[float, ...], Strict(False)] = Field(min_length=1, max_length=3)
    std: Annotated[tuple[float, ...], Strict(False)] = Field(min_length=1, max_length=3)

    @model_validator(mode="after")
    def _check(self) -> "Normalize":
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} values and std {len(self.std)}: give one of each for every channel."
            )
        if min(self.std) <= 0.0:
            raise ValueError(f"std: got {list(self.std)}, every value must be > 0.")
        return self

    def scale_and_shift(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The same as one multiplication and one addition on raw pixels: (C,) each."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return np.float32(1.0) / (np.float32(255.0) * std), -mean / std
