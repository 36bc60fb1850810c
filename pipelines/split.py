"""Which samples of one source are held out, and which make a smaller set: by a hash of each sample's id.

A sample's side depends on its id and the seed alone, so new images do not move old ones from one side to the other,
and a folder, a tar and shards of the same images are divided alike. Not stratified: a class's share of the held-out
samples is only as even as chance makes it. The same file under two names can lie on both sides; `convoy stats` finds
such files.
"""

import numpy as np
from numpy.typing import NDArray

from pipelines.listing import Listing
from pipelines.randomness import mix, philox, words


def held_out(listing: Listing, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which samples are held out: (n,), each with probability `fraction`, in (0, 1).

    Raises: ValueError if that leaves one side without samples.
    """
    chosen: NDArray[np.bool_] = _hashes(listing, "split", seed) < np.uint64(fraction * 2.0**64)
    if chosen.all() or not chosen.any():
        side = "all" if chosen.all() else "none"
        raise ValueError(
            f"val_fraction: got {fraction}, which holds out {side} of {len(listing)} samples; both sides need some. "
            "Choose another fraction or split_seed."
        )
    return chosen


def at_most_per_class(listing: Listing, number: int, seed: int) -> NDArray[np.int64]:
    """The indices of at most `number` samples of each class, rising: those of the smallest hashes.

    Only for labels of one class; a sample whose label is refused counts for the first.
    """
    by_class = np.lexsort((_hashes(listing, "subset", seed), listing.labels))
    labels = listing.labels[by_class]
    rank = np.arange(len(labels)) - np.searchsorted(labels, labels)
    return np.sort(by_class[rank < number])


def _hashes(listing: Listing, purpose: str, seed: int) -> NDArray[np.uint64]:
    """64 bits for each sample: (n,), from its key."""
    counter = np.zeros((len(listing), 4), np.uint64)
    counter[:, 0] = listing.keys & np.uint64(0xFFFFFFFF)
    counter[:, 1] = listing.keys >> np.uint64(32)
    bits = philox(counter, words(mix(purpose, seed)))
    return (bits[:, 0] << np.uint64(32)) | bits[:, 1]
