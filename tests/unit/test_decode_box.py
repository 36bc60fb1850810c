"""Boxes: which pixels they hold, in every orientation, from files and arrays, in any thread."""

import io
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from image_files import encoded
from jpeg_files import scene, subsampled
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipelines import decode as module
from pipelines.decode import UndecodableImage, decode, decode_box, size_of
from pipelines.orientation import Box, stored_box, turned, upright_size

Pixels = NDArray[np.uint8]
Floats4 = tuple[float, float, float, float]


def turned_file(pixels: Pixels, kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, kind, exif=exif)


def upright(content: bytes) -> Pixels:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_box_lies_in_the_upright_image(kind: str, orientation: int) -> None:
    content = turned_file(scene(47, 70), kind, orientation)
    expected = upright(content)
    assert size_of(content) == expected.shape[:2]
    for left, top in ((0, 0), (3, 7), (expected.shape[1] - 30, expected.shape[0] - 30)):
        box = (left, top, 30, 30)
        assert np.array_equal(decode_box(content, box, 30, 3), expected[top : top + 30, left : left + 30])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_resized_box_of_a_turned_image_is_that_of_the_upright_one(orientation: int) -> None:
    """Tolerance: the resize rounds after each of its two passes, whose order a transposition swaps."""
    content = turned_file(scene(90, 130), "PNG", orientation)
    box = (11, 4, 71, 55)
    expected = decode_box(encoded(upright(content)), box, 24, 3).astype(int)
    assert np.abs(decode_box(content, box, 24, 3) - expected).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_where_a_box_is_stored_and_how_pixels_are_turned_fit(orientation: int) -> None:
    stored = scene(13, 20)
    whole = turned(stored, orientation)
    assert upright_size(13, 20, orientation) == whole.shape[:2]
    box = Box(2, 5, 6, 4)
    place = stored_box(box, (whole.shape[0], whole.shape[1]), orientation)
    part = stored[place.top : place.top + place.height, place.left : place.left + place.width]
    assert np.array_equal(turned(part, orientation), whole[5:9, 2:8])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "array"])
@pytest.mark.parametrize(
    ("box", "rounded"),
    [
        ((10.4, 3.5, 20.2, 30.0), (10, 4, 21, 30)),
        ((10.6, 2.2, 0.1, 0.1), (11, 2, 1, 1)),
        ((59.8, 39.9, 0.2, 0.1), (59, 39, 1, 1)),
        ((-0.4, -1e-9, 60.4, 40.0), (0, 0, 60, 40)),
        ((0.0, 0.0, 60.4, 40.4), (0, 0, 60, 40)),
    ],
)
def test_edges_are_rounded_to_whole_pixels(kind: str, box: Floats4, rounded: Floats4) -> None:
    pixels = scene(40, 60)
    content = pixels if kind == "array" else encoded(pixels, kind)
    for size in (7, 20, 64):
        assert np.array_equal(decode_box(content, box, size, 3), decode_box(content, rounded, size, 3))


