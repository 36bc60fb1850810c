"""The files of a run (docs/run-folder.md) and the lock that keeps two runs out of one folder.

A local folder is written in place. For a URI (s3://, gs://, ...) the small files are written to a folder of this
machine and copied up at every commit and at the end; checkpoints go to their place directly.
"""

import fcntl
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyarrow import fs

from orchestrator.errors import InputError

SMALL_FILES = (
    "experiment.yaml",
    "kernels.json",
    "metrics.jsonl",
    "events.jsonl",
    "result.json",
    "report.html",
    "trace.parquet",
    "quarantine.jsonl",
)
REMOTE_LOCK_STALE_S = 120.0


class RunFolder:
    """Where a run keeps everything. `path` is what the user wrote; `local` is where its small files are.

    `local` is given where another process of this machine has fetched the small files of a URI already.
    """

    def __init__(self, path: str, local: Path | None = None) -> None:
        self.is_remote = "://" in path
        self.path = path.rstrip("/") if self.is_remote else str(Path(path).expanduser().resolve())
        if self.is_remote:
            self._filesystem, self._root = fs.FileSystem.from_uri(self.path)
            self.local = local or Path(tempfile.mkdtemp(prefix="convoy-run-"))
            if local is None:
                self._download()
        else:
            self.local = Path(self.path)

    @property
    def checkpoints(self) -> str:
        return f"{self.path}/checkpoints"

    @property
    def snapshots(self) -> Path:
        """Where a parameter server keeps its snapshots while it runs: on this machine, or what it mounts."""
        return self.local / ".server"

    @property
    def has_run(self) -> bool:
        """Whether a run was started here before."""
        return (self.local / "experiment.yaml").exists()

    def create(self) -> None:
        self.local.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Delete the run that is here, and nothing that is no part of one."""
        for name in SMALL_FILES:
            (self.local / name).unlink(missing_ok=True)
        shutil.rmtree(self.local / "trace", ignore_errors=True)
        if self.is_remote:
            for name in SMALL_FILES:
                if self._filesystem.get_file_info(f"{self._root}/{name}").type == fs.FileType.File:
                    self._filesystem.delete_file(f"{self._root}/{name}")
            if self._filesystem.get_file_info(f"{self._root}/checkpoints").type == fs.FileType.Directory:
                self._filesystem.delete_dir(f"{self._root}/checkpoints")
        else:
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def write(self, name: str, content: str) -> None:
        """Write a small file whole or not at all."""
        temporary = self.local / f".{name}.{os.getpid()}"
        temporary.write_text(content)
        temporary.replace(self.local / name)

    def append(self, name: str, records: Iterable[dict[str, Any]]) -> None:
        """Add lines to a .jsonl file; a torn last line of a killed writer is closed first."""
        lines = "".join(json.dumps(record) + "\n" for record in records)
        with (self.local / name).open("ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    lines = "\n" + lines
            file.write(lines.encode())

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """The records of a .jsonl file; a line that is torn is no record."""
        path = self.local / name
        records = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        return records

    def upload(self) -> None:
        """Copy the small files to where the run is kept; nothing to do for a local folder."""
        if self.is_remote:
            self._filesystem.create_dir(self._root, recursive=True)
            for name in SMALL_FILES:
                if (self.local / name).exists():
                    fs.copy_files(
                        str(self.local / name),
                        f"{self._root}/{name}",
                        source_filesystem=fs.LocalFileSystem(),
                        destination_filesystem=self._filesystem,
                    )

    def _download(self) -> None:
        for name in SMALL_FILES:
            if self._filesystem.get_file_info(f"{self._root}/{name}").type == fs.FileType.File:
                fs.copy_files(
                    f"{self._root}/{name}",
                    str(self.local / name),
                    source_filesystem=self._filesystem,
                    destination_filesystem=fs.LocalFileSystem(),
                )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one run.

        Local: an flock, which ends with its process however that ends. Remote: a file that says who and when.
        Raises: InputError if a run holds it.
        """
        self.create()
        with self._remote_lock() if self.is_remote else self._local_lock():
            yield

    @contextmanager
    def _local_lock(self) -> Iterator[None]:
        with (self.local / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise self._held(file.read()) from None
            file.truncate(0)
            file.write(_whoami())
            file.flush()
            yield

    @contextmanager
    def _remote_lock(self) -> Iterator[None]:
        path = f"{self._root}/lock.json"
        info = self._filesystem.get_file_info(path)
        if info.type == fs.FileType.File:
            with self._filesystem.open_input_stream(path) as stream:
                holder = json.loads(stream.read())
            if time.time() - holder["time"] < REMOTE_LOCK_STALE_S:
                raise self._held(holder["who"])
        self._filesystem.create_dir(self._root, recursive=True)
        self.refresh_lock()
        try:
            yield
        finally:
            self._filesystem.delete_file(path)

    def refresh_lock(self) -> None:
        """Say again that the run is going on; needed for a remote folder at least every REMOTE_LOCK_STALE_S."""
        if self.is_remote:
            with self._filesystem.open_output_stream(f"{self._root}/lock.json") as stream:
                stream.write(json.dumps({"who": _whoami(), "time": time.time()}).encode())

    def _held(self, holder: str) -> InputError:
        return InputError(
            f"run.folder: {self.path} is held by a run that is going on ({holder.strip() or 'unknown'}). "
            "Wait for it, stop it by Ctrl-C, or give this run another run.name."
        )


def _whoami() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
