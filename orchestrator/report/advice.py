"""What another strategy might do better: a sentence where the run's own figures tell, and the command that tries it.

No sentence is better than a guess: of most runs there is none.
"""

import shlex
from collections.abc import Iterable

from orchestrator.config.strategy import AsyncConfig, LocalConfig, ServedConfig, StrategyConfig, SyncConfig
from orchestrator.report.figures import pace, staleness
from orchestrator.report.markup import Html, element, join
from orchestrator.report.record import Event, Record
from orchestrator.report.wording import percent

LITTLE = 0.05  # of the step time: less communication than that is not worth a strategy of its own
MUCH = 0.25
SEEN = 0.05  # of the gradients: so many that are far too stale tell of a slow worker


def advice(record: Record, strategy: StrategyConfig) -> Html:
    """Empty where there is nothing to say."""
    match strategy:
        case SyncConfig():
            sentence, other = _of_sync(record)
        case LocalConfig():
            sentence, other = _of_local(record, strategy)
        case _:
            sentence, other = _of_server(record, strategy)
    parts = [element("p", sentence, style="advice")] if sentence else []
    parts += [element("pre", _command(record, other, strategy.max_workers), style="command")] if other else []
    return join(parts)


def _of_sync(record: Record) -> tuple[str, str]:
    """What to say, and which strategy to try; either may be empty."""
    share, slow = pace(record).communication, _slow_ranks(record)
    if slow:
        return f"{slow}, and every step waited for it. async, stale and backup wait less. To try:", "async"
    if share > MUCH:
        said = f"Communication, with the wait for the slowest worker, was {percent(share, 0)} of the step time"
        return f"{said}: async, stale or local may be faster. To try:", "local"
    return "", ""


def _of_local(record: Record, strategy: LocalConfig) -> tuple[str, str]:
    share = pace(record).communication
    often = share * strategy.every
    if often / (1.0 - share + often) < LITTLE:
        said = f"Communication was {percent(share)} of the step time, and would be little in every step too"
        return f"{said}: sync would probably do as well. To try:", "sync"
    return "", ""


def _of_server(record: Record, strategy: ServedConfig) -> tuple[str, str]:
    share, slow = pace(record).communication, _slow_ranks(record) or _slow_by_staleness(record, strategy)
    if slow:
        return f"{slow}. With sync every step would have waited for it.", ""
    if staleness(record).largest and share < LITTLE:
        said = f"Communication was {percent(share, 1)} of the step time"
        return f"{said}: sync, whose gradients are never stale, would probably do as well. To try:", "sync"
    return "", ""


def _slow_ranks(record: Record) -> str:
    """Who was slow or silent, as events tell."""
    slow = _ranks(event for event in record.events if event.kind == "fault" and event.fields.get("kind") == "slow")
    ranks = slow or _ranks(event for event in record.events if event.kind == "hang")
    if not ranks:
        return ""
    what = "slow" if slow else "silent"
    return f"Rank {ranks[0]} was {what}" if len(ranks) == 1 else f"Ranks {', '.join(map(str, ranks))} were {what}"


def _ranks(events: Iterable[Event]) -> list[int]:
    told = (event.fields.get("rank") for event in events)
    return sorted({rank for rank in told if isinstance(rank, int)})


def _slow_by_staleness(record: Record, strategy: ServedConfig) -> str:
    """Equal workers make a gradient as stale as all others have pushed meanwhile, twice and its own with overlap."""
    workers = record.workers or 1
    if not isinstance(strategy, AsyncConfig) or workers < 2:
        return ""
    bound = 2 * (2 * workers - 1 if strategy.overlap else workers - 1)
    share = staleness(record).share_above(bound)
    if not share >= SEEN:
        return ""
    return (
        f"{percent(share, 0)} of the gradients were more than {bound} updates stale, twice of what equal workers make: "
        "one is slower than the others"
    )


def _command(record: Record, name: str, workers: int) -> str:
    """The run again, by another strategy, in a folder beside it."""
    run = record.experiment.get("run")
    told = {"name": record.folder.resolve().name, "folder": "auto"} | (run if isinstance(run, dict) else {})
    place = f"run.name={told['name']}-{name}" if told["folder"] == "auto" else f"run.folder={told['folder']}-{name}"
    strategy = f"strategy={{name: {name}, workers: {workers}}}"
    return shlex.join(["convoy", "train", str(record.folder / "experiment.yaml"), strategy, place])
