import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import SORTED, encoded, pixels_of, write_folder

from pipelines import parquet_source
from pipelines.parquet_source import Parquet
from pipelines.sources import Source, open_source

CLASSES = ("cat", "cat-big", "dog")
ROWS = ["dog/Z.PNG", "cat/10.png", "cat-big/0.png", "cat/1.png", "dog/é.png", "cat/2.png", "dog/0.png"]


def image(sample_id: str) -> bytes:
    return encoded(pixels_of(sample_id.split("/")[1]))


def structs(rows: list[str]) -> Any:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": image(row), "path": f"somewhere/{row}"} for row in rows], kind)


def hugging_face(rows: list[str], classes: tuple[str, ...] = CLASSES) -> Any:
    """A table as `datasets` writes it."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    labels = [classes.index(row.split("/")[0]) for row in rows]
    table = pa.table({"image": structs(rows), "label": pa.array(labels, pa.int64())})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write(path: Path, table: Any, rows_per_group: int = 2) -> Path:
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def opened(path: Path, options: str = "") -> Source:
    return open_source(f"parquet:{path}{options}", "train")


def ids(source: Source) -> list[str]:
    return list(source.listing.ids.to_pylist())


def contents(source: Source) -> list[Any]:
    return [source.read(i) for i in range(len(source.listing))]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return opened(write(tmp_path / "x.parquet", hugging_face(ROWS)))


def test_hugging_faces_layout_is_the_same_source_as_the_class_folders(source: Source, tmp_path: Path) -> None:
    folder = open_source(f"imagefolder:{write_folder(tmp_path / 'images')}", "train")
    assert ids(source) == SORTED
    assert source.listing.classes == CLASSES
    assert source.listing.fingerprint == folder.listing.fingerprint
    assert np.array_equal(source.listing.keys, folder.listing.keys)
    assert contents(source) == contents(folder)


def test_the_order_of_the_class_list_is_kept_with_classes_that_have_no_sample(tmp_path: Path) -> None:
    classes = ("dog", "emu", "cat", "cat-big")
    source = opened(write(tmp_path / "x.parquet", hugging_face(ROWS, classes)))
    assert source.listing.classes == classes
    assert [classes[label] for label in source.listing.labels] == [name.split("/")[0] for name in SORTED]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
@pytest.mark.parametrize("binary", [pa.binary(), pa.large_binary()])
def test_plain_columns_with_file_names_are_the_same_source_too(kind: Any, binary: Any, tmp_path: Path) -> None:
    table = pa.table(
        {
            "image": pa.array([image(row) for row in ROWS], binary),
            "label": pa.array([row.split("/")[0] for row in ROWS]).cast(kind),
            "file_name": [row.split("/")[1] for row in ROWS],
        }
    )
    source = opened(write(tmp_path / "x.parquet", table))
    assert ids(source) == SORTED
    assert contents(source) == [image(name) for name in SORTED]


def test_without_names_the_row_is_the_name(tmp_path: Path) -> None:
    table = pa.table({"img": [b"a", b"b", b"c"], "fine_label": pa.array([10, 2, 10], pa.uint8())})
    source = opened(write(tmp_path / "x.parquet", table), "?image=img&label=fine_label")
    assert ids(source) == ["10/x.parquet:0", "10/x.parquet:2", "2/x.parquet:1"]
    assert source.listing.classes == ("2", "10")
    assert source.listing.labels.tolist() == [1, 1, 0]
    assert contents(source) == [b"a", b"c", b"b"]


@pytest.mark.parametrize("given", ["", "*.parquet", "train-{00000..00001}-of-00002.parquet"])
def test_a_folder_or_a_glob_of_files_is_one_source(given: str, tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", hugging_face(ROWS[:3]))
    write(tmp_path / "train-00001-of-00002.parquet", hugging_face(ROWS[3:]), rows_per_group=3)
    (tmp_path / "README.md").write_text("no data")
    source = opened(tmp_path / given if given else tmp_path)
    assert ids(source) == SORTED
    assert contents(source) == [image(name) for name in SORTED]
    assert isinstance(source, Parquet)
    assert source.storage.sizes == (2, 1, 3, 1)
    assert [ids(source)[i] for i in source.storage.samples] == ROWS


def test_a_source_is_sent_without_open_files_and_rows(source: Source) -> None:
    before = contents(source)
    sent = pickle.dumps(source)
    assert len(sent) < 4096
    assert contents(pickle.loads(sent)) == before


def test_a_row_group_is_read_once_while_it_is_kept(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    original = Parquet._read_group
    monkeypatch.setattr(Parquet, "_read_group", lambda self, group: reads.append(group) or original(self, group))
    contents(source)
    contents(source)
    assert sorted(reads) == [0, 1, 2, 3]


def test_a_small_cache_reads_again_and_stays_right(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_source, "CACHE_BYTES", 1)
    fresh: Source = pickle.loads(pickle.dumps(source))
    assert contents(fresh) == contents(source)
    assert len(vars(fresh)["_recent"]._slots) == 1


def test_many_threads_read_the_right_rows(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_source, "CACHE_BYTES", 1)
    fresh: Source = pickle.loads(pickle.dumps(source))
    order = np.random.default_rng(0).integers(0, 7, 500).tolist()
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(fresh.read, order)) == [image(SORTED[i]) for i in order]


def test_a_row_that_holds_only_a_path_is_told_when_it_is_read(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array([{"bytes": None, "path": "1.jpg"}], kind), "label": [0]})
    with pytest.raises(OSError, match=r"row 0 of row group 0 of .*x\.parquet holds no image, only its path"):
        opened(write(tmp_path / "x.parquet", table)).read(0)


def test_a_file_that_changed_since_it_was_listed_is_told(source: Source, tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", hugging_face(ROWS[:3]))
    with pytest.raises(OSError, match=r"x\.parquet has \d+ bytes, had \d+ when it was listed"):
        source.read(0)


def bad_metadata(text: str) -> Any:
    return hugging_face(ROWS).replace_schema_metadata({"huggingface": text})


MISTAKES = {
    "no column": (
        pa.table({"img": [b"x"], "label": [0]}),
        "has no column image; it has img, label. .*image=N",
    ),
    "no label": (pa.table({"image": [b"x"], "y": [0]}), r"has no column label; .*parquet:PATH\?label=NAME"),
    "not binary": (pa.table({"image": ["x"], "label": [0]}), "column image is string, must be binary or a struct"),
    "bytes": (pa.table({"image": [b"x"], "label": [b"0"]}), "column label is binary; must be whole numbers or texts"),
    "empty entry": (
        pa.table({"image": [b"x"] * 2, "label": [[0], [None, 1]]}),
        "column label has an empty entry in the list of row 1",
    ),
    "no class at all": (
        pa.table({"image": [b"x"], "label": pa.array([[]], pa.list_(pa.int64()))}),
        "no sample has a class. Label some, or give a class list",
    ),
    "more and fewer values": (
        pa.table({"image": [b"x"] * 2, "label": [[0.5, 1.0], [0.5]]}),
        "x.parquet:1 has 1 values and x.parquet:0 has 2, must be one or more, as many for each",
    ),
    "no values": (
        pa.table({"image": [b"x"], "label": pa.array([[]], pa.list_(pa.float32()))}),
        "has 0 values .*must be one or more",
    ),
    "not finite": (
        pa.table({"image": [b"x"], "label": [float("nan")]}),
        r"no sample has finite values, .* has \[nan\]",
    ),
    "one name twice without classes": (
        pa.table({"image": [b"x"] * 2, "label": [0.5, 1.5], "file_name": ["a/1.png", "b/1.png"]}),
        "two samples have one name, '1.png'",
    ),
    "empty label": (pa.table({"image": [b"x"] * 3, "label": [0, None, None]}), "empty in 2 rows, the first is 1"),
    "minus one": (pa.table({"image": [b"x"] * 2, "label": [0, -1]}), "a label is -1, must be 0 or more"),
    "no rows": (pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}), "holds no sample"),
    "some names": (
        pa.table({"image": [b"x"] * 2, "label": [0, 1], "file_name": ["1.png", None]}),
        "file_name is empty in 1 of 2 rows. Fill all of them or none",
    ),
    "one name twice": (
        pa.table({"image": [b"x"] * 2, "label": [0, 0], "file_name": ["a/1.png", "b/1.png"]}),
        "two samples of one class have one name, '0/1.png'",
    ),
    "off the list": (
        hugging_face(ROWS).set_column(1, "label", pa.array([3] * 7)),
        "a label is 3, must be one of",
    ),
    "class twice": (hugging_face(["dog/0.png"], ("dog", "cat", "cat")), "a name that is empty or stands twice"),
    "class list of numbers": (
        bad_metadata('{"info": {"features": {"label": {"_type": "ClassLabel", "names": [0, 1]}}}}'),
        "the class list of label in .* is no list of texts",
    ),
    "broken metadata": (bad_metadata("{"), "the huggingface metadata of .* cannot be read"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_used_is_refused(name: str, tmp_path: Path) -> None:
    table, message = MISTAKES[name]
    write(tmp_path / "x.parquet", table)
    with pytest.raises(ValueError, match=rf"got 'parquet:.*x\.parquet.*{message}"):
        opened(tmp_path / "x.parquet")


def test_files_of_two_splits_are_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"{split}-00000-of-00001.parquet", hugging_face(ROWS))
    with pytest.raises(ValueError, match=r"holds files of test, train, must be one of .*/train-\*\.parquet"):
        opened(tmp_path)


def test_files_of_two_class_lists_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", hugging_face(ROWS))
    write(tmp_path / "b.parquet", hugging_face(ROWS, CLASSES[::-1]))
    with pytest.raises(ValueError, match=r"b\.parquet has another class list than .*a\.parquet"):
        opened(tmp_path)


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(ValueError, match=r"x\.parquet cannot be read as parquet: .*Give a parquet file"):
        opened(tmp_path / "x.parquet")
