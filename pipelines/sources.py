"""Where samples come from: `digits`, `imagefolder:PATH`, `tar:PATH`, `parquet:PATH`, `shards:PATH`.

How images become samples with ids and labels is said in `pipelines/listing.py`. Sources hold arrays and paths and no
open file: they are sent to the actors of the pipeline. Reads are safe from any number of threads.

Behind the path may stand options, `?NAME=VALUE&NAME=VALUE`. Of any source: `val_fraction` (0 to 1) holds that share of
its samples out for `val` and leaves the others to `train`, `split_seed` (0) chooses another division, `per_class` keeps
at most so many samples of a class. Of parquet: the names of the columns, `image` and `label`, and what the label is,
`target` (`pipelines/targets.py`); of tars in WebDataset's form the last two, for the field of the .json.
"""

import difflib
import os
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.files import Files, absolute, find_files
from pipelines.listing import Listing, Storage, is_image, list_images, listing_of, storage_of
from pipelines.order import order
from pipelines.parquet_source import Columns, open_parquet
from pipelines.shards import open_shards
from pipelines.split import at_most_per_class, held_out
from pipelines.tar_index import TarIndex, index_tar
from pipelines.targets import KINDS, TargetKind
from pipelines.webdataset import Field, has_labels, list_webdataset

NUM_DIGITS_HELD_OUT = 360

Split = Literal["train", "val"]
Number = TypeVar("Number", int, float)


class Source(Protocol):
    """Samples by index."""

    @property
    def listing(self) -> Listing:
        """Which samples there are."""

    @property
    def storage(self) -> Storage | None:
        """Where samples lie in a row; None where each is a file of its own, or in memory."""

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """One sample: an encoded file, or (h, w, c) pixels.

        Raises: OSError if it cannot be read.
        """


def open_source(spec: str, split: Split) -> Source:
    """List the samples of a source. `split` chooses the part of a source that has parts (digits, `val_fraction`).

    Relative paths begin at the current folder, and `~` is the home folder. All but folders of images can lie where
    pyarrow reaches by a URI (s3://, gs://, file://).
    Raises: ValueError if there is no such kind of source, no such path, or what is there cannot be used.
    """
    place, options = _take_options(spec)
    kind, _, path = place.partition(":")
    if kind not in SOURCES or (kind != "digits") != bool(path):
        raise ValueError(f"got {spec!r}, must be one of {', '.join(FORMS.values())}. {_advice(place, kind)}")
    opened = SOURCES[kind](Asked(spec, path, split, _check_options(spec, kind, options)))
    return _part(opened, split, options)


@dataclass(frozen=True)
class Asked:
    """What a source is opened by: the user's whole text, and its parts."""

    spec: str
    path: str
    split: Split
    options: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Part:
    """Some samples of a source: those at `indices`."""

    listing: Listing
    source: Source
    indices: NDArray[np.int64]

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        return self.source.read(int(self.indices[index]))

    @cached_property
    def storage(self) -> Storage | None:
        whole = self.source.storage
        return None if whole is None else whole.take(self.indices)


@dataclass(frozen=True, eq=False)
class Digits:
    """The 1,797 handwritten digits that scikit-learn ships, 8 x 8 grey; a fixed fifth is held out for `val`.

    Ids are `<digit>/<index in scikit-learn's order>`. Images: (n, 8, 8, 1), 0..16 scaled to 0..255.
    Source: Alpaydin & Kaynak 1998, UCI "Optical recognition of handwritten digits", its test part.
    """

    listing: Listing
    images: NDArray[np.uint8]
    storage: ClassVar[None] = None

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.images[index]


