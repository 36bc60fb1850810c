import contextlib
import io
import random
import warnings
from typing import Any

import numpy as np
import pytest
from image_files import encoded
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from pipelines.decode import UndecodableImage, decode

Pixels = NDArray[np.uint8]


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def smooth(height: int, width: int) -> Pixels:
    """What a photo is like for a JPEG: little change from pixel to pixel."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / width * a + y / height * b) for a, b in ((3, 2), (5, 1), (2, 6))]
    return np.round(127.5 * (1 + np.stack(waves, axis=-1))).astype(np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_pixels_of_the_right_size_and_kind_are_left_alone(kind: str) -> None:
    pixels = noise(7, 7, 3)
    assert np.array_equal(decode(encoded(pixels, kind), 7, 3), pixels)
    assert np.array_equal(decode(encoded(pixels[..., 0], kind), 7, 1)[..., 0], pixels[..., 0])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("grey", [False, True])
def test_a_jpeg_is_decoded_as_pillow_does(channels: int, grey: bool) -> None:
    """Grey from colours is the luma as stored, as Pillow's draft mode gives it."""
    content = encoded(smooth(32, 32)[..., 0] if grey else smooth(32, 32), "JPEG", quality=90)
    image = Image.open(io.BytesIO(content))
    mode = "L" if channels == 1 else "RGB"
    image.draft(mode, image.size)
    expected = np.asarray(image.convert(mode))
    assert np.array_equal(decode(content, 32, channels), expected.reshape(32, 32, channels))


