"""Dynamic fixed point: where points move, and what they are good for; and the guard, which gives layers more bits."""

import json
from typing import Any

import pytest
import torch
from precision_samples import Trained, equal, network
from torch import Tensor

from kernels.rounding import Grid
from orchestrator.config.precision import Bf16, DynamicFixed, Fixed, Format, Fp32, GuardConfig
from orchestrator.training.guard import OVERFLOW, VANISH, Guard, wider
from orchestrator.training.moving_points import MovingPoints

KEY = (0, 0, 0)
BITS = 8


def points(**settings: Any) -> MovingPoints:
    chosen = DynamicFixed(bits=BITS, **({"integer_bits": 1, "max_overflow": 0.1, "every": 1} | settings))
    return MovingPoints({KEY: chosen}, "cpu")


def test_a_grid_has_its_bits_behind_the_sign() -> None:
    assert points().grid(KEY, BITS) == Grid(1, 7)
    assert points(integer_bits=-3).grid(KEY, BITS) == Grid(-3, 11)


@pytest.mark.parametrize(
    ("values", "integer_bits"),
    [
        ([1.5] * 2 + [0.7] * 8, 2),  # a fifth is outside of [-1, 1]
        ([1.5] * 1 + [0.7] * 9, 1),  # a tenth is, as may be, but half of the grid would not do
        ([1.5] * 1 + [-0.4] * 9, 0),  # half of it does
        ([0.0] * 10, 0),
        ([float("nan")] + [0.7] * 9, 1),
        ([float("inf")] * 2 + [0.7] * 8, 2),
    ],
)
def test_a_point_moves_by_what_was_outside(values: list[float], integer_bits: int) -> None:
    moved = points()
    moved.count(KEY, torch.tensor(values))
    moved.settle(1)
    assert moved.grid(KEY, BITS).integer_bits == integer_bits


def test_points_move_after_every_update_at_first_and_then_seldom() -> None:
    moved, found = points(every=4), []
    for update in range(1, 13):
        moved.count(KEY, torch.full((10,), 0.01))
        moved.settle(update)
        found.append(moved.grid(KEY, BITS).integer_bits)
    assert found == [0, -1, -2, -3, -3, -3, -3, -4, -4, -4, -4, -5]


def test_what_was_not_counted_does_not_move() -> None:
    moved = points()
    moved.settle(1)
    assert moved.grid(KEY, BITS).integer_bits == 1


def test_shares_count_from_one_look_to_the_next() -> None:
    moved = points(every=2)
    for update, values in enumerate(([0.7], [0.7], [1.5], [0.7] * 9), start=1):
        moved.count(KEY, torch.tensor(values))
        moved.settle(update)
    assert moved.grid(KEY, BITS).integer_bits == 1, "one of ten: no more than may be"


@pytest.mark.parametrize(("largest", "integer_bits"), [(0.9, 1), (1.0, 1), (1.1, 2), (0.03, -4), (200.0, 9)])
def test_a_grid_fits_what_it_begins_with(largest: float, integer_bits: int) -> None:
    fitted = points(max_overflow=0.0)
    fitted.fit(KEY, torch.tensor([largest / 3, -largest]))
    assert fitted.grid(KEY, BITS).integer_bits == integer_bits


DYNAMIC = {"dynamic_fixed": {"bits": 10, "weight_bits": 12, "every": 3}}


def distinct(values: Tensor) -> int:
    return len(values.detach().unique())


def test_small_weights_have_all_their_bits() -> None:
    """Of fixed point <4, 8> they would have a few values; here the largest has 12 bits."""
    weight = Trained(DYNAMIC).model[0][0].weight
    fixed = Trained({"fixed": {"integer_bits": 4, "fraction_bits": 4}}).model[0][0].weight
    assert distinct(fixed) < 20
    assert distinct(weight) > 150
    exact = network()[0][0].weight
    assert (weight - exact).abs().max() < exact.abs().max() / 2**10


def moved(said: Any) -> float:
    """How far the last layer's weights went in 100 small steps."""
    start, end = (Trained(said, lr=1e-3).steps(range(steps)).model[1].weight for steps in (0, 100))
    return float((end - start).detach().norm())


