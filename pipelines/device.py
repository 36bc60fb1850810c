"""The last stage, on the device: uint8 pixels become what the network takes, labels what the loss takes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.augment.on_device import DeviceProgram
from pipelines.augment.program import compile_program
from pipelines.config import PipelineConfig
from pipelines.loader import Batch


@dataclass(frozen=True)
class Targets:
    """What a batch should be recognised as.

    `labels` (n, ...) as `targets.py` says: of what the sample was before mixing. Where samples were mixed: `mixed_in`,
    alike, the label of what was mixed in, and `share` (n,) float32, how much of the sample is still its own.
    """

    labels: Tensor
    mixed_in: Tensor | None = None
    share: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def blended(self) -> Tensor:
        """Several classes or values as the loss takes them, linear in the mixture: (n, width) float32."""
        labels = self.labels.float()
        if self.mixed_in is None or self.share is None:
            return labels
        share = self.share[:, None]
        return share * labels + (1 - share) * self.mixed_in.float()

    def chunk(self, num: int) -> Iterator["Targets"]:
        """Cut in parts as torch.chunk does."""
        if self.mixed_in is None or self.share is None:
            return map(Targets, self.labels.chunk(num))
        return map(Targets, self.labels.chunk(num), self.mixed_in.chunk(num), self.share.chunk(num))


class ToDevice:
    """Move a batch to the device; normalise it there, in training also change colours and mix.

    Shapes: images (n, H, W, C) uint8 -> (n, C, H, W) float32, in NHWC memory order if `channels_last`.
    """

    def __init__(self, config: PipelineConfig, seed: int, target: torch.device, *, channels_last: bool) -> None:
        self._program = DeviceProgram(
            compile_program(config.augment), config.channels, target, channels_last=channels_last
        )
        self._seed = seed
        self._target = target

    def __call__(self, batch: Batch, *, training: bool) -> tuple[Tensor, Targets]:
        pixels, labels = self._moved(batch.images), self._moved(batch.labels)
        images, partners, share = self._program(
            pixels, self._seed, batch.epoch, batch.keys, batch.positions, training=training
        )
        if partners is None:
            return images, Targets(labels)
        return images, Targets(labels, labels[partners], share)

    def _moved(self, array: NDArray[np.generic]) -> Tensor:
        """Copied once on this side: for a GPU into pinned memory, from where it goes on while the host works."""
        if self._target.type != "cuda":
            return torch.from_numpy(array.copy())
        staged = torch.empty(array.shape, dtype=_DTYPES[array.dtype.name], pin_memory=True)
        staged.numpy()[...] = array
        return staged.to(self._target, non_blocking=True)


_DTYPES = {"uint8": torch.uint8, "int64": torch.int64, "float32": torch.float32}
