import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import encoded, pixels_of, write_folder
from PIL import ExifTags, Image
from pydantic import ValidationError

from pipelines.decode import UndecodableImage, decode
from pipelines.pack import PackOptions, pack, plan_shards, stored_form
from pipelines.shards import FORMAT, shard_name, verify
from pipelines.sizes import size_in_bytes
from pipelines.sources import Source, open_source

NAMES = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(10)]
SMALL = PackOptions(shard_bytes=1000)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return open_source(f"imagefolder:{write_folder(tmp_path / 'images', NAMES)}", "train")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def photo(height: int, width: int, channels: int = 3) -> Any:
    """Smooth, so that JPEG's own loss is small."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 60 * np.sin(x / (30 + 5 * c)) + 60 * np.cos(y / (20 + 5 * c)) for c in range(channels)]
    return np.stack(waves, axis=-1).astype(np.uint8)


@given(st.integers(1, 500), st.integers(1, 50))
def test_a_plan_holds_every_sample_once_in_shards_of_nearly_the_size(num_samples: int, rows: int) -> None:
    plan = plan_shards(num_samples, rows)
    assert sorted(np.concatenate(plan).tolist()) == list(range(num_samples))
    sizes = [len(part) for part in plan]
    assert max(sizes) <= rows
    assert max(sizes) - min(sizes) <= 1


def test_any_number_of_workers_writes_the_same_bytes(source: Source, tmp_path: Path) -> None:
    counted: list[int] = []
    one = pack(source, tmp_path / "one", SMALL, workers=1, progress=counted.append)
    two = pack(source, tmp_path / "two", SMALL, workers=2)
    assert one == two
    assert one.num_shards > 2
    assert sum(counted) == one.num_samples == len(NAMES)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")
    assert not [path for path in (tmp_path / "one").iterdir() if path.suffix == ".tmp" or path.name == "plan.json"]


def test_packing_goes_on_where_it_stopped(source: Source, tmp_path: Path) -> None:
    """As a kill leaves it: a plan, whole shards, half of another; only what is missing is read again."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    packed = pack(source, whole, SMALL, workers=1)
    index = json.loads((whole / "index.json").read_text())
    stopped.mkdir()
    plan = {name: index[name] for name in ("format", "fingerprint", "options", "rows_per_shard")}
    (stopped / "plan.json").write_text(json.dumps(plan))
    kept = stopped / shard_name(0)
    kept.write_bytes((whole / shard_name(0)).read_bytes())
    (stopped / "shard-00001.tmp").write_bytes(b"half")
    before = kept.stat().st_mtime_ns
    again = pack(source, stopped, SMALL, workers=1)
    assert again.kept_shards == 1
    assert kept.stat().st_mtime_ns == before
    assert snapshot(stopped) == snapshot(whole)
    assert pack(source, stopped, SMALL, workers=1).kept_shards == packed.num_shards


def test_a_file_that_cannot_be_read_stops_packing_and_loses_nothing(source: Source, tmp_path: Path) -> None:
    gone = tmp_path / "images" / "dog" / "9.png"
    content = gone.read_bytes()
    index = source.listing.ids.to_pylist().index("dog/9.png")
    rows = {
        "rows_per_shard": 5,
        "format": FORMAT,
        "fingerprint": source.listing.fingerprint,
        "options": SMALL.model_dump(),
    }
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "plan.json").write_text(json.dumps(rows))
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=r"dog/9\.png"):
        pack(source, tmp_path / "packed", SMALL, workers=1)
    with pytest.raises(ValueError, match=r"holds no index\.json"):
        open_source(f"shards:{tmp_path / 'packed'}", "train")
    gone.write_bytes(content)
    pack(source, tmp_path / "packed", SMALL, workers=1)
    assert open_source(f"shards:{tmp_path / 'packed'}", "train").read(index) == content


def test_what_cannot_be_decoded_is_dropped_and_listed(source: Source, tmp_path: Path) -> None:
    (tmp_path / "images" / "cat" / "3.png").write_bytes(b"no image at all")
    (tmp_path / "images" / "dog" / "0.png").write_bytes(b"")
    packed = pack(source, tmp_path / "packed", SMALL, workers=1)
    assert packed.num_samples == 18
    lines = [json.loads(line) for line in (tmp_path / "packed" / "dropped.jsonl").read_text().splitlines()]
    assert sorted((line["id"], line["label"]) for line in lines) == [("cat/3.png", "cat"), ("dog/0.png", "dog")]
    assert {line["id"]: line["reason"] for line in lines}["dog/0.png"] == "the file is empty"
    assert list(packed.dropped) == lines
    shards = open_source(f"shards:{tmp_path / 'packed'}", "train")
    left = [name for name in source.listing.ids.to_pylist() if name not in ("cat/3.png", "dog/0.png")]
    assert shards.listing.ids.to_pylist() == left
    assert shards.listing.classes == source.listing.classes
    assert verify(tmp_path / "packed", threads=1) == []


def test_nothing_but_damaged_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "cat" / "1.png").write_bytes(b"x")
    source = open_source(f"imagefolder:{tmp_path / 'images'}", "train")
    with pytest.raises(ValueError, match="SOURCE: none of 1 samples can be decoded"):
        pack(source, tmp_path / "packed", SMALL, workers=1)


