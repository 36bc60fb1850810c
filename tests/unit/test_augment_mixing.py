"""Mixing: against the formulas, and who is mixed with whom against what any number of workers must agree on."""

import numpy as np
import pytest
import torch
from augment_samples import draws_for, keys_for
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.stats import beta, chisquare, kstest

from pipelines.augment.base import Mix, Mixing, nested
from pipelines.augment.beta import symmetric_beta
from pipelines.augment.mixing import GROUP, Cutmix, Mixup, of_groups, partners_of
from pipelines.augment.on_device import mixed as joined
from pipelines.augment.random_mixing import RandomMixing
from pipelines.order import Epoch
from pipelines.randomness import Draws

MIXINGS = [Mixup(), Cutmix(), RandomMixing(of=(Mixup(), Cutmix()), probability=0.7)]
ALPHAS = [0.01, 0.1, 0.2, 0.4, 1.0, 2.0, 8.0, 32.0]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_draws_from_beta_are_scipys_quantiles(alpha: float) -> None:
    uniform = np.concatenate([np.linspace(0, 1, 4001)[:-1], [1 - 2.0**-32]])
    assert np.abs(symmetric_beta(alpha, uniform) - beta.ppf(uniform, alpha, alpha)).max() < 1e-5


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 8.0])
def test_draws_from_beta_have_its_distribution(alpha: float) -> None:
    drawn = symmetric_beta(alpha, draws_for(5000).uniform())
    assert kstest(drawn, "beta", (alpha, alpha)).pvalue > 1e-3


def mix(
    mixing: Mixing, images: torch.Tensor, partners: torch.Tensor, draws: Draws, positions: range | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    groups = of_groups(range(len(images)) if positions is None else positions, draws.seed, draws.epoch, 3)
    plan = mixing.plan((images.shape[2], images.shape[3]), draws, groups)
    return joined(images, partners, plan), torch.from_numpy(plan.shares.astype(np.float32))


def batch(num: int, channels: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(num, channels, 6, 8)).astype(np.float32))


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_is_the_papers_equation(alpha: float) -> None:
    images, draws = batch(16), draws_for(16)
    partners = torch.arange(16).roll(3)
    mixed, share = mix(Mixup(alpha=alpha), images, partners, draws)
    shares = beta.ppf(draws.uniform(0), alpha, alpha)
    assert np.abs(share.numpy() - shares).max() < 1e-5
    for i in range(16):
        expected = shares[i] * images[i].numpy() + (1 - shares[i]) * images[int(partners[i])].numpy()
        assert np.abs(mixed[i].numpy() - expected).max() < 1e-4


def test_cutmix_puts_a_rectangle_of_the_partner_and_shares_the_label_by_area() -> None:
    num, height, width = 400, 12, 20
    draws = draws_for(num)
    images = torch.arange(num, dtype=torch.float32)[:, None, None, None].expand(num, 1, height, width).contiguous()
    partners = torch.arange(num).roll(1)
    mixed, share = mix(Cutmix(alpha=1.0), images, partners, draws)
    ours = mixed[:, 0] == images[:, 0]
    theirs = mixed[:, 0] == images[partners][:, 0]
    assert (ours ^ theirs).all()
    areas = theirs.sum((1, 2)).to(torch.float64) / (height * width)
    assert (share - (1 - areas)).abs().max() < 2**-24  # rounded to float32
    sides = np.sqrt(1 - draws.uniform(0))
    x, y = draws.integers(width, 1), draws.integers(height, 2)
    for i in range(num):
        half_w, half_h = int(0.5 * sides[i] * width), int(0.5 * sides[i] * height)
        expected = np.zeros((height, width), bool)
        expected[max(y[i] - half_h, 0) : y[i] + half_h, max(x[i] - half_w, 0) : x[i] + half_w] = True
        assert np.array_equal(theirs[i].numpy(), expected)


@pytest.mark.parametrize("mixing", [Mixup(probability=0.3), Cutmix(probability=0.3)], ids=repr)
def test_an_image_that_probability_spares_is_left_as_it_is(mixing: Mixup | Cutmix) -> None:
    num = 2000
    images = batch(num)
    before = images.clone()
    mixed, share = mix(mixing, images, torch.arange(num).roll(1), draws_for(num))
    assert torch.equal(images, before)
    spared = draws_for(num).uniform(1 if isinstance(mixing, Mixup) else 3) >= 0.3
    assert torch.equal(mixed[spared], images[spared])
    assert (share[spared] == 1.0).all()
    assert chisquare([spared.sum(), num - spared.sum()], [num * 0.7, num * 0.3]).pvalue > 1e-3


