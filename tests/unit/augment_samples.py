"""What the tests of augmentations work on."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipelines.randomness import Draws, mix

Pixels = NDArray[np.uint8]


def keys_for(num: int) -> NDArray[np.uint64]:
    return np.array([mix("sample", i) for i in range(num)], np.uint64)


def draws_for(num: int, epoch: int = 0) -> Draws:
    return Draws(0, epoch, keys_for(num), 1)


def random_images(shape: tuple[int, int, int, int]) -> Pixels:
    """Read-only, so that a change in place raises."""
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    images.flags.writeable = False
    return images


def smooth_image(height: int, width: int, channels: int = 3, sigma: float = 1.5, seed: int = 0) -> Pixels:
    noise = np.random.default_rng(seed).normal(size=(height, width, channels))
    smooth = np.stack([gaussian_filter(noise[..., c], sigma) for c in range(channels)], axis=-1)
    return np.clip(128 + 50 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def tensor(image: Pixels) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


def apart(ours: Pixels, theirs: torch.Tensor | Pixels) -> int:
    """The largest difference in grey levels; a tensor is (C, H, W)."""
    other = theirs.permute(1, 2, 0).numpy() if isinstance(theirs, torch.Tensor) else theirs
    return int(np.abs(ours.astype(int) - other.astype(int)).max(initial=0))