def test_a_folder_of_anything_else_is_left_alone(source: Source, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"DEST: got .*images, which holds other files, must be new, empty or a pack"):
        pack(source, tmp_path / "images", SMALL, workers=1)
    pack(source, tmp_path / "packed", SMALL, workers=1)
    before = snapshot(tmp_path / "packed")
    with pytest.raises(ValueError, match="a pack of other options, must be new or the same pack"):
        pack(source, tmp_path / "packed", PackOptions(raw=4), workers=1)
    other = open_source("digits?per_class=2", "val")
    with pytest.raises(ValueError, match="a pack of other samples, must be"):
        pack(other, tmp_path / "packed", SMALL, workers=1)
    assert snapshot(tmp_path / "packed") == before


def test_pixels_without_a_file_are_stored_without_loss(tmp_path: Path) -> None:
    source = open_source("digits?per_class=2", "val")
    pack(source, tmp_path / "packed", PackOptions(), workers=1)
    shards = open_source(f"shards:{tmp_path / 'packed'}", "train")
    assert shards.listing.fingerprint == source.listing.fingerprint
    for i in range(len(source.listing)):
        assert np.array_equal(decode(shards.read(i), 8, 1), source.read(i))


def test_files_stay_as_they_are_unless_told_otherwise() -> None:
    content = encoded(photo(60, 80), "JPEG")
    stored = stored_form(content, PackOptions())
    assert (stored.content, stored.height, stored.width, stored.scaled) == (content, 60, 80, False)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(400, 300, (133, 100)), (300, 400, (100, 133)), (100, 900, None)]
)
def test_the_short_side_of_larger_images_becomes_what_was_asked_for(height: int, width: int, size: Any) -> None:
    pixels = photo(height, width)
    content = encoded(pixels, "PNG")
    stored = stored_form(content, PackOptions(short_side=100))
    if size is None:
        assert stored.content == content
        return
    assert (stored.height, stored.width) == size
    with Image.open(io.BytesIO(stored.content)) as image:
        assert image.format == "JPEG"
        assert image.size == size[::-1]
        shrunk = np.asarray(image).astype(float)
    reference = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)
    # JPEG at quality 90 with halved chroma on smooth waves: 35 dB is far below what it keeps, far above a wrong image
    error = np.mean((shrunk - np.asarray(reference)) ** 2)
    assert 10 * np.log10(255**2 / error) > 35


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_scaled_image_as_it_turned_the_whole_one(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encoded(photo(300, 400), "JPEG", exif=exif.tobytes(), quality=95)
    stored = stored_form(content, PackOptions(short_side=100))
    assert stored.scaled
    difference = decode(stored.content, 64, 3).astype(float) - decode(content, 64, 3)
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize(
    ("mode", "kind", "becomes"),
    [("L", "PNG", "L"), ("CMYK", "TIFF", "RGB"), ("P", "PNG", "RGB"), ("RGBA", "PNG", None), ("I;16", "PNG", None)],
)
def test_what_a_jpeg_cannot_hold_stays_as_it_is(mode: str, kind: str, becomes: str | None) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    deep = noise[..., 0].astype(np.uint16) << 8
    stream = io.BytesIO()
    (Image.fromarray(deep) if mode == "I;16" else Image.fromarray(noise).convert(mode)).save(stream, kind)
    stored = stored_form(stream.getvalue(), PackOptions(short_side=50))
    if becomes is None:
        assert stored.content == stream.getvalue()
        assert not stored.scaled
    else:
        with Image.open(io.BytesIO(stored.content)) as smaller:
            assert (smaller.format, smaller.mode, smaller.size) == ("JPEG", becomes, (50, 50))


def test_raw_pixels_are_those_that_decoding_gives() -> None:
    content = encoded(pixels_of("x", (40, 60, 3)))
    stored = stored_form(content, PackOptions(raw=16))
    assert stored.content == decode(content, 16, 3).tobytes()
    assert (stored.height, stored.width) == (16, 16)


def test_damaged_bytes_are_told_in_every_form() -> None:
    for options in (PackOptions(), PackOptions(short_side=10), PackOptions(raw=4)):
        with pytest.raises(UndecodableImage, match="no known image format"):
            stored_form(b"no image at all", options)


def test_what_pillow_cannot_open_is_a_fault_of_the_sample_not_of_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("cannot identify")

    content = encoded(photo(60, 80), "JPEG")
    monkeypatch.setattr("pipelines.pack.Image.open", refuse)
    with pytest.raises(UndecodableImage, match="OSError: cannot identify"):
        stored_form(content, PackOptions(short_side=10))


def test_smaller_files_and_raw_pixels_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="short_side, raw: got 5 and 7, must be one of them"):
        PackOptions(short_side=5, raw=7)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256MiB", 2**28),
        ("1.5 KiB", 1536),
        ("7B", 7),
        ("2GiB", 2**31),
        ("0.25GiB", 2**28),
        ("1.5kB", 1500),
        ("8GB", 8e9),
    ],
)
def test_sizes_are_read_in_powers_of_1024_and_of_1000(text: str, size: int) -> None:
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "256", "256mb", "-1MiB", "0B", "MiB", "1 2MiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a number and one of B, kB, MB"):
        size_in_bytes(text)
