"""What to do when a run fails: pure decisions, one budget for each cause.

worker died or raised            -> cause `workers`: Ray Train starts the group anew (max_failures)
group or process group not set up -> cause `setup`: Ray gives up, so `launch` fits again under the same name
node preempted                   -> costs nothing
"""

from dataclasses import dataclass

MAX_DELAY_S = 60.0


@dataclass(frozen=True)
class Retry:
    """Start again after `delay_s` seconds."""

    delay_s: float


@dataclass(frozen=True)
class GiveUp:
    """The budget is used up."""

    reason: str


Decision = Retry | GiveUp


def decide(cause: str, count: int, budget: int) -> Decision:
    """Decide on failure number `count` (from 1) of a cause whose setting `failure.<cause>` is `budget`.

    The wait doubles from one second up to MAX_DELAY_S.
    """
    if count > budget:
        times = "once" if count == 1 else f"{count} times"
        return GiveUp(f"it failed {times} by cause {cause!r}, and failure.{cause} allows {budget} restarts")
    return Retry(min(MAX_DELAY_S, 2.0 ** (count - 1)))
