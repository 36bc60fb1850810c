"""A user's own function as an augmentation, named by where it is."""

from importlib import import_module
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.augment.base import CpuAugmentation
from pipelines.randomness import Draws

Option = bool | int | float | str


class Function(CpuAugmentation):
    """Call `function(images, draws, **options)` on a batch, on the CPU, in training only.

    `target`: `module:function`, importable wherever the data is made: installed, or in the experiment's folder. It
    takes uint8 images (N, H, W, C), which it must not change in place, and gives as many of the same form; for its
    randomness to have an address, it comes from `draws`, a `pipelines.randomness.Draws`.
    `options`: passed by name.
    """

    name: Literal["function"] = "function"
    target: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    options: dict[str, Option] = Field(default={})

    def apply(self, images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        result = self._function()(images, draws, **self.options)
        if not isinstance(result, np.ndarray) or result.dtype != np.uint8 or result.shape != images.shape:
            got = f"{result.dtype} {result.shape}" if isinstance(result, np.ndarray) else type(result).__name__
            raise ValueError(
                f"{self.target} returned {got}, must return an array of uint8 {images.shape}, as it was given."
            )
        return result

    def _function(self) -> Any:
        module, _, function = self.target.partition(":")
        try:
            return getattr(import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"target: got {self.target!r}, must be a function that can be imported: {error}. Install its "
                "module, or correct the name."
            ) from error
