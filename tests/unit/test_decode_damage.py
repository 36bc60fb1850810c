"""Damaged and hostile files: pixels or UndecodableImage, in bounded memory, without a byte read or written outside."""

import functools
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import encoded
from jpeg_files import KINDS, encoded_cmyk, scene, subsampled

from kernels.native.build import COMPILERS
from pipelines import decode as module
from pipelines.decode import MAX_PIXELS, UndecodableImage, decode, decode_box, size_of

ROOT = Path(__file__).parents[2]


def mutated(whole: bytes, rng: random.Random) -> bytes:
    """Cut off, or with bits flipped, bytes replaced, pieces taken out or repeated."""
    content = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content))
        kind = rng.randrange(5)
        if kind == 0:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[place] = rng.randrange(256)
        elif kind == 2:
            del content[place : place + rng.randint(1, 40)]
        elif kind == 3:
            content[place:place] = content[place : place + rng.randint(1, 40)]
        elif rng.random() < 0.3:
            del content[max(place, 4) :]
        if len(content) < 4:
            break
    return bytes(content)


@pytest.mark.parametrize("kind", [*KINDS, "cmyk"])
def test_damaged_jpegs_give_pixels_or_the_one_error(kind: str) -> None:
    rng = random.Random(kind)
    whole = encoded_cmyk(scene(60, 80)) if kind == "cmyk" else subsampled(kind, 60, 80)
    outcomes = {"pixels": 0, "refused": 0}
    for _ in range(120):
        content = mutated(whole, rng)
        size, channels = rng.choice([5, 16, 40]), rng.choice([1, 3])
        try:
            height, width = size_of(content)
            left, top = rng.uniform(0, width - 1), rng.uniform(0, height - 1)
            box = (left, top, rng.uniform(0.5, width - left), rng.uniform(0.5, height - top))
            pixels = decode_box(content, rng.choice([None, box]), size, channels)
        except UndecodableImage:
            outcomes["refused"] += 1
        else:
            assert (pixels.shape, pixels.dtype) == ((size, size, channels), np.uint8)
            outcomes["pixels"] += 1
    assert min(outcomes.values()) > 5, outcomes


def png(width: int, height: int, pixels: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A grey PNG of 1 bit a pixel; `pixels` compressed."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


@functools.cache
def zeros(number: int) -> bytes:
    """That many zero bytes, compressed a thousandfold."""
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(bytes(min(2**20, number - i))) for i in range(0, number, 2**20)) + packer.flush()


