"""An experiment's list of augmentations, checked and compiled into what runs where.

On the CPU: the framing, as boxes for the decoder; then changes of uint8 pixels, consecutive geometric ones with the
same border fused into one resampling. On the device (`on_device.py`): all colour augmentations and `normalize` as
one matrix an image, then mixing. Each augmentation draws by its index in the experiment's list, so fusing changes no
draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.augment.base import ColourAugmentation, CpuAugmentation, Framing, Mixing
from pipelines.augment.framing import CenterCrop
from pipelines.augment.geometry import Geometric, apply_as_one
from pipelines.augment.normalize import Normalize
from pipelines.randomness import Draws

Entry = Framing | CpuAugmentation | ColourAugmentation | Normalize | Mixing
Pixels = NDArray[np.uint8]
Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class CpuStep:
    """One pass over the pixels: an augmentation, or several geometric ones. `first`: the index of the first of them."""

    first: int
    augmentations: tuple[CpuAugmentation, ...]

    def apply(self, images: Pixels, seed: int, epoch: int, keys: Keys) -> Pixels:
        draws = [Draws(seed, epoch, keys, self.first + i) for i in range(len(self.augmentations))]
        if len(draws) == 1:
            return self.augmentations[0].apply(images, draws[0])
        return apply_as_one([a for a in self.augmentations if isinstance(a, Geometric)], images, draws)


@dataclass(frozen=True)
class Program:
    """What is done to samples, in order. Numbers are indexes in the experiment's list.

    `framing`: of training; evaluation's is the central square, unless training's draws nothing and serves both.
    """

    framing: Framing
    cpu: tuple[CpuStep, ...]
    colour: tuple[tuple[int, ColourAugmentation], ...]
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

    def colour_matrices(self, means: Tensor, seed: int, epoch: int, keys: Keys) -> Tensor:
        """All colour augmentations as one matrix an image, for pixels in [0, 1]; `normalize` is not in it.

        Shapes: means (N, C) of the pixels before -> (N, C, C + 1), on the device of `means`.
        """
        channels = means.shape[1]
        total = torch.eye(channels, channels + 1, device=means.device).expand(len(means), -1, -1)
        for number, augmentation in self.colour:
            matrices = augmentation.matrices(means, Draws(seed, epoch, keys, number))
            linear, offset = matrices[:, :, :channels], matrices[:, :, channels:]
            # Sums instead of matrix products, whose rounding may depend on the batch and on TF32.
            total = (linear[:, :, :, None] * total[:, None, :, :]).sum(2)
            total[:, :, channels] += offset[:, :, 0]
            means = (linear * means[:, None, :]).sum(2) + offset[:, :, 0]
        return total

    def describe(self) -> list[str]:
        """What runs where, a line for each pass."""
        lines = [f"decoder: {self.framing.name}"]
        for step in self.cpu:
            names = " + ".join(a.name for a in step.augmentations)
            lines.append(f"CPU: {names}{', as one resampling' if len(step.augmentations) > 1 else ''}")
        last = "normalize" if self.normalize else "division by 255"
        if self.colour:
            names = " + ".join([*(a.name for _, a in self.colour), last])
            lines.append(f"device: {names}, as one matrix an image, clipped once")
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
    cpu = [(number, entry) for number, entry in numbered if isinstance(entry, CpuAugmentation)]
    steps = []
    for _, members in groupby(cpu, key=_fusion_key):
        group = list(members)
        steps.append(CpuStep(group[0][0], tuple(entry for _, entry in group)))
    return Program(
        framing,
        tuple(steps),
        tuple((number, entry) for number, entry in numbered if isinstance(entry, ColourAugmentation)),
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


def _fusion_key(numbered: tuple[int, CpuAugmentation]) -> tuple[object, ...]:
    number, entry = numbered
    return (entry.border, entry.fill) if isinstance(entry, Geometric) else (number,)


# In order of execution: the kind, and why it comes where it does.
_KINDS: tuple[tuple[type, str], ...] = (
    (Framing, "it says which part of the image is decoded"),
    (CpuAugmentation, "it changes uint8 pixels on the CPU, before the device"),
    (ColourAugmentation, "colours are changed on the device, before pixels are normalised and mixed"),
    (Normalize, "what is mixed is normalised"),
    (Mixing, ""),
)
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
            raise ValueError(
                f"augment.{index}: got {following.name} after {entry.name}, must come before it, because "
                f"{_KINDS[after][1]}. Move it up."
            )
        if after == here and isinstance(entry, _ONLY_ONE):
            raise ValueError(
                f"augment.{index}: got {following.name} beside {entry.name}, must be one of the two. Remove the other."
            )


def _kind(entry: Entry) -> int:
    return next(place for place, (kind, _) in enumerate(_KINDS) if isinstance(entry, kind))
