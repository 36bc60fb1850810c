"""What was measured: which algorithm computes which pass of which convolution fastest on a device. Data only.

A table is of one device, number of threads and version of PyTorch. It lies as JSON in the folder of compiled kernels
(`native/build.cache_folder`), travels with a run, and is merged row by row.
"""

import dataclasses
import functools
import hashlib
import json
import platform
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kernels.native.build import cache_folder
from kernels.shapes import ConvShape

VENDORS = ("vendor", "vendor_nchw", "vendor_nhwc")


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where times hold: the processor's name, threads (0 on a GPU) and PyTorch's version."""

    name: str
    threads: int
    version: str

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else ""
        return f"{self.name}{threads}, torch {self.version}"

    @classmethod
    def of(cls, device: torch.device) -> "Device":
        """This machine's, with the threads that PyTorch uses now."""
        if device.type == "cuda":
            return cls(name=torch.cuda.get_device_name(device), threads=0, version=torch.__version__)
        name = f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"
        return cls(name=name, threads=torch.get_num_threads(), version=torch.__version__)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pass of one convolution. `which`: forward, input_gradient or weight_gradient.

    `layout`: 'nchw' or 'nhwc', as the input or the output's gradient lay. `seconds`: the median of each algorithm that
    takes the shape. `errors`: largest difference from float64 over the largest value. `extra_bytes`: the memory that
    each takes beside its tensors (`memory.py`); empty in tables of before that was measured. `algorithm`: the winner.
    """

    which: str
    shape: ConvShape
    dtype: str
    layout: str
    algorithm: str
    seconds: dict[str, float]
    errors: dict[str, float]
    extra_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def key(self) -> tuple[Any, ...]:
        return self.which, self.shape, self.dtype, self.layout

    @property
    def vendor_s(self) -> float:
        """The vendor's time in the better of the two layouts."""
        return min(seconds for name, seconds in self.seconds.items() if name in VENDORS)

    @property
    def ratio(self) -> float:
        """How many times as fast as the vendor's better layout the winner is."""
        return self.vendor_s / self.seconds[self.algorithm]


@dataclass(frozen=True, kw_only=True)
class Table:
    """All rows of one device."""

    device: Device
    rows: tuple[Row, ...] = ()

    def merged(self, rows: tuple[Row, ...]) -> "Table":
        """With these rows, in place of those of the same pass, shape, type and layout."""
        by_key = {row.key: row for row in (*self.rows, *rows)}
        return dataclasses.replace(self, rows=tuple(by_key.values()))

    def only(self, shapes: Iterable[ConvShape]) -> "Table":
        """The rows of these convolutions, at any batch size."""
        wanted = {dataclasses.replace(shape, n=0) for shape in shapes}
        rows = tuple(row for row in self.rows if dataclasses.replace(row.shape, n=0) in wanted)
        return dataclasses.replace(self, rows=rows)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Table":
        rows = tuple(Row(**(row | {"shape": _shape(row["shape"])})) for row in document["rows"])
        return cls(device=Device(**document["device"]), rows=rows)


def stored(device: Device) -> Table:
    """This machine's table of a device; empty if nothing has been measured yet."""
    path = _path(device)
    return Table.from_json(json.loads(path.read_text())) if path.exists() else Table(device=device)


def store(table: Table) -> Path:
    """Keep a table for later runs, in place of the one of that device."""
    path = _path(table.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(table.to_json(), file)
    Path(file.name).replace(path)
    return path


def all_stored() -> Iterator[Table]:
    """The tables of every device that was measured from this machine."""
    for path in sorted(_folder().glob("*.json")):
        yield Table.from_json(json.loads(path.read_text()))


def _folder() -> Path:
    return cache_folder() / "tables"


def _path(device: Device) -> Path:
    name = hashlib.sha256(repr(device).encode()).hexdigest()[:16]
    return _folder() / f"{name}.json"


def _shape(sizes: dict[str, Any]) -> ConvShape:
    pairs = {name: tuple(sizes[name]) for name in ("stride", "dilation")}
    padding = tuple(map(tuple, sizes["padding"]))
    return ConvShape(**(sizes | pairs | {"padding": padding}))


@functools.cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
