"""From an encoded image to pixels of the size that the network takes: by Pillow, one image at a time.

What a file may hold and what becomes of it:
- EXIF orientation is applied; one that cannot be read counts as upright.
- Transparency is laid over black. Of an animation the first frame is taken.
- 16 bits a value: the upper 8 are kept. Pixels without a fixed range (floats, 32-bit integers) are refused.
- CMYK and the like are converted by Pillow's formulas, without colour profiles.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

Pixels = NDArray[np.uint8]

# An image is first made smaller the cheap way (in the JPEG's own transform, or by whole-pixel boxes), but never
# below this multiple of the final size. Against none on 120 ImageNet photos, CPU time and median PSNR: 1.2 for
# 2.2 ms and 42 dB to 32 pixels, no change to 224; a 12-megapixel JPEG to 224 takes 18 for 138 ms (Pillow 13.0,
# one EPYC Zen 4 core, 2026-11-24).
_GAP = 3

_TRANSPOSE = Image.Transpose
_UPRIGHT = {  # EXIF 2.32, tag 0x0112: what undoes each orientation
    2: _TRANSPOSE.FLIP_LEFT_RIGHT,
    3: _TRANSPOSE.ROTATE_180,
    4: _TRANSPOSE.FLIP_TOP_BOTTOM,
    5: _TRANSPOSE.TRANSPOSE,
    6: _TRANSPOSE.ROTATE_270,
    7: _TRANSPOSE.TRANSVERSE,
    8: _TRANSPOSE.ROTATE_90,
}


class UndecodableImage(ValueError):
    """The bytes are no image that can be read."""


def decode(content: bytes | Pixels, image_size: int, channels: int) -> Pixels:
    """Decode, convert to grey or RGB, turn as EXIF says, and fit.

    Fit: the central square is scaled to `image_size` (bicubic, antialiased), which is torchvision's Resize and
    CenterCrop but for their rounding to whole pixels, and for what is gained on large images (see _GAP). An image
    of the right size is left alone.
    Shapes: encoded bytes or (h, w, 1 or 3) -> (image_size, image_size, channels).
    Raises: UndecodableImage if the bytes are damaged, no image, or pixels without a fixed range.
    """
    shape = (image_size, image_size, channels)
    if isinstance(content, np.ndarray):
        if content.shape == shape:
            return content
        image = Image.fromarray(content[..., 0] if content.shape[-1] == 1 else content)
        return _pixels(_fit(_convert(image, channels), image_size), shape)
    if not content:
        raise UndecodableImage("the file is empty")
    try:
        return _pixels(_fit(_load(content, image_size, channels), image_size), shape)
    except UnidentifiedImageError:
        raise UndecodableImage(f"no known image format; it begins with {content[:16]!r}") from None
    except (UndecodableImage, MemoryError):
        raise
    # Damaged bytes lead Pillow's plugins to errors of many kinds (OSError, SyntaxError, struct.error, TypeError, ...).
    except Exception as error:
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error


def _load(content: bytes, image_size: int, channels: int) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(content))
    image.draft(None, (_GAP * image_size, _GAP * image_size))  # does nothing but for a JPEG
    image.load()  # first, so that no damage to the pixels hides behind the tolerance for EXIF
    orientation = _orientation(image)
    image = _convert(image, channels)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # any kind, as in `decode`; cameras and editors write many broken ones round good pixels
        return None


def _convert(image: Image.Image, channels: int) -> Image.Image:
    mode = "L" if channels == 1 else "RGB"
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise UndecodableImage(f"pixels of mode {image.mode} have no fixed range; save it with 8 or 16 bits a value")
    if image.mode.startswith("I"):  # Pillow's own conversion cuts off at 255; PPM is read as I, scaled to 16 bits
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image if image.mode == mode else image.convert(mode)


def _fit(image: Image.Image, image_size: int) -> Image.Image:
    width, height = image.size
    if width == height == image_size:
        return image
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    return image.resize(
        (image_size, image_size),
        Image.Resampling.BICUBIC,
        box=(left, top, left + short, top + short),
        reducing_gap=_GAP,
    )


def _pixels(image: Image.Image, shape: tuple[int, int, int]) -> Pixels:
    pixels: Pixels = np.asarray(image)
    return pixels.reshape(shape)
