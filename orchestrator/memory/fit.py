"""Which modules to compute again, so that a step fits into a budget at the least cost.

Memory is tightest when the backward pass begins, and where it comes to a module that is computed again: there all that
the module keeps is back, while what came after it is gone. Going through the modules in their order, the fewest
operations for every number of saved bytes are a knapsack (by dynamic programming over bytes, in RESOLUTION steps), in
which a module is taken with all within it, and only where it fits when its turn comes. What is chosen is then predicted
as a whole; where that is more than the budget, the next choice has to save more.

With other words and for given costs: Chen et al. 2016 (arXiv:1604.06174), section 4.3; Checkmate (Jain et al. 2020,
arXiv:1910.02653) solves it by operation instead of by module, as an integer program.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.experiment import Experiment
from orchestrator.config.memory import MemoryConfig
from orchestrator.memory.blocks import Block, blocks_of
from orchestrator.memory.forecast import Forecast, predict
from orchestrator.plan import Plan

RESOLUTION = 2048
TRIES = 6


def with_memory(experiment: Experiment, **settings: object) -> Experiment:
    """The experiment with other settings of its section `memory`."""
    changed = MemoryConfig.model_validate(experiment.memory.model_dump() | settings)
    return experiment.model_copy(update={"memory": changed})


def choose(experiment: Experiment, plan: Plan, budget: int) -> tuple[tuple[Experiment, Forecast] | None, int]:
    """The experiment with the modules to compute again, and its peak, if there are such; and the lowest peak seen."""
    plain = with_memory(experiment, checkpoint=())
    whole = predict(plain, plan)
    least = whole.peak
    if whole.peak <= budget:
        return (plain, whole), least
    blocks = blocks_of(experiment, plan)
    most, need = most_saved(blocks), whole.peak - budget
    for _ in range(TRIES):
        names = cheapest(blocks, min(need, most))
        if not names:
            break
        chosen = with_memory(experiment, checkpoint=names)
        forecast = predict(chosen, plan)
        least = min(least, forecast.peak)
        if forecast.peak <= budget:
            return (chosen, forecast), least
        if need >= most:
            break
        saved = sum(block.saved_bytes for block in blocks if block.name in names)
        need = max(need + forecast.peak - budget, saved + 1)
    return None, least


def cheapest(blocks: Sequence[Block], need: int) -> tuple[str, ...]:
    """The modules that save at least `need` bytes whenever memory is tight, for the fewest operations; () if none do.

    `blocks`: calls in their order, each with the place where what is within it ends.
    """
    unit = max(1.0, max((block.later_bytes + block.saved_bytes for block in blocks), default=0) / RESOLUTION)
    table = _Table(len(blocks))
    for place, block in enumerate(blocks):
        table.skip(place)
        if block.can_repeat and block.saved_bytes > 0:
            before = max(0, int(np.ceil((need - block.later_bytes) / unit)))  # saved when its turn comes
            table.take(place, block.end, int(block.saved_bytes / unit), block.operations, before)
    return tuple(blocks[place].name for place in table.best(int(np.ceil(need / unit))))


def most_saved(blocks: Sequence[Block]) -> int:
    """The most bytes that any choice of modules saves whenever memory is tight, to 1 in RESOLUTION."""
    able, not_able = 0, sum(block.saved_bytes for block in blocks if block.can_repeat) + 1
    while not_able - able > max(1, not_able // RESOLUTION):
        half = (able + not_able) // 2
        able, not_able = (half, not_able) if cheapest(blocks, half) else (able, half)
    return able


class _Table:
    """The fewest operations to have come to each place with each number of units saved, and by which way."""

    def __init__(self, num: int) -> None:
        self._operations = np.full((num + 1, RESOLUTION + 1), np.inf)
        self._operations[0, 0] = 0.0
        self._taken: NDArray[np.int32] = np.full((num + 1, RESOLUTION + 1), -1, np.int32)
        self._from = np.tile(np.arange(RESOLUTION + 1), (num + 1, 1))

    def skip(self, place: int) -> None:
        """Leave the module as it is, and go on with those within it."""
        self._offer(place + 1, self._operations[place], np.arange(RESOLUTION + 1), -1)

    def take(self, place: int, end: int, units: int, operations: float, before: int) -> None:
        """Compute it again where at least `before` units are saved already, and go on behind it."""
        costs = np.full(RESOLUTION + 1, np.inf)
        source = np.arange(RESOLUTION + 1) - units
        reached = source >= before
        costs[reached] = self._operations[place, source[reached]] + operations
        self._offer(end, costs, source, place)

    def _offer(self, place: int, costs: NDArray[np.float64], source: NDArray[np.int64], taken: int) -> None:
        better = costs < self._operations[place]
        self._operations[place, better] = costs[better]
        self._taken[place, better], self._from[place, better] = taken, source[better]

    def best(self, need: int) -> list[int]:
        """The places taken that save at least `need` units."""
        last = self._operations[-1, min(need, RESOLUTION) :]
        units = min(need, RESOLUTION) + int(np.argmin(last))
        if need > RESOLUTION or not np.isfinite(self._operations[-1, units]):
            return []
        place, places = len(self._operations) - 1, list[int]()
        while place > 0:
            taken, before = int(self._taken[place, units]), int(self._from[place, units])
            place, units = (place - 1 if taken < 0 else taken), before
            if taken >= 0:
                places.append(taken)
        return places[::-1]
