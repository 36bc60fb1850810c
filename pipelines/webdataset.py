"""Labels that lie beside their images in a tar: WebDataset's form, KEY.jpg with KEY.cls or KEY.json.

A key is the path up to the first dot of the file name; an image is KEY.EXTENSION with one of `listing.EXTENSIONS`, so
KEY.seg.png is passed over. A .cls holds the class, a number or a text; a .json holds under "label", or another name
that is given, the class, a list of classes, or numbers (`targets.py`); which, is what all of them together can be. Of
both the .cls counts, unless a name or a target is given that only a .json can have. A sample's id is `<class>/<file
name of the image>`, so a class folder packed into this form keeps its ids if its labels are the names of the folders;
file names have to differ within a class.

Source: Aizman, Maltby & Breuel 2019, "High performance I/O for large scale deep learning" (arXiv:2001.01858). Their
other types (.txt, .npy, several images a sample) and reading as a stream are not done.
"""

import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.listing import EXTENSIONS, Listing, labelled_listing
from pipelines.tar_index import LABEL_ENDINGS, TarIndex
from pipelines.targets import TargetKind


@dataclass(frozen=True)
class Field:
    """What of a .json is the label: its name, None for "label"; what it is said to be, None where the values decide."""

    name: str | None = None
    target: TargetKind | None = None

    @property
    def endings(self) -> tuple[str, ...]:
        """The label files to look for, in this order."""
        return (".json",) if self.name or self.target in ("classes", "values") else (".cls", ".json")


def has_labels(index: TarIndex) -> bool:
    """Whether a tar is in WebDataset's form: an image in it has a label file of its key."""
    return any(_label_path(index, path, LABEL_ENDINGS) is not None for path in index.images)


def list_webdataset(
    spec: str, files: Sequence[str], indexes: Sequence[TarIndex], field: Field
) -> tuple[Listing, NDArray[np.int64]]:
    """List the samples of tars in WebDataset's form; `spec` is what the user wrote, `files` the tars.

    Returns the listing, and (n, 3) for each sample the number of its tar, its offset and its size.
    Raises: ValueError if an image has no label or not one, or two samples have one id.
    """
    values: list[Any] = []
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    for number, (file, index) in enumerate(zip(files, indexes, strict=True)):
        for path in _one_a_key(spec, file, index):
            values.append(_label(spec, file, index, path, field))
            names.append(posixpath.basename(path))
            places.append((number, *index.images[path]))
    place = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    kind = _kind(spec, place, values, field)
    listing, chosen = labelled_listing(spec, place, values, names, kind=kind)
    return listing, np.array(places, np.int64)[chosen]


def _split(path: str) -> tuple[str, str]:
    """Key and extension: `a/b.c/1.seg.png` -> `a/b.c/1`, `.seg.png`."""
    folder, name = posixpath.split(path)
    stem, dot, extension = name.partition(".")
    return posixpath.join(folder, stem), dot + extension


def _label_path(index: TarIndex, image: str, endings: Sequence[str]) -> str | None:
    key, _ = _split(image)
    return next((key + ending for ending in endings if key + ending in index.labels), None)


def _one_a_key(spec: str, file: str, index: TarIndex) -> list[str]:
    """The paths of the images, of which each key has one."""
    by_key: dict[str, str] = {}
    for path in index.images:
        key, extension = _split(path)
        if extension.lower() not in EXTENSIONS:
            continue
        if key in by_key:
            raise ValueError(
                f"got {spec!r}, but in {file} {by_key[key]} and {path} are two images of one key, must be one. "
                "Name others KEY.something.EXTENSION, and they are passed over."
            )
        by_key[key] = path
    return list(by_key.values())


def _label(spec: str, file: str, index: TarIndex, image: str, field: Field) -> Any:
    path = _label_path(index, image, field.endings)
    if path is None:
        missing = "neither a .cls nor a .json" if len(field.endings) > 1 else "no .json"
        raise ValueError(
            f"got {spec!r}, but in {file} {image} has {missing} beside it, and must have one. "
            "Give it a label, or take it out."
        )
    content = index.labels[path]
    try:
        text = content.decode()
        value = _in_json(json.loads(text), field) if path.endswith(".json") else text.strip()
    except ValueError:  # not UTF-8, no JSON
        value = None
    if isinstance(value, str) and path.endswith(".cls") and value.removeprefix("-").isdecimal():
        return int(value)
    entries = value if isinstance(value, list) and path.endswith(".json") else [value]
    if not all(isinstance(one, int | float | str) and not isinstance(one, bool) and one != "" for one in entries):
        wanted = f'an object with "{field.name or "label"}", a number or a text or a list of them'
        expected = wanted if path.endswith(".json") else "a number or a text"
        raise ValueError(
            f"got {spec!r}, but in {file} {path} holds {content[:40]!r}, must be {expected}. Repair the label."
        )
    return value


def _in_json(value: object, field: Field) -> object:
    return value.get(field.name or "label") if isinstance(value, Mapping) else value


def _kind(spec: str, place: str, values: Sequence[Any], field: Field) -> TargetKind:
    """What all values together can be; what they are said to be, if they can be that."""
    lists = [isinstance(value, list) for value in values]
    entries = [one for value in values for one in (value if isinstance(value, list) else [value])]
    named = all(isinstance(one, int | str) for one in entries)
    possible: list[TargetKind] = ["class"] if named and not any(lists) else []
    possible += ["classes"] if named and all(lists) else []
    possible += ["values"] if not any(isinstance(one, str) for one in entries) else []
    kind = field.target or next(iter(possible), None)
    if kind is None or kind not in possible:
        found = " or ".join(possible) or "of no one kind"
        raise ValueError(
            f"got {spec!r}, but the labels in {place} are {found}, must be "
            f"{field.target or 'a number or text each (class), a list each (classes), or numbers (values)'}. "
            "Repair the labels, or name another field: ?label=NAME."
        )
    return kind
