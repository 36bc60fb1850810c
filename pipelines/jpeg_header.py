"""What a JPEG says of itself before its pixels: size, orientation, kind, and whether it is whole.

ITU-T T.81 (1992), annex B: markers and segments. Read in Python, a few microseconds a segment, without libjpeg.
"""

import re
import struct
from dataclasses import dataclass

from pipelines.orientation import UPRIGHT, read_orientation, upright_size

# Sampling factors (horizontal, vertical) of colour images that every decoder in use reads alike: 4:4:4 in two ways,
# 4:2:2 in two, 4:4:0 in two, 4:2:0, 4:1:1 and its upright twin. TurboJPEG refuses others.
_COMMON_SAMPLING = {
    ((1, 1), (1, 1), (1, 1)), ((2, 1), (2, 1), (2, 1)),
    ((2, 1), (1, 1), (1, 1)), ((2, 2), (1, 2), (1, 2)),
    ((1, 2), (1, 1), (1, 1)), ((2, 2), (2, 1), (2, 1)),
    ((2, 2), (1, 1), (1, 1)), ((4, 1), (1, 1), (1, 1)), ((1, 4), (1, 1), (1, 1)),
}  # fmt: skip

_SOI, _EOI, _SOS, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_READABLE_FRAMES = {
    0xC0,
    0xC1,
    0xC2,
    0xC9,
    0xCA,
}  # baseline, extended, progressive; the last two with arithmetic coding
_PROGRESSIVE_FRAMES, _ARITHMETIC_FRAMES = {0xC2, 0xCA}, {0xC9, 0xCA}
_WITHOUT_LENGTH = {0x01, _EOI, *range(0xD0, 0xD8)}
# In entropy-coded data 0xFF is followed by 0 or a restart marker.
_AFTER_SCAN = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_NUM_SMOOTHED = 10  # libjpeg-turbo's block smoothing looks at the precision of this many coefficients


class DamagedJpeg(Exception):
    """The bytes begin as a JPEG does, but it cannot be read."""


@dataclass(frozen=True)
class JpegHeader:
    """`height` and `width` as stored. `common`: one or three components, in a usual sampling and Huffman-coded, which
    every libjpeg-turbo reads to the same pixels."""

    height: int
    width: int
    orientation: int
    common: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        return upright_size(self.height, self.width, self.orientation)


@dataclass(frozen=True)
class _Frame:
    height: int
    width: int
    sampling: tuple[tuple[int, int], ...]
    progressive: bool
    arithmetic: bool

    @property
    def common(self) -> bool:
        return (len(self.sampling) == 1 or self.sampling in _COMMON_SAMPLING) and not self.arithmetic


def is_jpeg(content: bytes) -> bool:
    return content[:3] == b"\xff\xd8\xff"


def read_header(content: bytes) -> JpegHeader:
    """Read up to the first scan, and look for the end.

    Raises: DamagedJpeg if a segment is cut off or of a kind that is not read, if the end marker is missing, or the last
    scans of a progressive image, which decoders would make up each in its own way.
    """
    frame, orientation, place = None, UPRIGHT, 2
    while True:
        marker, start, end = _segment(content, place)
        if marker in _FRAMES:
            frame = _read_frame(content, marker, start, end)
        elif marker == _APP1 and content[start : start + 6] == b"Exif\0\0":
            orientation = read_orientation(content[start + 6 : end])
        elif marker == _EOI:
            raise DamagedJpeg("the JPEG ends before its first scan")
        elif marker == _SOS:
            break
        place = end
    if frame is None:
        raise DamagedJpeg("the JPEG has a scan before its size")
    if content.rfind(b"\xff\xd9", end) < 0:
        raise DamagedJpeg("the JPEG is cut off: it has no end marker")
    if frame.progressive:
        _check_scans(content, place, len(frame.sampling))
    return JpegHeader(frame.height, frame.width, orientation, frame.common)


def _segment(content: bytes, place: int) -> tuple[int, int, int]:
    """The marker at `place`, and where its parameters start and end."""
    while content[place : place + 2] == b"\xff\xff":  # a marker may be preceded by any number of fill bytes
        place += 1
    if len(content) < place + 2:
        raise DamagedJpeg("the JPEG is cut off before its first scan")
    if content[place] != 0xFF or content[place + 1] in (0, _SOI):
        raise DamagedJpeg(f"the JPEG has no marker at byte {place}, where one has to be")
    marker, start = content[place + 1], place + 4
    if marker in _WITHOUT_LENGTH:
        return marker, place + 2, place + 2
    if len(content) < start:
        raise DamagedJpeg("the JPEG is cut off before its first scan")
    end = place + 2 + int.from_bytes(content[place + 2 : start], "big")
    if end < start:
        raise DamagedJpeg(f"the JPEG has a segment of impossible length at byte {place}")
    if len(content) < end:
        raise DamagedJpeg("the JPEG is cut off before its first scan")
    return marker, start, end


def _read_frame(content: bytes, marker: int, start: int, end: int) -> _Frame:
    if end - start < 6 or end - start != 6 + 3 * content[start + 5]:
        raise DamagedJpeg("the JPEG's frame header has an impossible length")
    bits, height, width, components = struct.unpack_from(">BHHB", content, start)
    if marker not in _READABLE_FRAMES or bits != 8:
        raise DamagedJpeg(
            f"a JPEG of process SOF{marker - 0xC0} with {bits} bits a value is not read; "
            "save it as a baseline or progressive one with 8 bits"
        )
    if not (height and width and components):
        raise DamagedJpeg(f"the JPEG says that it has {height}x{width} pixels of {components} components")
    factors = [content[start + 7 + 3 * i] for i in range(components)]
    sampling = tuple((factor >> 4, factor & 15) for factor in factors)
    return _Frame(height, width, sampling, marker in _PROGRESSIVE_FRAMES, marker in _ARITHMETIC_FRAMES)


def _check_scans(content: bytes, place: int, components: int) -> None:
    """Every low coefficient of every component must have come down to its last bit (T.81, G.1.1.1)."""
    unfinished: dict[int, list[bool]] = {}
    while (segment := _segment(content, place))[0] != _EOI:
        marker, start, place = segment
        if marker != _SOS:
            continue
        if place - start < 1 or place - start != 4 + 2 * content[start]:
            raise DamagedJpeg("the JPEG has a scan header of impossible length")
        first, last, precision = struct.unpack_from("3B", content, place - 3)
        for i in range(content[start]):
            coefficients = unfinished.setdefault(content[start + 1 + 2 * i], [True] * _NUM_SMOOTHED)
            for number in range(first, min(last + 1, _NUM_SMOOTHED)):
                coefficients[number] = precision & 15 != 0
        following = _AFTER_SCAN.search(content, place)
        if following is None:
            raise DamagedJpeg("the JPEG is cut off: it has no end marker")
        place = following.start()
    if len(unfinished) < components or any(map(any, unfinished.values())):
        raise DamagedJpeg("the progressive JPEG ends before its last scan")
