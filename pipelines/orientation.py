"""Which way up an image is: the EXIF tag, boxes of the upright image in the stored one, and turning pixels.

EXIF 2.32, tag 0x0112: a stored image becomes upright by at most a transposition and two reflections.
"""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UPRIGHT = 1

_TAG, _SHORT = 0x0112, 3


@dataclass(frozen=True)
class Box:
    """Whole pixels: left <= x < left + width, top <= y < top + height."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class _Turn:
    """What makes a stored image upright: the transposition first, then the reflections."""

    transpose: bool
    mirror_x: bool
    mirror_y: bool


_TURNS = {
    1: _Turn(False, False, False),
    2: _Turn(False, True, False),
    3: _Turn(False, True, True),
    4: _Turn(False, False, True),
    5: _Turn(True, False, False),
    6: _Turn(True, True, False),
    7: _Turn(True, True, True),
    8: _Turn(True, False, True),
}


def is_orientation(value: object) -> bool:
    return value in _TURNS


def upright_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    return (width, height) if _TURNS[orientation].transpose else (height, width)


def stored_box(box: Box, upright: tuple[int, int], orientation: int) -> Box:
    """Where a box of the upright image, of size (height, width), lies in the stored one."""
    turn = _TURNS[orientation]
    height, width = upright
    left = width - box.left - box.width if turn.mirror_x else box.left
    top = height - box.top - box.height if turn.mirror_y else box.top
    return Box(top, left, box.height, box.width) if turn.transpose else Box(left, top, box.width, box.height)


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Stored pixels, upright. Shapes: (h, w, C) -> (h, w, C) or (w, h, C)."""
    if orientation == UPRIGHT and pixels.flags.c_contiguous:
        return pixels
    turn = _TURNS[orientation]
    if turn.transpose:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels[:: -1 if turn.mirror_y else 1, :: -1 if turn.mirror_x else 1])


def read_orientation(tiff: bytes) -> int:
    """The orientation in an EXIF block (what follows "Exif\\0\\0"); UPRIGHT if it has none, or none that can be read.

    Cameras and editors write many broken blocks round good pixels.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return UPRIGHT
    try:
        (place,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", tiff, place)
        for entry in range(num_entries):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, place + 2 + 12 * entry)
            if (tag, kind, count) == (_TAG, _SHORT, 1):
                return value if value in _TURNS else UPRIGHT
    except struct.error:
        return UPRIGHT
    return UPRIGHT
