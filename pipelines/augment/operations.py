"""What is done to one image's grey levels, as plain functions: uint8 (H, W, C) -> uint8 (H, W, C), C 1 or 3.

The results are Pillow's (ImageOps, ImageEnhance), rounding included; for one channel, colour is left alone. The
augmentations and the policies that draw when and how strongly are in the files beside this one.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

_LEVELS = np.arange(256)


def invert(image: Image) -> Image:
    return 255 - image


def solarize(image: Image, threshold: float) -> Image:
    """Invert the levels from `threshold` on."""
    return _look_up(image, np.where(threshold <= _LEVELS, 255 - _LEVELS, _LEVELS))


def posterize(image: Image, bits: int) -> Image:
    """Keep the upper `bits` of each level."""
    return image & np.uint8((0xFF << (8 - bits)) & 0xFF)


def autocontrast(image: Image) -> Image:
    """Stretch each channel to the whole range; a channel of one level is left alone."""
    tables = np.tile(_LEVELS, (image.shape[2], 1))
    for channel, table in enumerate(tables):
        low, high = int(image[..., channel].min()), int(image[..., channel].max())
        if high > low:
            scale = 255.0 / (high - low)
            table[:] = np.clip((_LEVELS * scale - low * scale).astype(np.int64), 0, 255)
    return _look_up(image, tables)


def equalize(image: Image) -> Image:
    """Give each channel a flat histogram, as far as a function of its levels can."""
    tables = np.tile(_LEVELS, (image.shape[2], 1))
    for channel, table in enumerate(tables):
        counts = np.bincount(image[..., channel].ravel(), minlength=256)
        step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        if step > 0:
            table[:] = np.minimum((step // 2 + np.cumsum(counts) - counts) // step, 255)
    return _look_up(image, tables)


def grey(image: Image) -> Image:
    """The luma of ITU-R 601, in every channel; 16 bits of fixed point."""
    if image.shape[2] == 1:
        return image
    luma = (image.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32) + 0x8000) >> 16
    return np.repeat(luma.astype(np.uint8)[..., None], 3, axis=2)


def brightness(image: Image, factor: float) -> Image:
    """0 is black, 1 the image."""
    return _look_up(image, _truncate(_LEVELS.astype(np.float32) * np.float32(factor)))


def contrast(image: Image, factor: float) -> Image:
    """0 is the mean grey, 1 the image."""
    mean = int(grey(image)[..., 0].mean() + 0.5)
    return _look_up(image, _truncate(mean + np.float32(factor) * (_LEVELS - mean).astype(np.float32)))


def saturation(image: Image, factor: float) -> Image:
    """0 is the grey image, 1 the image."""
    return image if image.shape[2] == 1 else _blend(grey(image), image, factor)


def sharpness(image: Image, factor: float) -> Image:
    """0 is a slightly smoothed image, 1 the image, 2 sharpened; the outermost pixels stay as they are."""
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    smooth = image.copy()
    if min(image.shape[:2]) > 2:
        filtered = cv2.filter2D(image.astype(np.float32), -1, kernel).reshape(image.shape)
        smooth[1:-1, 1:-1] = (filtered + 0.5).astype(np.uint8)[1:-1, 1:-1]
    return _blend(smooth, image, factor)


def blur(image: Image, sigma: float) -> Image:
    """A Gaussian of deviation `sigma`, cut off at 4 of them; the image goes on as its mirror image."""
    side = 2 * int(np.ceil(4 * sigma)) + 1
    blurred = cv2.GaussianBlur(image, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(blurred, np.uint8).reshape(image.shape)


def _blend(zero: Image, one: Image, factor: float) -> Image:
    low = zero.astype(np.float32)
    return _truncate(low + np.float32(factor) * (one.astype(np.float32) - low))


def _truncate(values: NDArray[np.floating]) -> Image:
    return np.clip(values, 0, 255).astype(np.uint8)


def _look_up(image: Image, table: NDArray[np.integer]) -> Image:
    """Replace levels by a table, one for all channels (256,) or one for each (C, 256)."""
    entries = table.T[None] if table.ndim == 2 else table
    return np.asarray(cv2.LUT(image, np.ascontiguousarray(entries, np.uint8)), np.uint8).reshape(image.shape)