@pytest.mark.parametrize("mixing", MIXINGS, ids=repr)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_memory_order_stays(mixing: Mixing, layout: torch.memory_format) -> None:
    images = batch(4).to(memory_format=layout)
    mixed, _ = mix(mixing, images, torch.tensor([1, 2, 3, 0]), draws_for(4))
    assert mixed.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("mixing", MIXINGS, ids=repr)
def test_an_empty_batch_stays_empty(mixing: Mixing) -> None:
    mixed, share = mix(mixing, batch(0), torch.empty(0, dtype=torch.int64), draws_for(0))
    assert mixed.shape == (0, 3, 6, 8)
    assert share.shape == (0,)
    assert partners_of(range(5, 5), 0, 0, 3).shape == (0,)


def pairs(positions: range, epoch: int = 0) -> dict[int, int]:
    """Who is mixed with whom, as positions of the epoch."""
    return {positions[i]: positions[k] for i, k in enumerate(partners_of(positions, 7, epoch, 3).tolist())}


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_any_number_of_workers_mixes_the_same_pairs(world_size: int) -> None:
    """Shares of whole groups; the last step of the epoch is smaller, and there each worker keeps to its share."""
    epoch = Epoch(num_samples=64 * 3 + 20, global_batch=64)
    for step in range(3):
        alone = pairs(epoch.positions(step))
        together: dict[int, int] = {}
        for rank in range(world_size):
            together |= pairs(epoch.share(step, rank, world_size))
        assert together == alone
    for rank in range(world_size):
        share = epoch.share(3, rank, world_size)
        assert set(pairs(share).values()) == set(share)


