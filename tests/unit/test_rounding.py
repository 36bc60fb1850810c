"""Rounding to few bits: to the grid, by the probabilities, and the same bit for bit in C, in torch and in any order."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels import rounding
from kernels.rounding import (
    Grid,
    by_torch_to_bf16,
    by_torch_to_grid,
    random_bits,
    random_halves,
    round_bf16,
    round_fixed,
    stream,
)

INF, NAN, EPS = math.inf, math.nan, 2.0**-12  # eps of <4, 12>
LARGEST_BF16, LARGEST_FP32 = float.fromhex("0x1.FEp127"), float.fromhex("0x1.FFFFFEp127")
CORNERS = [
    0.0,
    -0.0,
    INF,
    -INF,
    NAN,
    LARGEST_FP32,
    -LARGEST_FP32,
    1e-45,
    -1e-45,
    1e-38,
    8.0,
    -8.0,
    -8.1,
    8 - EPS,
    7.9999,
]


def numbers(count: int, *, seed: int = 0, scale: float = 4.0) -> Tensor:
    made = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * scale
    return torch.cat([torch.tensor(CORNERS), made])


def equal(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, but for which NaN."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a[~a.isnan()].float(), b[~b.isnan()].float())


@pytest.fixture(params=["C", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(rounding, "_library", lambda: None)
    elif rounding._library() is None:
        pytest.skip("needs a C compiler")
    return str(request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (0.0, 0.0),
        (0.3 * EPS, 0.0),
        (0.5 * EPS, 0.0),  # the middle goes down
        (0.5000001 * EPS, EPS),
        (1.5 * EPS, EPS),
        (-0.5 * EPS, -EPS),
        (-0.49 * EPS, 0.0),
        (1e-45, 0.0),
        (-1e-45, 0.0),
        (1.0, 1.0),
        (100.0, 8 - EPS),
        (8 - EPS, 8 - EPS),
        (8 - 0.4 * EPS, 8 - EPS),
        (-8.0, -8.0),
        (-8.0001, -8.0),
        (LARGEST_FP32, 8 - EPS),
        (INF, 8 - EPS),
        (-INF, -8.0),
        (NAN, NAN),
    ],
)
def test_to_nearest(x: float, expected: float) -> None:
    rounded = round_fixed(torch.tensor([x] * 17), 4, 12, "nearest")
    assert equal(rounded, torch.full((17,), expected))
    if expected == 0 and x >= 0:
        assert not rounded.signbit().any()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("integer_bits", "fraction_bits"), [(4, 12), (1, 0), (1, 23), (24, 0), (8, 8), (2, 3)])
def test_stochastic_numbers_are_neighbours_on_the_grid(integer_bits: int, fraction_bits: int) -> None:
    x = numbers(50_000)
    rounded = round_fixed(x, integer_bits, fraction_bits, seed=7)
    grid, there = Grid(integer_bits, fraction_bits), ~x.isnan()
    scaled = rounded.double()[there] * grid.scale
    assert torch.equal(scaled, scaled.round())
    assert grid.lowest <= scaled.min()
    assert scaled.max() <= grid.highest
    kept = (x.double()[there] * grid.scale).clamp(grid.lowest, grid.highest)
    assert ((scaled == kept.floor()) | (scaled == kept.ceil())).all()
    assert rounded.isnan().equal(x.isnan())


@pytest.mark.usefixtures("way")
def test_what_is_on_the_grid_stays() -> None:
    x = torch.arange(-(2.0**15), 2.0**15) * EPS
    assert torch.equal(round_fixed(x, 4, 12, seed=3), x)
    assert torch.equal(round_fixed(x, 4, 12, "nearest"), x)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("rounded", [lambda x, seed: round_fixed(x, 4, 12, seed=seed), None], ids=["<4,12>", "bf16"])
def test_the_mean_of_many_is_the_number(rounded: Callable[[Tensor, int], Tensor] | None) -> None:
    """64 numbers between two neighbours, 10^6 times each: within 4.5 standard errors (1 of 2,300 seeds is not)."""
    times, size = 10**6, EPS if rounded else 2.0**-7
    for number in range(64):
        share = (number + 0.37) / 64
        x = torch.full((times,), 1.0 + share * size)
        got = rounded(x, stream(5, number)) if rounded else round_bf16(x, seed=stream(5, number)).float()
        ups = ((got - 1.0) / size).double()
        assert set(ups.unique().tolist()) <= {0.0, 1.0}
        exact = ((x[0].double() - 1.0) / size).item()
        assert abs(ups.mean().item() - exact) < 4.5 * math.sqrt(exact * (1 - exact) / times)


def test_small_steps_are_lost_to_nearest_and_kept_by_chance() -> None:
    """1 - 0.001 - 0.001 ... in bf16, whose neighbours of 1 are 2^-8 below it: 500 times, 1000 numbers."""
    nearest = by_chance = torch.ones(1000, dtype=torch.bfloat16)
    for step in range(500):
        nearest = (nearest.float() - 0.001).bfloat16()
        by_chance = round_bf16(by_chance.float() - 0.001, seed=stream(1, step))
    assert (nearest == 1).all()
    # Steps of 2^-8 and smaller, each taken or not: a variance below 0.001 * 2^-8 a step.
    assert abs(by_chance.float().mean().item() - 0.5) < 4 * math.sqrt(500 * 0.001 * 2.0**-8 / 1000)


def test_c_and_torch_agree_bit_for_bit() -> None:
    if rounding._library() is None:
        pytest.skip("needs a C compiler")
    x, seed = numbers(70_001), stream(11, 2)
    for bits in ((4, 12), (1, 23), (24, 0), (3, 2)):
        assert equal(round_fixed(x, *bits, seed=seed), by_torch_to_grid(x, Grid(*bits), seed))
        assert equal(round_fixed(x, *bits, "nearest"), by_torch_to_grid(x, Grid(*bits), None))
    assert equal(round_bf16(x, seed=seed), by_torch_to_bf16(x, seed))


def test_the_number_of_threads_changes_nothing() -> None:
    x, threads = numbers(100_000), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append((round_fixed(x, 4, 12, seed=1), round_bf16(x, seed=1)))
    finally:
        torch.set_num_threads(threads)
    for fixed, half in results[1:]:
        assert equal(fixed, results[0][0])
        assert equal(half, results[0][1])


@pytest.mark.usefixtures("way")
def test_in_place_a_part_and_another_layout_are_the_same() -> None:
    x = numbers(4 * 6 * 5 * 7 - len(CORNERS)).view(4, 6, 5, 7)
    expected = round_fixed(x, 4, 12, seed=2)
    assert equal(round_fixed(x[:2], 4, 12, seed=2), expected[:2])
    assert equal(round_fixed(x.expand(2, 4, 6, 5, 7)[1], 4, 12, seed=2), expected)
    columns = x.clone()[:, :, :, :5]
    assert equal(round_fixed(columns, 4, 12, seed=2), round_fixed(columns.contiguous(), 4, 12, seed=2))
    round_fixed(columns, 4, 12, seed=2, out=columns)
    assert equal(columns, round_fixed(x[:, :, :, :5].contiguous(), 4, 12, seed=2))
    images = x.contiguous(memory_format=torch.channels_last)
    rounded = round_fixed(images, 4, 12, seed=2)
    assert rounded.stride() == images.stride()
    assert equal(rounded.permute(0, 2, 3, 1), round_fixed(images.permute(0, 2, 3, 1).contiguous(), 4, 12, seed=2))
    itself = x.clone()
    assert round_fixed(itself, 4, 12, seed=2, out=itself) is itself
    assert equal(itself, expected)
    half = torch.empty_like(x, dtype=torch.bfloat16)
    assert round_bf16(x, seed=2, out=half) is half
    assert equal(half, round_bf16(x, seed=2))
    assert round_fixed(x[:0], 4, 12).shape == (0, 6, 5, 7)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("x", "possible"),
    [
        (0.0, {0.0}),
        (INF, {INF}),
        (-INF, {-INF}),
        (LARGEST_FP32, {LARGEST_BF16}),
        (-LARGEST_FP32, {-LARGEST_BF16}),
        (LARGEST_BF16, {LARGEST_BF16}),
        (1.0, {1.0}),
        (-1.001953125, {-1.0, -1.0078125}),
        (2.0**-149, {0.0, 2.0**-133}),
        (3 * 2.0**-134, {2.0**-133, 2.0**-132}),
    ],
)
def test_bf16_of_corner_cases(x: float, possible: set[float]) -> None:
    got = set(round_bf16(torch.full((300_000,), x), seed=9).double().unique().tolist())
    assert got == possible


@pytest.mark.usefixtures("way")
def test_every_nan_is_nan_in_bf16() -> None:
    bits = torch.tensor([0x7F80_0001, 0x7FFF_FFFF, -1, -0x7F_FFFF], dtype=torch.int32)
    assert round_bf16(bits.view(torch.float32).repeat(1000), seed=1).isnan().all()


@pytest.mark.parametrize(("make", "used"), [(random_bits, range(32)), (random_halves, range(16))])
def test_random_bits_of_streams_and_places_are_not_alike(make: Callable[[int, int], Tensor], used: range) -> None:
    """Each bit is set in half of them, also in differences of neighbours and of streams: within 5 standard errors."""
    count = 2**18
    a, b = make(stream(0, 1), count), make(stream(0, 2), count)
    shifts = torch.tensor(used)
    for bits in (a, b, a ^ b, a ^ a.roll(1), a ^ a.roll(2), a ^ b.roll(1), a ^ a.roll(1024)):
        shares = ((bits[:, None] >> shifts) & 1).double().mean(0)
        assert ((shares - 0.5).abs() < 5 * 0.5 / math.sqrt(count)).all()
    pairs = ((a[:, None, None] >> shifts[:, None] & 1) ^ (a[:, None, None] >> shifts & 1)).double().mean(0)
    apart = ~torch.eye(len(shifts), dtype=torch.bool)
    assert ((pairs[apart] - 0.5).abs() < 6 * 0.5 / math.sqrt(count)).all()  # no two bits of a number go together


def test_no_two_places_of_a_stream_have_the_same_bits() -> None:
    assert len(random_bits(stream(0, 1), 2**18).unique()) == 2**18


def test_streams_of_other_numbers_are_others() -> None:
    seeds = {stream(seed, step, tensor) for seed in range(10) for step in range(20) for tensor in range(20)}
    assert len(seeds) == 4000
    assert stream(1, 2) != stream(2, 1)
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert stream(0) == 0xE220A8397B1DCDAF  # SplitMix64's first number of seed 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: round_fixed(x, 0, 8), "integer_bits: got 0, must be at least 1"),
        (lambda x: round_fixed(x, 4, -1), "fraction_bits: got -1, must be at least 0"),
        (lambda x: round_fixed(x, 12, 13), "got 12 and 13, must be at most 24 together"),
        (lambda x: round_fixed(x, 4, 12, "up"), "rounding: got 'up', must be one of stochastic, nearest"),
        (lambda x: round_fixed(x.double(), 4, 12), "x: got torch.float64, must be torch.float32"),
        (lambda x: round_fixed(x, 4, 12, out=x[:2]), r"out: got \(2,\) of torch.float32 on cpu, must be \(3,\)"),
        (lambda x: round_bf16(x, out=x), "must be .* of torch.bfloat16"),
    ],
)
def test_what_cannot_be_is_said(call: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3))
