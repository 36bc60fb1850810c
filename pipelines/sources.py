"""Where samples come from: `digits`, `imagefolder:PATH`, `tar:PATH`.

A sample's id is `<class>/<file name>`, the class the folder that holds the file, so the same images have the
same ids, and with them the same order and draws, in a folder and in a tar. Sources hold arrays and paths, no open
files: they are sent to the actors of the pipeline. Reads are safe from any number of threads.
"""

import hashlib
import os
import tarfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.order import order
from pipelines.randomness import mix

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
Split = Literal["train", "val"]


@dataclass(frozen=True)
class Listing:
    """Which samples a source has: `ids` sorted, `labels` indexes into the sorted `classes`."""

    classes: tuple[str, ...]
    ids: pa.Array
    labels: NDArray[np.int64]

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """The addresses of the samples for random draws: (n,) 64-bit hashes of their ids."""
        return np.array([mix("sample", name) for name in self.ids.to_pylist()], np.uint64)

    @cached_property
    def fingerprint(self) -> str:
        """Tells two listings apart: a digest of classes, ids and labels."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        digest.update("\0".join(self.ids.to_pylist()).encode())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.labels)


class Source(Protocol):
    """Samples by index."""

    @property
    def listing(self) -> Listing:
        """Which samples there are."""

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """One sample: an encoded file, or (h, w, c) pixels."""


def open_source(spec: str, split: Split) -> Source:
    """List the samples of a source. `split` chooses the part of a source that has parts (digits).

    Raises: ValueError if there is no such kind of source, no such path, or no image in it.
    """
    kind, _, path = spec.partition(":")
    if kind not in SOURCES or (kind != "digits") != bool(path):
        forms = ", ".join(name if name == "digits" else f"{name}:PATH" for name in SOURCES)
        raise ValueError(
            f"got {spec!r}, must be one of {forms}. Write the kind of source, a colon and its path."
        )
    return SOURCES[kind](path, split)


def check_same_classes(train: Source, val: Source) -> None:
    """Raises: ValueError if the two do not have the same classes, since labels would mean different things."""
    missing = set(val.listing.classes) ^ set(train.listing.classes)
    if missing:
        some = ", ".join(sorted(missing)[:5])
        raise ValueError(
            f"its {len(val.listing.classes)} classes are not the {len(train.listing.classes)} of data.train: "
            f"only one of them has {some}. Give both the same class folders."
        )


@dataclass(frozen=True)
class Digits:
    """The 1,797 handwritten digits that scikit-learn ships, 8 x 8 grey; a fixed fifth is held out for `val`.

    Source: Alpaydin & Kaynak 1998, UCI "Optical recognition of handwritten digits", its test part.
    """

    listing: Listing
    images: NDArray[np.uint8]

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.images[index]


def _open_digits(path: str, split: Split) -> Digits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    count = len(digits.target)
    shuffled = order(0, 0, count)
    held_out = round(count / 5) + 1
    chosen = np.sort(shuffled[:held_out] if split == "val" else shuffled[held_out:])
    pixels = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    ids = pa.array(
        [f"{label}/{index:04d}" for index, label in zip(chosen, digits.target[chosen], strict=True)]
    )
    classes = tuple(str(label) for label in range(10))
    del path
    return Digits(Listing(classes, ids, digits.target[chosen].astype(np.int64)), pixels[..., np.newaxis])


@dataclass(frozen=True)
class ImageFolder:
    """Image files in class folders, at any depth: the class is the name of the folder that holds a file."""

    listing: Listing
    paths: pa.Array

    def read(self, index: int) -> bytes:
        return Path(self.paths[index].as_py()).read_bytes()


def _open_folder(path: str, split: Split) -> ImageFolder:
    del split
    root = Path(path).expanduser().absolute()
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}. Give the folder that holds one folder for each class.")
    found = [
        (str(Path(folder) / name), None)
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
        if Path(folder) != root
    ]
    listing, places = _list(str(root), found)
    return ImageFolder(listing, pa.array([path for path, _ in places]))


@dataclass
class TarFile:
    """Image files in class folders in an uncompressed tar; read in place by offset, in any order."""

    listing: Listing
    path: str
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    _descriptor: int | None = field(default=None, init=False, repr=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False)

    def read(self, index: int) -> bytes:
        if self._descriptor is None:
            with self._lock:
                if self._descriptor is None:
                    self._descriptor = os.open(self.path, os.O_RDONLY)
        return os.pread(self._descriptor, int(self.sizes[index]), int(self.offsets[index]))

    def __reduce__(self) -> tuple[Any, ...]:
        return TarFile, (self.listing, self.path, self.offsets, self.sizes)

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def _open_tar(path: str, split: Split) -> TarFile:
    del split
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise ValueError(f"there is no file {file}. Give an uncompressed tar with one folder for each class.")
    try:
        with tarfile.open(file, "r:") as archive:
            found = [
                (member.name, (member.offset_data, member.size)) for member in archive if member.isfile()
            ]
    except tarfile.ReadError as error:
        raise ValueError(
            f"{file} is no uncompressed tar ({error}). Unpack a compressed one first."
        ) from error
    listing, places = _list(str(file), found)
    places_array = np.array([place for _, place in places], np.int64)
    return TarFile(listing, str(file), places_array[:, 0], places_array[:, 1])


def _list(where: str, found: Iterable[tuple[str, Any]]) -> tuple[Listing, list[tuple[str, Any]]]:
    """Sort what was found by sample id; (path, place) pairs in, listing and the pairs in its order out."""
    named = []
    for path, place in found:
        pure = PurePosixPath(path)
        if pure.suffix.lower() in EXTENSIONS and pure.parent.name and not pure.name.startswith("."):
            named.append((f"{pure.parent.name}/{pure.name}", path, place))
    if not named:
        raise ValueError(
            f"{where} holds no images in class folders; looked for {', '.join(EXTENSIONS)}. Put each class in a folder."
        )
    named.sort()
    for (one, path, _), (other, other_path, _) in zip(named, named[1:], strict=False):
        if one == other:
            raise ValueError(f"{path} and {other_path} have the same sample id {one}. Rename one of them.")
    classes = tuple(sorted({name.split("/")[0] for name, _, _ in named}))
    index = {name: i for i, name in enumerate(classes)}
    labels = np.array([index[name.split("/")[0]] for name, _, _ in named], np.int64)
    return Listing(classes, pa.array([name for name, _, _ in named]), labels), [(p, q) for _, p, q in named]


# The one table of sources: what an experiment writes before the colon.
SOURCES: dict[str, Callable[[str, Split], Source]] = {
    "digits": _open_digits,
    "imagefolder": _open_folder,
    "tar": _open_tar,
}
