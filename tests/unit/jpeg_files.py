"""JPEGs of every kind that a decoder meets, for the tests of decoding."""

import io

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from image_files import encoded
from numpy.typing import NDArray
from PIL import Image

KINDS = ["444", "422", "420", "440", "411", "Gray", "progressive 420", "progressive 444", "progressive grey", "rgb"]


def scene(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Coarse patches of colour under fine noise: sharp edges in chroma, as upsampling has to meet them."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (height // 5 + 1, width // 5 + 1, 3)).repeat(5, axis=0).repeat(5, axis=1)
    return np.clip(patches[:height, :width] + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def subsampled(kind: str, height: int, width: int, seed: int = 0) -> bytes:
    """`kind`: 444, 422, 420, 440, 411, Gray, or one that Pillow writes: progressive, progressive grey, optimized."""
    pixels = scene(height, width, seed)
    if kind == "Gray":
        grey = np.ascontiguousarray(pixels[..., :1])
        return bytes(simplejpeg.encode_jpeg(grey, quality=85, colorspace="GRAY", colorsubsampling="Gray"))
    if kind == "rgb":
        return encoded(pixels, "JPEG", quality=85, keep_rgb=True)
    if kind.startswith("progressive"):
        image = pixels[..., 0] if kind.endswith("grey") else pixels
        return encoded(image, "JPEG", progressive=True, quality=85, subsampling=2 if kind == "progressive 420" else 0)
    return bytes(simplejpeg.encode_jpeg(pixels, quality=85, colorsubsampling=kind))


def encoded_cmyk(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(stream, "JPEG")
    return stream.getvalue()
