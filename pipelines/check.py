"""Which samples of a source cannot be used: every one is read and fully decoded, before training meets it.

What is found is what the decoder refuses: truncated or empty files, what is no image, pixels without a fixed range,
files that cannot be read; and labels that the source refuses (`targets.py`). Not looked at: labels that are wrong,
duplicates (`stats.py`), images that decode but are wrong.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipelines.decode import UndecodableImage, check_whole
from pipelines.sources import Source

_AT_A_TIME = 1024  # samples that wait for a thread


@dataclass(frozen=True)
class BadSample:
    """A sample that cannot be used, and why."""

    index: int
    sample_id: str
    reason: str


def find_bad(source: Source, *, threads: int, progress: Callable[[int], None] = lambda _: None) -> list[BadSample]:
    """Read and decode all samples: those that fail, in the order of the source. `progress`: how many more are done."""

    def reason(index: int) -> str | None:
        try:
            if index in source.listing.refused:
                return source.listing.refused[index]
            check_whole(source.read(index))
        except (UndecodableImage, OSError) as error:
            return str(error)
        finally:
            progress(1)
        return None

    bad = []
    num_samples = len(source.listing)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, num_samples, _AT_A_TIME):
            indices = range(start, min(start + _AT_A_TIME, num_samples))
            for index, why in zip(indices, pool.map(reason, indices), strict=True):
                if why is not None:
                    bad.append(BadSample(index, source.listing.ids[index].as_py(), why))
    return bad
