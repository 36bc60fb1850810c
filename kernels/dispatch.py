"""Which algorithm 'auto' is: what the table in use says of this pass, shape, type and layout, else a default, else the
vendor's.

An entry holds for its batch size and for the nearest of up to twice or half as many images.
"""

import dataclasses
import functools
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.defaults import default
from kernels.layout import LAYOUTS, layout_met, layout_of
from kernels.passes import AUTO, VENDOR, Choice
from kernels.shapes import ConvShape
from kernels.table import Device, Row, Table

_WITHIN = 2


class Images(NamedTuple):
    """What the images of a convolution are, beside their sizes: 'float32', 'nchw' or 'nhwc', 'cpu' or 'cuda'."""

    dtype: str
    layout: str
    device: str


# pass, shape without its batch, type, layout -> batch size -> what was measured
Entries = dict[tuple[Any, ...], dict[int, Row]]

# a process computes on one kind of device
_entries: Entries = {}
remembering: "weakref.WeakSet[Any]" = weakref.WeakSet()
"""Layers that remember what was chosen, with a method `forget`."""


def use(tables: Iterable[Table], device: torch.device) -> int:
    """Take the entries of the table of this device, in place of those in use; returns how many."""
    _entries.clear()
    _resolved.cache_clear()
    vendors_layouts.cache_clear()
    here = Device.of(device)
    rows = [row for table in tables if table.device == here for row in table.rows]
    _entries.update(entries_of(rows))
    for layer in remembering:
        layer.forget()
    remembering.clear()
    return len(rows)


def entries_of(rows: Iterable[Row]) -> Entries:
    """The rows as they are looked up."""
    entries: Entries = {}
    for row in rows:
        entries.setdefault(_key(row.which, row.shape, row.dtype, row.layout), {})[row.shape.n] = row
    return entries


def chosen(entries: Entries, which: str, shape: ConvShape, images: Images) -> tuple[str, str]:
    """The algorithm of a pass, and by what it was chosen: 'table', 'defaults' or 'vendor'."""
    if row := found(entries, which, shape, images):
        return row.algorithm, "table"
    if algorithm := default(which, shape, images.dtype, images.device):
        return algorithm, "defaults"
    return VENDOR, "vendor"


def found(entries: Entries, which: str, shape: ConvShape, images: Images) -> Row | None:
    """What was measured of this pass, with the nearest batch size if that is near enough."""
    by_batch = entries.get(_key(which, shape, images.dtype, images.layout), {})
    near = [n for n in by_batch if n <= _WITHIN * shape.n and shape.n <= _WITHIN * n]
    return by_batch[min(near, key=lambda n: abs(n - shape.n))] if near else None


def choose(which: str, shape: ConvShape, first: Tensor) -> str:
    """The algorithm of a pass, whose first tensor is the input or the output's gradient (N, ..., ..., ...)."""
    return chosen(_entries, which, shape, _images(first))[0]


def resolved(choice: Choice, images: Tensor, weight: Tensor, geometry: Sequence[int]) -> Choice:
    """The choice with the names that 'auto' stands for; gradients are taken to lie as the images do.

    Shapes: images (N, C, H, W), weight (K, C / groups, R, S). `geometry`: `shapes.geometry_of`.
    Raises: ValueError if these are of no convolution.
    """
    if AUTO not in choice:
        return choice
    where = images.dtype, layout_of(images), images.device.type
    return _resolved(choice, images.shape, weight.shape, tuple(geometry), where)


@functools.lru_cache(maxsize=4096)
def vendors_layouts(
    choice: Choice,
    passes: tuple[str, ...],
    types: tuple[torch.dtype, ...],
    input_size: tuple[int, ...],
    weight_size: tuple[int, ...],
    geometry: tuple[int, ...],
) -> frozenset[str]:
    """The layouts in which these passes are PyTorch's own, in all of these types."""
    if all(getattr(choice, which) == VENDOR for which in passes):
        return frozenset(LAYOUTS)

    def is_vendors(layout: str) -> bool:
        # on a CPU, which has defaults; other devices have only what is in the table
        found = (_resolved(choice, input_size, weight_size, geometry, (dtype, layout, "cpu")) for dtype in types)
        return all(getattr(each, which) == VENDOR for each in found for which in passes)

    return frozenset(filter(is_vendors, LAYOUTS))


@functools.lru_cache(maxsize=4096)
def _resolved(
    choice: Choice,
    input_size: tuple[int, ...],
    weight_size: tuple[int, ...],
    geometry: tuple[int, ...],
    where: tuple[torch.dtype, str, str],
) -> Choice:
    dtype, layout, device = where
    images = Images(str(dtype).removeprefix("torch."), layout, device)
    shape = ConvShape.between(input_size, weight_size, geometry)
    named = zip(Choice._fields, choice, strict=True)
    return Choice(*(chosen(_entries, which, shape, images)[0] if name == AUTO else name for which, name in named))


def _images(images: Tensor) -> Images:
    return Images(str(images.dtype).removeprefix("torch."), layout_of(images), images.device.type)


def _key(which: str, shape: ConvShape, dtype: str, layout: str) -> tuple[Any, ...]:
    return which, dataclasses.replace(shape, n=0), dtype, layout_met(shape, layout)
