"""One rectangle of a JPEG as pixels, by the least work: only its part of the image, at the scale that is needed.

With a C compiler and libjpeg-turbo's headers, native/jpeg_region.c decodes the rectangle alone. Without them simplejpeg
(libjpeg-turbo, in a wheel) decodes the whole image at the same scale and the rectangle is cut out: the same pixels, in
more time. `native_status` says which it is; before the native code is used, it is compared with simplejpeg once.

Errors may differ: damage below the rectangle is seen only by a decoder that reads that far.
"""

import ctypes
import functools
import logging
import re
import threading
from pathlib import Path

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray

from kernels.native import build
from pipelines.jpeg_header import DamagedJpeg, JpegHeader
from pipelines.orientation import Box

SCALES = (8, 4, 2, 1)  # the ones that libjpeg-turbo has vector code for

_MESSAGE_BYTES = 200  # libjpeg's JMSG_LENGTH_MAX
_DECODED, _DAMAGED, _NO_MEMORY = 0, 1, 2

# After these warnings the pixels are still right, and cameras and editors cause them; jpeg_region.c has the same two.
# The messages are libjpeg's.
_HARMLESS = re.compile("Invalid SOS parameters for sequential JPEG|extraneous bytes before marker 0xd9")

_LOCK = threading.Lock()
_LOG = logging.getLogger(__name__)


def decode_rectangle(content: bytes, header: JpegHeader, box: Box, scale: int, channels: int) -> NDArray[np.uint8]:
    """The pixels of `box`, in pixels of the stored image made smaller by 1/`scale` (rounded up).

    Only for a JPEG whose header is `common`. Shapes: -> (box.height, box.width, channels).
    Raises: DamagedJpeg with libjpeg's message.
    """
    library = _native().library
    if library is None:
        return decode_whole(content, header, scale, channels)[
            box.top : box.top + box.height, box.left : box.left + box.width
        ]
    return decode_region(library, content, box, scale, channels)


def native_status() -> str:
    """How JPEGs are decoded in this process, in words; compiles the native code if need be."""
    return _native().status


def decode_region(library: ctypes.CDLL, content: bytes, box: Box, scale: int, channels: int) -> NDArray[np.uint8]:
    """What `decode_rectangle` does with the native code."""
    pixels = np.empty((box.height, box.width, channels), np.uint8)
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    result = library.convoy_jpeg_region(
        content, len(content), scale, channels, box.left, box.top, box.width, box.height, pixels.ctypes.data, message
    )
    if result == _NO_MEMORY:
        raise MemoryError(message.value.decode(errors="replace"))
    if result != _DECODED:
        raise DamagedJpeg(message.value.decode(errors="replace"))
    return pixels


def decode_whole(content: bytes, header: JpegHeader, scale: int, channels: int) -> NDArray[np.uint8]:
    """The whole stored image made smaller by 1/`scale`, by simplejpeg."""
    height, width = -(-header.height // scale), -(-header.width // scale)
    options = {"colorspace": "GRAY" if channels == 1 else "RGB", "min_height": height, "min_width": width}
    try:
        pixels = simplejpeg.decode_jpeg(content, **options)
    except ValueError as error:
        if not _HARMLESS.search(str(error)):
            raise DamagedJpeg(str(error)) from error
        pixels = simplejpeg.decode_jpeg(content, strict=False, **options)
    assert pixels.shape == (height, width, channels), "simplejpeg chose another scale"
    return pixels


class _Native:
    """The library, or None, and why."""

    def __init__(self) -> None:
        self.library: ctypes.CDLL | None = None
        try:
            library = load_library()
            _compare(library)
        except (build.NotBuilt, DamagedJpeg) as reason:
            self.status = f"whole JPEGs are decoded by simplejpeg: {reason}"
            _LOG.warning(
                "%s. The pixels are the same, decoding takes longer; install a C compiler and libjpeg-turbo's headers "
                "(Debian: gcc libjpeg62-turbo-dev).",
                self.status,
            )
        else:
            self.library = library
            self.status = f"only the part of a JPEG that is used is decoded, by {library._name}"


def _native() -> _Native:
    with _LOCK:
        return _loaded()


@functools.cache
def _loaded() -> _Native:
    return _Native()


def load_library() -> ctypes.CDLL:
    """Raises: build.NotBuilt."""
    library = build.load(Path(__file__).parent / "native" / "jpeg_region.c", ("jpeg",))
    numbers = [ctypes.c_int] * 6
    library.convoy_jpeg_region.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, *numbers, ctypes.c_void_p, ctypes.c_char_p
    ]  # fmt: skip
    return library


def _compare(library: ctypes.CDLL) -> None:
    """Hold the system's libjpeg against simplejpeg's: it may be one that upsamples in another way.

    Raises: build.NotBuilt if a pixel differs; DamagedJpeg if it does not work at all.
    """
    noise = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)
    image = np.ascontiguousarray(noise.repeat(8, axis=0).repeat(9, axis=1)[:47, :61])
    for sampling in ("444", "422", "420", "440", "411"):
        content = simplejpeg.encode_jpeg(image, colorsubsampling=sampling, quality=80)
        header = JpegHeader(47, 61, 1, common=True)
        for scale in SCALES:
            whole = decode_whole(content, header, scale, 3)
            box = Box(whole.shape[1] // 3, whole.shape[0] // 3, whole.shape[1] // 2, whole.shape[0] // 2)
            part = whole[box.top : box.top + box.height, box.left : box.left + box.width]
            if not np.array_equal(decode_region(library, content, box, scale, 3), part):
                raise build.NotBuilt(
                    f"the system's libjpeg makes other pixels (4:{sampling[1]}:{sampling[2]}, 1/{scale})"
                )
