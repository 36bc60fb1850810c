"""Small images in class folders and tars, for the tests of sources and of what is made from them."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NAMES = ("cat/1.png", "cat/10.png", "cat/2.png", "cat-big/0.png", "dog/0.png", "dog/Z.PNG", "dog/é.png")
# Sorted by code points, as ids are: '-' and the capitals come before '/' and the small letters.
SORTED = ["cat-big/0.png", "cat/1.png", "cat/10.png", "cat/2.png", "dog/0.png", "dog/Z.PNG", "dog/é.png"]


def pixels_of(name: str, shape: tuple[int, ...] = (6, 6, 3)) -> NDArray[np.uint8]:
    """The image of that name, the same at every call."""
    return np.random.default_rng(list(name.encode())).integers(0, 256, shape, np.uint8)


def encoded(pixels: NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def write_folder(root: Path, names: Iterable[str] = NAMES) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(pixels_of(Path(name).name)))
    return root


def write_tar(file: Path, names: Iterable[str] = NAMES, *, prefix: str = "", form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(file, "w", format=form) as archive:
        for name in names:
            add(archive, prefix + name, encoded(pixels_of(Path(name).name)))
    return file


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
