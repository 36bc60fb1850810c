"""What a source holds, in numbers: classes, sizes, colours, exact duplicates.

Colours are those of the pixels that evaluation sees: the centre square scaled to `image_size`, values from 0 to 1. Mean
and standard deviation are over all pixels, a channel at a time. The principal components are AlexNet's (Krizhevsky,
Sutskever & Hinton 2012, "ImageNet classification with deep convolutional neural networks", section 4.1): eigenvectors
and eigenvalues of the 3 x 3 covariance of RGB over all pixels of the training set. Sums are whole numbers, so the
result is exact and does not depend on threads. Duplicates have the same bytes; near ones are not found.
"""

import hashlib
import io
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.check import BadSample
from pipelines.decode import UndecodableImage, decode
from pipelines.listing import Listing
from pipelines.order import order
from pipelines.sources import Source
from pipelines.targets import Labels, Target

MAX_AUTO_SIZE = 224
_NUM_MEASURED = 101  # samples whose median short side decides an `auto` size
_AT_A_TIME = 1024

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Range:
    """The least, the middle and the largest of some numbers."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Colours:
    """Of RGB from 0 to 1: mean and std (3,); eigenvalues (3,) falling, eigenvectors (3, 3), one a column.

    `num_samples`: how many went in; `image_size`: pixels a side that they were scaled to.
    An eigenvector's sign means nothing; its largest entry is made positive.
    """

    num_samples: int
    image_size: int
    mean: Floats
    std: Floats
    eigenvalues: Floats
    eigenvectors: Floats


@dataclass(frozen=True)
class DataStats:
    """`classes`: how many samples have each; `values`: the range of each, both without samples whose label is refused.

    `widths`, `heights` as in the headers; `duplicates`: the ids of each group of samples with the same bytes."""

    num_samples: int
    num_bytes: int
    target: Target
    classes: tuple[tuple[str, int], ...]
    values: tuple[Range, ...]
    widths: Range
    heights: Range
    colours: Colours
    duplicates: tuple[tuple[str, ...], ...]
    bad: tuple[BadSample, ...]


@dataclass(frozen=True, eq=False)
class _One:
    """What is kept of a sample; sums (3,) and products (3, 3) only of those that colours are taken from."""

    num_bytes: int
    digest: bytes
    width: int = 0
    height: int = 0
    sums: NDArray[np.int64] | None = None
    products: NDArray[np.int64] | None = None
    problem: str = ""


def collect(
    source: Source,
    *,
    image_size: int | None,
    max_colour_samples: int,
    threads: int,
    progress: Callable[[int], None] = lambda _: None,
) -> DataStats:
    """Read all samples of a source, and take the colours of at most `max_colour_samples` of them, chosen at random.

    `image_size`: None is the median short side, at most 224. `progress` is told how many more samples are done.
    Raises: ValueError if no sample can be decoded.
    """
    listing = source.listing
    size = image_size or _usual_size(source)
    chosen = np.zeros(len(listing), bool)
    chosen[order(0, 0, len(listing))[:max_colour_samples]] = True
    totals = _Totals()

    def examine(index: int) -> _One:
        one = _examine(source, index, size if chosen[index] else 0)
        progress(1)
        return one

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(listing), _AT_A_TIME):
            indices = range(start, min(start + _AT_A_TIME, len(listing)))
            for index, one in zip(indices, pool.map(examine, indices), strict=True):
                totals.add(index, listing.ids[index].as_py(), one)
    if not totals.num_coloured:
        raise ValueError(f"SOURCE: none of {int(chosen.sum())} samples can be decoded. See convoy check-data.")
    return DataStats(
        num_samples=len(listing),
        num_bytes=totals.num_bytes,
        target=listing.target,
        classes=tuple(zip(listing.classes, _class_counts(listing), strict=True)),
        values=_value_ranges(listing),
        widths=_range(totals.widths),
        heights=_range(totals.heights),
        colours=totals.colours(size),
        duplicates=tuple(tuple(ids) for ids in totals.ids_of.values() if len(ids) > 1),
        bad=tuple(totals.bad),
    )


def _accepted(listing: Listing) -> Labels:
    return np.delete(listing.labels, sorted(listing.refused), axis=0)


def _class_counts(listing: Listing) -> list[int]:
    """How many samples have each class; none where labels are values."""
    labels = _accepted(listing)
    if listing.target.kind == "classes":
        return labels.sum(axis=0, dtype=np.int64).tolist()
    return np.bincount(labels, minlength=len(listing.classes)).tolist() if listing.target.kind == "class" else []


def _value_ranges(listing: Listing) -> tuple[Range, ...]:
    if listing.target.kind != "values":
        return ()
    return tuple(_range(column) for column in _accepted(listing).T.astype(np.float64).tolist())


class _Totals:
    def __init__(self) -> None:
        self.num_bytes = self.num_coloured = 0
        self.ids_of: dict[bytes, list[str]] = defaultdict(list)
        self.widths: list[int] = []
        self.heights: list[int] = []
        self.bad: list[BadSample] = []
        # Python's whole numbers: products of a large set outgrow 64 bits when they are multiplied
        self._sums = np.zeros(3, object)
        self._products = np.zeros((3, 3), object)

    def add(self, index: int, sample_id: str, one: _One) -> None:
        self.num_bytes += one.num_bytes
        if one.problem:
            self.bad.append(BadSample(index, sample_id, one.problem))
            return
        self.ids_of[one.digest].append(sample_id)
        self.widths.append(one.width)
        self.heights.append(one.height)
        if one.sums is not None and one.products is not None:
            self.num_coloured += 1
            self._sums += one.sums.astype(object)
            self._products += one.products.astype(object)

    def colours(self, size: int) -> Colours:
        num_pixels = self.num_coloured * size * size
        scaled = num_pixels * self._products - np.outer(self._sums, self._sums)
        covariance = scaled.astype(np.float64) / (float(num_pixels) ** 2 * 255**2)
        values, vectors = np.linalg.eigh(covariance)
        values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), range(3)])
        return Colours(
            num_samples=self.num_coloured,
            image_size=size,
            mean=self._sums.astype(np.float64) / (num_pixels * 255.0),
            std=np.sqrt(np.diag(covariance)),
            eigenvalues=values,
            eigenvectors=vectors * signs,
        )


def _examine(source: Source, index: int, size: int) -> _One:
    """`size`: pixels a side to take colours at, 0 for none."""
    try:
        content = source.read(index)
    except OSError as error:
        return _One(0, b"", problem=str(error))
    whole = content if isinstance(content, bytes) else content.tobytes()
    num_bytes, digest = len(whole), hashlib.blake2b(whole, digest_size=16).digest()
    try:
        pixels = decode(content, size or 8, 3)
        height, width = _header_size(content)
    except UndecodableImage as error:
        return _One(num_bytes, digest, problem=str(error))
    if not size:
        return _One(num_bytes, digest, width, height)
    rows = pixels.reshape(-1, 3).astype(np.float64)  # exact: sums of a picture stay below 2^53
    return _One(num_bytes, digest, width, height, _whole(rows.sum(axis=0)), _whole(rows.T @ rows))


def _whole(values: Floats) -> NDArray[np.int64]:
    return np.rint(values).astype(np.int64)


def _header_size(content: bytes | NDArray[np.uint8]) -> tuple[int, int]:
    if isinstance(content, np.ndarray):
        return content.shape[0], content.shape[1]
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.height, image.width
    except (OSError, Image.DecompressionBombError) as error:
        raise UndecodableImage(str(error)) from error


def _usual_size(source: Source) -> int:
    """The median short side of samples that are spread evenly, at most MAX_AUTO_SIZE."""
    shorts = []
    for index in np.unique(np.linspace(0, len(source.listing) - 1, _NUM_MEASURED).astype(int)).tolist():
        try:
            shorts.append(min(_header_size(source.read(index))))
        except (OSError, ValueError):
            continue  # listed as bad when its turn comes
    return min(MAX_AUTO_SIZE, int(np.median(shorts))) if shorts else MAX_AUTO_SIZE


def _range(values: list[int]) -> Range:
    return Range(min(values), float(np.median(values)), max(values))