def _open_digits(asked: Asked) -> Digits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    shuffled = order(0, 0, len(digits.target))
    chosen = shuffled[:NUM_DIGITS_HELD_OUT] if asked.split == "val" else shuffled[NUM_DIGITS_HELD_OUT:]
    chosen = chosen[np.lexsort((chosen, digits.target[chosen]))]
    ids = [f"{digits.target[index]}/{index:04d}" for index in chosen]
    images = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    return Digits(listing_of(ids), images[..., np.newaxis])


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Image files in class folders inside `root`."""

    listing: Listing
    root: str
    storage: ClassVar[None] = None

    def read(self, index: int) -> bytes:
        return Path(self.root, self.listing.ids[index].as_py()).read_bytes()


def _open_folder(asked: Asked) -> ImageFolder:
    spec = asked.spec
    if "://" in asked.path:
        raise ValueError(
            f"got {spec!r}, must be a path on this machine. Copy the images to a folder that all nodes see, "
            "or pack them: convoy pack."
        )
    root = absolute(asked.path)
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
class Tars:
    """Images in uncompressed tars; read in place by offset, in any order.

    `places` (n, 3): for each sample the number of its tar, its offset and its size.
    """

    listing: Listing
    files: Files
    places: NDArray[np.int64]

    def read(self, index: int) -> bytes:
        number, offset, size = self.places[index].tolist()
        return self.files.read(number, offset, size)

    @property
    def storage(self) -> Storage:
        return storage_of(self.places[:, 0], self.places[:, 1])


def _open_tar(asked: Asked) -> Tars:
    spec = asked.spec
    is_folder = "://" not in asked.path and absolute(asked.path).is_dir()
    advice = "Write imagefolder:PATH for a folder, or give" if is_folder else "Give"
    files = find_files(spec, asked.path, f"{advice} an uncompressed tar with a folder for each class.")
    indexes = [index_tar(spec, files, number) for number in range(len(files.paths))]
    labelled = [has_labels(index) for index in indexes if index.images]
    if any(labelled) and not all(labelled):
        raise ValueError(
            f"got {spec!r}, but some of these tars have labels beside their images (.cls, .json), and some have none. "
            "Make all of them in one form."
        )
    if any(labelled):
        field = Field(asked.options.get("label"), _target(asked.options))
        listing, places = list_webdataset(spec, files.paths, indexes, field)
        return Tars(listing, files, places)
    if asked.options:
        raise ValueError(
            f"got {spec!r}, but these tars have no labels beside their images (.json). "
            f"Take {' and '.join(asked.options)} out: folders are the classes."
        )
    return _tars_of_folders(spec, files, indexes)


def _tars_of_folders(spec: str, files: Files, indexes: list[TarIndex]) -> Tars:
    places: dict[str, tuple[int, int, int]] = {}
    for number, index in enumerate(indexes):
        for path, (offset, size) in index.images.items():
            if path in places:
                raise ValueError(
                    f"got {spec!r}, but {path} lies in {files.paths[places[path][0]]} and in {files.paths[number]}, "
                    "must lie in one of them. Take it out of the other."
                )
            places[path] = (number, offset, size)
    where = files.paths[0] if len(files.paths) == 1 else f"{files.paths[0]} and {len(files.paths) - 1} more"
    listing, parent = list_images(spec, where, places)
    wanted = [places[posixpath.join(parent, sample_id)] for sample_id in listing.ids.to_pylist()]
    return Tars(listing, files, np.array(wanted, np.int64))


def _take_options(spec: str) -> tuple[str, dict[str, str]]:
    """`tar:x.tar?a=1&b=2` -> `tar:x.tar`, {a: 1, b: 2}. A `?` of a glob is followed by no name and `=`."""
    match = re.fullmatch(r"(.*?)\?((?:\w+=[^&]*)(?:&\w+=[^&]*)*)", spec)
    if match is None:
        return spec, {}
    return match[1], dict(option.split("=", 1) for option in match[2].split("&"))


def _check_options(spec: str, kind: str, options: dict[str, str]) -> dict[str, str]:
    """The options that the kind itself has.

    Raises: ValueError if neither it nor every source has an option of that name.
    """
    own = OWN_OPTIONS.get(kind, ())
    for name in options:
        if name not in (*own, *PART_OPTIONS):
            allowed = ", ".join((*own, *PART_OPTIONS))
            near = difflib.get_close_matches(name, (*own, *PART_OPTIONS), n=1)
            advice = f"Did you mean {near[0]}?" if near else "Take it out."
            raise ValueError(f"got {spec!r}, but option {name} is unknown, must be one of {allowed}. {advice}")
    if kind == "digits" and "val_fraction" in options:
        raise ValueError(f"got {spec!r}, but digits holds out a fixed fifth for val. Take val_fraction out.")
    return {name: value for name, value in options.items() if name in own}


def _part(source: Source, split: Split, options: dict[str, str]) -> Source:
    seed = _number("split_seed", options.get("split_seed", "0"), int, "a whole number")
    if "val_fraction" in options:
        fraction = _number("val_fraction", options["val_fraction"], float, "a number between 0 and 1")
        if not 0 < fraction < 1:
            raise ValueError(f"val_fraction: got {fraction}, must be between 0 and 1. Give the share to hold out.")
        chosen = held_out(source.listing, fraction, seed)
        source = _take(source, np.flatnonzero(chosen if split == "val" else ~chosen))
    if "per_class" in options:
        number = _number("per_class", options["per_class"], int, "a whole number from 1 on")
        if number < 1:
            raise ValueError(f"per_class: got {number}, must be 1 or more. Give how many samples of a class to keep.")
        if source.listing.target.kind != "class":
            raise ValueError(f"per_class: got {number}, but labels are {source.listing.target}. Take per_class out.")
        source = _take(source, at_most_per_class(source.listing, number, seed))
    return source


def _take(source: Source, indices: NDArray[np.int64]) -> Part:
    return Part(source.listing.take(indices), source, indices)


def _number(name: str, text: str, kind: Callable[[str], Number], allowed: str) -> Number:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name}: got {text!r}, must be {allowed}. Repair the option.") from None


def _open_parquet(asked: Asked) -> Source:
    options = asked.options
    columns = Columns(options.get("image", "image"), options.get("label", "label"), _target(options))
    return open_parquet(asked.spec, asked.path, columns)


def _target(options: Mapping[str, str]) -> TargetKind | None:
    """What the label is said to be; None where its type decides."""
    said = options.get("target")
    if said is not None and said not in KINDS:
        raise ValueError(f"target: got {said!r}, must be one of {', '.join(KINDS)}. Repair the option.")
    return next((kind for kind in KINDS if kind == said), None)


def _open_shards(asked: Asked) -> Source:
    return open_shards(asked.spec, asked.path)


def _advice(place: str, kind: str) -> str:
    if place and kind not in SOURCES and absolute(place).exists():
        return f"Write {_kind_of(absolute(place))}:{place}."
    near = difflib.get_close_matches(kind, SOURCES, n=1)
    return f"Did you mean {FORMS[near[0]]}?" if near else "Write the kind of source, a colon and its path."


def _kind_of(path: Path) -> str:
    if path.is_dir():
        return "shards" if (path / "index.json").exists() else "imagefolder"
    return "parquet" if path.suffix == ".parquet" else "tar"


# The one table of sources: what an experiment writes before the colon.
SOURCES: dict[str, Callable[[Asked], Source]] = {
    "digits": _open_digits,
    "imagefolder": _open_folder,
    "tar": _open_tar,
    "parquet": _open_parquet,
    "shards": _open_shards,
}
FORMS = {name: name if name == "digits" else f"{name}:PATH" for name in SOURCES}
PART_OPTIONS = ("val_fraction", "split_seed", "per_class")
OWN_OPTIONS = {"parquet": ("image", "label", "target"), "tar": ("label", "target")}
