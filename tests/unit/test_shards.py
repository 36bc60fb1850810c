import pickle
import shutil
import zlib
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from image_files import SORTED, write_folder
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from pipelines import files
from pipelines.decode import decode
from pipelines.pack import PackOptions, pack
from pipelines.shards import Shards, shard_name, verify
from pipelines.sources import Source, open_source

ENCODED = PackOptions(shard_bytes=500)
RAW = PackOptions(raw=5, shard_bytes=200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(f"imagefolder:{write_folder(tmp_path_factory.mktemp('shards') / 'images')}", "train")


@pytest.fixture(scope="module", params=["encoded", "raw"])
def packed(folder: Source, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    path = tmp_path_factory.mktemp("shards") / "packed"
    pack(folder, path, ENCODED if request.param == "encoded" else RAW, workers=1)
    return path


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    shutil.copytree(packed, tmp_path / "copy")
    return tmp_path / "copy"


def is_raw(path: Path) -> bool:
    return bool(opened(path).raw)


def opened(path: Path | str) -> Shards:
    source = open_source(f"shards:{path}", "train")
    assert isinstance(source, Shards)
    return source


def contents(source: Source) -> list[Any]:
    found = [source.read(i) for i in range(len(source.listing))]
    return [one if isinstance(one, bytes) else one.tobytes() for one in found]


def expected(folder: Source, raw: bool) -> list[bytes]:
    read = [folder.read(i) for i in range(len(folder.listing))]
    return [decode(one, 5, 3).tobytes() if raw else bytes(one) for one in read]


def test_shards_are_the_same_source_as_what_was_packed(folder: Source, packed: Path) -> None:
    source = opened(packed)
    assert source.listing.ids.to_pylist() == SORTED
    assert source.listing.fingerprint == folder.listing.fingerprint
    assert np.array_equal(source.listing.keys, folder.listing.keys)
    assert contents(source) == expected(folder, is_raw(packed))
    assert len(source.storage.sizes) > 1


def test_a_raw_image_is_a_read_only_view_of_the_file(packed: Path) -> None:
    if not is_raw(packed):
        pytest.skip("encoded files are bytes")
    image = opened(packed).read(0)
    assert isinstance(image, np.ndarray)
    assert image.shape == (5, 5, 3)
    assert not image.flags.writeable
    assert not image.flags.owndata


def test_a_shard_is_a_plain_arrow_file_whose_rows_are_the_samples(folder: Source, packed: Path) -> None:
    """Read by Arrow alone, without our index."""
    source = opened(packed)
    wanted = dict(zip(SORTED, expected(folder, is_raw(packed)), strict=True))
    stored = []
    for number in range(len(source.storage.sizes)):
        table = pa.ipc.open_file(packed / shard_name(number)).read_all()
        assert table.column_names == ["id", "label", "height", "width", "crc32", "image"]
        for row in table.to_pylist():
            stored.append(row["id"])
            assert row["image"] == wanted[row["id"]]
            assert row["crc32"] == zlib.crc32(row["image"])
            assert source.listing.classes[row["label"]] == row["id"].split("/")[0]
            assert (row["height"], row["width"]) == ((5, 5) if is_raw(packed) else (6, 6))
    assert stored == [SORTED[i] for i in source.storage.samples]


def test_shards_are_sent_without_open_files_and_pixels(packed: Path) -> None:
    source = opened(packed)
    before = contents(source)
    sent = pickle.dumps(source)
    assert len(sent) < 4096
    assert contents(pickle.loads(sent)) == before
    with get_context("spawn").Pool(1) as pool:
        assert pool.map(contents, [source]) == [before]


def test_shards_are_read_by_uri(packed: Path) -> None:
    assert contents(opened(f"file://{packed}")) == contents(opened(packed))


def test_shards_elsewhere_are_read_by_ranges(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = SubTreeFileSystem(str(packed.parent), LocalFileSystem())
    monkeypatch.setattr(files, "filesystem_of", lambda uri: (elsewhere, uri.removeprefix("store://")))
    source = opened(f"store://{packed.name}")
    assert not source.files.is_local
    assert contents(source) == contents(opened(packed))
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)


def test_verifying_finds_nothing_in_whole_shards_and_counts_every_sample(packed: Path) -> None:
    counted: list[int] = []
    assert verify(packed, threads=2, progress=counted.append) == []
    assert sum(counted) == 7


@pytest.mark.parametrize("sample", range(7))
def test_verifying_names_the_sample_of_any_changed_byte(copy: Path, sample: int) -> None:
    shard, offset, size = opened(copy).places[sample].tolist()
    with (copy / shard_name(shard)).open("r+b") as stream:
        stream.seek(offset + size - 1)
        last = stream.read(1)[0]
        stream.seek(offset + size - 1)
        stream.write(bytes([last ^ 1]))
    assert verify(copy, threads=2) == [SORTED[sample]]


def test_a_shard_that_changed_since_it_was_opened_is_told(copy: Path) -> None:
    source = opened(copy)
    for path in copy.glob("shard-*"):
        with path.open("ab") as stream:
            stream.write(b"x")
    with pytest.raises(OSError, match=r"shard-\d+\.arrow has \d+ bytes, had \d+ when it was listed"):
        source.read(0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "index.json").unlink(), "holds no index.json: .*run convoy pack again"),
        (lambda folder: (folder / "index.json").write_text("{"), "index.json in .* is damaged"),
        (lambda folder: (folder / "index.json").write_text('{"format": 99}'), "has format 99, must be 2. Pack again"),
        (
            lambda folder: (folder / shard_name(1)).unlink(),
            r"shard-00001\.arrow does not exist, must have the \d+",
        ),
        (lambda folder: (folder / shard_name(1)).write_bytes(b"x"), r"shard-00001\.arrow has 1 bytes, must have the"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(copy: Path, damage: Any, message: str) -> None:
    damage(copy)
    with pytest.raises(ValueError, match=f"got 'shards:.*{message}"):
        open_source(f"shards:{copy}", "train")
