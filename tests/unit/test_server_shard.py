import gc
import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from server_samples import PLAIN, RULES, assert_same, numbers, part, shard, update

from orchestrator.parameter_server.optimizer import BLOCK, FloatArray, OptimizerRule, Sgd, build
from orchestrator.parameter_server.partition import decayed_in, partition
from orchestrator.parameter_server.shard import Key, MissingGradient, MissingUpdate, Part, Shard

EPS = float(np.finfo(np.float32).eps)
all_rules = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


def used(target: Shard, *parts: Part) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The gradient that an update with these parts steps along."""
    before = target.weights.copy()
    target.advance([update(target.version + 1, *parts, lr=1.0)])
    return before.astype(np.float64) - target.weights


@pytest.mark.parametrize("weight", [1.0, 3.0, 0.7])
def test_a_single_part_is_used_bit_for_bit(weight: float) -> None:
    target, weights = shard(), numbers(0).copy()
    target.park((1, 0), numbers(1))
    target.advance([update(1, part(1, 0, weight), part(2, 0, 0.0), lr=0.3)])
    build(PLAIN, 100, 50).step(weights, numbers(1), 0.3)
    assert np.array_equal(target.weights, weights)


class Recorder(Sgd):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__(PLAIN, 100, 0)
        self.gradients: list[FloatArray] = []

    def step(self, weights: FloatArray, gradient: FloatArray, lr: float) -> None:
        self.gradients.append(gradient)
        super().step(weights, gradient, lr)


def test_a_single_part_is_not_copied() -> None:
    recorder, gradient = Recorder(), numbers(1)
    target = Shard(numbers(0), recorder)
    for version, parts in enumerate([[part(1, 0, 3.0)], [part(1, 0, 3.0), part(2, 0, 0.0)]], start=1):
        target.park((1, 0), gradient)
        target.park((2, 0), None)
        target.advance([update(version, *parts)])
    assert all(given is gradient for given in recorder.gradients)
    assert len(recorder.gradients) == 2


@pytest.mark.parametrize("size", [1, 100, 2 * BLOCK + 5])
def test_parts_are_summed_by_weight_and_scale_and_then_divided(size: int) -> None:
    target = Shard(np.zeros(size, np.float32), build(PLAIN, size, 0))
    parts = [part(1, 0, 3.0), part(2, 5, 0.5, 0.25), part(3, 1, 2.0, 0.5)]
    for number, item in enumerate(parts):
        target.park(item.key, numbers(number, size))
    wide = [numbers(number, size).astype(np.float64) for number in range(3)]
    terms = [item.scale * item.weight * gradient for item, gradient in zip(parts, wide, strict=True)]
    expected = sum(terms) / 5.5
    # Three products, two sums and a quotient, each rounded by half an eps of at most the sum of the magnitudes.
    bound = 6 * EPS / 2 * sum(np.abs(term) for term in terms) / 5.5
    assert np.all(np.abs(used(target, *parts) - expected) <= bound)


def test_a_single_part_with_a_scale_is_scaled_whatever_its_weight() -> None:
    target = Shard(np.zeros(100, np.float32), build(PLAIN, 100, 0))
    target.park((1, 0), numbers(1))
    assert np.array_equal(used(target, part(1, 0, 3.0, 0.3)), numbers(1) * np.float32(0.3))


@all_rules
def test_numbers_of_numpy_are_computed_with_as_those_of_python(rule: OptimizerRule) -> None:
    plain, numpy = shard(rule), shard(rule)
    for target, kind in ((plain, float), (numpy, np.float64)):
        for session in (1, 2):
            target.park((session, 0), numbers(session))
        parts = [part(session, 0, kind(session / 3), kind(0.3)) for session in (1, 2)]
        target.advance([update(1, *parts, lr=kind(0.1))])
    assert_same(plain.state(), numpy.state())


@pytest.mark.parametrize("parts", [(), (part(1, 0, 0.0),), (part(1, 0, 0.0), part(2, 0, 0.0))], ids=len)
@all_rules
def test_an_update_without_weight_makes_a_version_and_changes_nothing(
    rule: OptimizerRule, parts: tuple[Part, ...]
) -> None:
    target, reference = (shard(rule, ema_decay=0.9) for _ in range(2))
    for item in parts:
        target.park(item.key, None)
    assert target.advance([update(1, *parts)]) == 1
    assert target.parked == frozenset()
    assert_same({**reference.state(), "version": 1}, target.state())


@all_rules
@pytest.mark.parametrize("compensate", [0.0, 0.5])
def test_shards_together_are_the_whole_bit_for_bit(rule: OptimizerRule, compensate: float) -> None:
    size, num_decayed = 2 * BLOCK + 100, BLOCK + 3
    options: dict[str, float] = {"compensate": compensate, "ema_decay": 0.9}
    whole = Shard(numbers(0, size), build(rule, size, num_decayed), **options)
    slices = partition(size, 3)
    shards = [
        Shard(
            numbers(0, size)[cut.start : cut.stop],
            build(rule, len(cut), decayed_in(cut, num_decayed)),
            index=index,
            count=3,
            **options,
        )
        for index, cut in enumerate(slices)
    ]
    for version in range(1, 6):
        for worker in (1, 2):
            for target, cut in zip([whole, *shards], [range(size), *slices], strict=True):
                if version % worker == 0 or version == 1:
                    target.pulled(worker)
                gradient = numbers(10 * version + worker, size)
                target.park((worker, version), gradient[cut.start : cut.stop])
        for target in (whole, *shards):
            target.advance([update(version, part(1, version, 3.0), part(2, version, 1.0, 0.5))])
    for name in ("weights", "average"):
        together = np.concatenate([getattr(target, name) for target in shards])
        assert np.array_equal(together, getattr(whole, name)), name


def test_delay_is_compensated_as_the_formula_says() -> None:
    """Zheng et al. 2017, eq. 10, in float64."""
    strength = 0.4
    target = shard(compensate=strength)
    for worker in (1, 2):
        target.pulled(worker)
    then = target.weights.astype(np.float64)
    target.park((2, 0), numbers(1))
    used(target, part(2, 0))
    now = target.weights.astype(np.float64)
    target.park((1, 0), numbers(2))
    g = numbers(2).astype(np.float64)
    expected = g + strength * g * g * (now - then)
    # Five roundings of the change, one of the sum, and one of the weights, by half an eps each.
    bound = EPS / 2 * (5 * np.abs(expected - g) + np.abs(expected) + np.maximum(np.abs(now), np.abs(now - expected)))
    assert np.abs(expected - g).max() > 0.1
    assert np.all(np.abs(used(target, part(1, 0)) - expected) <= bound * (1 + 1e-3))


def test_what_was_pulled_after_a_push_does_not_count_for_it() -> None:
    targets = [shard(compensate=0.5) for _ in range(2)]
    for number, target in enumerate(targets):
        for worker in (1, 2):
            target.pulled(worker)
        target.park((1, 0), numbers(1))
        target.park((2, 0), numbers(2))
        target.advance([update(1, part(1, 0))])
        if number == 1:
            target.pulled(2)
        target.advance([update(2, part(2, 0))])
    assert np.array_equal(targets[0].weights, targets[1].weights)


def test_a_gradient_of_the_newest_weights_is_not_changed_by_compensation() -> None:
    compensated, plain = shard(compensate=0.5), shard()
    for target in (compensated, plain):
        target.pulled(1)
        target.park((1, 0), numbers(1))
        target.advance([update(1, part(1, 0, 2.0))])
    assert np.array_equal(compensated.weights, plain.weights)


def test_weights_are_copied_for_workers_only_to_compensate_and_once_a_version() -> None:
    plain, compensated = shard(), shard(compensate=0.1)
    assert np.shares_memory(plain.pulled(1), plain.weights)
    first, second = compensated.pulled(1), compensated.pulled(2)
    assert np.shares_memory(first, second)
    assert not np.shares_memory(first, compensated.weights)
    compensated.advance([update(1)])
    assert not np.shares_memory(compensated.pulled(1), second)


def test_what_a_worker_was_given_is_freed_when_it_is_forgotten() -> None:
    target = shard(compensate=0.1)
    given = weakref.ref(target.pulled(1))
    target.forget(1)
    target.forget(1)
    gc.collect()
    assert given() is None
    with pytest.raises(ValueError, match=r"gradient \(1, 0\): its delay cannot be .* session 1 was not given"):
        target.park((1, 0), numbers(1))


def test_weights_and_average_are_read_only() -> None:
    target = shard(ema_decay=0.5, compensate=0.1)
    for array in (target.weights, target.average, target.pulled(1), shard().pulled(1)):
        assert array is not None
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0


@pytest.mark.parametrize("largest", [0.5, 1e6])
@pytest.mark.parametrize("num_parts", [1, 2])
def test_the_gradient_is_clipped_as_torch_does(largest: float, num_parts: int) -> None:
    size = BLOCK + 7
    clipped, plain = (
        Shard(np.zeros(size, np.float32), build(PLAIN, size, 0), clip_grad_norm=norm) for norm in (largest, 0.0)
    )
    parts = [part(1, number) for number in range(num_parts)]
    for target in (clipped, plain):
        for number, item in enumerate(parts):
            target.park(item.key, numbers(number, size))
    parameter = torch.zeros(size, requires_grad=True)
    parameter.grad = torch.from_numpy(used(plain, *parts)).float()
    torch.nn.utils.clip_grad_norm_([parameter], largest)
    ours, theirs = used(clipped, *parts), parameter.grad.numpy()
    # Pairwise sums round by eps times the logarithm of their length, the root by half of it.
    np.testing.assert_allclose(ours, theirs, rtol=EPS * math.log2(size), atol=0)
    assert math.sqrt((ours**2).sum()) <= largest * (1 + 1e-5)


def test_clipping_a_slice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.clip_grad_norm: got 2 with 3 shards of weights, must be 0"):
        shard(index=1, count=3, clip_grad_norm=2.0)


def test_numbers_that_are_not_finite_pass_through_as_in_torch() -> None:
    target = shard(clip_grad_norm=1.0)
    gradient = numbers(1).copy()
    gradient[3] = np.inf
    target.park((1, 0), gradient)
    target.advance([update(1, part(1, 0))])
    assert np.flatnonzero(np.isnan(target.weights)).tolist() == [3]


def test_the_average_follows_the_weights() -> None:
    target, decay = shard(ema_decay=0.75), 0.75
    expected = target.weights.astype(np.float64)
    largest = np.abs(expected)
    for version in range(1, 11):
        target.park((1, version), numbers(version))
        target.advance([update(version, part(1, version))])
        expected = decay * expected + (1 - decay) * target.weights
        largest = np.maximum(largest, np.abs(target.weights))
    # Three roundings an update, by half an eps of at most twice the largest weight, of which later ones keep 3/4.
    assert target.average is not None
    assert np.all(np.abs(target.average - expected) <= 3 * EPS * largest / (1 - decay))
    assert shard().average is None


@pytest.mark.parametrize("versions", [[2], [1, 3], [1, 2, 4]], ids=str)
def test_a_gap_is_refused_after_what_is_before_it(versions: list[int]) -> None:
    target = shard()
    last = versions[-2] if len(versions) > 1 else 0
    message = rf"shard 0 of 1, version {last}: got the update to version {versions[-1]}, must be {last + 1}"
    with pytest.raises(MissingUpdate, match=message):
        target.advance([update(version) for version in versions])
    assert target.version == last
    assert target.advance([update(last + 1), update(last + 2)]) == last + 2


@pytest.mark.parametrize("parked", [(), ((2, 0),)])
def test_a_missing_gradient_is_named_and_may_come_later(parked: tuple[Key, ...]) -> None:
    target, reference = shard(), shard()
    steps = [update(1), update(2, part(1, 0), part(2, 0))]
    for key in parked:
        target.park(key, None)
    with pytest.raises(MissingGradient, match=r"shard 0 of 1, version 1: the update to version 2 .*\(1, 0\), \(2, 0\)"):
        target.advance(steps)
    assert_same(target.state(), {**reference.state(), "version": 1})
    for key in ((1, 0), (2, 0)):
        target.park(key, numbers(1))
    assert target.advance(steps) == 2


@pytest.mark.parametrize(
    "gradient", [numbers(1, 99), numbers(1, 1), numbers(1).reshape(10, 10), numbers(1).astype(np.float64)]
)
def test_a_gradient_of_another_shape_or_type_is_refused(gradient: FloatArray) -> None:
    with pytest.raises(ValueError, match=r"gradient \(1, 0\): got float\d\d \(.*\), must be float32 \(100,\)"):
        shard().park((1, 0), gradient)


def test_gradients_are_kept_by_reference_until_used_or_dropped_and_then_freed() -> None:
    target = shard()
    references = []
    for push in range(3):
        gradient = numbers(push).copy()
        references.append(weakref.ref(gradient))
        target.park((1, push), gradient)
        del gradient
    gc.collect()
    assert target.parked == {(1, 0), (1, 1), (1, 2)}
    assert all(reference() is not None for reference in references)
    target.advance([update(1, part(1, 0), dropped=((1, 1),))])
    gc.collect()
    assert target.parked == {(1, 2)}
    assert [reference() is None for reference in references] == [True, True, False]


def test_a_gradient_that_was_dropped_before_it_came_is_not_kept() -> None:
    target = shard()
    target.advance([update(1, part(2, 0, 0.0), dropped=((1, 0),))])
    for key, gradient in (((1, 0), numbers(1)), ((2, 0), None), ((1, 1), numbers(1))):
        target.park(key, gradient)
    assert target.parked == {(1, 1)}


@all_rules
@given(
    weights=st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.5]), max_size=3), min_size=1, max_size=8),
    batches=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=6),
)
@settings(deadline=None, max_examples=50)
def test_batches_of_updates_with_repeats_are_the_same_as_one_by_one(
    rule: OptimizerRule, weights: list[list[float]], batches: list[tuple[int, int]]
) -> None:
    updates = [
        update(
            version,
            *(part(session, version, weight, 0.5) for session, weight in enumerate(of_parts)),
            lr=0.1 / version,
            dropped=((9, version),),
        )
        for version, of_parts in enumerate(weights, start=1)
    ]
    one_by_one, batched = (shard(rule, 20, ema_decay=0.9) for _ in range(2))
    for target in (one_by_one, batched):
        for item in updates:
            for session, push in (*(used.key for used in item.parts), *item.dropped):
                target.park((session, push), numbers(10 * push + session, 20))
    for item in updates:
        one_by_one.advance([item])
    for first, length in batches:
        start = min(first, batched.version)
        batched.advance([*updates[start : start + length], *updates[:1]] if batched.version else updates[:length])
    batched.advance(updates)
    assert batched.version == len(updates)
    assert batched.parked == frozenset()
    assert_same(one_by_one.state(), batched.state())
