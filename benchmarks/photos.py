"""The images that benchmarks read: folders of photos, repeated by links or copies, and CIFAR-10's tar taken apart.

Nothing is fetched: every benchmark is told where its images lie, and any folder of JPEG files will do.
"""

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

JPEG = (".jpg", ".jpeg")
NUM_CLASSES = 10


def find_files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in JPEG)
    assert files, f"{folder} holds no JPEG file"
    return files


def link_photos(folder: Path, into: Path, num_images: int) -> None:
    """Class folders of links to the photos in `folder`, repeated up to `num_images`."""
    _place(find_files(folder), into, num_images, lambda photo, target: target.symlink_to(photo.resolve()))


def copy_photos(folder: Path, into: Path, num_images: int) -> None:
    """Class folders of copies of the photos in `folder`, repeated up to `num_images`, each with its own place on disk.

    copyfileobj, since copy2 may share the blocks of a file on filesystems that can.
    """

    def copy(photo: Path, target: Path) -> None:
        with photo.open("rb") as source, target.open("wb") as made:
            shutil.copyfileobj(source, made)

    _place(find_files(folder), into, num_images, copy)


def unpack(tar: Path, into: Path, num_images: int) -> None:
    """Class folders of the first `num_images` images of a tar of class folders, taken evenly from all of it."""
    with tarfile.open(tar) as opened:
        members = sorted((m for m in opened if m.isfile() and m.name.lower().endswith(JPEG)), key=lambda m: m.name)
        assert len(members) >= num_images, f"{tar} holds {len(members)} JPEG files, fewer than --images {num_images}"
        for number in range(num_images):
            member = members[number * len(members) // num_images]
            target = into / Path(member.name).parent.name / Path(member.name).name
            target.parent.mkdir(exist_ok=True)
            content = opened.extractfile(member)
            assert content is not None
            target.write_bytes(content.read())


def write_tars(images: Path, into: Path, per_tar: int) -> None:
    """The files of class folders as WebDataset has them: 000000.jpg and 000000.cls side by side, classes mixed."""
    into.mkdir()
    classes = sorted(path.name for path in images.iterdir())
    files = sorted(find_files(images), key=lambda path: path.name)
    for first in range(0, len(files), per_tar):
        with tarfile.open(into / f"{first // per_tar:04d}.tar", "w") as tar:
            for number, path in enumerate(files[first : first + per_tar], start=first):
                label = str(classes.index(path.parent.name)).encode()
                for ending, content in (("jpg", path.read_bytes()), ("cls", label)):
                    member = tarfile.TarInfo(f"{number:06d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def _place(photos: list[Path], into: Path, num_images: int, make: Callable[[Path, Path], None]) -> None:
    for number in range(num_images):
        target = into / f"class{number % NUM_CLASSES}" / f"{number:06d}.jpg"
        target.parent.mkdir(exist_ok=True, parents=True)
        make(photos[number % len(photos)], target)
