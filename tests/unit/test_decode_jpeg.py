"""The native region decode against simplejpeg's decode of the whole image: the very same pixels."""

import ctypes
import io
import re
from collections.abc import Iterator

import numpy as np
import pytest
from image_files import encoded
from jpeg_files import KINDS, encoded_cmyk, scene, subsampled
from numpy.typing import NDArray
from PIL import Image

from kernels.native.build import NotBuilt
from pipelines.decode import UndecodableImage, decode_box, size_of
from pipelines.decode_jpeg import SCALES, decode_region, decode_whole, load_library
from pipelines.jpeg_header import DamagedJpeg, read_header
from pipelines.orientation import Box

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    try:
        return load_library()
    except NotBuilt as reason:
        pytest.skip(f"needs the native region decode: {reason}")


def boxes(height: int, width: int, seed: int, number: int) -> Iterator[Box]:
    """Random ones, and those that touch each edge or corner or are one pixel."""
    yield Box(0, 0, width, height)
    yield Box(width - 1, height - 1, 1, 1)
    yield Box(0, height // 2, width, 1)
    yield Box(width // 2, 0, 1, height)
    rng = np.random.default_rng(seed)
    for _ in range(number):
        left, top = int(rng.integers(width)), int(rng.integers(height))
        yield Box(left, top, int(rng.integers(1, width - left + 1)), int(rng.integers(1, height - top + 1)))


def cut(pixels: Pixels, box: Box) -> Pixels:
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", SCALES)
def test_a_region_has_the_pixels_of_the_whole(library: ctypes.CDLL, kind: str, scale: int) -> None:
    for seed, (height, width) in enumerate([(97, 131), (128, 64), (17, 300), (33, 33)]):
        content = subsampled(kind, height, width, seed)
        header = read_header(content)
        assert (header.height, header.width, header.common) == (height, width, True)
        for channels in (1, 3):
            whole = decode_whole(content, header, scale, channels)
            for box in boxes(*whole.shape[:2], seed=seed, number=30):
                region = decode_region(library, content, box, scale, channels)
                assert np.array_equal(region, cut(whole, box)), (box, channels)


def test_grey_with_useless_sampling_factors_is_read(library: ctypes.CDLL) -> None:
    """They mean nothing for one component; some encoders write 2x2."""
    plain = subsampled("Gray", 50, 70)
    content = with_sampling(plain, 0x22)
    for scale in SCALES:
        whole = decode_whole(plain, read_header(plain), scale, 3)
        for box in boxes(*whole.shape[:2], seed=0, number=30):
            assert np.array_equal(decode_region(library, content, box, scale, 3), cut(whole, box))


def test_restart_markers_are_passed(library: ctypes.CDLL) -> None:
    content = encoded(scene(90, 90), "JPEG", restart_marker_rows=1, quality=85)
    assert b"\xff\xdd" in content
    whole = decode_whole(content, read_header(content), 1, 3)
    for box in boxes(90, 90, seed=0, number=30):
        assert np.array_equal(decode_region(library, content, box, 1, 3), cut(whole, box))


def test_unusual_samplings_and_cmyk_are_decoded_by_pillow() -> None:
    """Chroma finer than luma: as many blocks as 4:2:2 has, so its header can be changed; the colours are wild."""
    odd = with_sampling(subsampled("422", 32, 32), 0x11, 0x21, 0x11)
    cmyk = encoded_cmyk(scene(32, 32))
    for content in (odd, cmyk):
        assert not read_header(content).common
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert np.array_equal(decode_box(content, (3, 5, 20, 20), 20, 3), expected[5:25, 3:23])


def with_sampling(content: bytes, *factors: int) -> bytes:
    """The JPEG, its frame header saying other sampling factors."""
    changed = bytearray(content)
    frame = content.index(b"\xff\xc0")
    for i, factor in enumerate(factors):
        changed[frame + 11 + 3 * i] = factor
    return bytes(changed)


def with_odd_scan_header(content: bytes) -> bytes:
    """Some cameras write that a sequential scan ends at coefficient 0."""
    scan = content.index(b"\xff\xda")
    end_of_spectrum = scan + 2 + int.from_bytes(content[scan + 2 : scan + 4], "big") - 2
    assert content[end_of_spectrum] == 63
    return content[:end_of_spectrum] + b"\0" + content[end_of_spectrum + 1 :]


@pytest.mark.parametrize("kind", ["420", "progressive 420"])
def test_warnings_that_harm_no_pixel_are_passed_over(library: ctypes.CDLL, kind: str) -> None:
    content = subsampled(kind, 40, 40)
    whole = decode_whole(content, read_header(content), 1, 3)
    changed = [content[:-2] + b"\x12\x34" + content[-2:]]
    if kind == "420":
        changed.append(with_odd_scan_header(content))
    for other in changed:
        assert other != content
        assert np.array_equal(decode_whole(other, read_header(other), 1, 3), whole)
        assert np.array_equal(decode_region(library, other, Box(0, 0, 40, 40), 1, 3), whole)


def test_pixels_that_would_be_guessed_are_an_error(library: ctypes.CDLL) -> None:
    content = subsampled("420", 96, 96)
    scan = content.index(b"\xff\xda")
    cut_off = content[: (scan + len(content)) // 2] + b"\xff\xd9"
    header = read_header(cut_off)
    with pytest.raises(DamagedJpeg, match=r"^Corrupt JPEG data: premature end of data segment$"):
        decode_region(library, cut_off, Box(0, 0, 96, 96), 1, 3)
    with pytest.raises(DamagedJpeg, match=r"^Corrupt JPEG data: premature end of data segment$"):
        decode_whole(cut_off, header, 1, 3)


def test_damage_below_the_box_is_not_read(library: ctypes.CDLL) -> None:
    content = subsampled("420", 96, 96)
    cut_off = content[: len(content) * 3 // 4] + b"\xff\xd9"
    box = Box(0, 0, 96, 8)
    assert np.array_equal(decode_region(library, cut_off, box, 1, 3), decode_region(library, content, box, 1, 3))


def test_a_progressive_image_without_its_last_scans_is_refused() -> None:
    """Decoders smooth it, each version of libjpeg-turbo in its own way."""
    content = subsampled("progressive 420", 64, 64)
    scans = [match.start() for match in re.finditer(rb"\xff\xda", content)]
    for scan in scans[1:]:
        with pytest.raises(UndecodableImage, match=r"^the progressive JPEG ends before its last scan$"):
            size_of(content[:scan] + b"\xff\xd9")
    assert size_of(content) == (64, 64)


def test_a_box_outside_of_the_image_is_refused_by_the_native_code(library: ctypes.CDLL) -> None:
    content = subsampled("420", 40, 50)
    for box in (Box(-1, 0, 5, 5), Box(0, 0, 51, 5), Box(0, 36, 5, 5), Box(3, 3, 0, 5), Box(2**31 - 1, 0, 2**31 - 1, 1)):
        with pytest.raises(DamagedJpeg, match=r"^the rectangle lies outside of the 50x40 pixels$"):
            decode_region(library, content, box, 1, 3)
