import hashlib
from itertools import chain, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from pipelines.order import Epoch, Position, order, windowed_order
from pipelines.randomness import mix, philox, words

seeds = st.integers(0, 2**63 - 1)
epochs = st.integers(0, 2**32 - 1)


@given(seeds, epochs, st.integers(0, 3000))
@settings(deadline=None)
def test_an_order_is_a_permutation(seed: int, epoch: int, num_samples: int) -> None:
    assert sorted(order(seed, epoch, num_samples).tolist()) == list(range(num_samples))


@pytest.mark.parametrize(
    ("seed", "epoch", "expected"),
    [
        (0, 0, [3, 2, 8, 9, 6, 0, 7, 4, 5, 1]),
        (0, 1, [1, 7, 3, 9, 6, 8, 5, 0, 4, 2]),
        (7, 0, [0, 7, 6, 9, 1, 4, 2, 8, 3, 5]),
        (2**63 - 1, 2**32 - 1, [7, 1, 8, 6, 2, 0, 9, 3, 5, 4]),
    ],
)
def test_orders_never_change(seed: int, epoch: int, expected: list[int]) -> None:
    assert order(seed, epoch, 10).tolist() == expected


def test_the_order_of_many_samples_never_changes() -> None:
    digest = hashlib.sha256(order(1, 2, 100_000).astype("<i8").tobytes()).hexdigest()
    assert digest.startswith("ff6e3e22d9e25920")


@pytest.mark.parametrize("num_samples", [1, 2**15 - 1, 2**15, 2**15 + 1, 70_000])
def test_keys_made_in_blocks_are_those_made_at_once(num_samples: int) -> None:
    counter = np.zeros((num_samples, 4), np.uint64)
    counter[:, 0] = np.arange(num_samples)
    counter[:, 2] = 5
    high, low, *_ = philox(counter, words(mix("order", 3))).T
    assert np.array_equal(order(3, 5, num_samples), np.lexsort((low, high)))


def test_an_order_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        order(0, 0, 10)[0] = 1


def test_all_permutations_are_equally_likely_over_seeds() -> None:
    counts = dict.fromkeys(permutations(range(4)), 0)
    for seed in range(4800):
        counts[tuple(order(seed, 0, 4).tolist())] += 1
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_every_sample_is_equally_likely_at_every_position_over_epochs() -> None:
    places = np.stack([order(11, epoch, 12) for epoch in range(3000)])
    for position in range(12):
        assert chisquare(np.bincount(places[:, position], minlength=12)).pvalue > 1e-4


def test_consecutive_epochs_are_independent() -> None:
    """Where a sample stands in one epoch says nothing about where it stands in the next."""
    first, second = np.argsort(order(0, 0, 20_000)), np.argsort(order(0, 1, 20_000))
    table = np.histogram2d(first, second, bins=10)[0]
    assert chisquare(table.ravel(), np.full(100, 200.0)).pvalue > 1e-3


@given(st.integers(1, 500), st.integers(1, 64), st.integers(1, 20))
@settings(deadline=None)
def test_ranks_together_read_every_position_once_and_in_order(
    num_samples: int, global_batch: int, world_size: int
) -> None:
    epoch = Epoch(num_samples, global_batch)
    shares = [[epoch.share(step, rank, world_size) for rank in range(world_size)] for step in range(epoch.num_steps)]
    assert list(chain.from_iterable(chain.from_iterable(shares))) == list(range(num_samples))
    for step, of_step in enumerate(shares):
        assert list(chain.from_iterable(of_step)) == list(epoch.positions(step))


@given(st.integers(1, 500), st.integers(1, 64), st.integers(1, 20))
@settings(deadline=None)
def test_shares_are_contiguous_and_differ_by_at_most_one_with_the_larger_first(
    num_samples: int, global_batch: int, world_size: int
) -> None:
    epoch = Epoch(num_samples, global_batch)
    largest = 0
    for step in range(epoch.num_steps):
        shares = [epoch.share(step, rank, world_size) for rank in range(world_size)]
        assert {share.step for share in shares} == {1}
        sizes = [len(share) for share in shares]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] - sizes[-1] <= 1
        largest = max(largest, sizes[0])
    assert epoch.largest_share(world_size) == largest


@pytest.mark.parametrize(
    ("num_samples", "global_batch", "num_steps", "last"),
    [(10, 4, 3, range(8, 10)), (8, 4, 2, range(4, 8)), (3, 8, 1, range(3)), (1, 1, 1, range(1))],
)
def test_the_last_step_of_an_epoch_takes_what_is_left(
    num_samples: int, global_batch: int, num_steps: int, last: range
) -> None:
    epoch = Epoch(num_samples, global_batch)
    assert epoch.num_steps == num_steps
    assert epoch.positions(num_steps - 1) == last


def test_positions_compare_by_epoch_and_then_step() -> None:
    assert Position(0, 9) < Position(1, 0) < Position(1, 1)


sizes = st.lists(st.integers(0, 40), max_size=12)


@given(seeds, epochs, sizes, st.integers(1, 15))
@settings(deadline=None)
def test_a_windowed_order_is_a_permutation(seed: int, epoch: int, shard_sizes: list[int], window: int) -> None:
    permutation = windowed_order(seed, epoch, shard_sizes, window)
    assert permutation.dtype == np.int64
    assert not permutation.flags.writeable
    assert sorted(permutation.tolist()) == list(range(sum(shard_sizes)))


@given(seeds, epochs, st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 15))
@settings(deadline=None)
def test_a_window_reads_all_rows_of_its_own_shards_before_the_next_begins(
    seed: int, epoch: int, shard_sizes: list[int], window: int
) -> None:
    shard_of = np.repeat(np.arange(len(shard_sizes)), shard_sizes)
    shards = shard_of[windowed_order(seed, epoch, shard_sizes, window)].tolist()
    last_read = {shard: place for place, shard in enumerate(shards)}
    open_shards: set[int] = set()
    windows = []  # the shards of each window, in the order of reading
    for place, shard in enumerate(shards):
        if not open_shards:
            windows.append(set[int]())
        open_shards.add(shard)
        windows[-1].add(shard)
        assert len(windows[-1]) <= window
        open_shards = {one for one in open_shards if last_read[one] > place}
    assert sum(len(one) for one in windows) == len(shard_sizes)


def test_windowed_orders_never_change() -> None:
    assert windowed_order(0, 0, [3, 2, 4], 2).tolist() == [7, 5, 3, 8, 6, 4, 0, 1, 2]
    assert windowed_order(7, 5, [3, 2, 4], 3).tolist() == [4, 5, 6, 3, 7, 0, 8, 1, 2]


def test_shards_and_rows_are_shuffled_anew_in_every_epoch() -> None:
    """Each row of each shard comes first equally often."""
    firsts = np.array([windowed_order(1, epoch, [5] * 4, 2)[0] for epoch in range(4000)])
    assert chisquare(np.bincount(firsts, minlength=20)).pvalue > 1e-3


def test_a_window_of_all_shards_mixes_everything() -> None:
    """Where a row lies says nothing about when it is read."""
    place = np.argsort(windowed_order(3, 0, [1000] * 20, 20))
    table = np.histogram2d(np.arange(20_000), place, bins=10)[0]
    assert chisquare(table.ravel(), np.full(100, 200.0)).pvalue > 1e-3


def test_a_window_of_no_shards_is_refused() -> None:
    with pytest.raises(ValueError, match="window: got 0, must be 1 or more"):
        windowed_order(0, 0, [1], 0)
