"""The last stage, on the device: uint8 NHWC pixels become normalised floats."""

from torch import Tensor, device, float32

from pipelines.augment.normalize import Normalize
from pipelines.config import PipelineConfig
from pipelines.loader import Batch


class ToDevice:
    """Move a batch to the device and normalise it there; without `normalize`, pixels are divided by 255.

    Shapes: images (n, H, W, C) uint8 -> (n, C, H, W) float32, in NHWC memory order if `channels_last`.
    """

    def __init__(self, config: PipelineConfig, target: device, *, channels_last: bool) -> None:
        normalize = next((a for a in config.augment if isinstance(a, Normalize)), None)
        if normalize is None:
            normalize = Normalize(mean=(0.0,) * config.channels, std=(1.0,) * config.channels)
        self._scale, self._shift = normalize.scale_and_shift(target)
        self._target = target
        self._pin = target.type == "cuda"
        self._channels_last = channels_last

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images, labels = batch.images, batch.labels
        if self._pin:
            images, labels = images.pin_memory(), labels.pin_memory()
        images = images.to(self._target, non_blocking=True).permute(0, 3, 1, 2)
        floats = images.to(float32).mul_(self._scale).add_(self._shift)
        if not self._channels_last:
            floats = floats.contiguous()
        return floats, labels.to(self._target, non_blocking=True)
