import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR

from orchestrator.config.experiment import ConstantConfig, CosineConfig, ScheduleConfig, StepsConfig
from orchestrator.training.schedule import rate

STEPS_PER_EPOCH = 7
EPOCHS = 6
TOTAL = STEPS_PER_EPOCH * EPOCHS
BASE = 0.4


def rates(config: ScheduleConfig) -> list[float]:
    return [
        rate(config, base_lr=BASE, step=step, steps_per_epoch=STEPS_PER_EPOCH, epochs=EPOCHS) for step in range(TOTAL)
    ]


def torch_rates(config: ScheduleConfig) -> list[float]:
    """The same schedule put together from torch's."""
    warmup = round(config.warmup_epochs * STEPS_PER_EPOCH)
    rest = TOTAL - warmup
    taken = drive(warmup, lambda optimizer: LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1))
    match config:
        case CosineConfig():
            taken += drive(rest, lambda optimizer: CosineAnnealingLR(optimizer, rest, config.final * BASE))
        case StepsConfig():
            starts = [epoch * STEPS_PER_EPOCH - warmup for epoch in config.epochs]
            taken += drive(rest, lambda optimizer: MultiStepLR(optimizer, starts, config.factor))
        case ConstantConfig():
            taken += drive(rest, lambda optimizer: ConstantLR(optimizer, factor=1.0))
    return taken


def drive(num_steps: int, make: Callable[[torch.optim.Optimizer], LRScheduler]) -> list[float]:
    """The rates of an optimizer's first steps."""
    if num_steps == 0:
        return []
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    scheduler = make(optimizer)
    taken = []
    for _ in range(num_steps):
        taken.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return taken


@pytest.mark.parametrize(
    "config",
    [
        CosineConfig(),
        CosineConfig(warmup_epochs=2.0),
        CosineConfig(warmup_epochs=0.5, final=0.1),
        StepsConfig(epochs=(2, 4)),
        StepsConfig(epochs=(3, 5), factor=0.2, warmup_epochs=1.0),
        ConstantConfig(),
        ConstantConfig(warmup_epochs=3.0),
    ],
    ids=str,
)
def test_rates_are_those_of_torch(config: ScheduleConfig) -> None:
    # torch goes from one rate to the next: it rounds a few times in each of the 42 steps.
    assert rates(config) == pytest.approx(torch_rates(config), rel=0.0, abs=4 * TOTAL * BASE * 2.0**-53)


@pytest.mark.parametrize("kind", [CosineConfig, ConstantConfig])
def test_warm_up_begins_above_zero_and_ends_at_the_full_rate(kind: type[CosineConfig]) -> None:
    warmup = rates(kind(warmup_epochs=2.0))[: 2 * STEPS_PER_EPOCH]
    assert warmup[0] == BASE / (2 * STEPS_PER_EPOCH)
    assert warmup[-1] == BASE
    assert warmup == sorted(warmup)


def test_warm_up_may_take_the_whole_run() -> None:
    assert rates(CosineConfig(warmup_epochs=float(EPOCHS)))[-1] == BASE


@pytest.mark.parametrize("final", [0.0, 0.25])
def test_a_cosine_falls_all_the_way_and_ends_just_above_its_final_share(final: float) -> None:
    taken = rates(CosineConfig(final=final))
    assert all(later < earlier for earlier, later in pairwise(taken))
    assert taken[0] == BASE
    assert taken[TOTAL // 2] == pytest.approx(BASE * (1 + final) / 2)
    # 1 + cos(pi - x) is at most x^2 / 2.
    assert final * BASE < taken[-1] <= BASE * (final + (1 - final) * (math.pi / TOTAL) ** 2 / 4)


def test_a_step_falls_with_the_first_step_of_its_epoch() -> None:
    taken = rates(StepsConfig(epochs=(2,), factor=0.5))
    assert taken[2 * STEPS_PER_EPOCH - 1] == BASE
    assert taken[2 * STEPS_PER_EPOCH] == BASE / 2


def test_a_step_that_begins_within_the_warm_up_holds_after_it() -> None:
    taken = rates(StepsConfig(epochs=(1,), factor=0.5, warmup_epochs=2.0))
    assert taken[2 * STEPS_PER_EPOCH - 1] == BASE
    assert taken[2 * STEPS_PER_EPOCH] == BASE / 2
