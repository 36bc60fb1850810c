"""Where commits are: written whole or not at all, verified before they are believed.

A commit is a folder `step-00000120`. Its manifest lists the size and SHA-256 of every other file and carries a
digest of itself. On a local disk all is written to a hidden folder beside, synced, and renamed; elsewhere (any
pyarrow.fs URI) the manifest is written last. So a writer that is killed leaves no commit or a whole one.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from orchestrator.errors import CheckpointError
from orchestrator.training.checkpoint import FORMAT_VERSION, Snapshot, from_files, to_files

MANIFEST = "manifest.json"
ABANDONED_S = 3600.0  # a hidden folder that old belongs to no living writer

OnSkip = Callable[[str, str], None]


@dataclass(frozen=True)
class Commit:
    """What a commit cost and where it is."""

    path: str
    step: int
    bytes: int
    seconds: float


class CheckpointStore:
    """The commits of one run; keeps the newest `keep` and the one with the best score."""

    def __init__(self, folder: str, *, keep: int) -> None:
        self.folder = folder.rstrip("/")
        self._keep = keep
        self._is_local = "://" not in folder
        if self._is_local:
            self._filesystem: fs.FileSystem = fs.LocalFileSystem()
            self._root = str(Path(folder).absolute())
        else:
            self._filesystem, self._root = fs.FileSystem.from_uri(self.folder)

    def commit(self, snapshot: Snapshot, *, score: float | None) -> Commit:
        """Write a snapshot, in the place of an earlier commit of the same step, and delete what is not kept.

        `score` is the validation accuracy, None in mid-epoch.
        Raises: CheckpointError if it cannot be written; earlier commits stay as they are.
        """
        started = time.perf_counter()
        files = to_files(snapshot)
        files[MANIFEST] = _manifest(snapshot.step, score, files)
        name = f"step-{snapshot.step:08d}"
        try:
            if self._is_local:
                self._write_local(name, files)
            else:
                self._write_remote(name, files)
            self._prune()
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {self.folder}/{name} could not be written: {error}. Earlier checkpoints are untouched; "
                "make room or mend run.folder, then --resume.",
                step=snapshot.step,
            ) from error
        size = sum(len(content) for content in files.values())
        return Commit(f"{self.folder}/{name}", snapshot.step, size, time.perf_counter() - started)

    def newest(self, on_skip: OnSkip) -> Snapshot | None:
        """Read the newest valid commit; damaged ones are named to `on_skip(path, reason)` and passed over."""
        found = next(self._valid(on_skip), None)
        return None if found is None else from_files(found[1])

    def newest_state(self) -> dict[str, Any] | None:
        """The `state` of the commit that `newest` would read, without its tensors."""
        found = next(self._valid(lambda path, reason: None), None)
        return None if found is None else json.loads(found[1]["state.json"])["state"]

    def newest_path(self) -> str | None:
        found = next(self._valid(lambda path, reason: None), None)
        return None if found is None else f"{self.folder}/{found[0]}"

    def best(self, on_skip: OnSkip) -> Snapshot | None:
        """Read the valid commit with the best score, the newest of equals; the newest if none has a score."""
        commits = list(self._valid(on_skip))
        scored = [(json.loads(files[MANIFEST])["score"], files) for _, files in commits]
        with_score = [pair for pair in scored if pair[0] is not None]
        if with_score:
            return from_files(max(with_score, key=lambda pair: pair[0])[1])
        return from_files(commits[0][1]) if commits else None

    def _valid(self, on_skip: OnSkip) -> Iterator[tuple[str, dict[str, bytes]]]:
        for name in self._names():
            files, reason = self._read(name)
            if reason is None:
                yield name, files
            else:
                on_skip(f"{self.folder}/{name}", reason)

    def _names(self) -> list[str]:
        """Folders that are or should be commits, newest first."""
        entries = self._filesystem.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        names = [entry.base_name for entry in entries if entry.type == fs.FileType.Directory]
        steps = [name for name in names if name.startswith("step-") and name[5:].isdigit()]
        return sorted(steps, key=lambda name: int(name[5:]), reverse=True)

    def _read(self, name: str) -> tuple[dict[str, bytes], str | None]:
        """The files of a commit, or why it is none."""
        folder = f"{self._root}/{name}"
        content = self._read_file(f"{folder}/{MANIFEST}")
        if content is None:
            return {}, f"{MANIFEST}: missing"
        manifest, reason = _check_manifest(content, int(name[5:]))
        if manifest is None:
            return {}, reason
        files = {MANIFEST: content}
        for file_name, expected in manifest["files"].items():
            content = self._read_file(f"{folder}/{file_name}")
            if content is None:
                return {}, f"{file_name}: missing"
            if len(content) != expected["bytes"]:
                return {}, f"{file_name}: {len(content):,} bytes, must be {expected['bytes']:,}"
            if hashlib.sha256(content).hexdigest() != expected["sha256"]:
                return {}, f"{file_name}: SHA-256 differs"
            files[file_name] = content
        return files, None

    def _read_file(self, path: str) -> bytes | None:
        try:
            with self._filesystem.open_input_stream(path) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None
        except OSError:
            if self._filesystem.get_file_info(path).type == fs.FileType.File:
                raise
            return None

    def _write_local(self, name: str, files: dict[str, bytes]) -> None:
        root = Path(self._root)
        root.mkdir(parents=True, exist_ok=True)
        temporary = root / f".writing-{name}-{uuid.uuid4().hex}"
        try:
            temporary.mkdir()
            for file_name, content in files.items():
                with (temporary / file_name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            _sync_folder(temporary)
            if (root / name).exists():
                (root / name).rename(root / f".replaced-{name}-{uuid.uuid4().hex}")
            temporary.rename(root / name)
            _sync_folder(root)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _write_remote(self, name: str, files: dict[str, bytes]) -> None:
        folder = f"{self._root}/{name}"
        self._delete_remote(name)
        self._filesystem.create_dir(folder, recursive=True)
        for file_name in sorted(files, key=lambda key: key == MANIFEST):
            with self._filesystem.open_output_stream(f"{folder}/{file_name}") as stream:
                stream.write(files[file_name])

    def _prune(self) -> None:
        """Delete all but the newest `keep` and the best, and what killed writers left behind."""
        names = self._names()
        scores = {name: self._score(name) for name in names}
        scored = [name for name in names if scores[name] is not None]
        kept = set(names[: self._keep])
        if scored:
            kept.add(max(scored, key=lambda name: scores[name] or 0.0))
        for name in names:
            if name not in kept:
                self._delete_local(name) if self._is_local else self._delete_remote(name)
        if self._is_local:
            for path in Path(self._root).glob(".*-step-*"):
                abandoned = time.time() - path.stat().st_mtime > ABANDONED_S
                if path.name.startswith(".replaced-") or abandoned:
                    shutil.rmtree(path, ignore_errors=True)

    def _score(self, name: str) -> float | None:
        content = self._read_file(f"{self._root}/{name}/{MANIFEST}")
        manifest, _ = _check_manifest(content or b"", int(name[5:]))
        return None if manifest is None else manifest["score"]

    def _delete_local(self, name: str) -> None:
        hidden = Path(self._root) / f".replaced-{name}-{uuid.uuid4().hex}"
        (Path(self._root) / name).rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def _delete_remote(self, name: str) -> None:
        folder = f"{self._root}/{name}"
        if self._filesystem.get_file_info(f"{folder}/{MANIFEST}").type == fs.FileType.File:
            self._filesystem.delete_file(f"{folder}/{MANIFEST}")
        if self._filesystem.get_file_info(folder).type == fs.FileType.Directory:
            self._filesystem.delete_dir(folder)


def _manifest(step: int, score: float | None, files: dict[str, bytes]) -> bytes:
    listed = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    body = {"format": FORMAT_VERSION, "step": step, "score": score, "files": listed}
    return json.dumps(body | {"digest": _digest(body)}, indent=1).encode()


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _check_manifest(content: bytes, step: int) -> tuple[dict[str, Any] | None, str]:
    """The manifest, or why it cannot be believed.

    Raises: CheckpointError if it was written by a newer version.
    """
    try:
        manifest = json.loads(content)
        digest = manifest.pop("digest")
        canonical = json.dumps(manifest | {"digest": digest}, indent=1).encode() == content
        if digest != _digest(manifest) or not canonical:
            return None, f"{MANIFEST}: its digest differs"
    except (ValueError, KeyError, AttributeError, TypeError):
        return None, f"{MANIFEST}: not a manifest"
    if manifest["format"] > FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint format: got {manifest['format']}, this version reads up to {FORMAT_VERSION}. Update convoy-train."
        )
    if manifest["step"] != step:
        return None, f"{MANIFEST}: of step {manifest['step']}, must be of step {step}"
    return manifest, ""


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
