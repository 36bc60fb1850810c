from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import write_folder, write_tar
from scipy.stats import binomtest, chisquare

from pipelines.listing import Listing, check_same_targets, listing_of
from pipelines.sources import open_source
from pipelines.split import at_most_per_class, held_out

seeds = st.integers(0, 2**63 - 1)


def some(number: int, classes: int = 5) -> Listing:
    return listing_of(sorted(f"{i % classes}/{i}" for i in range(number)))


@given(st.integers(2, 300), st.floats(0.05, 0.95), seeds)
@settings(deadline=None, max_examples=50)
def test_new_samples_do_not_move_old_ones(number: int, fraction: float, seed: int) -> None:
    def sides(listing: Listing) -> dict[str, bool]:
        return dict(zip(listing.ids.to_pylist(), held_out(listing, fraction, seed).tolist(), strict=True))

    try:
        few, many = sides(some(number)), sides(some(2 * number))
    except ValueError:
        return  # all on one side: another test
    assert few.items() <= many.items()


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
def test_the_share_that_is_held_out_is_the_fraction(fraction: float) -> None:
    chosen = int(held_out(some(20_000), fraction, 3).sum())
    assert binomtest(chosen, 20_000, fraction).pvalue > 1e-3


def test_another_seed_is_an_independent_division() -> None:
    one, other = (held_out(some(20_000), 0.5, seed) for seed in (0, 1))
    counts = [int((a & b).sum()) for a in (one, ~one) for b in (other, ~other)]
    assert chisquare(counts).pvalue > 1e-3


def test_a_division_never_changes() -> None:
    assert np.flatnonzero(held_out(some(40), 0.2, 7)).tolist() == [0, 2, 5, 6, 15, 19, 21, 24, 31, 35]


@pytest.mark.parametrize(("fraction", "side"), [(1e-12, "none"), (1 - 1e-12, "all")])
def test_a_side_without_samples_is_refused(fraction: float, side: str) -> None:
    with pytest.raises(ValueError, match=rf"val_fraction: got .*, which holds out {side} of 10 samples"):
        held_out(some(10), fraction, 0)


@given(st.integers(0, 200), st.integers(1, 30), seeds)
@settings(deadline=None, max_examples=50)
def test_a_subset_has_as_many_of_a_class_as_asked_for_or_all(number: int, most: int, seed: int) -> None:
    listing = some(number)
    chosen = at_most_per_class(listing, most, seed)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    whole = np.bincount(listing.labels, minlength=5)
    assert np.bincount(listing.labels[chosen], minlength=5).tolist() == np.minimum(whole, most).tolist()


def test_a_smaller_subset_lies_in_a_larger_one() -> None:
    subsets = [set(at_most_per_class(some(500), most, 0).tolist()) for most in (1, 5, 20)]
    assert subsets[0] < subsets[1] < subsets[2]


def test_train_and_val_of_one_source_share_nothing_and_miss_nothing(tmp_path: Path) -> None:
    names = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(20)]
    specs = [f"imagefolder:{write_folder(tmp_path / 'images', names)}", f"tar:{write_tar(tmp_path / 'x.tar', names)}"]
    fingerprints = set()
    for spec in specs:
        train, val = (open_source(f"{spec}?val_fraction=0.25&split_seed=1", split) for split in ("train", "val"))
        check_same_targets(train.listing, val.listing)
        parts = [source.listing.ids.to_pylist() for source in (train, val)]
        assert sorted(parts[0] + parts[1]) == sorted(names)
        assert 0 < len(parts[1]) < len(parts[0])
        fingerprints.add((train.listing.fingerprint, val.listing.fingerprint))
        whole = open_source(spec, "train")
        by_id = {whole.listing.ids[i].as_py(): whole.read(i) for i in range(len(names))}
        for source, ids in zip((train, val), parts, strict=True):
            assert [source.read(i) for i in range(len(ids))] == [by_id[sample_id] for sample_id in ids]
    assert len(fingerprints) == 1, "a folder and a tar of the same images are divided alike"


def test_options_go_together() -> None:
    source = open_source("digits?per_class=3&split_seed=5", "val")
    assert np.bincount(source.listing.labels).tolist() == [3] * 10
    whole = open_source("digits", "val")
    ids = whole.listing.ids.to_pylist()
    for i, sample_id in enumerate(source.listing.ids.to_pylist()):
        assert np.array_equal(source.read(i), whole.read(ids.index(sample_id)))
