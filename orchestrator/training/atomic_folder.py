"""A folder on a local disk that appears whole or not at all, whenever its writer is killed.

Written under a hidden name beside its place, synced, then renamed: POSIX rename(2) is atomic, but does not
replace a folder that has files. So an old folder is set aside first, under a name that readers also look at:

    .writing-HOST-PID-ID  being written; the next writer deletes it if its own writer is dead
    NAME                  the folder
    NAME.replaced         the one before; counts only while there is no NAME, between two renames
"""

import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPLACED = ".replaced"
WRITING = re.compile(r"\.writing-(?P<host>.+)-(?P<pid>[0-9]{1,9})-[0-9a-f]{32}")
ABANDONED_S = 24 * 3600.0  # then a hidden folder counts as a dead writer's, whatever machine it wrote from


@contextmanager
def appearing_folder(place: Path) -> Iterator[Path]:
    """Give a hidden folder to write to, which becomes `place` at the end, or vanishes at an exception.

    Its files must be synced by who writes them (`write_synced`). An old `place` is left as PLACE.replaced.
    """
    root = place.parent
    root.mkdir(parents=True, exist_ok=True)
    _delete_abandoned(root)
    hidden = root / f".writing-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"
    hidden.mkdir()
    try:
        yield hidden
        _sync_folder(hidden)
        if place.exists():
            _set_aside(place)
        hidden.rename(place)
        _sync_folder(root)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def write_synced(folder: Path, name: str, content: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with (folder / name).open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _set_aside(place: Path) -> None:
    replaced = place.with_name(place.name + REPLACED)
    if replaced.exists():
        shutil.rmtree(replaced)
    place.rename(replaced)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete_abandoned(root: Path) -> None:
    for path in root.glob(".writing-*"):
        if _is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path) -> bool:
    """Whether a hidden folder's writer is dead: known for this machine, by age for others."""
    match = WRITING.fullmatch(path.name)
    if match and match["host"] == socket.gethostname() and not _is_alive(int(match["pid"])):
        return True
    return time.time() - path.stat().st_mtime > ABANDONED_S


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
