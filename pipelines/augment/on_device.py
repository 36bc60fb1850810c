"""The device's part of a program: colours and normalisation as one matrix an image, then mixing.

The only file of this folder that imports torch, which the processes that make the data do not need.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.augment.base import Mix
from pipelines.augment.colour_map import ColourMap
from pipelines.augment.mixing import of_groups, partners_of
from pipelines.augment.normalize import Normalize
from pipelines.augment.program import Keys, Program
from pipelines.randomness import Draws


class DeviceProgram:
    """Turns uint8 pixels on the device into what the network takes.

    Without colour augmentations that is one multiplication and one addition. With them, values are clipped to [0, 1]
    once, after all of them and before the mean is subtracted.
    """

    def __init__(self, program: Program, channels: int, target_device: torch.device, *, channels_last: bool) -> None:
        normalize = program.normalize or Normalize(mean=(0.0,) * channels, std=(1.0,) * channels)
        scale, shift = normalize.scale_and_shift()
        self._program = program
        self._channels_last = channels_last
        self._scale = torch.from_numpy(scale).to(target_device).view(1, -1, 1, 1)
        self._shift = torch.from_numpy(shift).to(target_device).view(1, -1, 1, 1)
        self._white = 255.0 * self._scale + self._shift

    def __call__(
        self, pixels: Tensor, seed: int, epoch: int, keys: Keys, positions: range, *, training: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Normalise; in training also change colours and mix.

        `positions`: where the batch stands in the epoch's order; decides who is mixed with whom.
        Shapes: pixels (N, H, W, C) uint8 -> images (N, C, H, W) float32, in NHWC memory order if `channels_last`; and,
        where the program mixes, (N,) int64: whose label is mixed in, as an index into the batch, and (N,) float32: the
        share of the sample's own label.
        """
        planes = pixels.permute(0, 3, 1, 2)
        if training and self._program.colour:
            colours = self._program.colour.colours(pixels.shape[3], seed, epoch, keys)
            images = self._coloured(planes, colour_matrices(colours, mean_pixels(pixels)))
        else:
            images = planes.to(torch.float32).mul_(self._scale).add_(self._shift)
            if not self._channels_last:
                images = images.contiguous()
        if not (training and self._program.mixing):
            return images, None, None
        number, mixing = self._program.mixing
        partners = torch.from_numpy(partners_of(positions, seed, epoch, number)).to(images.device, non_blocking=True)
        groups = of_groups(positions, seed, epoch, number)
        plan = mixing.plan((images.shape[2], images.shape[3]), Draws(seed, epoch, keys, number), groups)
        return mixed(images, partners, plan), partners, _to_device(plan.shares, images)

    def _coloured(self, planes: Tensor, matrices: Tensor) -> Tensor:
        # Plane by plane, whatever the order in the end: in NHWC the passes of `apply_matrices` take thrice as long.
        values = planes.to(torch.float32, memory_format=torch.contiguous_format)
        channels = values.shape[1]
        linear = matrices[:, :, :channels] * self._scale[:, :, 0]
        offset = matrices[:, :, channels:] * (255.0 * self._scale[:, :, 0]) + self._shift[:, :, 0]
        images = apply_matrices(values, linear, offset)
        torch.minimum(torch.maximum(images, self._shift, out=images), self._white, out=images)
        return images.contiguous(memory_format=torch.channels_last) if self._channels_last else images


def colour_matrices(colours: ColourMap, means: Tensor) -> Tensor:
    """The change of each image as one matrix, given the mean of its pixels: out = m[:, :C] @ pixel + m[:, C].

    Shapes: means (N, C) -> (N, C, C + 1), on the device of `means`.
    """
    channels = means.shape[1]
    terms = np.concatenate([colours.linear, colours.of_mean, colours.constant[:, :, None]], axis=2)
    moved = _to_device(terms, means)
    # A sum instead of a matrix product, whose rounding may depend on the batch and on TF32.
    of_mean = (moved[:, :, channels : 2 * channels] * means[:, None, :]).sum(2, keepdim=True)
    return torch.cat([moved[:, :, :channels], of_mean + moved[:, :, 2 * channels :]], dim=2)


def apply_matrices(values: Tensor, linear: Tensor, offset: Tensor) -> Tensor:
    """Multiply each pixel of an image by the image's matrix; a pass for each channel, so that every batch rounds alike.

    Shapes: values (N, C, H, W), linear (N, C, C), offset (N, C, 1) -> (N, C, H, W), in the memory order of `values`.
    """
    result = torch.empty_like(values)
    torch.mul(values[:, :1], linear[:, :, 0, None, None], out=result)
    result.add_(offset[..., None])
    for channel in range(1, values.shape[1]):
        result.addcmul_(values[:, channel : channel + 1], linear[:, :, channel, None, None])
    return result


def mean_pixels(pixels: Tensor) -> Tensor:
    """The mean of each channel, scaled to [0, 1], from sums of whole numbers: the same in any order of summing.

    Shapes: (N, H, W, C) uint8 -> (N, C) float32.
    """
    num = 255.0 * pixels.shape[1] * pixels.shape[2]
    return (pixels.sum((1, 2), dtype=torch.int64).to(torch.float64) / num).to(torch.float32)


def mixed(images: Tensor, partners: Tensor, plan: Mix) -> Tensor:
    """Join images[i] with images[partners[i]] as planned; `images` is left alone.

    Shapes: images (N, C, H, W) float, partners (N,) int64 -> (N, C, H, W), in the memory order of `images`.
    """
    result, others = images, images[partners]
    if (plan.weights < 1.0).any():
        # Not torch.lerp, whose rounding leaves an image at weight 1 only nearly alone.
        weight = _to_device(plan.weights, images)[:, None, None, None]
        result = images * weight + others * (1 - weight)
    if plan.boxes.any():
        boxes = torch.from_numpy(plan.boxes.T.copy()).to(images.device, non_blocking=True)
        left, top, right, bottom = boxes[..., None, None, None]
        x = torch.arange(images.shape[3], device=images.device)
        y = torch.arange(images.shape[2], device=images.device)[:, None]
        inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)
        result = torch.where(inside, others, result)
    return result


def _to_device(values: NDArray[np.float64], like: Tensor) -> Tensor:
    """Numbers as float32 on the device of `like`."""
    return torch.from_numpy(values.astype(np.float32)).to(like.device, non_blocking=True)
