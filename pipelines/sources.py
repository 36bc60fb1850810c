"""Where samples come from: `digits`, `imagefolder:PATH`, `tar:PATH`.

How images become samples with ids and labels is said in `pipelines/listing.py`. Sources hold arrays and paths and no
open file: they are sent to the actors of the pipeline. Reads are safe from any number of threads.
"""

import difflib
import os
import posixpath
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.listing import Listing, is_image, list_images, listing_of
from pipelines.order import order
from pipelines.tar_index import index_tar

NUM_DIGITS_HELD_OUT = 360

Split = Literal["train", "val"]


class Source(Protocol):
    """Samples by index."""

    @property
    def listing(self) -> Listing:
        """Which samples there are."""

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """One sample: an encoded file, or (h, w, c) pixels.

        Raises: OSError if it cannot be read.
        """


def open_source(spec: str, split: Split) -> Source:
    """List the samples of a source. `split` chooses the part of a source that has parts (digits).

    Paths are local; relative ones begin at the current folder, and `~` is the home folder.
    Raises: ValueError if there is no such kind of source, no such path, or what is there cannot be used.
    """
    kind, _, path = spec.partition(":")
    if kind not in SOURCES or (kind != "digits") != bool(path):
        raise ValueError(f"got {spec!r}, must be one of {', '.join(FORMS.values())}. {_advice(spec, kind)}")
    if "://" in path:
        raise ValueError(
            f"got {spec!r}, must be a path on this machine. Copy the images to a folder that all nodes see."
        )
    return SOURCES[kind](spec, path, split)


def check_same_classes(train: Source, val: Source) -> None:
    """Raises: ValueError if the two do not have the same classes, since labels would mean different things."""
    ours, theirs = set(val.listing.classes), set(train.listing.classes)
    if ours == theirs:
        return
    differences = [
        f"{', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''} only in data.{setting}"
        for names, setting in ((ours - theirs, "val"), (theirs - ours, "train"))
        if names
    ]
    raise ValueError(
        f"got {len(ours)} classes, must be the {len(theirs)} of data.train, but there is {'; '.join(differences)}. "
        "Give both the same class folders, with an image in each."
    )


@dataclass(frozen=True, eq=False)
class Digits:
    """The 1,797 handwritten digits that scikit-learn ships, 8 x 8 grey; a fixed fifth is held out for `val`.

    Ids are `<digit>/<index in scikit-learn's order>`. Images: (n, 8, 8, 1), 0..16 scaled to 0..255.
    Source: Alpaydin & Kaynak 1998, UCI "Optical recognition of handwritten digits", its test part.
    """

    listing: Listing
    images: NDArray[np.uint8]

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.images[index]


def _open_digits(_spec: str, _path: str, split: Split) -> Digits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    shuffled = order(0, 0, len(digits.target))
    chosen = shuffled[:NUM_DIGITS_HELD_OUT] if split == "val" else shuffled[NUM_DIGITS_HELD_OUT:]
    chosen = chosen[np.lexsort((chosen, digits.target[chosen]))]
    ids = [f"{digits.target[index]}/{index:04d}" for index in chosen]
    images = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    return Digits(listing_of(ids), images[..., np.newaxis])


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Image files in class folders inside `root`."""

    listing: Listing
    root: str

    def read(self, index: int) -> bytes:
        return Path(self.root, self.listing.ids[index].as_py()).read_bytes()


def _open_folder(spec: str, path: str, _split: Split) -> ImageFolder:
    root = _absolute(path)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        advice = "Write tar:PATH for a tar, or give" if root.exists() else "Give"
        raise ValueError(
            f"got {spec!r}, but {root} {what}, must be a folder. "
            f"{advice} the folder that holds a folder for each class."
        )
    listing, parent = list_images(spec, str(root), _images_under(spec, root))
    return ImageFolder(listing, str(root / parent))


def _images_under(spec: str, root: Path) -> list[str]:
    """Paths relative to `root`; links are followed."""

    def refuse(error: OSError) -> None:
        raise ValueError(
            f"got {spec!r}, but its folder {error.filename} cannot be listed: {error.strerror}. "
            "Make it readable, or move it out."
        ) from error

    paths = []
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        subfolders[:] = (name for name in subfolders if not name.startswith("."))
        relative = Path(folder).relative_to(root).as_posix()
        prefix = "" if relative == "." else relative + "/"
        paths += [prefix + name for name in names if is_image(name)]
    return paths


@dataclass(frozen=True, eq=False)
class TarFile:
    """Image files in class folders in an uncompressed tar; read in place by offset, in any order.

    `num_bytes`: of the tar when it was listed, by which a changed one is told.
    """

    listing: Listing
    path: str
    num_bytes: int
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def read(self, index: int) -> bytes:
        size = int(self.sizes[index])
        content = os.pread(self._descriptor, size, int(self.offsets[index]))
        if len(content) != size:
            raise OSError(f"{self.path} ends before byte {self.offsets[index] + size}")
        return content

    @cached_property
    def _descriptor(self) -> int:
        """Opened at the first read in a process; a read moves no file position, so threads can share it."""
        descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        num_bytes = os.fstat(descriptor).st_size
        if num_bytes != self.num_bytes:
            raise OSError(f"{self.path} has {num_bytes} bytes, had {self.num_bytes} when it was listed")
        return descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_descriptor"}


def _open_tar(spec: str, path: str, _split: Split) -> TarFile:
    file = _absolute(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        advice = "Write imagefolder:PATH for a folder, or give" if file.is_dir() else "Give"
        raise ValueError(
            f"got {spec!r}, but {file} {what}, must be a file. "
            f"{advice} an uncompressed tar with a folder for each class."
        )
    places = index_tar(spec, file)
    listing, parent = list_images(spec, str(file), places)
    wanted = np.array([places[posixpath.join(parent, sample_id)] for sample_id in listing.ids.to_pylist()], np.int64)
    return TarFile(listing, str(file), file.stat().st_size, wanted[:, 0].copy(), wanted[:, 1].copy())


def _absolute(path: str) -> Path:
    # Path.expanduser raises where there is no such user; this leaves the path for the message that it does not exist.
    return Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111


def _advice(spec: str, kind: str) -> str:
    if spec and kind not in SOURCES and _absolute(spec).exists():
        return f"Write {'imagefolder' if _absolute(spec).is_dir() else 'tar'}:{spec}."
    near = difflib.get_close_matches(kind, SOURCES, n=1)
    return f"Did you mean {FORMS[near[0]]}?" if near else "Write the kind of source, a colon and its path."


# The one table of sources: what an experiment writes before the colon.
SOURCES: dict[str, Callable[[str, str, Split], Source]] = {
    "digits": _open_digits,
    "imagefolder": _open_folder,
    "tar": _open_tar,
}
FORMS = {name: name if name == "digits" else f"{name}:PATH" for name in SOURCES}
