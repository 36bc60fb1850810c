"""From an encoded image to pixels of the size that the network takes, one image at a time, decoding no more than that.

A box of the upright image is scaled to a square. Of a JPEG only the box is decoded, at 1/2, 1/4 or 1/8 of the size
where that is enough (decode_jpeg.py); other formats, CMYK and unusual JPEGs are decoded whole by Pillow. All share one
resize (resize.py), and the same bytes and box give the same pixels on any node, with or without the native code.

What a file may hold and what becomes of it:
- EXIF orientation is applied; one that cannot be read counts as upright.
- Transparency is laid over black. Of an animation the first frame is taken.
- 16 bits a value: the upper 8 are kept. Pixels without a fixed range (floats, 32-bit integers) are refused.
- CMYK and the like are converted by Pillow's formulas, without colour profiles.
- Grey from a colour JPEG is its luma, as stored; from other colours Pillow's (ITU-R 601-2).
- More than MAX_PIXELS are refused before any is decoded.
"""

import contextlib
import io
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from pipelines.decode_jpeg import SCALES, decode_rectangle
from pipelines.jpeg_header import DamagedJpeg, JpegHeader, is_jpeg, read_header
from pipelines.orientation import UPRIGHT, Box, is_orientation, stored_box, turned, upright_size
from pipelines.resize import Resize, resized

Pixels = NDArray[np.uint8]
Floats4 = tuple[float, float, float, float]

MAX_PIXELS = 2**27  # 134 million: above any usual camera, 0.4 GB as RGB

_SMALLER = "Make it smaller, or take it out of the data."

# A JPEG is decoded smaller, but never so that the box has fewer pixels than this multiple of the final size.
_GAP = 2

# What Pillow may open: not EPS (it runs Ghostscript), nor formats that no set of images comes in.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")


class UndecodableImage(ValueError):
    """The bytes are no image that can be read."""


def size_of(content: bytes | Pixels) -> tuple[int, int]:
    """Height and width of the upright image, from its header.

    Raises: UndecodableImage if it has none, or says that it has more than MAX_PIXELS.
    """
    if isinstance(content, np.ndarray):
        return content.shape[0], content.shape[1]
    if is_jpeg(content):
        return _jpeg_header(content).size
    with _undecodable(content):
        image = _opened(content)
        return upright_size(image.height, image.width, _orientation(image, content))


def decode_box(
    content: bytes | Pixels,
    box: Floats4 | None,
    image_size: int,
    channels: int,
    *,
    resize: Resize = "antialias",
    into: Pixels | None = None,
) -> Pixels:
    """Decode the part of an image that `box` holds, convert to grey or RGB, and scale it to a square.

    `box` is (left, top, width, height) in pixels of the upright image, None the central square. Its edges are rounded
    to whole pixels, and of a JPEG that is decoded at 1/2, 1/4 or 1/8 to whole pixels at that scale: at most 1/4 of a
    pixel of the result. A part of the right size is not resized.
    Shapes: encoded bytes or (h, w, 1 or 3) -> (image_size, image_size, channels), maybe the array given, or `into`,
    which may be taken for the result.
    Raises: UndecodableImage if the bytes are damaged, no image, too many pixels, or pixels without a fixed range;
    ValueError if the box is not inside the image.
    """
    if isinstance(content, np.ndarray):
        area = _whole_pixels(box, size_of(content))
        return resized(_convert_array(_cut(content, area), channels), image_size, resize, into=into)
    if is_jpeg(content):
        header = _jpeg_header(content)
        area = stored_box(_whole_pixels(box, header.size), header.size, header.orientation)
        if header.common:
            part = _decode_jpeg(content, header, area, image_size, channels)
        else:
            with _undecodable(content):
                part = _loaded_box(_opened(content), area, channels)
        return turned(resized(part, image_size, resize, into=into), header.orientation)
    with _undecodable(content):
        image = _opened(content)
        image.load()  # first, so that no damage to the pixels hides behind the tolerance for EXIF
        orientation = _orientation(image, content)
    size = upright_size(image.height, image.width, orientation)
    area = stored_box(_whole_pixels(box, size), size, orientation)
    with _undecodable(content):
        part = _loaded_box(image, area, channels)
    return turned(resized(part, image_size, resize, into=into), orientation)


def decode(content: bytes | Pixels, image_size: int, channels: int) -> Pixels:
    """`decode_box` of the central square."""
    return decode_box(content, None, image_size, channels)


