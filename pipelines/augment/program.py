"""An experiment's list of augmentations, checked and compiled into what runs where.

On the CPU: the framing, as boxes for the decoder; then changes of uint8 pixels, consecutive geometric ones with the
same border fused into one resampling, consecutive colours into one matrix an image. On the device (`on_device.py`):
the other colour augmentations and `normalize` as one matrix an image, then mixing. Each augmentation draws by its index
in the experiment's list, so fusing changes no draw.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from pipelines.augment.base import ColourAugmentation, CpuAugmentation, Framing, Mixing
from pipelines.augment.colour_map import ColourMap
from pipelines.augment.framing import CenterCrop
from pipelines.augment.geometry import Geometric, apply_as_one
from pipelines.augment.normalize import Normalize
from pipelines.randomness import Draws

Entry = Framing | CpuAugmentation | ColourAugmentation | Normalize | Mixing
Pixels = NDArray[np.uint8]
Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class PixelStep:
    """One pass over the pixels: an augmentation, or several geometric ones. `first`: the index of the first of them."""

    first: int
    augmentations: tuple[CpuAugmentation, ...]

    def apply(self, images: Pixels, seed: int, epoch: int, keys: Keys) -> Pixels:
        draws = [Draws(seed, epoch, keys, self.first + i) for i in range(len(self.augmentations))]
        if len(draws) == 1:
            return self.augmentations[0].apply(images, draws[0])
        return apply_as_one([a for a in self.augmentations if isinstance(a, Geometric)], images, draws)

    def __str__(self) -> str:
        names = " + ".join(a.name for a in self.augmentations)
        return f"{names}, as one resampling" if len(self.augmentations) > 1 else names


@dataclass(frozen=True)
class ColourStep:
    """Colour augmentations that follow each other, as one matrix an image. `first`: the index of the first of them."""

    first: int
    augmentations: tuple[ColourAugmentation, ...]

    def colours(self, channels: int, seed: int, epoch: int, keys: Keys) -> ColourMap:
        """All of them as one change of colours, for images of `channels`."""
        each = (a.colours(channels, Draws(seed, epoch, keys, self.first + i)) for i, a in enumerate(self.augmentations))
        return reduce(ColourMap.then, each)

    def apply(self, images: Pixels, seed: int, epoch: int, keys: Keys) -> Pixels:
        return self.colours(images.shape[3], seed, epoch, keys).apply(images)

    def __str__(self) -> str:
        return f"{self.names}, as one matrix an image, clipped once"

    @property
    def names(self) -> str:
        return " + ".join(a.name for a in self.augmentations)


@dataclass(frozen=True)
class Program:
    """What is done to samples, in order. Numbers are indexes in the experiment's list.

    `framing`: of training; evaluation's is the central square, unless training's draws nothing and serves both.
    `colour`: what of the colours is done on the device; the rest is in `cpu`.
    """

    framing: Framing
    cpu: tuple[PixelStep | ColourStep, ...]
    colour: ColourStep | None
    normalize: Normalize | None
    mixing: tuple[int, Mixing] | None

    @property
    def evaluation_framing(self) -> Framing:
        return CenterCrop() if self.framing.random else self.framing

    @property
    def has_mixing(self) -> bool:
        return self.mixing is not None

    def apply_cpu(self, images: Pixels, seed: int, epoch: int, keys: Keys) -> Pixels:
        """Everything that happens to a training batch on the CPU after decoding; `images` is left alone.

        Shapes: (N, H, W, C) -> (N, H, W, C), contiguous; `images` itself if there is nothing to do.
        """
        for step in self.cpu:
            images = step.apply(images, seed, epoch, keys)
        return np.ascontiguousarray(images)

    def apply_device_colour(self, images: Pixels, seed: int, epoch: int, keys: Keys) -> Pixels:
        """What the device's colours make of a batch, on the CPU, to look at: within one grey level of the device's.

        Shapes: (N, H, W, C) -> (N, H, W, C); `images` itself if there are none.
        """
        return self.colour.apply(images, seed, epoch, keys) if self.colour else images

    def describe(self) -> list[str]:
        """What runs where, a line for each pass."""
        lines = [f"decoder: {self.framing.name}", *(f"CPU: {step}" for step in self.cpu)]
        last = "normalize" if self.normalize else "division by 255"
        if self.colour:
            lines.append(f"device: {self.colour.names} + {last}, as one matrix an image, clipped once")
        else:
            lines.append(f"device: {last}, as one multiplication and one addition")
        if self.mixing:
            lines.append(f"device: {self.mixing[1].name}, which mixes labels")
        return lines


def compile_program(augment: Sequence[Entry]) -> Program:
    """Check the order of a list of augmentations and sort it by where it runs.

    Raises: ValueError that begins with `augment.INDEX` if an entry is out of order or is one too many.
    """
    _check_order(augment)
    numbered = list(enumerate(augment))
    framing = augment[0] if augment and isinstance(augment[0], Framing) else CenterCrop()
    colour = [(number, entry) for number, entry in numbered if isinstance(entry, ColourAugmentation)]
    on_device = [(number, entry) for number, entry in colour if entry.where == "device"]
    return Program(
        framing,
        tuple(_cpu_steps(augment)),
        ColourStep(on_device[0][0], tuple(entry for _, entry in on_device)) if on_device else None,
        next((entry for entry in augment if isinstance(entry, Normalize)), None),
        next(((number, entry) for number, entry in numbered if isinstance(entry, Mixing)), None),
    )


def check_forms(augment: Sequence[Entry], channels: int, image_size: int) -> None:
    """Check that every augmentation can work on images of this form.

    Raises: ValueError that begins with `augment.INDEX`.
    """
    for index, entry in enumerate(augment):
        path = f"augment.{index}.{entry.name}"
        if not isinstance(entry, Normalize):
            entry.check_form(path, channels, image_size)
        elif len(entry.mean) != channels:
            raise ValueError(
                f"{path}.mean: got {list(entry.mean)}, must have one value for each of data.channels={channels}. Give "
                "as many values as channels."
            )


def _cpu_steps(augment: Sequence[Entry]) -> Iterator[PixelStep | ColourStep]:
    on_cpu = [(number, entry) for number, entry in enumerate(augment) if _kind(entry) == _ON_CPU]
    for _, members in groupby(on_cpu, key=_fusion_key):
        (first, *_), entries = zip(*members, strict=True)
        if isinstance(entries[0], ColourAugmentation):
            yield ColourStep(first, entries)
        else:
            yield PixelStep(first, entries)


def _fusion_key(numbered: tuple[int, Entry]) -> tuple[object, ...]:
    number, entry = numbered
    if isinstance(entry, ColourAugmentation):
        return ("colour",)
    return (entry.border, entry.fill) if isinstance(entry, Geometric) else (number,)


# In order of execution: the kind, and why it comes where it does.
_KINDS: tuple[tuple[type, str], ...] = (
    (Framing, "it says which part of the image is decoded"),
    (CpuAugmentation, "it changes uint8 pixels on the CPU, before the device"),
    (ColourAugmentation, "colours are changed on the device, before pixels are normalised and mixed"),
    (Normalize, "what is mixed is normalised"),
    (Mixing, ""),
)
_ON_CPU, _COLOUR = 1, 2
_ONLY_ONE = (Framing, Mixing)


def _check_order(augment: Sequence[Entry]) -> None:
    for index, entry in enumerate(augment):
        if isinstance(entry, Normalize) and not all(isinstance(later, Mixing) for later in augment[index + 1 :]):
            mixing = next((e.name for e in augment if isinstance(e, Mixing)), None)
            raise ValueError(
                f"augment.{index}: got normalize as number {index + 1} of {len(augment)}, must be the last"
                f"{f' but for {mixing}' if mixing else ''}, because pixels stay uint8 until the device. "
                f"Move it to the end of the list{f', before {mixing}' if mixing else ''}."
            )
    for index, (entry, following) in enumerate(pairwise(augment), 1):
        here, after = _kind(entry), _kind(following)
        if after < here:
            instead = f", or set where: cpu of {entry.name}" if (after, here) == (_ON_CPU, _COLOUR) else ""
            raise ValueError(
                f"augment.{index}: got {following.name} after {entry.name}, must come before it, because "
                f"{_KINDS[after][1]}. Move it up{instead}."
            )
        if after == here and isinstance(entry, _ONLY_ONE):
            instead = ", or let random_mixing choose" if isinstance(entry, Mixing) else ""
            raise ValueError(
                f"augment.{index}: got {following.name} beside {entry.name}, must be one of the two. Remove the "
                f"other{instead}."
            )


def _kind(entry: Entry) -> int:
    if isinstance(entry, ColourAugmentation) and entry.where == "cpu":
        return _ON_CPU
    return next(place for place, (kind, _) in enumerate(_KINDS) if isinstance(entry, kind))
