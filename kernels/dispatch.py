"""Which algorithm 'auto' is: what the table in use says of this pass, shape, type and layout, else the vendor's.

An entry holds for its batch size and for the nearest of up to twice or half as many images.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from kernels.layout import layout_of
from kernels.shapes import ConvShape
from kernels.table import Device, Table

VENDOR = "vendor"
_WITHIN = 2

# pass, shape without its batch, type, layout -> batch size -> algorithm; a process computes on one kind of device
_entries: dict[tuple[Any, ...], dict[int, str]] = {}


def use(tables: Iterable[Table], device: torch.device) -> int:
    """Take the entries of the table of this device, in place of those in use; returns how many."""
    _entries.clear()
    here = Device.of(device)
    rows = [row for table in tables if table.device == here for row in table.rows]
    for row in rows:
        _entries.setdefault(_key(row.which, row.shape, row.dtype, row.layout), {})[row.shape.n] = row.algorithm
    return len(rows)


def choose(which: str, shape: ConvShape, first: Tensor) -> str:
    """The algorithm of a pass, whose first tensor is the input or the output's gradient (N, ..., ..., ...)."""
    dtype = str(first.dtype).removeprefix("torch.")
    by_batch = _entries.get(_key(which, shape, dtype, layout_of(first)), {})
    near = [n for n in by_batch if n <= _WITHIN * shape.n and shape.n <= _WITHIN * n]
    return by_batch[min(near, key=lambda n: abs(n - shape.n))] if near else VENDOR


def _key(which: str, shape: ConvShape, dtype: str, layout: str) -> tuple[Any, ...]:
    return which, dataclasses.replace(shape, n=0), dtype, layout