@pytest.mark.parametrize(
    ("height", "width"), [(32, 32), (59, 59), (20, 33), (33, 20), (7, 7), (40, 60), (72, 48), (16, 48), (20, 300)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_fitted_as_torchvisions_resize_and_center_crop_do(height: int, width: int, channels: int) -> None:
    """In sizes where they scale both sides alike and crop between pixels of the original. Tolerance: both round twice
    to whole values, after weights of different precision."""
    pixels = noise(height, width, channels)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    resized = functional.resize(image, [20], InterpolationMode.BILINEAR, antialias=True)
    left, top = (resized.width - 20) // 2, (resized.height - 20) // 2
    expected = np.asarray(resized.crop((left, top, left + 20, top + 20)), np.int16).reshape(20, 20, channels)
    inner = slice(2, -2)  # at the edges of the crop pixels outside of it count for torchvision
    assert np.abs(decode(encoded(np.asarray(image)), 20, channels) - expected)[inner, inner].max() <= 1


@pytest.mark.parametrize(("height", "width"), [(71, 48), (33, 47), (21, 22), (37, 400)])
def test_the_central_square_is_cut_at_whole_pixels_of_the_original(height: int, width: int) -> None:
    """Of any size, and nothing outside of it counts. Tolerance as above."""
    image = Image.fromarray(noise(height, width, 3))
    short = min(height, width)
    left, top = (width - short) // 2, (height - short) // 2
    square = image.crop((left, top, left + short, top + short)).resize((20, 20), Image.Resampling.BILINEAR)
    assert np.abs(decode(saved(image), 20, 3) - np.asarray(square, np.int16)).max() <= 1


def test_scaling_is_antialiased() -> None:
    """A checkerboard of single pixels becomes grey; without antialiasing it stays black and white."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    inner = decode(encoded(board), 16, 1)[2:-2, 2:-2]
    assert np.abs(inner.astype(int) - 127).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_large_image_is_made_smaller_as_pillow_does(kind: str) -> None:
    """A JPEG in its own transform first. Tolerance: smooth pixels change by at most 4 between neighbours of the result,
    so half a pixel is 2, and the two roundings and JPEG's scaled transform add at most 2 more."""
    content = encoded(smooth(500, 700), kind, **({"quality": 95} if kind == "JPEG" else {}))
    image = Image.open(io.BytesIO(content)).convert("RGB").crop((100, 0, 600, 500))
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(decode(content, 32, 3).astype(int) - expected).max() <= 4


def test_a_long_thin_image_is_scaled_without_its_whole_length() -> None:
    """Scaled as a whole to a short side of 512 it would take 30 GB."""
    assert decode(encoded(noise(1, 40_000, 3)), 512, 3).shape == (512, 512, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_images_are_turned_as_exif_says(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(smooth(12, 16), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    left, top = (upright.width - 12) // 2, (upright.height - 12) // 2
    assert np.array_equal(decode(content, 12, 3), np.asarray(upright.crop((left, top, left + 12, top + 12))))


def test_an_orientation_that_cannot_be_read_counts_as_upright() -> None:
    content = encoded(smooth(12, 12), "JPEG", exif=b"Exif\0\0nonsense")
    expected = np.asarray(Image.open(io.BytesIO(content)))
    assert np.array_equal(decode(content, 12, 3), expected)


def over_black(rgba: Pixels) -> NDArray[np.float64]:
    return rgba[..., :3] * (rgba[..., 3:] / 255.0)


def test_transparency_is_laid_over_black() -> None:
    rgba = noise(9, 9, 4)
    assert np.abs(decode(encoded(rgba), 9, 3) - over_black(rgba)).max() <= 1


def test_grey_with_transparency_is_laid_over_black() -> None:
    pixels = noise(9, 9, 2)
    content = saved(Image.merge("LA", [Image.fromarray(pixels[..., i]) for i in range(2)]))
    expected = over_black(pixels[..., [0, 0, 0, 1]])
    assert np.abs(decode(content, 9, 3) - expected).max() <= 1
    assert np.abs(decode(content, 9, 1) - expected[..., :1]).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palettes_are_looked_up_and_their_transparent_colour_is_black(kind: str) -> None:
    index = np.arange(16, dtype=np.uint8).reshape(4, 4)
    palette = noise(16, 3, seed=3)
    image = Image.fromarray(index, "L")
    image.putpalette(palette.tobytes())
    assert np.array_equal(decode(saved(image, kind), 4, 3), palette[index])
    palette[5] = 0
    assert np.array_equal(decode(saved(image, kind, transparency=5), 4, 3), palette[index])


def test_a_transparent_colour_of_a_grey_or_rgb_image_is_black() -> None:
    grey = Image.new("L", (3, 3), 200)
    assert not decode(saved(grey, transparency=200), 3, 1).any()
    assert not decode(saved(grey.convert("RGB"), transparency=(200, 200, 200)), 3, 3).any()


def test_sixteen_bits_keep_their_upper_eight() -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (6, 6), np.uint16)
    expected = (values >> 8).astype(np.uint8)[..., np.newaxis]
    pgm = b"P5 6 6 65535\n" + values.astype(">u2").tobytes()
    for content in (encoded(values), encoded(values, "TIFF"), encoded(values.astype(">u2"), "TIFF"), pgm):
        assert np.array_equal(decode(content, 6, 1), expected)
        assert np.array_equal(decode(content, 6, 3), np.repeat(expected, 3, axis=2))


@pytest.mark.parametrize("values", [np.ones((4, 4), np.float32), np.ones((4, 4), np.int32)])
def test_pixels_without_a_fixed_range_are_refused(values: NDArray[Any]) -> None:
    with pytest.raises(UndecodableImage, match="have no fixed range; save it with 8 or 16 bits a value"):
        decode(encoded(values, "TIFF"), 4, 1)


def test_black_and_white_becomes_0_and_255() -> None:
    bits = noise(8, 8) > 127
    assert np.array_equal(decode(saved(Image.fromarray(bits)), 8, 1)[..., 0], bits * np.uint8(255))


def test_cmyk_is_converted() -> None:
    inks = smooth(16, 16)
    image = Image.merge("CMYK", [Image.fromarray(inks[..., i]) for i in (0, 1, 2, 0)])
    content = saved(image, "JPEG", quality=95)
    assert np.array_equal(decode(content, 16, 3), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(content, 4, 1) == 10).all()


@pytest.mark.parametrize(("given", "channels"), [(1, 1), (1, 3), (3, 3), (3, 1)])
@pytest.mark.parametrize("size", [8, 20])
def test_arrays_are_fitted_like_files(given: int, channels: int, size: int) -> None:
    pixels = noise(8, 8, given)
    before = pixels.copy()
    content = encoded(pixels[..., 0] if given == 1 else pixels)
    assert np.array_equal(decode(pixels, size, channels), decode(content, size, channels))
    assert np.array_equal(pixels, before)


JPEG = encoded(smooth(40, 40), "JPEG")
PNG = encoded(noise(40, 40, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "^the file is empty$"),
        (b"<html>not found</html>", "^no known image format; it begins with b'<html>not found<'$"),
        (JPEG[:-40], "^the JPEG is cut off: it has no end marker$"),
        (JPEG[:200], "^the JPEG is cut off before its first scan$"),
        (PNG[: len(PNG) // 2], r"^OSError: image file is truncated"),
        (PNG[:200] + b"\0" * 50 + PNG[250:], "^(OSError|SyntaxError): .*broken"),
    ],
    ids=["empty", "html", "cut jpeg", "cut jpeg header", "cut png", "damaged png"],
)
def test_what_is_wrong_with_a_file_is_said(content: bytes, message: str) -> None:
    with pytest.raises(UndecodableImage, match=message):
        decode(content, 32, 3)


def test_an_image_of_far_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        UndecodableImage, match=r"^Image size .* exceeds limit of 200 pixels, .* take it out of the data"
    ):
        decode(PNG, 32, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_damaged_bytes_give_pixels_or_the_one_error(kind: str) -> None:
    rng = random.Random(0)
    whole = encoded(smooth(24, 24), kind)
    for _ in range(300):
        content = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.3 else whole)
        for _ in range(rng.randint(0, 5) if content else 0):
            content[rng.randrange(len(content))] = rng.randrange(256)
        with warnings.catch_warnings(), contextlib.suppress(UndecodableImage):
            warnings.simplefilter("ignore")  # Pillow warns of some damage that it reads past
            assert decode(bytes(content), 16, 3).shape == (16, 16, 3)
