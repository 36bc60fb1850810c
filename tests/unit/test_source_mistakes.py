import bz2
import gzip
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from image_files import NAMES, add, write_folder, write_tar

from pipelines.sources import open_source


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("imagefoldr:x", "got 'imagefoldr:x', must be one of digits, imagefolder:PATH, .*PATH. Did you mean imagef"),
        ("digit", "got 'digit', must be one of .* Did you mean digits?"),
        ("digits:x", "got 'digits:x', must be one of digits, "),
        ("tar", "Did you mean tar:PATH?"),
        ("tar:", "Did you mean tar:PATH?"),
        ("", "got '', must be one of digits, .* Write the kind of source, a colon and its path"),
        ("zip:x", "got 'zip:x', must be one of digits, imagefolder:PATH, .* Write the kind of source, a colon and its"),
        (
            "parquet:x",
            "got 'parquet:x', but /.*/x does not exist, must be a file. Give a parquet file, a folder of them",
        ),
        ("parquet:images", r"/images holds no \*\.parquet. Give a parquet file"),
        ("shards:x", "got 'shards:x', but /.*/x holds no index.json: it is no folder of shards, or packing has not"),
        ("tar:none-*.tar", r"but no file matches /.*/none-\*\.tar. Give an uncompressed tar"),
        ("tar:none-{0..1}.tar", "/none-0.tar does not exist, must be a file. Give"),
        ("tar:nosuch://x/y.tar", "nosuch://x/y.tar cannot be reached: .*Give an uncompressed tar"),
        (
            "tar:images.tar?per_clas=3",
            "option per_clas is unknown, must be one of label, target, val_fraction, .* Did you mean per_class",
        ),
        (
            "tar:images.tar?image=x",
            "option image is unknown, must be one of label, target, val_fraction, split_seed, per",
        ),
        ("tar:images.tar?label=x", "have no labels beside their images .* Take label out: folders are the classes"),
        ("parquet:images.parquet?target=number", "target: got 'number', must be one of class, classes, values"),
        ("tar:images.tar?per_class=0", "per_class: got 0, must be 1 or more"),
        ("tar:images.tar?per_class=few", "per_class: got 'few', must be a whole number from 1 on"),
        ("tar:images.tar?split_seed=x", "split_seed: got 'x', must be a whole number"),
        ("tar:images.tar?val_fraction=1", "val_fraction: got 1.0, must be between 0 and 1"),
        ("tar:images.tar?val_fraction=1e-9", "val_fraction: got 1e-09, which holds out none of 7 samples; both sides"),
        ("digits?val_fraction=0.1", "digits holds out a fixed fifth for val. Take val_fraction out"),
        ("images", "Write imagefolder:images."),
        ("images.tar", "Write tar:images.tar."),
        ("s3://bucket/images", "got 's3://bucket/images', must be one of"),
        (
            "imagefolder:s3://bucket/images",
            "must be a path on this machine. Copy the images to a folder that all nodes see",
        ),
        ("imagefolder:none", r"got 'imagefolder:none', but /.*/none does not exist, must be a folder. Give"),
        ("imagefolder:images.tar", r"/images.tar is a file, must be a folder. Write tar:PATH for a tar"),
        ("tar:none.tar", r"got 'tar:none.tar', but /.*/none.tar does not exist, must be a file. Give"),
        ("tar:images", "/images is a folder, must be a file. Write imagefolder:PATH for a folder"),
        ("imagefolder:~nobody-of-that-name/x", "/~nobody-of-that-name/x does not exist"),
    ],
)
def test_a_wrong_source_is_answered_with_a_right_one(
    spec: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "images")
    write_tar(tmp_path / "images.tar")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_source(spec, "train")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no image; looked for .bmp, .gif, .jpeg, .jpg, .*Put the images of each class into a folder"),
        (["1.png", "cat/2.png"], "images lie directly in .*, must lie in folders that are named after their class"),
        (["train/cat/1.png", "test/cat/2.png"], "images lie in test/cat/ and in train/cat/, .* side by side"),
        (["cat/1.png", "cat/small/1.png"], "images lie in cat/ and in cat/small/, .* side by side in one folder"),
    ],
)
@pytest.mark.parametrize("kind", ["imagefolder", "tar"])
def test_images_in_no_class_or_in_doubtful_ones_are_refused(
    kind: str, names: list[str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "images"
    if kind == "tar":
        write_tar(path, names)
    else:
        path.mkdir()
        write_folder(path, names)
    with pytest.raises(ValueError, match=f"got '{kind}:.*{message}"):
        open_source(f"{kind}:{path}", "train")


@pytest.mark.parametrize(
    ("compress", "command"),
    [(gzip.compress, "gunzip"), (bz2.compress, "bunzip2"), (lzma.compress, "unxz")],
)
def test_a_compressed_tar_is_refused_with_what_undoes_it(
    compress: Callable[[bytes], bytes], command: str, tmp_path: Path
) -> None:
    content = write_tar(tmp_path / "x.tar").read_bytes()
    (tmp_path / "y.tar").write_bytes(compress(content))
    with pytest.raises(ValueError, match=rf"y\.tar is compressed, .* Unpack it once with {command};"):
        open_source(f"tar:{tmp_path / 'y.tar'}", "train")


@pytest.mark.parametrize("content", [b"", b"no tar at all", b"no tar at all" * 100])
def test_what_is_no_tar_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.tar is no whole tar: .*Make or copy it again"):
        open_source(f"tar:{tmp_path / 'x.tar'}", "train")


def test_a_tar_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    """tarfile itself takes a cut between two members for the end."""
    whole = write_tar(tmp_path / "x.tar", NAMES[:3]).read_bytes()
    end = len(whole.rstrip(b"\0"))
    for length in range(512, end, 512):
        (tmp_path / "y.tar").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"y\.tar is (cut off at byte|no whole tar: ).*Make or copy it again"):
            open_source(f"tar:{tmp_path / 'y.tar'}", "train")


def test_a_tar_with_a_damaged_header_is_refused(tmp_path: Path) -> None:
    """tarfile itself takes a damaged header after the first for the end, and the samples behind it would be lost."""
    file = write_tar(tmp_path / "x.tar", NAMES[:3])
    with tarfile.open(file) as archive:
        second = archive.getmembers()[1].offset
    content = bytearray(file.read_bytes())
    content[second + 3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.tar is damaged at byte {second}\. Make or copy it again"):
        open_source(f"tar:{file}", "train")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_a_tar_are_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "cat/1.png", b"x")
        link = tarfile.TarInfo("cat/2.png")
        link.type, link.linkname = kind, "cat/1.png"
        archive.addfile(link)
    with pytest.raises(ValueError, match=r"cat/2\.png is a link or a device, must be a whole file. Pack it again"):
        open_source(f"tar:{tmp_path / 'x.tar'}", "train")


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images" / "cat").mkdir(parents=True)
    name = os.fsencode(tmp_path / "images" / "cat") + b"/\xff.png"
    os.close(os.open(name, os.O_CREAT))
    with pytest.raises(ValueError, match=r"the file name 'cat/\\udcff.png' in /.* is not UTF-8. Rename it"):
        open_source(f"imagefolder:{tmp_path / 'images'}", "train")


def test_a_circle_of_links_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "images")
    (tmp_path / "images" / "circle").symlink_to(tmp_path / "images")
    with pytest.raises(ValueError, match=r"side by side|cannot be listed"):
        open_source(f"imagefolder:{tmp_path / 'images'}", "train")
