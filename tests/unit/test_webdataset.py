import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from image_files import NAMES, SORTED, add, encoded, pixels_of, write_folder, write_tar

from pipelines.sources import Source, Tars, open_source


def write_members(file: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            add(archive, name, content)
    return file


def image(name: str) -> bytes:
    return encoded(pixels_of(Path(name).name))


def labelled(names: tuple[str, ...] = NAMES, ending: str = ".cls") -> dict[str, bytes]:
    """Class folders in WebDataset's form, each label the name of the folder."""
    members = {}
    for name in names:
        label = name.split("/")[0]
        members[name] = image(name)
        members[name.rpartition(".")[0] + ending] = (
            json.dumps({"label": label}) if ending == ".json" else label
        ).encode()
    return members


def opened(file: Path) -> Source:
    return open_source(f"tar:{file}", "train")


def ids(source: Source) -> list[str]:
    return list(source.listing.ids.to_pylist())


@pytest.mark.parametrize("ending", [".cls", ".json"])
def test_labels_beside_the_images_give_the_same_source_as_class_folders(ending: str, tmp_path: Path) -> None:
    folder = open_source(f"imagefolder:{write_folder(tmp_path / 'images')}", "train")
    tar = opened(write_members(tmp_path / "x.tar", labelled(ending=ending)))
    assert ids(tar) == SORTED
    assert tar.listing.fingerprint == folder.listing.fingerprint
    assert np.array_equal(tar.listing.keys, folder.listing.keys)
    assert [tar.read(i) for i in range(7)] == [folder.read(i) for i in range(7)]


def test_numbers_are_classes_in_the_order_of_their_values(tmp_path: Path) -> None:
    members = {}
    for key, label in (("a", b"10"), ("b", b"2\n"), ("c", b"0")):
        members |= {f"{key}.jpg": key.encode(), f"{key}.cls": label}
    source = opened(write_members(tmp_path / "x.tar", members))
    assert source.listing.classes == ("0", "2", "10")
    assert ids(source) == ["0/c.jpg", "10/a.jpg", "2/b.jpg"]
    assert source.listing.labels.tolist() == [0, 2, 1]
    assert [source.read(i) for i in range(3)] == [b"c", b"a", b"b"]


def test_a_key_ends_at_the_first_dot_and_other_images_of_it_are_passed_over(tmp_path: Path) -> None:
    members = {"x.y/1.png": b"image", "x.y/1.seg.png": b"mask", "x.y/1.cls": b"cat", "x.y/1.txt": b"a cat"}
    source = opened(write_members(tmp_path / "x.tar", members))
    assert ids(source) == ["cat/1.png"]
    assert source.read(0) == b"image"


def test_of_two_label_files_the_cls_counts(tmp_path: Path) -> None:
    members = {"1.jpg": b"x", "1.json": b'{"label": "dog"}', "1.cls": b"cat"}
    assert opened(write_members(tmp_path / "x.tar", members)).listing.classes == ("cat",)


@pytest.mark.parametrize("pattern", ["x-{000..002}.tar", "x-*.tar", "x-00[0-2].tar"])
def test_several_tars_are_one_source(pattern: str, tmp_path: Path) -> None:
    for number in range(3):
        write_members(tmp_path / f"x-{number:03d}.tar", labelled(NAMES[number::3]))
    (tmp_path / "other.tar").write_bytes(b"")
    source = opened(tmp_path / pattern)
    assert ids(source) == SORTED
    assert [source.read(i) for i in range(7)] == [image(name) for name in SORTED]
    assert isinstance(source, Tars)
    assert source.storage.sizes == (3, 2, 2)


def test_storage_runs_through_the_files_in_their_order(tmp_path: Path) -> None:
    source = opened(write_tar(tmp_path / "x.tar"))  # members in the order of NAMES
    assert isinstance(source, Tars)
    assert [ids(source)[i] for i in source.storage.samples] == list(NAMES)


def test_class_folders_spread_over_tars_are_one_source(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", NAMES[:4], prefix="train/")
    write_tar(tmp_path / "b.tar", NAMES[4:], prefix="train/")
    assert ids(opened(tmp_path / "*.tar")) == SORTED


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.jpg": b"x", "1.cls": b"0", "2.jpg": b"x"}, "2.jpg has neither a .cls nor a .json beside it"),
        ({"1.jpg": b"x", "1.png": b"x", "1.cls": b"0"}, "1.jpg and 1.png are two images of one key"),
        ({"1.jpg": b"x", "1.cls": b" \n"}, "1.cls holds b' .n', must be a number or a text"),
        ({"1.jpg": b"x", "1.cls": b"\xff"}, "1.cls holds .*must be a number or a text"),
        ({"1.jpg": b"x", "1.json": b"{"}, 'must be an object with "label", a number or a text'),
        ({"1.jpg": b"x", "1.json": b'{"class": 1}'}, '1.json holds .* must be an object with "label"'),
        ({"1.jpg": b"x", "1.json": b'{"label": {}}'}, '1.json holds .* must be an object with "label"'),
        ({"1.jpg": b"x", "1.json": b'{"label": ["cat", null]}'}, '1.json holds .* must be an object with "label"'),
        ({"1.jpg": b"x", "1.json": b'{"label": true}'}, '1.json holds .* must be an object with "label"'),
        ({"1.jpg": b"x", "1.cls": b"-1"}, "a label is -1, must be 0 or more. Samples without a label cannot be used"),
        (
            {"1.jpg": b"x", "1.cls": b"1", "2.jpg": b"x", "2.cls": b"cat"},
            r"some labels are numbers \(1\) and some are texts \('cat'\)",
        ),
        (
            {"a/1.jpg": b"x", "a/1.cls": b"0", "b/1.jpg": b"y", "b/1.cls": b"0"},
            "two samples of one class have one name, '0/1.jpg'",
        ),
    ],
)
def test_a_doubtful_label_or_name_is_refused(members: dict[str, bytes], message: str, tmp_path: Path) -> None:
    file = write_members(tmp_path / "x.tar", members)
    with pytest.raises(ValueError, match=rf"got 'tar:.*x\.tar.*{message}"):
        opened(file)


def test_tars_of_two_forms_are_refused(tmp_path: Path) -> None:
    write_members(tmp_path / "a.tar", labelled())
    write_tar(tmp_path / "b.tar")
    with pytest.raises(ValueError, match=r"some of these tars have labels beside their images .* Make all of them in"):
        opened(tmp_path / "*.tar")


def test_one_path_in_two_tars_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar")
    write_tar(tmp_path / "b.tar", ["cat/1.png"])
    with pytest.raises(ValueError, match=r"cat/1.png lies in .*a\.tar and in .*b\.tar, must lie in one"):
        opened(tmp_path / "*.tar")
