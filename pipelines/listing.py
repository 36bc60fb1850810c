"""Which samples a source has, under which names and in which order: the same for the same images in any form.

A sample's id is `<class>/<file name>`, and samples are sorted by id. Where nothing else names the class, it is the
folder that directly holds the file. All class folders lie side by side in one folder, at any depth: otherwise a path
one level too high would train on `train/` and `test/` together. Files and folders whose names begin with a dot (of
file browsers, of macOS in its tars) and files that end in none of EXTENSIONS are passed over; a class folder without
images is no class.

Where labels are written down (WebDataset, parquet), the class is what the label says: a text; a number as decimal
text; or the name that a class list gives to the number. Classes are in the order of the class list, else numbers by
value, else texts sorted. The id of a sample that has several classes or numbers for its label (`targets.py`) is its
file name alone; that of a sample whose label is on no class list is `?/<file name>`.
"""

import hashlib
import posixpath
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.randomness import mix
from pipelines.targets import Labels, Target, TargetKind, Written, read_labels, target_of

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
NO_CLASS = "?"


@dataclass(frozen=True, eq=False)
class Listing:
    """Which samples a source has: `ids` sorted, `labels` (n, ...) as `target` says, classes as indexes into `classes`.

    `keys` (n,) are the addresses of the samples for random draws, 64-bit hashes of their ids. `refused`: samples, by
    index, whose label is none, and why; they are replaced like those that cannot be read.
    """

    classes: tuple[str, ...]
    ids: pa.StringArray
    labels: Labels
    keys: NDArray[np.uint64]
    refused: Mapping[int, str] = field(default_factory=dict)

    @cached_property
    def target(self) -> Target:
        return target_of(self.classes, self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """Tells two listings apart: a digest of classes, ids and labels."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        digest.update("\0".join(self.ids.to_pylist()).encode())
        digest.update(self.labels.tobytes())
        digest.update(b"".join(b"!%d" % index for index in sorted(self.refused)))
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> "Listing":
        """The listing of some samples, in the order of `indices`; the classes stay."""
        refused = {}
        if self.refused:
            refused = {i: self.refused[old] for i, old in enumerate(indices.tolist()) if old in self.refused}
        return Listing(
            self.classes, self.ids.take(pa.array(indices)), self.labels[indices], self.keys[indices], refused
        )

    def label_text(self, index: int) -> str:
        """The label of a sample, for a person to read."""
        label = self.labels[index]
        if index in self.refused:
            return NO_CLASS
        if self.target.kind == "class":
            return self.classes[label]
        if self.target.kind == "classes":
            return ", ".join(self.classes[i] for i in np.flatnonzero(label)) or "none"
        return ", ".join(f"{value:.4g}" for value in label)


@dataclass(frozen=True)
class Storage:
    """Where samples lie one after the other, for reading in long runs: `order.windowed_order`.

    `sizes`: samples of each file or group of rows. `samples` (n,): which sample lies at each place, all in a row.
    """

    sizes: tuple[int, ...]
    samples: NDArray[np.int64]

    def take(self, indices: NDArray[np.int64]) -> "Storage":
        """The storage of some samples, which are numbered by their places in `indices` from here on."""
        parts, places = np.empty_like(self.samples), np.empty_like(self.samples)
        parts[self.samples] = np.repeat(np.arange(len(self.sizes)), self.sizes)
        places[self.samples] = np.arange(len(self.samples))
        return storage_of(parts[indices], places[indices])


def storage_of(parts: NDArray[np.int64], places: NDArray[np.int64]) -> Storage:
    """The storage of samples of which number i lies in part `parts[i]` at `places[i]`; an empty part does not count."""
    samples = np.lexsort((places, parts))
    sizes = np.bincount(parts)
    return Storage(tuple(sizes[sizes > 0].tolist()), samples)


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


def labelled_listing(
    spec: str,
    place: str,
    values: Sequence[Any],
    names: Sequence[str],
    classes: Sequence[str] | None = None,
    kind: TargetKind = "class",
) -> tuple[Listing, NDArray[np.int64]]:
    """List samples whose labels are written down; `spec` is what the user wrote.

    `values` are the labels (`targets.read_labels`), `names` the file names, `classes` the class list, if there is one.
    Returns the listing, and which of the samples given each of it is.
    Raises: ValueError if there is none, a label cannot be one, or two samples have one id.
    """
    if not values:
        raise ValueError(f"got {spec!r}, but {place} holds no sample. Give one that does.")
    written = read_labels(f"got {spec!r}, but in {place}", kind, values, names, classes)
    ids = _ids(kind, written, names)
    order = sorted(range(len(ids)), key=ids.__getitem__)
    in_order = [ids[i] for i in order]
    twice = next((one for one, next_one in pairwise(in_order) if one == next_one), None)
    if twice is not None:
        same, each = (
            ("two samples of one class have", "each sample of a class")
            if kind == "class"
            else ("two samples have", "each sample")
        )
        raise ValueError(
            f"got {spec!r}, but in {place} {same} one name, {twice!a}, and random draws are "
            f"addressed by it. Give {each} its own file name."
        )
    keys = np.array([mix("sample", sample_id) for sample_id in in_order], np.uint64)
    chosen = np.array(order, np.int64)
    refused = {place: written.refused[i] for place, i in enumerate(order) if i in written.refused}
    return Listing(written.classes, pa.array(in_order, pa.string()), written.labels[chosen], keys, refused), chosen


def _ids(kind: TargetKind, written: Written, names: Sequence[str]) -> list[str]:
    if kind != "class":
        return list(names)
    folders = [written.classes[label] for label in written.labels.tolist()]
    return [
        f"{NO_CLASS if i in written.refused else folder}/{name}"
        for i, (folder, name) in enumerate(zip(folders, names, strict=True))
    ]


def check_same_targets(train: Listing, val: Listing) -> None:
    """Raises: ValueError if labels of the two mean different things: other classes, or another number of values."""
    kinds = train.target.kind, val.target.kind
    if kinds[0] != kinds[1] or (kinds[0] == "values" and train.target != val.target):
        raise ValueError(
            f"got {val.target}, must be {train.target} as in data.train. "
            "Use columns of one kind, or say which it is: ?target=."
        )
    ours, theirs = set(val.classes), set(train.classes)
    if ours == theirs:
        pairs = enumerate(zip(val.classes, train.classes, strict=True))
        differing = next(((at, *pair) for at, pair in pairs if pair[0] != pair[1]), None)
        if differing is not None:
            at, here, there = differing
            raise ValueError(
                f"got the classes of data.train in another order, must be the same: label {at} is {here} here and "
                f"{there} in data.train. Use sources of one kind, or give both the same class list."
            )
        return
    differences = [
        f"{', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''} only in data.{setting}"
        for names, setting in ((ours - theirs, "val"), (theirs - ours, "train"))
        if names
    ]
    advice = "Give both the same class folders, with an image in each."
    if kinds[0] == "classes":
        advice = "Give both the same class list (docs/data.md), or divide one source by val_fraction."
    raise ValueError(
        f"got {len(ours)} classes, must be the {len(theirs)} of data.train, but there is {'; '.join(differences)}. "
        f"{advice}"
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
