"""The snapshots of one shard while it works: written in a thread of their own, the newest kept."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orchestrator.parameter_server.shard import Shard
from orchestrator.parameter_server.snapshots import Snapshot, prune, read, save, snapshots

KEPT = 3


class Keeper:
    """Of shard `index` of `count`, in `folder`."""

    def __init__(self, folder: Path, index: int, count: int) -> None:
        self._folder, self._index, self._count = folder, index, count
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._saving: Future[None] | None = None
        self.failed = ""
        """Why the last snapshot could not be written; empty if it could."""

    def save(self, shard: Shard, extra: dict[str, Any]) -> None:
        """Copy the shard now, under the caller's lock, and write it later; left out while the last one is written."""
        if self._saving is None or self._saving.done():
            self._saving = self._thread.submit(self._write, shard.copy_for_saving(extra))

    def read(self, version: int) -> Snapshot:
        """The snapshot of a version; later ones are of a course that was given up, and are deleted.

        Raises: CheckpointError if it is not there or not whole.
        """
        prune(self._folder, self._index, self._count, keep=KEPT, newest=version)
        return read(self._folder, self._index, self._count, version)

    def newest(self) -> Snapshot | None:
        """The snapshot of `common`, if there is one."""
        version = self.common()
        return None if version is None else self.read(version)

    def common(self) -> int | None:
        """The newest version of which all shards have a whole snapshot."""
        of_all = [set(snapshots(self._folder, index, self._count)) for index in range(self._count)]
        return max(set.intersection(*of_all), default=None)

    def _write(self, snapshot: Snapshot) -> None:
        try:
            save(self._folder, snapshot)
            prune(self._folder, self._index, self._count, keep=KEPT, newest=snapshot.state["version"])
        except OSError as error:
            self.failed = str(error)
        else:
            self.failed = ""
