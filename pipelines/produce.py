"""From positions of an epoch to pixels: the one function that Ray actors and local threads run."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.augment.program import Program, compile_program
from pipelines.config import PipelineConfig
from pipelines.decode import Pixels, UndecodableImage, decode_box, size_of
from pipelines.order import order, windowed_order
from pipelines.quarantine import MAX_SUBSTITUTES, Replaced, substitute
from pipelines.randomness import Draws
from pipelines.sources import Source
from pipelines.targets import Labels

UNREADABLE = (UndecodableImage, OSError)

_BYTES_AT_ONCE = 2**20  # as large as a core's second cache, or twice that


@dataclass(frozen=True)
class Samples:
    """Shapes: images (n, H, W, C) uint8, labels (n, ...) as the source's target, keys (n,) uint64, crc32 (n,) uint32 of
    the images, or None.

    `keys` address the samples for random draws. `replaced`: those that could not be read; what is here replaces them.
    """

    images: NDArray[np.uint8]
    labels: Labels
    keys: NDArray[np.uint64]
    crc32: NDArray[np.uint32] | None
    replaced: tuple[Replaced, ...] = ()


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

    def produce(self, epoch: int, positions: range, *, into: Pixels | None = None) -> Samples:
        """Read, decode and augment the samples at `positions` of the epoch's order; `into` is where images shall lie.

        Raises: UndecodableImage if a sample cannot be read and none of those that should replace it either.
        """
        size, channels = self.config.image_size, self.config.channels
        indices = self.indices(epoch, positions)
        images = np.empty((len(indices), size, size, channels), np.uint8) if into is None else into
        failures: list[tuple[int, int, str]] = []
        missing: Sequence[int] = range(len(indices))
        for attempt in range(MAX_SUBSTITUTES + 1):
            failed = self._load(images, indices, missing, epoch)
            if not failed:
                break
            for i, reason in failed.items():
                failures.append((i, int(indices[i]), reason))
                indices[i] = substitute(self.seed, epoch, positions[i], attempt, len(self.source.listing))
            missing = list(failed)
        else:
            raise self._unreadable(failures, epoch, positions)
        keys = self.source.listing.keys[indices]
        if self.training:
            self._augment(images, epoch, keys)
        checksums = np.array([zlib.crc32(image.tobytes()) for image in images], np.uint32) if self.checksums else None
        replaced = tuple(self._replaced(failures, indices, epoch, positions))
        return Samples(images, self.source.listing.labels[indices], keys, checksums, replaced)

    def indices(self, epoch: int, positions: range) -> NDArray[np.int64]:
        """The samples at positions of an epoch, as indexes into the source."""
        places = np.arange(positions.start, positions.stop, positions.step)
        return self._order(epoch)[places] if self.training else places

    def sample_ids(self, epoch: int, positions: range) -> list[str]:
        ids: list[str] = self.source.listing.ids.take(self.indices(epoch, positions)).to_pylist()
        return ids

    def _augment(self, images: Pixels, epoch: int, keys: NDArray[np.uint64]) -> None:
        """Augment images in place, a few at a time: what is made on the way stays in cache, its memory is reused."""
        few = max(1, _BYTES_AT_ONCE // max(1, images[:1].nbytes))
        for start in range(0, len(images), few):
            part = images[start : start + few]
            changed = self._program.apply_cpu(part, self.seed, epoch, keys[start : start + few])
            if changed is not part:
                part[...] = changed

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if not self.config.window:
            return order(self.seed, epoch, len(self.source.listing))
        storage = self.source.storage
        assert storage is not None, "prepare refuses a window where there is no storage"
        return storage.samples[windowed_order(self.seed, epoch, storage.sizes, self.config.window)]

    @cached_property
    def _program(self) -> Program:
        return compile_program(self.config.augment)

    def _load(self, images: Pixels, indices: NDArray[np.int64], wanted: Sequence[int], epoch: int) -> dict[int, str]:
        """Read and decode rows `wanted` of a batch in place; returns those that failed, and why."""
        contents: dict[int, bytes | Pixels] = {}
        sizes: dict[int, tuple[int, int]] = {}
        failed: dict[int, str] = {}
        refused = self.source.listing.refused
        for i in wanted:
            try:
                if int(indices[i]) in refused:
                    raise UndecodableImage(refused[int(indices[i])])
                contents[i] = self.source.read(int(indices[i]))
                sizes[i] = size_of(contents[i])
            except UNREADABLE as error:
                failed[i] = str(error)
        read = list(sizes)
        boxes = self._boxes(np.array([sizes[i] for i in read], np.int64).reshape(-1, 2), indices[read], epoch)
        for i, box in zip(read, boxes.tolist(), strict=True):
            row = images[i]
            try:
                pixels = decode_box(
                    contents[i], tuple(box), row.shape[0], row.shape[2], resize=self.config.resize, into=row
                )
            except UNREADABLE as error:
                failed[i] = str(error)
                continue
            if pixels is not row:
                row[...] = pixels
        return failed

    def _boxes(self, sizes: NDArray[np.int64], indices: NDArray[np.int64], epoch: int) -> NDArray[np.float64]:
        """Which part of each image to decode: the framing's, or in evaluation what lies in the middle."""
        framing = self._program.framing if self.training else self._program.evaluation_framing
        keys = self.source.listing.keys[indices]
        return framing.boxes(sizes, self.config.image_size, Draws(self.seed, epoch, keys, 0))

    def _replaced(
        self, failures: list[tuple[int, int, str]], indices: NDArray[np.int64], epoch: int, positions: range
    ) -> Any:
        ids = self.source.listing.ids
        for i, index, reason in failures:
            split = "train" if self.training else "val"
            yield Replaced(split, epoch, positions[i], ids[index].as_py(), reason, ids[int(indices[i])].as_py())

    def _unreadable(self, failures: list[tuple[int, int, str]], epoch: int, positions: range) -> UndecodableImage:
        i, index, reason = failures[-1]
        return UndecodableImage(
            f"sample {self.source.listing.ids[index]} at position {positions[i]} of epoch {epoch} cannot be read, "
            f"nor can {MAX_SUBSTITUTES} others in its place: {reason}. `convoy check-data` lists what cannot be read."
        )
