"""The files that samples lie in: local paths, globs, and URIs that pyarrow knows (s3://, gs://, file://).

`{000..010}` stands for all numbers from 000 to 010, as in WebDataset's names of tars; `*`, `?` and `[...]` as in a
shell (in a URI only in the last part). What is found is read in place, by ranges of bytes, from any number of threads;
a file whose size is not what it was when it was found is told. Nothing is copied to this machine, nothing tried again.
"""

import fnmatch
import glob
import os
import posixpath
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs
from numpy.typing import NDArray

MAX_OPEN = 256  # files held open in a process; systems often allow 1,024

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Files:
    """Files of one filesystem; holds none open when it is sent to another process.

    `sizes`: bytes of each when it was found.
    """

    filesystem: Any
    paths: tuple[str, ...]
    sizes: tuple[int, ...]

    def read(self, file: int, offset: int, size: int) -> bytes:
        """Read a range of file number `file`.

        Raises: OSError if it is gone, changed or ends too early.
        """
        content: bytes = self._opened.get(file).read_at(size, offset)
        if len(content) != size:
            raise OSError(f"{self.paths[file]} ends before byte {offset + size}")
        return content

    def view(self, file: int, offset: int, size: int) -> NDArray[np.uint8]:
        """A range as a read-only array; without a copy where the file is on this machine.

        Raises: OSError if it is gone, changed or ends too early.
        """
        if not self.is_local:
            return np.frombuffer(self.read(file, offset, size), np.uint8)
        if offset + size > self.sizes[file]:
            raise OSError(f"{self.paths[file]} ends before byte {offset + size}")
        return np.frombuffer(self._mapped.get(file), np.uint8, size, offset)

    def open(self, file: int) -> Any:
        """Open file number `file` as a pyarrow.NativeFile.

        Raises: OSError if it is gone or changed.
        """
        opened = self.filesystem.open_input_file(self.paths[file])
        self._check_size(file, opened.size())
        return opened

    @property
    def is_local(self) -> bool:
        return bool(self.filesystem.type_name == "local")

    def _map(self, file: int) -> Any:
        with pa.memory_map(self.paths[file]) as mapped:
            self._check_size(file, mapped.size())
            return mapped.read_buffer()

    def _check_size(self, file: int, size: int) -> None:
        if size != self.sizes[file]:
            raise OSError(f"{self.paths[file]} has {size} bytes, had {self.sizes[file]} when it was listed")

    @cached_property
    def _opened(self) -> "Recent[int, Any]":
        return Recent(self.open, MAX_OPEN)

    @cached_property
    def _mapped(self) -> "Recent[int, Any]":
        return Recent(self._map, MAX_OPEN)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}


class Recent(Generic[Key, Value]):
    """The results of `make` that were used last, up to a total weight (but always the newest); each is made once.

    What is dropped is not closed but forgotten, so another thread can go on reading it.
    """

    def __init__(
        self, make: Callable[[Key], Value], max_weight: int, weigh: Callable[[Value], int] = lambda _: 1
    ) -> None:
        self._make, self._max_weight, self._weigh = make, max_weight, weigh
        self._lock = threading.Lock()
        self._slots: OrderedDict[Key, _Slot] = OrderedDict()

    def get(self, key: Key) -> Value:
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
        with slot.lock:
            if slot.weight is None:
                slot.value = self._make(key)
                slot.weight = self._weigh(slot.value)
                self._drop_oldest()
        value: Value = slot.value
        return value

    def _drop_oldest(self) -> None:
        with self._lock:
            total = sum(slot.weight or 0 for slot in self._slots.values())
            while total > self._max_weight and len(self._slots) > 1:
                total -= self._slots.popitem(last=False)[1].weight or 0


class _Slot:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value: Any = None
        self.weight: int | None = None


def find_files(spec: str, path: str, advice: str, ending: str = "") -> Files:
    """Find the files that a path, a glob or a URI names, sorted by path.

    `spec` is what the user wrote, `advice` the sentence that ends every message. A folder stands for the files in it
    that end in `ending`; without one, it is refused.
    Raises: ValueError if there is none, or it cannot be reached.
    """
    found: dict[str, int] = {}
    filesystem: Any = None
    for one in _expand_ranges(path):
        filesystem, infos = _matching(spec, one, advice)
        for info in infos:
            if info.type == pa.fs.FileType.Directory:
                infos_inside = _inside(filesystem, info, ending) if ending else []
                if not infos_inside:
                    what = f"holds no *{ending}" if ending else "is a folder, must be a file"
                    raise ValueError(f"got {spec!r}, but {info.path} {what}. {advice}")
                found |= {inside.path: inside.size for inside in infos_inside}
            else:
                found[info.path] = info.size
    paths = tuple(sorted(found))
    return Files(filesystem, paths, tuple(found[name] for name in paths))


def absolute(path: str) -> Path:
    """A local path from the root on, `~` the home folder; neither has to exist."""
    # Path.expanduser raises where there is no such user; this leaves the path for the message that it does not exist.
    return Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111


def locate(spec: str, path: str, advice: str) -> tuple[Any, str]:
    """The filesystem of a path or a URI, and the path in it.

    Raises: ValueError if pyarrow cannot make the filesystem of a URI.
    """
    if "://" not in path:
        return pa.fs.LocalFileSystem(), str(absolute(path))
    try:
        return filesystem_of(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise ValueError(f"got {spec!r}, but {path} cannot be reached: {error}. {advice}") from error


def filesystem_of(uri: str) -> tuple[Any, str]:
    filesystem, path = pa.fs.FileSystem.from_uri(uri)
    return filesystem, path


def _expand_ranges(path: str) -> Iterator[str]:
    """`x-{000..010}` -> x-000, x-001, ...; several multiply."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", path)
    if match is None:
        yield path
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expand_ranges(f"{path[: match.start()]}{number:0{len(first)}d}{path[match.end() :]}")


def _matching(spec: str, path: str, advice: str) -> tuple[Any, list[Any]]:
    """What lies at a path, which may be a glob."""
    if "://" not in path:
        place = str(absolute(path))
        filesystem = pa.fs.LocalFileSystem()
        is_glob = glob.has_magic(place) and not Path(place).exists()
        paths = glob.glob(place, recursive=True) if is_glob else [place]  # noqa: PTH207  # keeps the absolute path
        infos = filesystem.get_file_info(paths)
    else:
        folder, _, last = path.rpartition("/")
        is_glob = glob.has_magic(last)
        filesystem, place = locate(spec, folder if is_glob else path, advice)
        try:
            if is_glob:
                selector = pa.fs.FileSelector(place, allow_not_found=True)
                infos = [
                    info for info in filesystem.get_file_info(selector) if fnmatch.fnmatchcase(info.base_name, last)
                ]
                place = posixpath.join(place, last)
            else:
                infos = filesystem.get_file_info([place])
        except OSError as error:
            raise ValueError(f"got {spec!r}, but {path} cannot be reached: {error}. {advice}") from error
    if not infos:
        raise ValueError(f"got {spec!r}, but no file matches {place}. {advice}")
    for info in infos:
        if info.type == pa.fs.FileType.NotFound:
            raise ValueError(f"got {spec!r}, but {info.path} does not exist, must be a file. {advice}")
    return filesystem, infos


def _inside(filesystem: Any, folder: Any, ending: str) -> list[Any]:
    infos = filesystem.get_file_info(pa.fs.FileSelector(folder.path, recursive=False))
    return [
        info
        for info in infos
        if info.is_file and info.base_name.endswith(ending) and not info.base_name.startswith(".")
    ]
