"""The device's part of a program: colours and normalisation as one matrix an image, then mixing."""

import torch
from torch import Tensor

from pipelines.augment.mixing import partners_of
from pipelines.augment.normalize import Normalize
from pipelines.augment.program import Keys, Pixels, Program
from pipelines.randomness import Draws


class DeviceProgram:
    """Turns uint8 pixels on the device into what the network takes.

    Without colour augmentations that is one multiplication and one addition. With them, values are clipped to [0, 1]
    once, after all of them and before the mean is subtracted.
    """

    def __init__(self, program: Program, channels: int, target_device: torch.device, *, channels_last: bool) -> None:
        normalize = program.normalize or Normalize(mean=(0.0,) * channels, std=(1.0,) * channels)
        self._program = program
        self._channels_last = channels_last
        self._scale, self._shift = normalize.scale_and_shift(target_device)
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
            images = self._coloured(planes, self._program.colour_matrices(mean_pixels(pixels), seed, epoch, keys))
        else:
            images = planes.to(torch.float32).mul_(self._scale).add_(self._shift)
            if not self._channels_last:
                images = images.contiguous()
        if not (training and self._program.mixing):
            return images, None, None
        number, mixing = self._program.mixing
        partners = torch.from_numpy(partners_of(positions, seed, epoch, number)).to(images.device, non_blocking=True)
        mixed, share = mixing.mix(images, partners, Draws(seed, epoch, keys, number))
        return mixed, partners, share

    def _coloured(self, planes: Tensor, matrices: Tensor) -> Tensor:
        # Plane by plane, whatever the order in the end: in NHWC the passes of `apply_matrices` take thrice as long.
        values = planes.to(torch.float32, memory_format=torch.contiguous_format)
        channels = values.shape[1]
        linear = matrices[:, :, :channels] * self._scale[:, :, 0]
        offset = matrices[:, :, channels:] * (255.0 * self._scale[:, :, 0]) + self._shift[:, :, 0]
        images = apply_matrices(values, linear, offset)
        torch.minimum(torch.maximum(images, self._shift, out=images), self._white, out=images)
        return images.contiguous(memory_format=torch.channels_last) if self._channels_last else images


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


def colour_on_cpu(program: Program, images: Pixels, seed: int, epoch: int, keys: Keys) -> Pixels:
    """What a program's colour augmentations make of images, to look at: uint8, within one grey level of the device's.

    Shapes: (N, H, W, C) -> (N, H, W, C).
    """
    if not program.colour:
        return images
    pixels = torch.from_numpy(images.copy())
    channels = images.shape[3]
    matrices = program.colour_matrices(mean_pixels(pixels), seed, epoch, keys)
    values = pixels.permute(0, 3, 1, 2).to(torch.float32)
    changed = apply_matrices(values, matrices[:, :, :channels], 255.0 * matrices[:, :, channels:])
    return changed.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
