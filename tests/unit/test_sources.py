import dataclasses
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import NAMES, SORTED, add, encoded, pixels_of, write_folder, write_tar
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from pipelines import files
from pipelines.listing import check_same_targets, listing_of
from pipelines.pack import PackOptions, pack
from pipelines.randomness import mix
from pipelines.sources import Digits, Source, Tars, open_source


@pytest.fixture
def folder(tmp_path: Path) -> Source:
    return open_source(f"imagefolder:{write_folder(tmp_path / 'images')}", "train")


@pytest.fixture
def tar(tmp_path: Path) -> Source:
    return open_source(f"tar:{write_tar(tmp_path / 'images.tar')}", "train")


def contents(source: Source) -> list[Any]:
    return [source.read(i) for i in range(len(source.listing))]


def ids(source: Source) -> list[str]:
    return list(source.listing.ids.to_pylist())


def test_samples_are_sorted_by_id_and_labelled_by_their_folder(folder: Source) -> None:
    listing = folder.listing
    assert ids(folder) == SORTED
    assert listing.classes == ("cat", "cat-big", "dog")
    assert listing.labels.tolist() == [1, 0, 0, 0, 2, 2, 2]
    assert listing.labels.dtype == np.int64
    assert listing.keys.tolist() == [mix("sample", name) for name in SORTED]
    assert listing.keys.dtype == np.uint64
    assert len(listing) == len(NAMES)


def test_reading_gives_the_file_of_the_id(folder: Source) -> None:
    assert contents(folder) == [encoded(pixels_of(Path(name).name)) for name in SORTED]


@pytest.mark.parametrize("prefix", ["", "./", "train/", "./a/b/train/", "/abs/train/"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_a_tar_is_the_same_source_as_the_folder(folder: Source, tmp_path: Path, prefix: str, form: int) -> None:
    tar = open_source(f"tar:{write_tar(tmp_path / 'x.tar', NAMES, prefix=prefix, form=form)}", "train")
    assert ids(tar) == ids(folder)
    assert tar.listing.classes == folder.listing.classes
    assert np.array_equal(tar.listing.labels, folder.listing.labels)
    assert np.array_equal(tar.listing.keys, folder.listing.keys)
    assert tar.listing.fingerprint == folder.listing.fingerprint
    assert contents(tar) == contents(folder)


def test_folders_above_the_class_folders_do_not_matter(folder: Source, tmp_path: Path) -> None:
    write_folder(tmp_path / "deep" / "a" / "b")
    deep = open_source(f"imagefolder:{tmp_path / 'deep'}", "train")
    assert deep.listing.fingerprint == folder.listing.fingerprint
    assert contents(deep) == contents(folder)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_names_longer_than_a_header_are_read(tmp_path: Path, form: int) -> None:
    name = f"{'klasse' * 20}/{'bild' * 50}.png"
    source = open_source(f"tar:{write_tar(tmp_path / 'x.tar', [name], form=form)}", "train")
    assert ids(source) == [name]
    assert contents(source) == [encoded(pixels_of(Path(name).name))]


def test_what_is_no_image_is_passed_over(tmp_path: Path) -> None:
    others = ["README.md", "cat/notes.txt", "cat/._1.png", ".cache/x/3.png", "empty/.keep", "dog/1.png.part"]
    root = write_folder(tmp_path / "images", ["cat/1.png", "dog/1.png"])
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        for name in others:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("no image")
        (root / "dog" / "folder.png").mkdir()
        archive.add(root, arcname=".")
    for spec in (f"imagefolder:{root}", f"tar:{tmp_path / 'images.tar'}"):
        source = open_source(spec, "train")
        assert ids(source) == ["cat/1.png", "dog/1.png"]
        assert source.listing.classes == ("cat", "dog")


def test_links_in_a_folder_are_followed(tmp_path: Path) -> None:
    store = write_folder(tmp_path / "store", ["cat/1.png"])
    (tmp_path / "images" / "dog").mkdir(parents=True)
    (tmp_path / "images" / "cat").symlink_to(store / "cat")
    (tmp_path / "images" / "dog" / "2.png").symlink_to(store / "cat" / "1.png")
    source = open_source(f"imagefolder:{tmp_path / 'images'}", "train")
    assert ids(source) == ["cat/1.png", "dog/2.png"]
    assert contents(source) == [encoded(pixels_of("1.png"))] * 2


def test_of_two_members_of_one_name_the_later_counts(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "cat/1.png", b"old")
        add(archive, "./cat/1.png", b"newer")
    assert contents(open_source(f"tar:{tmp_path / 'x.tar'}", "train")) == [b"newer"]


def test_paths_may_be_relative_or_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "images")
    write_tar(tmp_path / "images.tar")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    sources = [
        open_source(spec, "val")
        for spec in ("imagefolder:images", "imagefolder:~/images/", "tar:./images.tar", "tar:~/images.tar")
    ]
    monkeypatch.chdir("/")  # as an actor of the pipeline, which runs elsewhere
    assert len({tuple(contents(source)) for source in sources}) == 1


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_source_is_sent_without_open_files_and_without_pixels(kind: str, request: pytest.FixtureRequest) -> None:
    source: Source = request.getfixturevalue(kind)
    before = contents(source)
    sent = pickle.dumps(source)
    arrived: Source = pickle.loads(sent)
    assert not any(name.startswith("_") for name in vars(getattr(arrived, "files", arrived)))
    assert contents(arrived) == before
    assert arrived.listing.fingerprint == source.listing.fingerprint
    assert len(sent) < 4096


def test_a_sample_costs_few_bytes_in_what_is_sent(tmp_path: Path) -> None:
    names = [f"class{i % 7}/{i:08d}.png" for i in range(2000)]
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in names:
            add(archive, name, b"x")
    source = open_source(f"tar:{tmp_path / 'x.tar'}", "train")
    # Five arrays of 8 bytes, the id and its offset of 4.
    assert len(pickle.dumps(source)) < 2000 * (5 * 8 + len(names[0]) + 4) + 4096


def test_many_threads_read_the_right_bytes(tar: Source) -> None:
    expected = contents(tar)
    fresh: Source = pickle.loads(pickle.dumps(tar))  # its file is opened by whoever comes first
    order = np.random.default_rng(0).integers(0, len(expected), 2000).tolist()
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(fresh.read, order)) == [expected[i] for i in order]


