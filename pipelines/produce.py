"""From positions of an epoch to pixels: the one function that Ray actors and local threads run."""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.augment.base import CpuAugmentation
from pipelines.config import PipelineConfig
from pipelines.decode import UndecodableImage, decode
from pipelines.order import order
from pipelines.randomness import Draws
from pipelines.sources import Source


@dataclass(frozen=True)
class Samples:
    """Shapes: images (n, H, W, C) uint8, labels (n,) int64, crc32 (n,) uint32 of the images, if asked for."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    crc32: NDArray[np.uint32] | None


@dataclass(frozen=True)
class Recipe:
    """How samples are made; a pure function of (epoch, positions), on any machine, in any thread.

    `training`: shuffled and augmented, else in the source's order and as they are. `checksums`: CRC-32 of pixels.
    """

    source: Source
    config: PipelineConfig
    seed: int
    training: bool
    checksums: bool

    def produce(self, epoch: int, positions: range) -> Samples:
        """Read, decode and augment the samples at `positions` of the epoch's order.

        Raises: UndecodableImage naming the sample and its position.
        """
        config, listing = self.config, self.source.listing
        indices = self.indices(epoch, positions)
        images = np.empty((len(indices), config.image_size, config.image_size, config.channels), np.uint8)
        for i, index in enumerate(indices.tolist()):
            try:
                images[i] = decode(self.source.read(index), config.image_size, config.channels)
            except (UndecodableImage, OSError) as error:
                raise UndecodableImage(
                    f"sample {listing.ids[index]} at position {positions[i]} of epoch {epoch} cannot be read: {error}. "
                    "Repair the file or take it out of the data."
                ) from error
        if self.training:
            images = self._augment(images, epoch, indices)
        checksums = np.array([zlib.crc32(image.tobytes()) for image in images], np.uint32) if self.checksums else None
        return Samples(images, listing.labels[indices], checksums)

    def indices(self, epoch: int, positions: range) -> NDArray[np.int64]:
        """The samples at positions of an epoch, as indexes into the source."""
        places = np.arange(positions.start, positions.stop, positions.step)
        return order(self.seed, epoch, len(self.source.listing))[places] if self.training else places

    def sample_ids(self, epoch: int, positions: range) -> list[str]:
        ids: list[str] = self.source.listing.ids.take(self.indices(epoch, positions)).to_pylist()
        return ids

    def _augment(self, images: NDArray[np.uint8], epoch: int, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        keys = self.source.listing.keys[indices]
        for number, augmentation in enumerate(self.config.augment):
            if isinstance(augmentation, CpuAugmentation):
                images = augmentation.apply(images, Draws(self.seed, epoch, keys, number))
        return np.ascontiguousarray(images)
