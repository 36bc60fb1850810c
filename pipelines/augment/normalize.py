"""Scale pixels to zero mean and unit deviation, on the device."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator
from torch import Tensor


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

    def scale_and_shift(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The same as one multiplication and one addition on raw pixels: (1, C, 1, 1) each."""
        mean = torch.tensor(self.mean, device=device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=device).view(1, -1, 1, 1)
        return 1.0 / (255.0 * std), -mean / std