def test_an_opened_source_works_in_a_spawned_process(tar: Source) -> None:
    expected = contents(tar)
    with get_context("spawn").Pool(1) as pool:
        assert pool.map(tar.read, range(len(expected))) == expected


def test_a_tar_that_changed_since_it_was_listed_is_told(tmp_path: Path, tar: Source) -> None:
    with (tmp_path / "images.tar").open("ab") as stream:
        stream.write(bytes(10240))
    with pytest.raises(OSError, match=r"images\.tar has \d+ bytes, had \d+ when it was listed"):
        tar.read(0)


def test_a_tar_that_is_cut_while_it_is_read_is_told(tmp_path: Path, tar: Source) -> None:
    assert isinstance(tar, Tars)
    tar.read(0)
    with (tmp_path / "images.tar").open("r+b") as stream:
        stream.truncate(int(tar.places[0, 1]) + 5)
    with pytest.raises(OSError, match=r"images\.tar ends before byte"):
        tar.read(0)


def test_a_file_that_vanished_is_named(tmp_path: Path, folder: Source) -> None:
    (tmp_path / "images" / "cat" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"cat/1\.png"):
        folder.read(SORTED.index("cat/1.png"))


@pytest.mark.parametrize("changed", [["a/1", "b/2"], ["a/1", "a/2", "b/3"], ["a/1", "c/3"], ["a/1", "a/3"]])
def test_the_fingerprint_tells_other_data(changed: list[str]) -> None:
    assert listing_of(changed).fingerprint != listing_of(["a/1", "b/3"]).fingerprint


def test_fingerprints_and_keys_never_change() -> None:
    listing = listing_of(["a/1", "b/3"])
    assert listing.fingerprint == "31a05e237b786379"
    assert listing.keys.tolist() == [0x7B746091309B5538, 0x935786648125299B]


@pytest.mark.parametrize(("split", "num"), [("train", 1437), ("val", 360)])
def test_digits_are_scikit_learns_scaled_to_bytes(split: Any, num: int) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    source = open_source("digits", split)
    listing = source.listing
    assert len(listing) == num
    assert listing.classes == tuple("0123456789")
    assert ids(source) == sorted(ids(source))
    for i, sample_id in enumerate(ids(source)):
        label, number = sample_id.split("/")
        image = source.read(i)
        assert isinstance(image, np.ndarray)
        assert image.shape == (8, 8, 1)
        assert image.dtype == np.uint8
        assert np.abs(image[..., 0] - digits.images[int(number)] * 255 / 16).max() <= 0.5
        assert int(label) == listing.labels[i] == digits.target[int(number)]


def test_no_digit_is_trained_on_and_held_out() -> None:
    train, val = open_source("digits", "train"), open_source("digits", "val")
    assert len({*ids(train), *ids(val)}) == 1797


