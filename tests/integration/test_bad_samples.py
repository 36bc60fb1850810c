"""Samples that cannot be read: each is named and replaced, counts and order stay exact, and too many end the run."""

import io
import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import DIGITS, convoy, trace_rows

NUM, BAD_EVERY, CLASSES = 1000, 50, 10


def encoded(number: int, form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def png_of_claimed_size(side: int) -> bytes:
    """A PNG whose header claims `side` x `side` pixels, and a few bytes of them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def float_tiff() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.float32)).save(stream, "TIFF")
    return stream.getvalue()


# Ten ways for a file to be no sample.
DAMAGES: tuple[Callable[[Path], object], ...] = (
    lambda file: file.write_bytes(b""),
    lambda file: file.write_bytes(b"<html>404 Not Found</html>"),
    lambda file: file.write_bytes(file.read_bytes()[:45]),
    lambda file: file.write_bytes(encoded(0, "JPEG")[:250]),
    lambda file: file.write_bytes(bytes(range(256)) * 4),
    lambda file: file.write_bytes(png_of_claimed_size(30_000)),
    lambda file: file.write_bytes(float_tiff()),
    lambda file: file.write_bytes(encoded(0, "GIF")[:20]),
    lambda file: (file.unlink(), file.symlink_to("nowhere.png")),
    lambda file: file.write_bytes(b"\xff\xd8\xff" + bytes(200)),
)


def write_images(root: Path, num: int) -> list[str]:
    ids = [f"{number % CLASSES}/{number:04d}.png" for number in range(num)]
    for number, sample_id in enumerate(ids):
        (root / sample_id).parent.mkdir(parents=True, exist_ok=True)
        (root / sample_id).write_bytes(encoded(number))
    return ids


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A thousand images, and the ids of the twenty among them that are bad, two of each kind."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "val", 40)
    bad = write_images(root / "train", NUM)[7::BAD_EVERY]
    for number, sample_id in enumerate(bad):
        DAMAGES[number % len(DAMAGES)](root / "train" / sample_id)
    return root, set(bad)


def options(root: Path, run: Path, *more: str) -> list[str]:
    return [
        "train", DIGITS, f"data.train=imagefolder:{root / 'train'}", f"data.val=imagefolder:{root / 'val'}",
        "model.options={width: 4}", "train.epochs=1", "train.schedule.warmup_epochs=0", "trace.samples=true",
        f"run.folder={run}", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_exactly_the_bad_ones_are_named_and_replaced(
    workers: int, images: tuple[Path, set[str]], tmp_path: Path
) -> None:
    root, bad = images
    run = tmp_path / "run"
    done = convoy(*options(root, run, "data.max_bad=2%", f"strategy.workers={workers}"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    named = [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]
    assert {line["sample_id"] for line in named} == bad
    rows = trace_rows(run)
    assert [position for _, _, position, _, _ in rows] == list(range(NUM))
    used = {position: sample_id for _, _, position, sample_id, _ in rows}
    assert bad.isdisjoint(used.values())
    for line in named:
        assert used[line["position"]] == line["by"] or line["by"] in bad
    assert len(set(used.values())) >= NUM - 2 * len(bad)
    assert json.loads((run / "result.json").read_text())["unreadable_samples"] == len(named)


def test_more_than_the_budget_end_the_run_with_the_list(images: tuple[Path, set[str]], tmp_path: Path) -> None:
    root, bad = images
    run = tmp_path / "run"
    done = convoy(*options(root, run, "data.max_bad=1%", "strategy.workers=0"), cwd=tmp_path)
    assert done.returncode == 1
    counted = re.search(r"data\.max_bad: (\d+) of the epoch's 1000 samples .*, and 1\.0000% are allowed", done.stderr)
    assert counted, done.stderr
    assert int(counted.group(1)) > 10
    listed = {line.strip().split(":")[0] for line in done.stderr.splitlines() if line.startswith("    ")}
    assert len(listed) >= 11
    assert listed <= bad
    assert json.loads((run / "result.json").read_text())["status"] == "failed"
