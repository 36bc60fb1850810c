"""Runs that compute activations again, by two workers in a process group: the same numbers as those that keep them."""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from local_runs import Trial, assert_equal, train_together

SYNC = ("strategy={name: sync, workers: 2}", "train.optimizer={name: sgd, lr: 0.1, momentum: 0.9}")
AGAIN = 'memory.checkpoint=["0", "1", "4"]'


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("train.accumulate=2",),
        ("precision={fixed: {integer_bits: 4, fraction_bits: 8}}",),
        ("precision={dynamic_fixed: {bits: 10}}", "train.accumulate=2"),
    ],
    ids=["plain", "in parts", "fixed", "dynamic, in parts"],
)
def test_two_workers_that_compute_again_have_what_those_have_that_keep(
    settings: tuple[str, ...], pool: ProcessPoolExecutor, tmp_path: Path
) -> None:
    kept = train_together(pool, Trial(tmp_path / "kept", (*SYNC, *settings), batch_norm=True))
    again = train_together(pool, Trial(tmp_path / "again", (*SYNC, *settings, AGAIN), batch_norm=True))
    for ours, theirs in zip(again, kept, strict=True):
        assert_equal(ours.arrays, theirs.arrays)
        assert [record["loss"] for record in ours.records if "loss" in record] == [
            record["loss"] for record in theirs.records if "loss" in record
        ]
