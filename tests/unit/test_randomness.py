import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare

from pipelines.randomness import Draws, mix, philox, words

KEYS: NDArray[np.uint64] = np.array([mix("sample", i) for i in range(20_000)], np.uint64)


def split(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter: str, key: str, expected: str) -> None:
    """Vectors of philox4x32-10 in Random123's tests/kat_vectors (Salmon et al., release 1.14)."""
    k0, k1 = split(key)
    assert philox(np.array(split(counter), np.uint64), (k0, k1)).tolist() == split(expected)


def test_philox_takes_any_number_of_axes_and_leaves_its_counters_alone() -> None:
    counters = np.arange(2 * 3 * 4, dtype=np.uint64).reshape(2, 3, 4)
    before = counters.copy()
    together = philox(counters, (1, 2))
    assert np.array_equal(counters, before)
    for i, j in np.ndindex(2, 3):
        assert np.array_equal(together[i, j], philox(counters[i, j], (1, 2)))


@given(st.integers(0, 2**64 - 1))
def test_words_are_the_halves_of_a_key(key: int) -> None:
    low, high = words(key)
    assert low < 2**32
    assert high << 32 | low == key


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("order", 0), 0x6F2B608450AFFA54),
        (("augment", 0), 0x17DB7B79ADBDDD52),
        (("sample", "cat/0001.jpg"), 0xA5072DB1D6676BF4),
    ],
)
def test_hashes_of_addresses_never_change(parts: tuple[int | str, ...], expected: int) -> None:
    assert mix(*parts) == expected


def test_draws_never_change() -> None:
    draws = Draws(seed=3, epoch=5, sample_keys=np.array([0, 1, 2**64 - 1], np.uint64), augmentation=2)
    assert draws.uniform().tolist() == [0.24165638466365635, 0.9251186605542898, 0.9013803836423904]
    assert draws.integers(1000, 1).tolist() == [857, 625, 995]
    assert draws.integers(1000, 6).tolist() == [803, 457, 479]


@given(st.permutations(range(12)), st.integers(0, 12))
def test_a_draw_does_not_depend_on_the_batch_that_it_is_made_in(places: list[int], num: int) -> None:
    whole = Draws(1, 2, KEYS[:12], 3)
    chosen = np.array(places[:num], np.int64)
    part = Draws(1, 2, KEYS[chosen], 3)
    assert np.array_equal(part.uniform(4), whole.uniform(4)[chosen])
    assert np.array_equal(part.integers(9, 1), whole.integers(9, 1)[chosen])


def test_every_part_of_an_address_matters() -> None:
    base = {"seed": 1, "epoch": 1, "augmentation": 1, "index": 1}

    def first(seed: int, epoch: int, augmentation: int, index: int) -> tuple[float, ...]:
        return tuple(Draws(seed, epoch, KEYS[:3], augmentation).uniform(index).tolist())

    variants = [base, *({**base, name: value} for name in base for value in (0, 2, 3, 4, 7))]
    assert len({first(**variant) for variant in variants}) == len(variants)


@pytest.mark.parametrize("index", range(5))
def test_uniform_draws_are_uniform_over_samples(index: int) -> None:
    values = Draws(0, 0, KEYS, 0).uniform(index)
    assert values.min() >= 0.0
    assert values.max() < 1.0
    assert chisquare(np.histogram(values, bins=50, range=(0, 1))[0]).pvalue > 1e-3


def test_uniform_draws_of_one_sample_are_uniform_over_epochs() -> None:
    values = [float(Draws(0, epoch, KEYS[:1], 0).uniform()[0]) for epoch in range(4000)]
    assert chisquare(np.histogram(values, bins=20, range=(0, 1))[0]).pvalue > 1e-3


@pytest.mark.parametrize("high", [1, 2, 3, 9, 100])
def test_integers_are_uniform_below_their_bound(high: int) -> None:
    values = Draws(5, 1, KEYS, 1).integers(high)
    assert values.dtype == np.int64
    counts = np.bincount(values, minlength=high)
    assert len(counts) == high
    assert high == 1 or chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Draws(0, 0, KEYS, 0).uniform(0), Draws(0, 0, KEYS, 0).uniform(1)),
        (Draws(0, 0, KEYS, 0).uniform(0), Draws(0, 0, KEYS, 0).uniform(4)),
        (Draws(0, 0, KEYS, 0).uniform(0), Draws(0, 0, KEYS, 1).uniform(0)),
        (Draws(0, 0, KEYS, 0).uniform(0), Draws(0, 1, KEYS, 0).uniform(0)),
        (Draws(0, 0, KEYS, 0).uniform(0), Draws(1, 0, KEYS, 0).uniform(0)),
        (Draws(0, 0, KEYS[1:], 0).uniform(0), Draws(0, 0, KEYS[:-1], 0).uniform(0)),
    ],
    ids=["index", "block", "augmentation", "epoch", "seed", "sample"],
)
def test_draws_at_neighbouring_addresses_are_independent(one: NDArray[np.float64], other: NDArray[np.float64]) -> None:
    table = np.histogram2d(one, other, bins=10, range=((0, 1), (0, 1)))[0]
    assert chisquare(table.ravel()).pvalue > 1e-3
