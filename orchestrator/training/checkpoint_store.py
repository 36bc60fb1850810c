"""Where commits are: written whole or not at all, verified before they are believed.

A commit is a folder, `step-00000120`. On a local disk all of it is written to a hidden folder beside, synced,
and renamed; elsewhere (any pyarrow.fs URI) the manifest is written last. So a writer that is killed leaves no
commit or a whole one. What is committed last is the truth: after a start from further back, a commit replaces
the one of its step and deletes those of later steps.

Elsewhere a commit of a step that is there already deletes the old one first: a writer that is killed then
leaves the commit before it. Does not guard against two runs in one folder: that is the run folder's lock.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs

from orchestrator.errors import CheckpointError
from orchestrator.training.atomic_folder import REPLACED, appearing_folder, write_synced
from orchestrator.training.checkpoint import KNOWN_FILES, STATE, Snapshot, from_files, read_file, to_files
from orchestrator.training.checkpoint_manifest import MANIFEST, Damaged, Entry, Manifest

OnSkip = Callable[[str, str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Commit:
    """Where a commit is, how large it is, and how long it took."""

    path: str
    step: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class _Folder:
    """What should be a commit. Sorts by step; of two of one step the one that replaced the other is first."""

    step: int
    name: str

    NAME = re.compile(r"step-(?P<step>[0-9]{8,18})(" + re.escape(REPLACED) + ")?")

    @property
    def order(self) -> tuple[int, bool]:
        return -self.step, self.name.endswith(REPLACED)


class CheckpointStore:
    """The commits of one run in `folder`, a local path or a pyarrow.fs URI.

    Keeps the newest `keep` >= 1, and the one with the best score; of equal scores the newest.
    """

    def __init__(self, folder: str, *, keep: int) -> None:
        self.folder = folder.rstrip("/")
        self._keep = keep
        if "://" in folder:
            self._filesystem, self._root = fs.FileSystem.from_uri(self.folder)
        else:
            self._filesystem, self._root = fs.LocalFileSystem(), str(Path(folder).absolute())

    def commit(self, snapshot: Snapshot, *, score: float | None) -> Commit:
        """Write a snapshot; then delete later steps, what is not to be kept, and what killed writers left.

        `score` says how good it is in evaluation, larger is better; None in mid-epoch.
        Raises: CheckpointError if it cannot be written; earlier commits stay as they are.
        """
        started = time.perf_counter()
        name = f"step-{snapshot.step:08d}"
        write = self._write_local if isinstance(self._filesystem, fs.LocalFileSystem) else self._write_remote
        with _storage_errors(f"commit step {snapshot.step} to {self._path(name)}"):
            num_bytes = write(name, snapshot, None if score is None else float(score))
        with _storage_errors(f"delete what is not to be kept in {self.folder}"):
            self._prune(snapshot.step)
        return Commit(self._path(name), snapshot.step, num_bytes, time.perf_counter() - started)

    def newest(self, on_skip: OnSkip) -> Snapshot | None:
        """Read the newest valid commit, after all its bytes are verified; None if there is none.

        Damaged ones are named to `on_skip(path, reason)` and passed over.
        Raises: CheckpointError if one was written by a newer version or not by Convoy, or if the storage
            fails: that one may be whole, so to go on from an older one is not for the store to decide.
        """
        return self._first_valid(self._folders(), on_skip, self._load)

    def newest_state(self, on_skip: OnSkip = lambda *_: None) -> dict[str, Any] | None:
        """The `state` of the commit that `newest` would read; verifies all of it, but makes no tensors."""
        return self._first_valid(self._folders(), on_skip, self._load_state)

    def newest_path(self) -> str | None:
        """Where the commit is that `newest` would read."""
        return self._first_valid(self._folders(), lambda *_: None, self._verify)

    def best(self, on_skip: OnSkip) -> Snapshot | None:
        """Read the valid commit with the best score, the newest of equals; the newest if none has a score."""
        manifests: dict[_Folder, Manifest] = {}

        def note(folder: _Folder) -> None:
            manifests[folder] = self._manifest(folder)

        for folder in self._folders():
            self._first_valid([folder], on_skip, note)
        ranked = sorted(manifests, key=lambda folder: _merit(manifests[folder]), reverse=True)
        return self._first_valid(ranked, on_skip, self._load)

    def _first_valid(self, folders: Iterable[_Folder], on_skip: OnSkip, read: Callable[[_Folder], T]) -> T | None:
        for folder in folders:
            path = self._path(folder.name)
            try:
                return read(folder)
            except Damaged as damage:
                on_skip(path, str(damage))
            except OSError as error:
                raise CheckpointError(
                    f"run.folder: could not read the checkpoint {path}: {error}. It may be whole, so it is "
                    f"not passed over. Mend the storage and try again, or delete {path} to do without it."
                ) from error
        return None

    def _load(self, folder: _Folder) -> Snapshot:
        return from_files(self._path(folder.name), folder.step, self._read(folder, KNOWN_FILES))

    def _load_state(self, folder: _Folder) -> dict[str, Any]:
        return read_file(self._path(folder.name), STATE, self._read(folder, frozenset({STATE}))[STATE])

    def _verify(self, folder: _Folder) -> str:
        self._read(folder, frozenset())
        return self._path(folder.name)

    def _read(self, folder: _Folder, wanted: frozenset[str]) -> dict[str, bytes]:
        """Verify every file of a commit, one at a time; returns the contents of those in `wanted`."""
        contents = {}
        for name, entry in self._manifest(folder).files.items():
            content = self._read_file(folder, name)
            entry.check(name, content)
            if name in wanted:
                contents[name] = content
        return contents

    def _manifest(self, folder: _Folder) -> Manifest:
        return Manifest.from_bytes(self._path(folder.name), folder.step, self._read_file(folder, MANIFEST))

    def _read_file(self, folder: _Folder, name: str) -> bytes:
        path = f"{self._root}/{folder.name}/{name}"
        try:
            with self._filesystem.open_input_stream(path, compression=None) as stream:
                return bytes(stream.read())
        except OSError:
            if self._filesystem.get_file_info(path).type == fs.FileType.File:
                raise
            raise Damaged(f"{name}: missing") from None

    def _folders(self) -> list[_Folder]:
        """What should be commits, newest first."""
        with _storage_errors(f"list {self.folder}"):
            entries = self._filesystem.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        names = [entry.base_name for entry in entries if entry.type == fs.FileType.Directory]
        matches = [match for name in names if (match := _Folder.NAME.fullmatch(name))]
        return sorted((_Folder(int(m["step"]), m[0]) for m in matches), key=lambda folder: folder.order)

    def _write_local(self, name: str, snapshot: Snapshot, score: float | None) -> int:
        with appearing_folder(Path(self._root) / name) as hidden:
            return _write_files(snapshot, score, partial(write_synced, hidden))

    def _write_remote(self, name: str, snapshot: Snapshot, score: float | None) -> int:
        folder = f"{self._root}/{name}"
        if self._filesystem.get_file_info(folder).type == fs.FileType.Directory:
            self._delete(name)
        self._filesystem.create_dir(folder, recursive=True)

        def write(file: str, content: bytes) -> None:
            with self._filesystem.open_output_stream(f"{folder}/{file}", compression=None) as stream:
                stream.write(content)

        return _write_files(snapshot, score, write)

    def _prune(self, committed: int) -> None:
        """Delete what is later than the step just committed, and all but the newest `keep` and the best."""
        whole: dict[int, tuple[_Folder, Manifest]] = {}
        for folder in self._folders():
            if folder.step > committed or folder.step in whole:
                self._delete(folder.name)
                continue
            try:
                whole[folder.step] = folder, self._manifest(folder)
            except Damaged:  # a killed writer's or deleter's
                self._delete(folder.name)
            except CheckpointError:  # of a newer version, or not Convoy's: not ours to delete
                continue
        newest = list(whole.values())[: self._keep]
        best = max(whole.values(), key=lambda pair: _merit(pair[1]))
        for folder, manifest in whole.values():
            if (folder, manifest) not in newest and (folder, manifest) != best:
                self._delete(folder.name)

    def _delete(self, name: str) -> None:
        """Delete a folder, its manifest first: half deleted it is no commit."""
        manifest = f"{self._root}/{name}/{MANIFEST}"
        if self._filesystem.get_file_info(manifest).type == fs.FileType.File:
            self._filesystem.delete_file(manifest)
        self._filesystem.delete_dir(f"{self._root}/{name}")

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}"


@contextmanager
def _storage_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"run.folder: could not {doing}: {error}. It must be a folder that can be read and written, with "
            "room for one more checkpoint. Those before are as they were. Make room or mend it; then --resume."
        ) from error


def _merit(manifest: Manifest) -> tuple[float, int]:
    return float("-inf") if manifest.score is None else manifest.score, manifest.step


def _write_files(snapshot: Snapshot, score: float | None, write: Callable[[str, bytes], None]) -> int:
    """Write all files of a commit, the manifest last; returns their size together."""
    entries = {}
    for name, content in to_files(snapshot):
        write(name, content)
        entries[name] = Entry.of(content)
    manifest = Manifest(snapshot.step, score, entries).to_bytes()
    write(MANIFEST, manifest)
    return len(manifest) + sum(entry.num_bytes for entry in entries.values())
