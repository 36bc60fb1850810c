"""Chunks for whoever asks: a stream of Ray Data whose blocks no rank is dealt beforehand.

Where work is given to whoever is free, nobody knows who will want a chunk. So one place, an actor, runs the stream in
its order, keeps references to the blocks that were made and not yet asked for, and gives a chunk to each who asks; the
pixels go from where they were made to where they are wanted. What is asked for again, after a worker was lost, may be
gone: the worker makes it itself.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

MAX_AHEAD = 8  # chunks beyond the newest that was asked for
GIVEN_KEPT = 4  # chunks before it that are still there: a chunk holds several shares, for several workers
WAIT_S = 20.0


class Feed:
    """`blocks` begins the stream of references, chunk after chunk."""

    def __init__(self, blocks: Callable[[], Iterable[Any]]) -> None:
        self._changed = threading.Condition()
        self._chunks: dict[int, Any] = {}
        self._made = 0
        self._wanted = 0
        self._error: str | None = None
        self._ended = False
        threading.Thread(target=self._run, args=(blocks,), name="feed", daemon=True).start()

    def chunk(self, number: int) -> list[Any] | None:
        """The reference to a chunk, as a list of one; None: it is gone, or will not come.

        Raises: RuntimeError if the pipeline failed.
        """
        with self._changed:
            self._wanted = max(self._wanted, number)
            for gone in [each for each in self._chunks if each < self._wanted - GIVEN_KEPT]:
                del self._chunks[gone]
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._made > number or self._ended, WAIT_S)
            if self._error:
                raise RuntimeError(self._error)
            return [self._chunks[number]] if number in self._chunks else None

    def _run(self, blocks: Callable[[], Iterable[Any]]) -> None:
        try:
            for reference in blocks():
                with self._changed:
                    self._changed.wait_for(lambda: self._made <= self._wanted + MAX_AHEAD)
                    self._chunks[self._made] = reference
                    self._made += 1
                    self._changed.notify_all()
        except Exception as error:
            with self._changed:
                self._error = f"the data pipeline failed: {type(error).__name__}: {error}"
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def blocks_of(bundles: Iterable[Any]) -> Iterator[Any]:
    """References to blocks one by one, of what `Dataset.iter_internal_ref_bundles` gives."""
    for bundle in bundles:
        yield from bundle.block_refs
