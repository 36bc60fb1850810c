"""Which samples a source has, under which names and in which order: the same for the same images, in a folder or a tar.

A sample's id is `<class>/<file name>`; the class is the folder that directly holds the file, and samples are sorted
by id. All class folders lie side by side in one folder, at any depth: otherwise a path one level too high would train
on `train/` and `test/` together. Files and folders whose names begin with a dot (of file browsers, of macOS in its
tars) and files that end in none of EXTENSIONS are passed over; a class folder without images is no class.
"""

import hashlib
import posixpath
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.randomness import mix

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, eq=False)
class Listing:
    """Which samples a source has: `ids` sorted, `labels` (n,) indexes into the sorted `classes`.

    `keys` (n,) are the addresses of the samples for random draws, 64-bit hashes of their ids.
    """

    classes: tuple[str, ...]
    ids: pa.StringArray
    labels: NDArray[np.int64]
    keys: NDArray[np.uint64]

    @cached_property
    def fingerprint(self) -> str:
        """Tells two listings apart: a digest of classes, ids and labels."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        digest.update("\0".join(self.ids.to_pylist()).encode())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.labels)


def listing_of(ids: Sequence[str]) -> Listing:
    """The listing of ids that are sorted already."""
    names = [sample_id.partition("/")[0] for sample_id in ids]
    classes = tuple(sorted(set(names)))
    number = {name: i for i, name in enumerate(classes)}
    return Listing(
        classes,
        pa.array(ids, pa.string()),
        np.array([number[name] for name in names], np.int64),
        np.array([mix("sample", sample_id) for sample_id in ids], np.uint64),
    )


def is_image(path: str) -> bool:
    """Whether a path (relative, normalised, by `/`) counts as an image, by its name alone."""
    return path.lower().endswith(EXTENSIONS) and not any(
        part.startswith(".") and part != ".." for part in path.split("/")
    )


def list_images(spec: str, place: str, paths: Collection[str]) -> tuple[Listing, str]:
    """List images at `paths` inside `place`; `spec` is what the user wrote.

    Returns the listing and the folder that holds the class folders: sample i lies at FOLDER/ids[i].
    Raises: ValueError if there is none, or not all of them lie in class folders side by side.
    """
    if not paths:
        raise ValueError(
            f"got {spec!r}, but {place} holds no image; looked for {', '.join(EXTENSIONS)}. "
            "Put the images of each class into a folder that is named after it."
        )
    parent = _parent_of_classes(spec, place, {posixpath.dirname(path) for path in paths})
    start = len(parent) + 1 if parent else 0
    ids = sorted(path[start:] for path in paths)
    for sample_id in ids:
        if not _is_utf8(sample_id):
            raise ValueError(f"got {spec!r}, but the file name {sample_id!a} in {place} is not UTF-8. Rename it.")
    return listing_of(ids), parent


def _parent_of_classes(spec: str, place: str, folders: set[str]) -> str:
    if "" in folders:
        raise ValueError(
            f"got {spec!r}, but images lie directly in {place}, must lie in folders that are named after their "
            "class. Put the images of each class into a folder."
        )
    parents: dict[str, str] = {}
    for folder in sorted(folders):
        parents.setdefault(posixpath.dirname(folder), folder)
    if len(parents) > 1:
        one, other = list(parents.values())[:2]
        raise ValueError(
            f"got {spec!r}, but in {place} images lie in {one}/ and in {other}/, and the folders of all classes must "
            "lie side by side in one folder. Name that folder, or move the others out."
        )
    return next(iter(parents))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
