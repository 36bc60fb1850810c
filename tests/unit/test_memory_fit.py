"""Modules that are computed again under a budget, and the section `memory` as it is written."""

import itertools
import re

import pytest
import torch
from memory_samples import ALONE, LARGE, experiment, peak, plan_of
from torch import Tensor, nn

from orchestrator.config.load import ConfigError
from orchestrator.errors import InputError
from orchestrator.memory.blocks import Block, blocks_of
from orchestrator.memory.budget import check_modules, within_budget
from orchestrator.memory.fit import cheapest, most_saved, with_memory
from orchestrator.memory.forecast import predict


def blocks(*given: tuple[str, int, int, int, float]) -> list[Block]:
    return [Block(*each, can_repeat=True) for each in given]


def test_the_fewest_operations_are_chosen_that_save_enough() -> None:
    """Three blocks in a row, the first of two parts; nothing saved in the last helps where the backward pass begins."""
    row = blocks(
        ("a", 3, 1000, 1400, 8.5), ("a.0", 2, 500, 1900, 4.0), ("a.1", 3, 400, 1400, 5.0), ("b", 4, 900, 500, 3.0),
        ("c", 5, 500, 0, 1.0),
    )  # fmt: skip
    assert cheapest(row, 500) == ("b",)
    assert cheapest(row, 800) == ("a.0", "b"), "b alone saves enough, but not when its turn comes"
    assert cheapest(row, 1300) == ("a", "b"), "so do a.0 and b"
    assert cheapest(row, 1390) == ("a", "b")
    assert cheapest(row, 1450) == (), "1900 bytes are saved where the backward pass begins, but not where a is back"
    assert cheapest(row, 10**6) == ()
    assert most_saved(row) == pytest.approx(1400, abs=5)


def test_what_is_chosen_is_what_trying_everything_finds() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        saved = torch.randint(1, 100, (7,), generator=generator).tolist()
        costs = torch.randint(1, 100, (7,), generator=generator).tolist()
        row = blocks(*((f"{i}", i + 1, 10 * saved[i], 10 * sum(saved[i + 1 :]), float(costs[i])) for i in range(7)))
        need = 4 * sum(saved)
        found = [row[int(name)] for name in cheapest(row, need)]

        def fits(chosen: tuple[Block, ...], need: int = need) -> bool:
            so_far = 0
            for block in chosen:
                if so_far < need - block.later_bytes:
                    return False
                so_far += block.saved_bytes
            return so_far >= need

        all_sets = (combo for size in range(8) for combo in itertools.combinations(row, size))
        best = min((sum(b.operations for b in combo) for combo in all_sets if fits(combo)), default=None)
        assert best == (sum(block.operations for block in found) if found else None)


def test_blocks_are_calls_with_what_they_keep() -> None:
    chosen = experiment(*LARGE)
    found = {block.name: block for block in blocks_of(chosen, plan_of(chosen))}
    image = 64 * 16 * 32 * 32 * 4
    assert found["blocks.0"].saved_bytes == pytest.approx(3 * image, rel=0.01)  # two convolutions', one relu's
    assert found["blocks"].end == max(block.end for name, block in found.items() if name.startswith("blocks"))
    assert [name for name in ("stem", "blocks", "blocks.0", "blocks.0.norm1") if found[name].can_repeat] == [
        "blocks", "blocks.0",
    ]  # fmt: skip
    assert found["blocks"].operations > 8 * found["blocks.0"].operations > 0
    assert found["blocks.0"].later_bytes > found["blocks.5"].later_bytes > found["blocks.8"].later_bytes


def test_a_module_that_changes_its_input_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class InPlace(nn.Module):
        def __init__(self, num_classes: int, channels: int, image_size: int) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4))
            self.second = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * (image_size - 2) ** 2, 10))
            del num_classes

        def forward(self, images: Tensor) -> Tensor:
            return self.second(self.first(images))

    monkeypatch.setattr("orchestrator.models.zoo.OURS", {"in_place": InPlace})
    chosen = experiment("model={name: in_place}", ALONE)
    found = {block.name: block.can_repeat for block in blocks_of(chosen, plan_of(chosen))}
    assert (found["first"], found["second"]) == (True, False)


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_auto_fits_into_its_budget_with_no_more_than_it_needs(share: float) -> None:
    chosen = experiment(*LARGE)
    plan, whole = plan_of(chosen), peak(chosen)
    budget = int(share * whole)
    fitted = within_budget(with_memory(chosen, checkpoint="auto", budget=budget), plan)
    names = fitted.memory.checkpoint
    assert names
    assert names != "auto"
    assert predict(fitted, plan).peak <= budget
    calls = {block.name: block for block in blocks_of(chosen, plan)}
    everything = sum(block.operations for name, block in calls.items() if "." not in name)
    assert sum(calls[name].operations for name in names) < everything * (1.35 - share)


def test_auto_computes_nothing_again_that_fits_anyway() -> None:
    chosen = experiment(*LARGE, "memory={checkpoint: auto, budget: 8GB}")
    assert within_budget(chosen, plan_of(chosen)).memory.checkpoint == ()


def test_a_budget_that_nothing_fits_into_says_how_much_is_needed_and_what_would_fit() -> None:
    chosen = experiment(*LARGE, "memory={checkpoint: auto, budget: 20MB}")
    with pytest.raises(
        InputError, match=r"memory.budget: got 20.0 MB, must be at least .* MB, which a worker is "
    ) as told:
        within_budget(chosen, plan_of(chosen))
    offers = re.findall(r"([\w.]+=\S+) \(predicted ([\d.]+) MB\)", str(told.value))
    assert offers
    assert all(float(mb) <= 20 for _, mb in offers)
    with pytest.raises(InputError, match="with these settings"):
        within_budget(with_memory(chosen, checkpoint=()), plan_of(chosen))


def test_a_glob_that_matches_no_module_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"memory.checkpoint: got 'block.\*', must match .* Did you mean 'blocks.[01]'\?"
    ):
        check_modules(experiment("memory.checkpoint='block.*'"), 10)


# --- what is written


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("memory={checkpoint: auto}", "memory.budget: got 0 with checkpoint=auto, must be a size"),
        ("memory.budget=8", None),
        ("memory.budget=8 gigs", "memory.budget: got '8 gigs', must be a number and one of B, kB"),
        ("memory.budget=-1", "memory.budget: got -1, must be a size such as 8GB, or 0"),
        ("memory.offload=weights", 'memory.offload: got "weights", must be none or optimizer'),
        ("memory.checkpoint=3", "memory.checkpoint: got 3, must be auto, a glob of modules"),
        ("memory.chekpoint=a", "memory.chekpoint: unknown; did you mean memory.checkpoint"),
    ],
)
def test_mistakes_in_the_section_are_said(override: str, message: str | None) -> None:
    if message is None:
        assert experiment(override).memory.budget == 8
        return
    with pytest.raises(ConfigError, match=re.escape(message)):
        experiment(override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("memory.checkpoint='*'", "train.compile=true"), "train.compile: got true with memory.checkpoint"),
        (("memory.offload=optimizer", "strategy.name=local"), "memory.offload: got optimizer with strategy.name=local"),
    ],
)
def test_what_does_not_go_together_is_said(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment(*overrides)


def test_one_glob_or_several() -> None:
    assert experiment("memory.checkpoint='a.*'").memory.checkpoint == ("a.*",)
    assert experiment("memory.checkpoint=[a, b]").memory.checkpoint == ("a", "b")
