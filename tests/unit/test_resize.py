import shutil
import subprocess
import sys

import numpy as np
import pytest

from kernels.native import build
from pipelines import resize
from pipelines.resize import Pixels, load_library, resized, scale_natively, scaled_by_torch

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, build.COMPILERS)), reason="needs a C compiler")


def natively(pixels: Pixels, size: int, *, vectors: bool = True) -> Pixels:
    out = np.empty((size, size, pixels.shape[2]), np.uint8)
    scale_natively(load_library(), pixels, out, vectors=vectors)
    return out


def some_pixels(seed: int, channels: int, largest: int = 300) -> tuple[Pixels, int]:
    """An image of random size and a size to scale it to."""
    random = np.random.default_rng(seed)
    height, width, size = random.integers(1, largest, 3)
    return random.integers(0, 256, (height, width, channels), np.uint8), int(size)


@needs_compiler
@pytest.mark.parametrize("channels", [1, 3])
def test_the_native_code_makes_torchs_pixels_at_any_size(channels: int) -> None:
    for seed in range(150):
        pixels, size = some_pixels(seed, channels)
        expected = scaled_by_torch(pixels, size)
        assert np.array_equal(natively(pixels, size), expected), (pixels.shape, size)
        assert np.array_equal(natively(pixels, size, vectors=False), expected), (pixels.shape, size)


@needs_compiler
@pytest.mark.parametrize("shape", [(3000, 7), (7, 3000), (1, 1), (2, 5000), (1500, 1501)])
def test_extreme_shapes_are_scaled_as_by_torch(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    for size in (1, 5, 64, 224):
        assert np.array_equal(natively(pixels, size), scaled_by_torch(pixels, size))


@needs_compiler
def test_white_stays_white_and_black_black() -> None:
    for value in (0, 255):
        pixels = np.full((97, 131, 3), value, np.uint8)
        assert (natively(pixels, 60) == value).all()


@needs_compiler
@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_outside_of_the_result_is_written_and_nothing_outside_of_the_source_is_read(channels: int) -> None:
    for seed in range(40):
        pixels, size = some_pixels(seed, channels, 70)
        framed = np.full((pixels.shape[0] + 2, pixels.shape[1] + 2, channels), 255, np.uint8)
        framed[1:-1, 1:-1] = pixels
        memory = np.full((size + 2, size, size, channels), 7, np.uint8)
        scale_natively(load_library(), framed[1:-1, 1:-1], memory[1])
        assert np.array_equal(memory[1], scaled_by_torch(pixels, size))
        assert (memory[0] == 7).all()
        assert (memory[2:] == 7).all()


def test_turned_and_mirrored_views_are_scaled_like_copies() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (50, 40, 3), np.uint8)
    for view in (pixels[::-1], pixels[:, ::-1], pixels.swapaxes(0, 1), pixels[::2, ::3], pixels[..., ::-1]):
        assert np.array_equal(resized(view, 24, "antialias"), resized(view.copy(), 24, "antialias"))


def test_without_a_compiler_the_pixels_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, size = some_pixels(3, 3)
    expected = resized(pixels, size, "antialias")
    monkeypatch.setattr(resize, "_library", lambda: None)
    assert np.array_equal(resized(pixels, size, "antialias"), expected)


@needs_compiler
def test_the_result_lies_in_the_memory_that_was_offered() -> None:
    pixels, size = some_pixels(4, 3)
    offered = np.empty((size, size, 3), np.uint8)
    assert resized(pixels, size, "antialias", into=offered) is offered


@needs_compiler
def test_reading_decoding_and_scaling_need_no_torch() -> None:
    program = """
import sys, numpy as np
from pipelines.decode import decode_box
decode_box(np.zeros((9, 9, 3), np.uint8), (1, 1, 7, 7), 4, 3)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