def test_the_split_of_the_digits_never_changes() -> None:
    fingerprints = [
        open_source("digits", "train").listing.fingerprint,
        open_source("digits", "val").listing.fingerprint,
    ]
    assert fingerprints == ["5b91ad204a0defe0", "32f876777f82cabe"]


def source_of(*classes: str) -> Source:
    return Digits(listing_of([f"{name}/1" for name in sorted(classes)]), np.zeros((len(classes), 8, 8, 1), np.uint8))


def test_the_same_classes_are_accepted() -> None:
    check_same_targets(source_of("cat", "dog").listing, source_of("dog", "cat").listing)


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (("cat", "dog"), ("cat",), "got 1 classes, must be the 2 of data.train, but there is dog only in data.train. "),
        (("cat",), ("cat", "emu"), "there is emu only in data.val. Give both the same class folders"),
        (("a", "b"), ("a", "c"), "there is c only in data.val; b only in data.train"),
        (("a",), tuple("abcdefgh"), "there is b, c, d, e, f, ... only in data.val"),
    ],
)
def test_other_classes_are_named(train: tuple[str, ...], val: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_same_targets(source_of(*train).listing, source_of(*val).listing)


@pytest.mark.parametrize("form", ["imagefolder", "tar", "parquet", "shards"])
def test_every_form_of_the_same_images_is_the_same_listing(form: str, folder: Source, tmp_path: Path) -> None:
    """And so the same sample ids, keys and random draws."""
    if form == "tar":
        write_tar(tmp_path / "x.tar")
    elif form == "parquet":
        rows = {
            "image": contents(folder),
            "label": [name.split("/")[0] for name in ids(folder)],
            "file_name": [name.split("/")[1] for name in ids(folder)],
        }
        pq.write_table(pa.table(rows), tmp_path / "x.parquet")
    elif form == "shards":
        pack(folder, tmp_path / "x.shards", PackOptions(), workers=1)
    path = {"imagefolder": "images", "tar": "x.tar", "parquet": "x.parquet", "shards": "x.shards"}[form]
    source = open_source(f"{form}:{tmp_path / path}", "train")
    assert source.listing.fingerprint == folder.listing.fingerprint
    assert np.array_equal(source.listing.keys, folder.listing.keys)
    assert contents(source) == contents(folder)


@pytest.mark.parametrize("pattern", ["x.tar", "x*.tar", "{0..0}.tar"])
def test_a_tar_can_be_named_by_uri(pattern: str, folder: Source, tmp_path: Path) -> None:
    write_tar(tmp_path / ("0.tar" if pattern[0] == "{" else "x.tar"))
    source = open_source(f"tar:file://{tmp_path}/{pattern}", "train")
    assert contents(source) == contents(folder)


def test_a_tar_elsewhere_is_read_by_ranges(folder: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "x.tar")
    elsewhere = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    monkeypatch.setattr(files, "filesystem_of", lambda uri: (elsewhere, uri.removeprefix("store://")))
    source = open_source("tar:store://x.tar", "train")
    assert contents(pickle.loads(pickle.dumps(source))) == contents(folder)
    assert isinstance(source, Tars)
    assert not source.files.is_local
    with pytest.raises(ValueError, match=r"x-\.tar does not exist, must be a file"):
        open_source("tar:store://x-.tar", "train")


def test_a_path_with_the_signs_of_a_glob_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a[1]").mkdir()
    write_tar(tmp_path / "a[1]" / "x.tar")
    assert ids(open_source(f"tar:{tmp_path / 'a[1]' / 'x.tar'}", "train")) == SORTED


def test_few_files_stay_open_and_forgotten_ones_are_opened_again() -> None:
    made: list[int] = []
    recent = files.Recent(lambda key: made.append(key) or key, 2)
    assert [recent.get(key) for key in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert made == [1, 2, 3, 2]


def test_what_failed_to_be_made_is_tried_again() -> None:
    tries: list[int] = []

    def make(key: int) -> int:
        tries.append(key)
        if len(tries) == 1:
            raise OSError("away")
        return key

    recent = files.Recent(make, 2)
    with pytest.raises(OSError, match="away"):
        recent.get(5)
    assert recent.get(5) == 5


def test_the_same_classes_in_another_order_are_refused() -> None:
    train = source_of("cat", "dog")
    val = dataclasses.replace(train, listing=dataclasses.replace(train.listing, classes=("dog", "cat")))
    with pytest.raises(ValueError, match="in another order, must be the same: label 0 is dog here and cat"):
        check_same_targets(train.listing, val.listing)
