"""Runs in few bits, alone and by two workers in a process group: alike on all, and the same when they are resumed."""

import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from local_runs import STEPS, Trained, Trial, assert_equal, files, train_alone, train_together

from orchestrator.strategies.sync import OneWorker

SYNC = ("strategy={name: sync, workers: 2}", "checkpoint.every_steps=3")
MOMENTUM = "train.optimizer={name: sgd, lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0.001}"
ADAMW = "train.optimizer={name: adamw, lr: 0.01}"
CASES = {
    "fixed": (MOMENTUM, "precision={fixed: {integer_bits: 4, fraction_bits: 12}}"),
    "nearest": (MOMENTUM, "precision={fixed: {integer_bits: 4, fraction_bits: 12, rounding: nearest}}"),
    "by layer": (
        ADAMW,
        "precision={default: bf16, layers: {'1': fp32, '0': {fixed: {integer_bits: 4, fraction_bits: 8}}}}",
    ),
    "moving points": (MOMENTUM, "precision={dynamic_fixed: {bits: 12, weight_bits: 16, every: 4}}"),
    "guard": (
        MOMENTUM,
        "precision={default: {fixed: {integer_bits: 2, fraction_bits: 3}}, guard: {steps: 2, vanish: 0.5}}",
    ),
    "binary": (ADAMW, "precision={'*': binary}"),
    "adamax": ("train.optimizer={name: adamax, lr: 0.01}", "precision={'*': binary}"),
    "by powers of two": ("train.optimizer={name: shift_adamax, lr: 0.01}", "precision={'1': shift, '*': binary}"),
    "weights in bf16": (MOMENTUM, "precision={default: bf16, optimizer: {weights: bf16}}"),
    "all in bf16": (ADAMW, "precision={default: bf16, optimizer: {weights: bf16, state: bf16}}"),
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_workers_agree_and_a_run_that_is_resumed_goes_on_bit_for_bit(
    case: str, workers: int, pool: ProcessPoolExecutor, tmp_path: Path
) -> None:
    def trained(folder: str) -> list[Trained]:
        trial = Trial(tmp_path / folder, (*SYNC, *CASES[case]), batch_norm=True)
        return [train_alone(trial, OneWorker())] if workers == 1 else train_together(pool, trial, workers)

    whole = trained("whole")
    assert_equal(whole[0].arrays, whole[-1].arrays)
    commit = "checkpoints/step-00000006"
    shutil.copytree(tmp_path / "whole" / commit, tmp_path / "resumed" / commit)
    resumed = trained("resumed")
    assert_equal(resumed[-1].arrays, whole[-1].arrays)
    assert files(tmp_path / "resumed", STEPS) == files(tmp_path / "whole", STEPS)


def test_two_workers_put_weights_on_the_grid(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    for run in train_together(pool, Trial(tmp_path, (*SYNC, *CASES["fixed"]))):
        for name, value in run.arrays.items():
            if name.startswith("weight."):
                scaled = value.astype(np.float64) * 2.0**12
                assert (scaled == scaled.round()).all()
