"""Which samples a source has, under which names and in which order: the same for the same images in any form.

A sample's id is `<class>/<file name>`, and samples are sorted by id. Where nothing else names the class, it is the
folder that directly holds the file. All class folders lie side by side in one folder, at any depth: otherwise a path
one level too high would train on `train/` and `test/` together. Files and folders whose names begin with a dot (of
file browsers, of macOS in its tars) and files that end in none of EXTENSIONS are passed over; a class folder without
images is no class.

Where labels are written down (WebDataset, parquet), the class is what the label says: a text; a number as decimal
text; or the name that a class list gives to the number. Classes are in the order of the class list, else numbers by
value, else texts sorted.
"""

import hashlib
import posixpath
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.randomness import mix

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, eq=False)
class Listing:
    """Which samples a source has: `ids` sorted, `labels` (n,) indexes into `classes`.

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

    def take(self, indices: NDArray[np.int64]) -> "Listing":
        """The listing of some samples, in the order of `indices`; the classes stay."""
        return Listing(self.classes, self.ids.take(pa.array(indices)), self.labels[indices], self.keys[indices])


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
    spec: str, place: str, values: Sequence[int | str], names: Sequence[str], classes: Sequence[str] | None = None
) -> tuple[Listing, NDArray[np.int64]]:
    """List samples whose labels are written down; `spec` is what the user wrote.

    `values` are the labels, `names` the file names, `classes` what the numbers stand for, if that is known.
    Returns the listing, and which of the samples given each of it is.
    Raises: ValueError if there is none, a label cannot be one, or two samples have one id.
    """
    if not values:
        raise ValueError(f"got {spec!r}, but {place} holds no sample. Give one that does.")
    all_classes, labels = _number_labels(spec, place, values, classes)
    ids = [f"{all_classes[label]}/{name}" for label, name in zip(labels, names, strict=True)]
    order = sorted(range(len(ids)), key=ids.__getitem__)
    in_order = [ids[i] for i in order]
    twice = next((one for one, next_one in pairwise(in_order) if one == next_one), None)
    if twice is not None:
        raise ValueError(
            f"got {spec!r}, but in {place} two samples of one class have one name, {twice!a}, and random draws are "
            "addressed by it. Give each sample of a class its own file name."
        )
    keys = np.array([mix("sample", sample_id) for sample_id in in_order], np.uint64)
    chosen = np.array(order, np.int64)
    return Listing(all_classes, pa.array(in_order, pa.string()), np.array(labels, np.int64)[chosen], keys), chosen


def _number_labels(
    spec: str, place: str, values: Sequence[int | str], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], list[int]]:
    """The classes in their order, and for each label the index of its class."""
    numbers = sorted({value for value in values if isinstance(value, int)})
    texts = sorted({value for value in values if isinstance(value, str)})
    if numbers and texts:
        raise ValueError(
            f"got {spec!r}, but in {place} some labels are numbers ({numbers[0]}) and some are texts ({texts[0]!a}). "
            "Write all of them in one way."
        )
    if numbers and numbers[0] < 0:
        raise ValueError(
            f"got {spec!r}, but in {place} a label is {numbers[0]}, must be 0 or more. "
            "Samples without a label cannot be used; take them out."
        )
    if texts and not texts[0]:
        raise ValueError(f"got {spec!r}, but in {place} a label is an empty text. Give the sample one, or take it out.")
    distinct: list[int | str] = [*numbers, *texts]
    if classes is None:
        names = tuple(str(value) for value in distinct)
        index = {value: i for i, value in enumerate(distinct)}
    else:
        names = tuple(classes)
        if len(set(names)) < len(names) or "" in names:
            raise ValueError(
                f"got {spec!r}, but the class list in {place} has a name that is empty or stands twice. Repair it."
            )
        index = dict(zip(range(len(names)) if numbers else names, range(len(names)), strict=True))
    strange = next((value for value in distinct if value not in index), None)
    if strange is not None:
        raise ValueError(
            f"got {spec!r}, but in {place} a label is {strange!a}, must be one of the {len(names)} of its class list. "
            "Repair the label or the list."
        )
    return names, [index[value] for value in values]


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
