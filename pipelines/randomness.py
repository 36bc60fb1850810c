"""Counter-based random draws: every draw has an address, and nothing has a state.

A draw is a pure function of (seed, epoch, sample, augmentation), so the same sample in the same epoch gets
the same pixels on 1 worker or 64, before or after a crash, in whatever order samples are visited.

Source: Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3" (SC'11), Philox-4x32-10;
the known-answer vectors of their Random123 library are in tests/unit/test_randomness.py.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = 10


def philox(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Encrypt counters by Philox-4x32-10.

    Shapes: counter (..., 4), each word in [0, 2^32) -> (..., 4) words, uniform in [0, 2^32).
    Source: Salmon et al. 2011, section 3.3 and table 2.
    """
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(_ROUNDS):
        product_0 = _MULTIPLIER_0 * c0
        product_1 = _MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (
            (product_1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product_1 & _LOW,
            (product_0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            product_0 & _LOW,
        )
        k0 = (k0 + _WEYL_0) & 0xFFFFFFFF
        k1 = (k1 + _WEYL_1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def mix(*parts: int | str) -> int:
    """Hash an address to 64 bits; the same on every machine and Python version."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def words(key64: int) -> tuple[int, int]:
    """Split a 64-bit key into the two 32-bit words that Philox takes."""
    return key64 & 0xFFFFFFFF, key64 >> 32


@dataclass(frozen=True)
class Draws:
    """The random numbers of one augmentation for a batch of samples.

    `sample_keys` (n,) uint64 address the samples; `augmentation` is the index in the experiment's list.
    """

    seed: int
    epoch: int
    sample_keys: NDArray[np.uint64]
    augmentation: int

    def uniform(self, index: int = 0) -> NDArray[np.float64]:
        """Draw number `index` of each sample: (n,) in [0, 1), 32 bits of resolution."""
        return self._bits(index).astype(np.float64) / 2.0**32

    def integers(self, high: int, index: int = 0) -> NDArray[np.int64]:
        """Draw number `index` of each sample: (n,) integers in [0, high), high < 2^32.

        By multiplication and shift (Lemire 2019, arXiv:1805.10941); the bias is below high / 2^32.
        """
        return ((self._bits(index) * np.uint64(high)) >> _SHIFT).astype(np.int64)

    def _bits(self, index: int) -> NDArray[np.uint64]:
        block, word = divmod(index, 4)
        counter = np.empty((len(self.sample_keys), 4), np.uint64)
        counter[:, 0] = self.sample_keys & _LOW
        counter[:, 1] = self.sample_keys >> _SHIFT
        counter[:, 2] = self.epoch
        counter[:, 3] = (self.augmentation << 16) | block
        return philox(counter, words(mix("augment", self.seed)))[:, word]
