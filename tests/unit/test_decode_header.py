import struct

import pytest
from image_files import encoded
from jpeg_files import scene, subsampled

from pipelines.jpeg_header import DamagedJpeg, read_header
from pipelines.orientation import read_orientation

FRAME, SCAN = b"\xff\xc0", b"\xff\xda"
JPEG = subsampled("420", 30, 50)


def exif(order: str, value: int, *, tag: int = 0x0112, kind: int = 3) -> bytes:
    """An EXIF block with a tag before the one that counts."""
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    first = struct.pack(f"{order}HHII", 0x0100, 4, 1, 99)
    return head + struct.pack(f"{order}H", 2) + first + struct.pack(f"{order}HHIHH", tag, kind, 1, value, 0) + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_read_in_both_byte_orders(order: str, orientation: int) -> None:
    assert read_orientation(exif(order, orientation)) == orientation


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"II*\0",
        b"nonsense, long enough",
        exif("<", 0),
        exif("<", 9),
        exif("<", 6, tag=0x0113),
        exif("<", 6, kind=2),
        exif("<", 6)[:30],
        b"II*\0\xff\xff\xff\xff" + exif("<", 6)[8:],
        exif("<", 6)[:8] + b"\xff\xff" + bytes(12),
    ],
)
def test_an_orientation_that_is_missing_or_broken_counts_as_upright(block: bytes) -> None:
    assert read_orientation(block) == 1


def with_segment(content: bytes, before: bytes, segment: bytes) -> bytes:
    place = content.index(before)
    return content[:place] + segment + content[place:]


def app1(block: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", 8 + len(block)) + b"Exif\0\0" + block


def test_size_and_orientation_are_read_wherever_they_stand() -> None:
    assert read_header(JPEG).size == (30, 50)
    for place in (FRAME, SCAN):
        header = read_header(with_segment(JPEG, place, app1(exif(">", 6))))
        assert (header.height, header.width, header.orientation, header.size) == (30, 50, 6, (50, 30))


def test_fill_bytes_comments_and_what_follows_the_image_do_not_matter() -> None:
    filled = with_segment(JPEG, FRAME, b"\xff\xff\xff\xfe\x00\x06\xff\xc0\xff\xda")
    assert read_header(filled) == read_header(JPEG)
    assert read_header(JPEG + bytes(1000)) == read_header(JPEG)


def test_the_end_of_a_thumbnail_is_not_that_of_the_image() -> None:
    cut = with_segment(JPEG, FRAME, app1(exif("<", 1) + JPEG))[:-2]
    with pytest.raises(DamagedJpeg, match=r"^the JPEG is cut off: it has no end marker$"):
        read_header(cut)


def changed(place: bytes, offset: int, new: bytes, content: bytes = JPEG) -> bytes:
    start = content.index(place) + offset
    return content[:start] + new + content[start + len(new) :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(FRAME, 1, b"\xc3"), "a JPEG of process SOF3 with 8 bits a value is not read; save it as a baseline"),
        (changed(FRAME, 4, b"\x0c"), "a JPEG of process SOF0 with 12 bits a value is not read"),
        (changed(FRAME, 5, b"\0\0"), "the JPEG says that it has 0x50 pixels of 3 components"),
        (changed(FRAME, 9, b"\4"), "the JPEG's frame header has an impossible length"),
        (changed(FRAME, 2, b"\0\1"), "the JPEG has a segment of impossible length at byte"),
        (changed(FRAME, 2, b"\xff\xff"), "the JPEG is cut off before its first scan"),
        (changed(FRAME, 0, b"\0"), "the JPEG has no marker at byte"),
        (changed(FRAME, 1, b"\xfe"), "the JPEG has a scan before its size"),
        (JPEG[:2] + b"\xff\xd9", "the JPEG ends before its first scan"),
        (JPEG[:2], "the JPEG is cut off before its first scan"),
        (JPEG[: JPEG.index(SCAN) + 3], "the JPEG is cut off before its first scan"),
    ],
)
def test_what_is_wrong_with_a_header_is_said(content: bytes, message: str) -> None:
    with pytest.raises(DamagedJpeg, match=rf"^{message}"):
        read_header(content)


def test_a_progressive_image_needs_all_scans_of_all_components() -> None:
    content = encoded(scene(40, 40), "JPEG", progressive=True)
    assert read_header(content).common
    first_scan = content.index(SCAN)
    only_luma = changed(SCAN, 4, b"\1\1\0\1\0", content)  # a header of one component cannot have that length
    with pytest.raises(DamagedJpeg, match=r"^the JPEG has a scan header of impossible length$"):
        read_header(only_luma)
    with pytest.raises(DamagedJpeg, match=r"^the progressive JPEG ends before its last scan$"):
        read_header(content[: content.index(SCAN, first_scan + 2)] + b"\xff\xd9")