def test_dynamic_fixed_point_makes_steps_too_small_for_fixed_point_of_as_many_bits() -> None:
    nearest = {"rounding": "nearest"}
    assert moved({"fixed": {"integer_bits": 4, "fraction_bits": 8, **nearest}}) == 0
    assert moved({"dynamic_fixed": {"bits": 12, "weight_bits": 18, **nearest}}) == pytest.approx(moved("fp32"), rel=0.1)


@pytest.mark.parametrize(
    ("chosen", "why", "next_one"),
    [
        (Bf16(), OVERFLOW, Fp32()),
        (Fixed(integer_bits=4, fraction_bits=8), OVERFLOW, Fixed(integer_bits=8, fraction_bits=8)),
        (Fixed(integer_bits=4, fraction_bits=8), VANISH, Fixed(integer_bits=4, fraction_bits=12)),
        (Fixed(integer_bits=4, fraction_bits=17), VANISH, Fp32()),
        (DynamicFixed(bits=10), VANISH, DynamicFixed(bits=14)),
        (DynamicFixed(bits=10, weight_bits=12), VANISH, DynamicFixed(bits=14, weight_bits=16)),
        (DynamicFixed(bits=10, weight_bits=22), VANISH, Fp32()),
        (Fp32(), OVERFLOW, None),
    ],
)
def test_the_next_format_has_more_bits(chosen: Format, why: str, next_one: Format | None) -> None:
    assert wider(chosen, why) == next_one


GRID = Grid(2, 4)


def looks(guard: Guard, *gradients: list[float], grid: Grid | None = GRID) -> list[str | None]:
    """Rounded to nearest, as the grid has it."""
    found = []
    for each in gradients:
        before = torch.tensor(each)
        after = before if grid is None else (before * grid.scale).round().clamp(grid.lowest, grid.highest) / grid.scale
        found.append(guard.look(0, [(before, after, grid)]))
    return found


def test_the_guard_counts_updates_in_a_row() -> None:
    guard = Guard(GuardConfig(steps=3, overflow=0.5, vanish=0.5))
    small, good, large = [0.001, 1.0], [1.0, 1.0], [3.0, 1.0]
    assert looks(guard, small, small, good, small, small, small) == [None] * 5 + [VANISH]
    assert looks(guard, large, large, large, large) == [None, None, OVERFLOW, None]


def test_without_a_grid_it_counts_what_is_not_finite_and_zeros() -> None:
    guard = Guard(GuardConfig(steps=1, overflow=0.5, vanish=1.0))
    assert looks(guard, [1.0, 1e30], [float("inf"), 1.0], [0.0, 0.0], [0.0, 1.0], grid=None) == [
        None, OVERFLOW, VANISH, None,
    ]  # fmt: skip


NARROW = {
    "default": {"fixed": {"integer_bits": 4, "fraction_bits": 5, "rounding": "nearest"}},
    "guard": {"steps": 4, "vanish": 0.9},
}


def test_a_layer_whose_gradients_vanish_goes_on_in_more_bits_and_learns() -> None:
    start, unguarded = (Trained({"default": NARROW["default"]}).steps(range(steps)) for steps in (0, 30))
    guarded = Trained(NARROW).steps(range(30))
    convolutions = [run.model[0][0].weight for run in (start, unguarded, guarded)]
    assert torch.equal(convolutions[1], convolutions[0])
    assert not torch.equal(convolutions[2], convolutions[0])
    said = guarded.precision.widened()
    assert said[0].endswith("gradients vanish in fixed <4, 5> nearest, goes on in fixed <4, 9> nearest")
    assert guarded.precision.widened() == []


def test_what_was_widened_stays_so_when_a_run_goes_on() -> None:
    whole = Trained(NARROW).steps(range(12))
    first = Trained(NARROW).steps(range(6))
    state = json.loads(json.dumps(first.precision.state()))
    assert state["widened"]
    second = Trained(NARROW)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.precision.load(state)
    assert equal(second.steps(range(6, 12)).weights(), whole.weights())
    assert second.precision.state() == whole.precision.state()