@pytest.mark.parametrize(
    "box", [(0, 0, 61, 10), (-1, 0, 5, 5), (0, 38, 5, 5), (3, 3, 0, 5), (3, 3, 5, -1), (float("nan"), 0, 5, 5)]
)
def test_a_box_that_is_not_inside_the_image_is_refused(box: Floats4) -> None:
    for content in (scene(40, 60), encoded(scene(40, 60)), subsampled("420", 40, 60)):
        with pytest.raises(ValueError, match=r"^box: got .* must lie inside the image of 60x40 pixels$"):
            decode_box(content, box, 8, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_box_is_resized_like_its_own_pixels(kind: str, channels: int) -> None:
    """Pixels beside the box do not count; all formats share the resize."""
    content = encoded(scene(60, 80), kind)
    image = Image.open(io.BytesIO(content))
    if channels == 1:
        image.draft("L", image.size)
    whole = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(60, 80, channels)
    part = whole[5:52, 9:61]
    assert np.array_equal(
        decode_box(content, (9, 5, 52, 47), 40, channels), decode_box(part, (0, 0, 52, 47), 40, channels)
    )
    linear = decode_box(content, (9, 5, 52, 47), 40, channels, resize="linear")
    expected = cv2.resize(np.ascontiguousarray(part), (40, 40), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(linear, expected.reshape(40, 40, channels))


def test_pixels_that_fit_are_not_resized() -> None:
    content = subsampled("420", 40, 40)
    whole = decode(content, 40, 3)
    assert np.array_equal(whole, decode_box(content, (0, 0, 40, 40), 40, 3, resize="linear"))
    assert decode_box(whole, (0, 0, 40, 40), 40, 3) is whole


def test_read_only_arrays_are_resized_and_stay_as_they_are() -> None:
    pixels = scene(40, 60)
    pixels.flags.writeable = False
    before = pixels.copy()
    for resize in ("antialias", "linear"):
        assert decode_box(pixels, (0, 0, 60, 40), 9, 3, resize=resize).shape == (9, 9, 3)
        assert decode_box(pixels, (3, 2, 30, 20), 9, 1, resize=resize).shape == (9, 9, 1)
    assert np.array_equal(pixels, before)


def waves(height: int, width: int) -> Pixels:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([127 + 90 * np.sin(x / 25 + i) + 30 * np.cos(y / 40 * (i + 1)) for i in range(3)], -1).astype(
        np.uint8
    )


@pytest.mark.parametrize(("size", "scale"), [(76, 1), (75, 2), (38, 2), (37, 4), (18, 8), (5, 8)])
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_holds_twice_the_size(
    monkeypatch: pytest.MonkeyPatch, size: int, scale: int
) -> None:
    """Tolerance: the box's edges are rounded to whole pixels at that scale, at most 1/4 of a pixel of the result, and a
    pixel of the image differs from its neighbour by less than 90 / 25 + 2 * 30 / 40; 4 for the roundings."""
    taken = []
    decode_rectangle = module.decode_rectangle

    def spy(content: bytes, header: object, box: Box, used: int, channels: int) -> Pixels:
        taken.append(used)
        return decode_rectangle(content, header, box, used, channels)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "decode_rectangle", spy)
    pixels = waves(333, 500)
    content = encoded(pixels, "JPEG", quality=97)
    box = (101, 13, 303, 310)
    result = decode_box(content, box, size, 3).astype(int)
    assert taken == [scale]
    expected = decode_box(pixels, box, size, 3)
    assert np.abs(result - expected).max() <= 4 + (310 / size) / 4 * (90 / 25 + 2 * 30 / 40)


def test_any_number_of_threads_gives_the_same_pixels() -> None:
    contents = [subsampled(kind, 90, 120, seed) for seed in range(4) for kind in ("420", "progressive 420", "444")]
    contents += [contents[0][: len(contents[0]) // 2] + b"\xff\xd9"]

    def one(number: int) -> bytes | str:
        try:
            return decode_box(contents[number % len(contents)], (7, 9, 80, 75), 32, 3).tobytes()
        except UndecodableImage as error:
            return str(error)

    alone = [one(number) for number in range(len(contents))]
    assert isinstance(alone[-1], str)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(20 * len(contents)))) == alone * 20


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_the_size_is_read_from_the_header_alone(kind: str) -> None:
    content = encoded(scene(300, 200), kind)
    assert size_of(content) == (300, 200)
    if kind in ("PNG", "BMP", "PPM"):
        assert size_of(content[:100]) == (300, 200)
    assert size_of(scene(3, 5)) == (3, 5)


def test_a_file_is_not_opened_by_a_program() -> None:
    """Pillow hands PostScript to Ghostscript."""
    stream = io.BytesIO()
    Image.fromarray(scene(8, 8)).save(stream, "EPS")
    with pytest.raises(UndecodableImage, match=r"^no known image format; it begins with b'%!PS"):
        decode(stream.getvalue(), 8, 3)