@pytest.mark.parametrize("positions", [range(0, 64), range(8, 9), range(16, 20), range(13, 40), range(3, 4)])
def test_partners_are_others_of_the_same_group_and_everyone_is_a_partner_once(positions: range) -> None:
    found = pairs(positions)
    assert sorted(found.values()) == list(positions)
    for position, partner in found.items():
        assert position // GROUP == partner // GROUP
        alone = sum(other // GROUP == position // GROUP for other in positions) == 1
        assert (position == partner) == alone


def test_every_other_one_of_a_group_is_equally_likely() -> None:
    num = 8 * 2000
    partners = partners_of(range(num), 0, 0, 3)
    for place in range(GROUP):
        counts = np.bincount(partners[place::GROUP] % GROUP, minlength=GROUP)
        assert counts[place] == 0
        assert chisquare(np.delete(counts, place)).pvalue > 1e-3


def test_pairs_change_with_the_epoch() -> None:
    assert pairs(range(64), epoch=0) != pairs(range(64), epoch=1)
    assert pairs(range(64), epoch=1) == pairs(range(64), epoch=1)


@pytest.mark.parametrize("mixing", MIXINGS, ids=repr)
def test_a_mixed_image_does_not_depend_on_the_rest_of_the_batch(mixing: Mixing) -> None:
    images, keys = batch(32), keys_for(32)

    def made(positions: slice) -> tuple[torch.Tensor, torch.Tensor]:
        partners = torch.from_numpy(partners_of(range(32)[positions], 0, 0, 3))
        return mix(mixing, images[positions], partners, Draws(0, 0, keys[positions], 3), range(32)[positions])

    whole, shares = made(slice(0, 32))
    for part in (slice(0, 8), slice(16, 32)):
        alone, share = made(part)
        assert torch.equal(alone, whole[part])
        assert torch.equal(share, shares[part])


def test_shares_of_cutmix_follow_the_area_before_it_is_cut_off() -> None:
    """Where the rectangle lies inside, its area is 1 - Beta(alpha, alpha) but for rounding down to whole pixels."""
    num, side = 4000, 1000
    boxes: NDArray[np.int64] = Cutmix(alpha=0.5).boxes((side, side), draws_for(num))
    inside = ((boxes > 0) & (boxes < side)).all(axis=1)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / side**2
    expected = 1 - beta.ppf(draws_for(num).uniform(0), 0.5, 0.5)
    assert inside.sum() > 200
    assert np.abs(areas - expected)[inside].max() < 5e-3


def planned(of: tuple[Mixup | Cutmix, ...], num: int, probability: float = 1.0) -> tuple[NDArray[np.int64], Mix]:
    """How each of `num` groups is mixed: 0 not, 1 blended, 2 by a rectangle; and the plan."""
    mixing, positions = RandomMixing(of=of, probability=probability), range(GROUP * num)
    plan = mixing.plan((64, 64), draws_for(len(positions)), of_groups(positions, 0, 0, 3))
    blended, cut = (plan.weights < 1).reshape(num, GROUP), plan.boxes.any(axis=1).reshape(num, GROUP)
    assert not (blended & cut).any()
    assert (blended.any(axis=1) == blended.all(axis=1)).all()
    assert not (cut.any(axis=1) & blended.any(axis=1)).any()
    return blended.any(axis=1) + 2 * cut.any(axis=1), plan


def test_each_group_is_mixed_one_way_and_all_ways_are_equally_likely() -> None:
    num = 1500
    ways, _ = planned((Mixup(alpha=1.0), Cutmix()), num)
    counts = np.bincount(ways, minlength=3)
    assert counts[0] == 0
    assert chisquare(counts[1:]).pvalue > 1e-3
    twice, _ = planned((Cutmix(), Mixup(alpha=1.0), Cutmix()), num)
    assert chisquare(np.bincount(twice)[1:], [num / 3, 2 * num / 3]).pvalue > 1e-3


def test_groups_that_probability_spares_are_not_mixed() -> None:
    num = 1500
    ways, plan = planned((Mixup(alpha=1.0), Cutmix()), num, probability=0.6)
    assert chisquare(np.bincount(ways), [num * 0.4, num * 0.3, num * 0.3]).pvalue > 1e-3
    spared = np.repeat(ways == 0, GROUP)
    assert (plan.shares[spared] == 1.0).all()


def test_the_chosen_mixing_draws_as_it_does_alone() -> None:
    """Shares of mixup are Beta(alpha, alpha), of cutmix the area's; neither depends on what was chosen."""
    ways, plan = planned((Mixup(alpha=0.4), Cutmix()), 500)
    way = np.repeat(ways, GROUP)
    assert kstest(plan.shares[way == 1], "beta", (0.4, 0.4)).pvalue > 1e-3
    assert np.array_equal(plan.weights[way == 1], plan.shares[way == 1])
    areas = (plan.boxes[:, 2] - plan.boxes[:, 0]) * (plan.boxes[:, 3] - plan.boxes[:, 1])
    assert np.array_equal(plan.shares[way == 2], 1 - areas[way == 2] / 64**2)
    alone = Cutmix().plan((64, 64), nested(draws_for(500 * GROUP), 1), draws_for(500 * GROUP))
    assert np.array_equal(plan.boxes[way == 2], alone.boxes[way == 2])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_any_number_of_workers_chooses_the_same_mixing(world_size: int) -> None:
    mixing, keys = RandomMixing(of=(Mixup(), Cutmix())), keys_for(64)
    epoch = Epoch(num_samples=128, global_batch=64)

    def shares(positions: range) -> NDArray[np.float64]:
        draws = Draws(0, 0, keys[positions.start - 64 : positions.stop - 64], 3)
        return mixing.plan((8, 8), draws, of_groups(positions, 0, 0, 3)).shares

    together = [shares(epoch.share(1, rank, world_size)) for rank in range(world_size)]
    assert np.array_equal(np.concatenate(together), shares(epoch.positions(1)))


def test_the_choice_changes_with_the_epoch_and_with_the_place_in_the_list() -> None:
    positions = range(GROUP * 50)
    first = of_groups(positions, 0, 0, 3).uniform()
    for other in (of_groups(positions, 0, 1, 3), of_groups(positions, 1, 0, 3), of_groups(positions, 0, 0, 2)):
        assert not np.array_equal(first, other.uniform())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Mixup, {"alpha": 0.0}, "greater than or equal to 0.01"),
        (Cutmix, {"alpha": 33.0}, "less than or equal to 32"),
        (Cutmix, {"probability": -0.1}, "greater than or equal to 0"),
        (RandomMixing, {"of": []}, "at least 1 item"),
        (RandomMixing, {"of": ["cutmix", "rotate"]}, "'rotate' .*expected tags: 'mixup', 'cutmix'"),
    ],
)
def test_options_out_of_range_are_refused(kind: type[Mixing], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind.model_validate(options)