def huge_png() -> bytes:
    return png(30_000, 30_000, zeros(30_000 * (1 + 30_000 // 8)))


def text_bomb() -> bytes:
    return png(8, 8, zeros(16), (b"zTXt", b"Comment\0\0" + zeros(2**28)))


def profile_bomb() -> bytes:
    return png(8, 8, zeros(16), (b"iCCP", b"profile\0\0" + zeros(2**28)))


def pixel_bomb() -> bytes:
    """Pixels go on behind the last row."""
    return png(8, 8, zeros(2**28))


def huge_jpeg() -> bytes:
    content = bytearray(encoded(scene(16, 16), "JPEG", progressive=True))
    frame = content.index(b"\xff\xc2")
    content[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(content)


def huge_gif() -> bytes:
    content = bytearray(encoded(scene(4, 4)[..., 0], "GIF"))
    content[6:10] = struct.pack("<HH", 65_535, 65_535)
    return bytes(content)


BOMBS: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "30,000 x 30,000 PNG": (huge_png, "Image size .900000000 pixels. exceeds limit of"),
    "JPEG that says 65,500 x 65,500": (huge_jpeg, f"it has 65500x65500 pixels, more than {MAX_PIXELS} in all"),
    "GIF that says 65,535 x 65,535": (huge_gif, "exceeds limit of"),
    "256 MiB of text": (text_bomb, "Decompressed data too large"),
    "256 MiB of colour profile": (profile_bomb, "too large"),
    "256 MiB behind 8 x 8 pixels": (pixel_bomb, None),
}

IN_LITTLE_MEMORY = """
import json, resource, sys
from pathlib import Path
from pipelines.decode import UndecodableImage, decode, size_of
from pipelines.decode_jpeg import native_status
native_status()
contents = [Path(path).read_bytes() for path in sys.argv[1:]]
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, used + 2**27))

def outcome(read, content):
    try:
        return "read " + str(read(content)) if read is size_of else f"read {read(content).shape}"
    except (UndecodableImage, MemoryError) as error:
        return f"{type(error).__name__}: {error}"

readers = (size_of, lambda content: decode(content, 8, 1))
print(json.dumps([[outcome(read, content) for read in readers] for content in contents]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: limits the memory of a process")
def test_bombs_are_read_or_refused_in_128_mib(tmp_path: Path) -> None:
    paths = []
    for number, (make, _) in enumerate(BOMBS.values()):
        paths.append(str(tmp_path / f"{number}"))
        Path(paths[-1]).write_bytes(make())
    command = [sys.executable, "-c", IN_LITTLE_MEMORY, *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcomes = dict(zip(BOMBS, json.loads(done.stdout), strict=True))
    for name, (_, refusal) in BOMBS.items():
        if refusal is None:
            assert outcomes[name] == ["read (8, 8)", "read (8, 8, 1)"], name
        else:
            assert all(re.search(f"^UndecodableImage: .*{refusal}", outcome) for outcome in outcomes[name]), outcomes


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_more_pixels_than_the_limit_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    content = encoded(scene(30, 50), kind)
    monkeypatch.setattr(module, "MAX_PIXELS", 1500)
    assert decode(content, 30, 3).shape == (30, 30, 3)
    monkeypatch.setattr(module, "MAX_PIXELS", 1499)
    message = "^it has 50x30 pixels, more than 1499 in all. Make it smaller, or take it out of the data.$"
    for read in (size_of, lambda content: decode(content, 30, 3)):
        with pytest.raises(UndecodableImage, match=message):
            read(content)


SANITIZED = ("-g", "-O1", "-std=c11", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """jpeg_region.c in a program of its own, with the sanitizers."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "empty.c").write_text("#include <stdio.h>\n#include <jpeglib.h>\nint main(void) { return 0; }\n")
    probe = [compiler, *SANITIZED, str(folder / "empty.c"), "-o", str(folder / "empty"), "-ljpeg"]
    if subprocess.run(probe, capture_output=True).returncode != 0 or subprocess.run([folder / "empty"]).returncode:
        pytest.skip("needs a compiler with the address and undefined-behaviour sanitizers, and jpeglib.h")
    native = Path(module.__file__).parent / "native" / "jpeg_region.c"
    sources = [str(native), str(Path(__file__).parent / "jpeg_region_driver.c")]
    subprocess.run([compiler, *SANITIZED, "-Wall", *sources, "-o", str(folder / "driver"), "-ljpeg"], check=True)
    return folder / "driver"


def test_the_sanitizers_find_nothing_in_whole_and_damaged_jpegs(driver: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    arguments = []
    for kind in (*KINDS, "cmyk"):
        whole = encoded_cmyk(scene(60, 80)) if kind == "cmyk" else subsampled(kind, 60, 80)
        cut = whole[: len(whole) // 2]
        for number, content in enumerate([whole, cut, *(mutated(whole, rng) for _ in range(25))]):
            path = tmp_path / f"{kind}-{number}.jpg"
            path.write_bytes(content)
            arguments += [str(path), "60", "80"]
    done = subprocess.run([driver, *arguments], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    assert done.returncode == 0, done.stderr
    counts = re.match(r"(\d+) decoded, (\d+) refused", done.stdout)
    assert counts
    assert min(int(counts[1]), int(counts[2])) > 500, done.stdout
