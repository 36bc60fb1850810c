"""Processes of this machine by what they are and whose they are, from /proc: others may run Ray beside a test."""

import os
from collections.abc import Iterator
from pathlib import Path


def own_processes(name: bytes, ancestor: int) -> Iterator[int]:
    """The ids of processes with `name` in their title that `ancestor` started, at any depth."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _is_called(entry, name) and descends(int(entry.name), ancestor):
            yield int(entry.name)


def _is_called(entry: Path, name: bytes) -> bool:
    try:
        return name in (entry / "cmdline").read_bytes()
    except OSError:
        return False


def descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            stat = (Path("/proc") / str(pid) / "stat").read_text()
        except OSError:
            return False
        pid = int(stat.rsplit(")", 1)[1].split()[1])
    return False


def private_bytes(pid: int) -> int:
    """Memory that a process has for itself: neither files nor the object store, which it shares with others."""
    status = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    anonymous = next(line for line in status if line.startswith("RssAnon:"))
    return int(anonymous.split()[1]) * 1024


def pipeline_actors() -> list[int]:
    """Those of the Ray that this process started."""
    return sorted(own_processes(b"MapWorker", os.getpid()))
