import tracemalloc
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from orchestrator.errors import CheckpointError
from orchestrator.parameter_server.optimizer import BLOCK, FloatArray, OptimizerRule, build
from orchestrator.parameter_server.partition import SHARD_BYTES, decayed_in, partition, shards_for

RULES = {
    "sgd": OptimizerRule("sgd"),
    "sgd decay": OptimizerRule("sgd", weight_decay=0.01),
    "momentum": OptimizerRule("sgd", momentum=0.9),
    "momentum decay": OptimizerRule("sgd", momentum=0.9, weight_decay=0.01),
    "nesterov": OptimizerRule("sgd", momentum=0.9, nesterov=True),
    "nesterov decay": OptimizerRule("sgd", momentum=0.9, nesterov=True, weight_decay=0.01),
    "adagrad": OptimizerRule("adagrad", eps=1e-10),
    "adagrad decay": OptimizerRule("adagrad", eps=1e-6, weight_decay=0.01),
    "adamw": OptimizerRule("adamw"),
    "adamw decay": OptimizerRule("adamw", betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
}
STEPS = 20
RATES = [0.1 / (1 + step) for step in range(STEPS)]
all_rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def numbers(seed: int, size: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


def gradients(size: int) -> list[FloatArray]:
    """Of very different sizes, as those of layers are."""
    scale = np.float32(10) ** np.random.default_rng(1).integers(-4, 2, size).astype(np.float32)
    return [numbers(2 + step, size) * scale for step in range(STEPS)]


def torch_optimizer(rule: OptimizerRule, weights: torch.Tensor, num_decayed: int) -> torch.optim.Optimizer:
    """Over two parameters, views of `weights`."""
    groups = [
        {"params": [weights[:num_decayed].requires_grad_()], "weight_decay": rule.weight_decay},
        {"params": [weights[num_decayed:].requires_grad_()], "weight_decay": 0.0},
    ]
    match rule.name:
        case "sgd":
            return torch.optim.SGD(groups, lr=1.0, momentum=rule.momentum, nesterov=rule.nesterov)
        case "adagrad":
            return torch.optim.Adagrad(groups, lr=1.0, eps=rule.eps)
        case "adamw":
            return torch.optim.AdamW(groups, lr=1.0, betas=rule.betas, eps=rule.eps)


def torch_step(optimizer: torch.optim.Optimizer, gradient: FloatArray, lr: float) -> None:
    start = 0
    for group in optimizer.param_groups:
        (parameter,) = group["params"]
        parameter.grad = torch.from_numpy(gradient[start : start + len(parameter)].copy())
        group["lr"] = lr
        start += len(parameter)
    optimizer.step()


@pytest.mark.parametrize(
    ("size", "num_decayed"),
    [(1, 0), (7, 7), (1000, 333), (BLOCK, BLOCK), (2 * BLOCK + 5, BLOCK + 3)],
)
@all_rules
def test_weights_and_state_are_those_of_torch(rule: OptimizerRule, size: int, num_decayed: int) -> None:
    weights = numbers(0, size)
    theirs = torch.from_numpy(weights.copy())
    ours, reference = build(rule, size, num_decayed), torch_optimizer(rule, theirs, num_decayed)
    largest = np.abs(weights)
    for gradient, lr in zip(gradients(size), RATES, strict=True):
        gradient.flags.writeable = False
        ours.step(weights, gradient, lr)
        torch_step(reference, gradient, lr)
        np.maximum(largest, np.abs(weights), out=largest)
    # In a step both round the weight, half an eps each, and the operations that its change is made of, of which torch
    # may fuse some: together 4 eps of the largest size that the weight has had, which stay with it.
    eps = np.finfo(np.float32).eps
    assert np.all(np.abs(weights - theirs.detach().numpy()) <= STEPS * 4 * eps * largest)
    state = ours.state()
    for name in ("momentum_buffer", "sum", "exp_avg", "exp_avg_sq"):
        parts = [state[name] for state in reference.state.values() if state.get(name) is not None]
        assert (name in state) == bool(parts)
        if parts:
            expected = torch.cat(parts).numpy()
            # Likewise, of numbers that are never larger than the sum of what was put in.
            power = 2 if name in ("sum", "exp_avg_sq") else 1
            bound = sum((np.abs(g) + rule.weight_decay * largest) ** power for g in gradients(size))
            assert np.all(np.abs(state[name] - expected) <= STEPS * 4 * eps * bound)


@all_rules
def test_shards_together_are_the_whole_bit_for_bit(rule: OptimizerRule) -> None:
    size, num_decayed = 2 * BLOCK + 5, BLOCK + 3
    whole, cut = numbers(0, size), numbers(0, size)
    optimizer = build(rule, size, num_decayed)
    parts = partition(size, 3)
    shards = [build(rule, len(part), decayed_in(part, num_decayed)) for part in parts]
    for gradient, lr in zip(gradients(size), RATES, strict=True):
        optimizer.step(whole, gradient, lr)
        for part, shard in zip(parts, shards, strict=True):
            shard.step(cut[part.start : part.stop], gradient[part.start : part.stop], lr)
    assert np.array_equal(whole, cut)


@all_rules
def test_it_goes_on_from_its_state_bit_for_bit(rule: OptimizerRule) -> None:
    size, steps = 100, gradients(100)
    weights = numbers(0, size)
    first = build(rule, size, 50)
    for gradient in steps[:7]:
        first.step(weights, gradient, 0.1)
    copied = weights.copy()
    second = build(rule, size, 50)
    second.load(first.state())
    for gradient in steps[7:]:
        first.step(weights, gradient, 0.1)
        second.step(copied, gradient, 0.1)
    assert np.array_equal(weights, copied)


@all_rules
def test_a_step_allocates_less_than_one_block(rule: OptimizerRule) -> None:
    size = 8 * BLOCK
    weights, gradient = numbers(0, size), numbers(1, size)
    optimizer = build(rule, size, size // 3)
    optimizer.step(weights, gradient, 0.1)
    tracemalloc.start()
    try:
        optimizer.step(weights, gradient, 0.1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * BLOCK / 2


@pytest.mark.parametrize(
    ("other", "size"),
    [("momentum", 9), ("adagrad", 10), ("adamw", 10), ("sgd", 10)],
)
def test_a_foreign_state_is_refused_and_changes_nothing(other: str, size: int) -> None:
    optimizer = build(RULES["momentum"], 10, 0)
    optimizer.step(numbers(0, 10), numbers(1, 10), 0.1)
    with pytest.raises(CheckpointError, match=r"train\.optimizer: the snapshot's state is of another"):
        optimizer.load(build(RULES[other], size, 0).state())
    assert np.array_equal(optimizer.state()["momentum_buffer"], numbers(1, 10))


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("adamw", "momentum", r"got \[\], must be step"),
        ("adagrad", "momentum", r"got \[\], must be step"),
        ("adamw", "adagrad", "must be .*exp_avg"),
        ("adagrad", "adamw", "must be .*sum"),
    ],
)
def test_those_that_count_steps_refuse_a_state_of_another(name: str, other: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"train\.optimizer: .* {message}"):
        build(RULES[name], 10, 0).load(build(RULES[other], 10, 0).state())


def test_decay_of_more_weights_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_decayed: got 11, must be 0 to 10"):
        build(replace(RULES["sgd"], weight_decay=0.1), 10, 11)


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [(0, 1), (1, 1), (SHARD_BYTES, 1), (SHARD_BYTES + 1, 2), (3 * SHARD_BYTES, 3), (2**40, 16)],
)
def test_there_is_a_shard_for_each_started_100_mib(num_bytes: int, expected: int) -> None:
    assert shards_for(num_bytes) == expected


@pytest.mark.parametrize("num_elements", [16 * 16, 16 * 16 - 15, 1000, 1001, 25_557_032])
@pytest.mark.parametrize("num_shards", [1, 2, 3, 7, 16])
def test_shards_are_contiguous_equal_and_aligned(num_elements: int, num_shards: int) -> None:
    parts = partition(num_elements, num_shards)
    assert len(parts) == num_shards
    assert (parts[0].start, parts[-1].stop) == (0, num_elements)
    assert all(first.stop == second.start for first, second in pairwise(parts))
    sizes = [len(part) for part in parts]
    assert all(size % 16 == 0 for size in sizes[:-1])
    assert min(sizes) > 0
    assert max(sizes) - min(sizes) <= 16
    assert sum(decayed_in(part, 777 % num_elements) for part in parts) == 777 % num_elements


@pytest.mark.parametrize(("num_elements", "num_shards"), [(16, 2), (17, 3), (0, 1), (100, 0)])
def test_empty_shards_are_refused(num_elements: int, num_shards: int) -> None:
    with pytest.raises(ValueError, match=rf"num_shards: got {num_shards} for {num_elements} weights, must be 1 to"):
        partition(num_elements, num_shards)