def check_whole(content: bytes | Pixels) -> None:
    """Decode all of an image, small. Raises: UndecodableImage if any part of it cannot be."""
    height, width = size_of(content)
    decode_box(content, (0, 0, width, height), 8, 3)


def _whole_pixels(box: Floats4 | None, size: tuple[int, int]) -> Box:
    height, width = size
    if box is None:
        short = min(size)
        return Box((width - short) // 2, (height - short) // 2, short, short)
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    # Half a pixel outside is left to the rounding of whoever made the box.
    inside = -0.5 <= left < right <= width + 0.5 and -0.5 <= top < bottom <= height + 0.5
    if not inside:
        raise ValueError(
            f"box: got (left, top, width, height) = {box}, must lie inside the image of {width}x{height} pixels"
        )
    return _rounded(left, top, right, bottom, size)


def _rounded(left: float, top: float, right: float, bottom: float, size: tuple[int, int]) -> Box:
    """The box of at least one whole pixel, inside an image of (height, width), whose edges are nearest."""
    height, width = size
    x, y = min(max(math.floor(left + 0.5), 0), width - 1), min(max(math.floor(top + 0.5), 0), height - 1)
    return Box(x, y, max(min(math.floor(right + 0.5), width) - x, 1), max(min(math.floor(bottom + 0.5), height) - y, 1))


def _cut(pixels: Pixels, area: Box) -> Pixels:
    if (area.height, area.width) == pixels.shape[:2]:
        return pixels
    return pixels[area.top : area.top + area.height, area.left : area.left + area.width]


def _convert_array(pixels: Pixels, channels: int) -> Pixels:
    if pixels.shape[2] == channels:
        return pixels
    return _as_pixels(Image.fromarray(np.ascontiguousarray(pixels[..., 0] if channels == 3 else pixels)), channels)


def _jpeg_header(content: bytes) -> JpegHeader:
    try:
        header = read_header(content)
    except DamagedJpeg as error:
        raise UndecodableImage(str(error)) from error
    _check_size(header.width, header.height)
    return header


def _decode_jpeg(content: bytes, header: JpegHeader, area: Box, image_size: int, channels: int) -> Pixels:
    needed = _GAP * image_size
    scale = next((scale for scale in SCALES if min(area.width, area.height) >= scale * needed), 1)
    if scale > 1:
        scaled_size = -(-header.height // scale), -(-header.width // scale)
        right, bottom = area.left + area.width, area.top + area.height
        area = _rounded(area.left / scale, area.top / scale, right / scale, bottom / scale, scaled_size)
    try:
        return decode_rectangle(content, header, area, scale, channels)
    except DamagedJpeg as error:
        raise UndecodableImage(str(error)) from error


@contextlib.contextmanager
def _undecodable(content: bytes) -> Iterator[None]:
    """Makes whatever goes wrong in Pillow an UndecodableImage."""
    if not content:
        raise UndecodableImage("the file is empty")
    try:
        yield
    except UnidentifiedImageError:
        raise UndecodableImage(f"no known image format; it begins with {content[:16]!r}") from None
    except Image.DecompressionBombError as error:
        raise UndecodableImage(f"{error} {_SMALLER}") from None
    except (UndecodableImage, MemoryError):
        raise
    # Damaged bytes lead Pillow's plugins to errors of many kinds (OSError, SyntaxError, struct.error, TypeError, ...).
    except Exception as error:
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error


def _opened(content: bytes) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(content), formats=_FORMATS)
    _check_size(image.width, image.height)
    return image


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UndecodableImage(f"it has {width}x{height} pixels, more than {MAX_PIXELS} in all. {_SMALLER}")


def _orientation(image: Image.Image, content: bytes) -> int:
    if image.format == "TIFF":  # Pillow turns it
        return UPRIGHT
    # To look for a block behind the pixels Pillow decodes a PNG: not if there is none.
    if image.format == "PNG" and not any(name in content for name in (b"eXIf", b"Raw profile type")):
        return UPRIGHT
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # any kind, as above; cameras and editors write many broken ones round good pixels
        return UPRIGHT
    return orientation if isinstance(orientation, int) and is_orientation(orientation) else UPRIGHT


def _loaded_box(image: Image.Image, area: Box, channels: int) -> Pixels:
    box = (area.left, area.top, area.left + area.width, area.top + area.height)
    return _as_pixels(image if box == (0, 0, *image.size) else image.crop(box), channels)


def _as_pixels(image: Image.Image, channels: int) -> Pixels:
    converted: Pixels = np.asarray(_convert(image, channels))
    return converted.reshape(image.height, image.width, channels)


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
