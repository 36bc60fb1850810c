"""What to do when a run fails: pure decisions, one budget for each cause.

worker died or raised            -> cause `workers`: Ray Train starts the group anew (max_failures)
group or process group not set up -> cause `setup`: Ray gives up, so `launch` fits again under the same name
node preempted                   -> costs nothing
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_DELAY_S = 60.0
LOG_TAIL_LINES = 20


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


def why_it_gave_up(reason: str, failures: list[dict[str, Any]]) -> str:
    """One paragraph: what was given up, who failed last, where, and the end of its log."""
    last = failures[-1]
    places = last["places"]
    where = "; ".join(f"rank {place.rank} on node {place.node}, process {place.pid}" for place in places)
    error = last["error"].strip().splitlines()
    parts = [
        f"The run gave up: {reason}.",
        f"The last failure: {where + ': ' if where else ''}{error[-1] if error else ''}",
    ]
    for place in places:
        if tail := _tail(place.log):
            parts.append(f"The log of rank {place.rank} ends:\n{tail}")
    return " ".join(parts[:2]) + "".join(f"\n{part}" for part in parts[2:])


def _tail(path: str) -> str:
    """The last lines of a worker's log, if it lies on this machine."""
    file = Path(path)
    if not file.is_file():
        return ""
    lines = file.read_text(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-LOG_TAIL_LINES:])
