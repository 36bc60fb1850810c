"""A user's own function as an augmentation, named by where it is; tried on a few images before a run starts."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.augment.base import CpuAugmentation
from pipelines.randomness import Draws

Option = bool | int | float | str

_NUM_TRIED = 4


class Function(CpuAugmentation):
    """Call `function(images, draws, **options)` on a batch, on the CPU, in training only.

    `target`: `module:function`, importable wherever the data is made. It takes uint8 images (N, H, W, C), which it must
    not change in place, and gives as many of the same form; for its randomness to have an address, it comes from
    `draws`, a `pipelines.randomness.Draws`.
    `options`: passed by name.
    """

    name: Literal["function"] = "function"
    target: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    options: dict[str, Option] = Field(default={})

    def apply(self, images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        result = self._function()(images, draws, **self.options)
        if not isinstance(result, np.ndarray) or result.dtype != np.uint8 or result.shape != images.shape:
            got = f"{result.dtype} {result.shape}" if isinstance(result, np.ndarray) else type(result).__name__
            raise self._refused(f"which returned {got}", f"return an array of uint8 {images.shape}, as it was given")
        return result

    def try_out(self, channels: int, image_size: int) -> None:
        """Call it on a few images of this form. Raises: ValueError that begins with `target` if it does not fit."""
        self._function()
        draws = Draws(0, 0, np.arange(_NUM_TRIED, dtype=np.uint64), 0)
        images = np.resize(np.arange(251, dtype=np.uint8), (_NUM_TRIED, image_size, image_size, channels))
        given = images.copy()
        try:
            whole = self.apply(given, draws).copy()
            last = Draws(0, 0, draws.sample_keys[-1:], 0)
            alone = self.apply(images[-1:].copy(), last)
        except _Refused:
            raise
        except Exception as error:
            raise self._refused(
                f"which raised {type(error).__name__}: {error}",
                f"take uint8 images {images.shape}, draws and `options`",
            ) from error
        if not np.array_equal(given, images):
            raise self._refused("which wrote to the images that it was given", "leave them alone and return others")
        if not np.array_equal(alone[0], whole[-1]):
            raise self._refused(
                "which made other pixels of an image alone than of the same one in a batch",
                "give each image the same every time, with all randomness from `draws`",
            )

    def _function(self) -> Callable[..., Any]:
        module, _, name = self.target.partition(":")
        try:
            function = getattr(import_module(module), name)
        except Exception as error:  # a user's module may raise anything
            raise self._refused(
                f"which cannot be imported ({type(error).__name__}: {error})",
                "be a function in a module that every node can import",
                "Install it there, or put its folder on PYTHONPATH",
            ) from error
        if not callable(function):
            raise self._refused(f"which is of type {type(function).__name__}", "be a function")
        return function

    def _refused(self, why: str, allowed: str, todo: str = "Correct it") -> "_Refused":
        return _Refused(f"target: got {self.target}, {why}, must {allowed}. {todo} (docs/augmentation.md).")


class _Refused(ValueError):
    """What a user's function is refused for."""
