"""A worker's end of the run log: collects what happens and delivers it from a thread of its own.

So a step never waits for a file or for a remote call; the answer to a delivery says whether the run should stop.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.channel import Channel
from pipelines.loader import Batch
from pipelines.quarantine import Replaced

DELIVERY_INTERVAL_S = 0.5


class WorkerLog:
    """The `Log` of the training loop. Records and events are delivered by who `speaks`, traces by every rank.

    `sample_ids` names the samples at positions of an epoch; None where nothing is traced.
    """

    def __init__(
        self, channel: Channel, rank: int, sample_ids: Callable[[int, range], list[str]] | None, *, speaks: bool
    ) -> None:
        self._channel = channel
        self._speaks = speaks
        self._rank = rank
        self._sample_ids = sample_ids
        self._items: list[tuple[str, dict[str, Any]]] = []
        self._rows: dict[str, list[Any]] = _no_rows()
        self._stop = False
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._deliver_often, name="worker-log", daemon=True)
        if speaks:
            self._thread.start()

    def record(self, record: dict[str, Any]) -> None:
        if self._speaks:
            self._items.append(("record", record))

    def event(self, name: str, message: str, **fields: Any) -> None:
        if self._speaks:
            self._items.append(("event", {"name": name, "message": message} | fields))
            self.deliver()

    def quarantine(self, replaced: Sequence[Replaced]) -> None:
        if replaced:
            self._channel.call("quarantine", [asdict(each) for each in replaced])

    def quarantined(self) -> list[str]:
        names: list[str] = self._channel.call("quarantined")
        return names

    def stop_requested(self) -> bool:
        return self._stop

    def trace(self, batch: Batch, step: int, rank: int) -> None:
        if self._sample_ids is not None:
            for name, values in trace_rows(batch, step, rank, self._sample_ids).items():
                self._rows[name] += values

    def commit_trace(self, step: int) -> None:
        if self._sample_ids is not None:
            rows, self._rows = self._rows, _no_rows()
            self._channel.call("trace", self._rank, step, rows)

    def deliver(self) -> None:
        """Deliver what has been collected, now."""
        with self._lock:
            items, self._items = self._items, []
            self._stop = self._channel.call("add", items) or self._stop

    def close(self) -> None:
        """Deliver the rest and end the thread."""
        self._closed.set()
        if self._speaks:
            self._thread.join()
            self.deliver()

    def _deliver_often(self) -> None:
        while not self._closed.wait(DELIVERY_INTERVAL_S):
            self.deliver()


def trace_rows(
    batch: Batch, step: int, rank: int, sample_ids: Callable[[int, range], list[str]]
) -> dict[str, list[Any]]:
    """The columns of a trace for a batch. `sample_ids` names the samples at positions of an epoch."""
    assert batch.crc32 is not None, "a traced run has checksums"
    ids = sample_ids(batch.epoch, batch.positions)
    for each in batch.replaced:
        ids[batch.positions.index(each.position)] = each.by
    count = len(batch.positions)
    return {
        "epoch": [batch.epoch] * count,
        "step": [step] * count,
        "rank": [rank] * count,
        "position": list(batch.positions),
        "sample_id": ids,
        "pixels_crc32": batch.crc32.tolist(),
    }


def _no_rows() -> dict[str, list[Any]]:
    return {"epoch": [], "step": [], "rank": [], "position": [], "sample_id": [], "pixels_crc32": []}
