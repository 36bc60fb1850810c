"""From an encoded image to pixels of the size that the network takes: by Pillow, one image at a time."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Pixels = NDArray[np.uint8]


class UndecodableImage(ValueError):
    """The bytes are no image that can be read."""


def decode(content: bytes | Pixels, image_size: int, channels: int) -> Pixels:
    """Decode, turn as EXIF says, convert to grey or RGB, and fit.

    Fit: the short side is scaled to `image_size` (bicubic, antialiased) and the centre cut out; an image of the
    right size is left alone. Transparency is laid over black.
    Shapes: encoded bytes or (h, w, c) -> (image_size, image_size, channels).
    Raises: UndecodableImage if the bytes are truncated or no image.
    """
    if isinstance(content, np.ndarray):
        image = Image.fromarray(content.squeeze(-1) if content.shape[-1] == 1 else content)
    else:
        try:
            image = Image.open(io.BytesIO(content))
            image.load()
            image = ImageOps.exif_transpose(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UndecodableImage(str(error)) from error
    pixels: Any = np.asarray(_fit(_convert(image, channels), image_size))
    return pixels.reshape(image_size, image_size, channels)


def _convert(image: Image.Image, channels: int) -> Image.Image:
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode:
        return image
    if image.mode.startswith("I;16"):  # 16 bits of grey: the upper 8
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("P", "PA", "LA", "RGBA") and (image.mode != "P" or "transparency" in image.info):
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return image.convert(mode)


def _fit(image: Image.Image, image_size: int) -> Image.Image:
    if image.size == (image_size, image_size):
        return image
    width, height = image.size
    scale = image_size / min(width, height)
    width, height = max(image_size, round(width * scale)), max(image_size, round(height * scale))
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - image_size) // 2, (height - image_size) // 2
    return image.crop((left, top, left + image_size, top + image_size))
