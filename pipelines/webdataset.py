"""Labels that lie beside their images in a tar: WebDataset's form, KEY.jpg with KEY.cls or KEY.json.

A key is the path up to the first dot of the file name; an image is KEY.EXTENSION with one of `listing.EXTENSIONS`, so
KEY.seg.png is passed over. A .cls holds the class, a number or a text; a .json holds it under "label". Of both the
.cls counts. A sample's id is `<class>/<file name of the image>`, so a class folder packed into this form keeps its ids
if its labels are the names of the folders; file names have to differ within a class.

Source: Aizman, Maltby & Breuel 2019, "High performance I/O for large scale deep learning" (arXiv:2001.01858). Their
other types (.txt, .npy, several images a sample) and reading as a stream are not done.
"""

import json
import posixpath
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.listing import EXTENSIONS, Listing, labelled_listing
from pipelines.tar_index import TarIndex


def has_labels(index: TarIndex) -> bool:
    """Whether a tar is in WebDataset's form: an image in it has a label file of its key."""
    return any(_label_path(index, path) is not None for path in index.images)


def list_webdataset(spec: str, files: Sequence[str], indexes: Sequence[TarIndex]) -> tuple[Listing, NDArray[np.int64]]:
    """List the samples of tars in WebDataset's form; `spec` is what the user wrote, `files` the tars.

    Returns the listing, and (n, 3) for each sample the number of its tar, its offset and its size.
    Raises: ValueError if an image has no label or not one, or two samples have one id.
    """
    values: list[int | str] = []
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    for number, (file, index) in enumerate(zip(files, indexes, strict=True)):
        for path in _one_a_key(spec, file, index):
            values.append(_label(spec, file, index, path))
            names.append(posixpath.basename(path))
            places.append((number, *index.images[path]))
    place = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    listing, chosen = labelled_listing(spec, place, values, names)
    return listing, np.array(places, np.int64)[chosen]


def _split(path: str) -> tuple[str, str]:
    """Key and extension: `a/b.c/1.seg.png` -> `a/b.c/1`, `.seg.png`."""
    folder, name = posixpath.split(path)
    stem, dot, extension = name.partition(".")
    return posixpath.join(folder, stem), dot + extension


def _label_path(index: TarIndex, image: str) -> str | None:
    key, _ = _split(image)
    return next((key + ending for ending in (".cls", ".json") if key + ending in index.labels), None)


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


def _label(spec: str, file: str, index: TarIndex, image: str) -> int | str:
    path = _label_path(index, image)
    if path is None:
        raise ValueError(
            f"got {spec!r}, but in {file} {image} has neither a .cls nor a .json beside it, and other images have. "
            "Give it a label, or take it out."
        )
    content = index.labels[path]
    try:
        text = content.decode()
        value = _in_json(json.loads(text)) if path.endswith(".json") else text.strip()
    except ValueError:  # not UTF-8, no JSON
        value = None
    if isinstance(value, str) and path.endswith(".cls") and value.removeprefix("-").isdecimal():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        expected = 'an object with "label", a number or a text' if path.endswith(".json") else "a number or a text"
        raise ValueError(
            f"got {spec!r}, but in {file} {path} holds {content[:40]!r}, must be {expected}. Repair the label."
        )
    return value


def _in_json(value: object) -> object:
    return value.get("label") if isinstance(value, Mapping) else value
