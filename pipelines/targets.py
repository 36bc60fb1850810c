"""What a sample should be recognised as: one class, several classes, or numbers; and how written labels become arrays.

class    one of a list of classes                labels (n,) int64, indexes into the list     network: K outputs
classes  any number of them, also none           labels (n, K) uint8, 1 for each that applies  network: K outputs
values   D finite numbers, for regression        labels (n, D) float32, as they are written    network: D outputs

A label that a class list does not have, or a number that is not finite, spoils its sample and no other: it is named
here, and replaced in training like an image that cannot be read (`quarantine.py`). Multi-label arrays are dense, one
byte for each sample and class. Values are not scaled: write them so that they are about 1 in size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

TargetKind = Literal["class", "classes", "values"]
Labels = NDArray[Any]
Name = int | str  # of a class, as it is written

KINDS: dict[TargetKind, str] = {"class": "one class", "classes": "a list of classes", "values": "numbers"}
DTYPES: dict[TargetKind, type[np.generic]] = {"class": np.int64, "classes": np.uint8, "values": np.float32}


@dataclass(frozen=True)
class Target:
    """What labels are. `width`: how many numbers the network puts out for a sample: classes, or values."""

    kind: TargetKind
    width: int

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one sample's label."""
        return () if self.kind == "class" else (self.width,)

    def zeros(self, shape: tuple[int, ...]) -> Labels:
        """Labels of no sample, for `shape` of them."""
        return np.zeros((*shape, *self.row_shape), DTYPES[self.kind])

    def __str__(self) -> str:
        if self.kind == "values":
            return f"{self.width} value{'' if self.width == 1 else 's'} a sample"
        return f"{'one' if self.kind == 'class' else 'any'} of {self.width} classes"


def target_of(classes: Sequence[str], labels: Labels) -> Target:
    """What the labels of a listing are, which their type tells."""
    kind = next(kind for kind, dtype in DTYPES.items() if labels.dtype == dtype)
    return Target(kind, labels.shape[1] if kind == "values" else len(classes))


@dataclass(frozen=True)
class Written:
    """Labels that were written down, as an array. `refused`: which of them are none, and why."""

    classes: tuple[str, ...]
    labels: Labels
    refused: Mapping[int, str]


def read_labels(
    where: str, kind: TargetKind, values: Sequence[Any], names: Sequence[str], classes: Sequence[str] | None
) -> Written:
    """Turn what is written for each sample into an array.

    `where` begins a message; `names` are the samples'; `classes` is the class list, if there is one. For `class` a
    value is a number or a text, for `classes` a list of them, for `values` a number or a list of numbers.
    Raises: ValueError if they do not go together, or not one of them is on the class list.
    """
    if kind == "values":
        return _values(where, values, names)
    lists: Sequence[Sequence[Name]] = [[value] for value in values] if kind == "class" else values
    class_names, index = _numbering(where, {name for each in lists for name in each}, classes)
    refused = {
        i: f"its label {strange!a} is not one of the {len(class_names)} of the class list"
        for i, each in enumerate(lists)
        if (strange := next((name for name in each if name not in index), None)) is not None
    }
    if len(refused) == len(lists):
        raise ValueError(
            f"{where} a label is {next(name for name in lists[0] if name not in index)!a}, must be one of the "
            f"{len(class_names)} of its class list, and no sample has one of them. Repair the labels or the list."
        )
    if kind == "class":
        return Written(class_names, np.array([index.get(value, 0) for value in values], np.int64), refused)
    labels = np.zeros((len(values), len(class_names)), np.uint8)
    for row, each in enumerate(lists):
        if row not in refused:
            labels[row, [index[name] for name in each]] = 1
    return Written(class_names, labels, refused)


def _values(where: str, values: Sequence[Any], names: Sequence[str]) -> Written:
    rows = [value if isinstance(value, list) else [value] for value in values]
    widths = [len(row) for row in rows]
    odd = next((i for i, width in enumerate(widths) if width != widths[0] or width == 0), None)
    if odd is not None:
        raise ValueError(
            f"{where} {names[odd]} has {widths[odd]} values and {names[0]} has {widths[0]}, must be one or more, as "
            "many for each sample. Repair the labels."
        )
    with np.errstate(over="ignore"):  # infinite in float32: refused just below
        labels = np.array(rows, np.float64).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(labels).all(axis=1)).tolist()
    if len(bad) == len(rows):
        raise ValueError(f"{where} no sample has finite values, {names[0]} has {rows[0]}. Repair the labels.")
    refused = {i: f"its values {rows[i]} are not finite in float32" for i in bad}
    labels[bad] = 0
    return Written((), labels, refused)


def _numbering(
    where: str, distinct: set[Name], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[Name, int]]:
    """The classes in their order, and for each label that can be written the index of its class."""
    numbers = sorted(value for value in distinct if isinstance(value, int))
    texts = sorted(value for value in distinct if isinstance(value, str))
    if numbers and texts:
        raise ValueError(
            f"{where} some labels are numbers ({numbers[0]}) and some are texts ({texts[0]!a}). "
            "Write all of them in one way."
        )
    if classes is not None:
        return _listed(where, classes, by_number=bool(numbers))
    if not distinct:
        raise ValueError(f"{where} no sample has a class. Label some, or give a class list.")
    if numbers and numbers[0] < 0:
        raise ValueError(
            f"{where} a label is {numbers[0]}, must be 0 or more. "
            "Samples without a label cannot be used; take them out."
        )
    if texts and not texts[0]:
        raise ValueError(f"{where} a label is an empty text. Give the sample one, or take it out.")
    found: list[Name] = [*numbers, *texts]
    return tuple(str(value) for value in found), {value: i for i, value in enumerate(found)}


def _listed(where: str, classes: Sequence[str], *, by_number: bool) -> tuple[tuple[str, ...], dict[Name, int]]:
    names = tuple(classes)
    if len(set(names)) < len(names) or "" in names:
        raise ValueError(f"{where} the class list has a name that is empty or stands twice. Repair it.")
    if by_number:
        return names, {number: number for number in range(len(names))}
    return names, {name: number for number, name in enumerate(names)}
