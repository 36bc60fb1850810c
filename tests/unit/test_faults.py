"""Faults on purpose: who waits when, who dies when, and that the run remembers it."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.strategy import FaultsConfig
from orchestrator.run_folder import RunFolder
from orchestrator.run_log import RunLog
from orchestrator.training.faults import Faults, due_shards

NUM_STEPS = 2000


class World:
    """What happens to a worker, in order."""

    def __init__(self, log: RunLog, faults: dict[str, Any], rank: int = 1, seed: int = 0) -> None:
        self.happened: list[Any] = []
        self._faults = Faults(
            FaultsConfig.model_validate(faults),
            seed=seed,
            rank=rank,
            fire=log.fire,
            sleep=self.happened.append,
            kill=lambda: self.happened.append("killed"),
        )

    def steps(self, *numbers: int) -> list[Any]:
        """What happens in steps, counted from 1."""
        for number in numbers:
            self._faults.before_step(number - 1)
        happened = list(self.happened)
        self.happened.clear()
        return happened


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(str(tmp_path))
    run.create()
    return run


def told(folder: RunFolder) -> list[tuple[Any, ...]]:
    faults = [event for event in folder.read_lines("events.jsonl") if event["event"] == "fault"]
    return [(event["kind"], event["rank"], event["step"]) for event in faults]


def test_without_faults_nothing_happens() -> None:
    Faults().before_step(0)


def test_a_slow_worker_waits_in_every_step_and_is_told_of_once(folder: RunFolder) -> None:
    slow = {"slow": {"rank": 1, "extra_ms": 80.0}}
    assert World(RunLog(folder, {}), slow).steps(3, 4) == [0.08, 0.08]
    assert World(RunLog(folder, {}), slow, rank=0).steps(3, 4) == []
    assert World(RunLog(folder, {}), slow).steps(5) == [0.08]
    assert told(folder) == [("slow", 1, 3)]


def test_a_wait_by_chance_is_drawn_by_seed_step_and_rank(folder: RunFolder) -> None:
    def waits(seed: int, rank: int, chance: float = 0.3) -> list[int]:
        slow = {"slow": [{"rank": rank, "extra_ms": 1.0, "chance": chance} for rank in (0, 1)]}
        world = World(log, slow, rank=rank, seed=seed)
        return [step for step in range(1, NUM_STEPS + 1) if world.steps(step)]

    log = RunLog(folder, {})
    first = waits(0, 1)
    assert first == waits(0, 1)
    assert len(first) == pytest.approx(0.3 * NUM_STEPS, abs=4 * (0.3 * 0.7 * NUM_STEPS) ** 0.5)
    for other in (waits(1, 1), waits(0, 0)):
        both = len(set(first) & set(other))
        assert both == pytest.approx(0.09 * NUM_STEPS, abs=4 * (0.09 * 0.91 * NUM_STEPS) ** 0.5)
    assert set(first) < set(waits(0, 1, chance=0.5)), "the same draws against another chance"


def test_a_kill_happens_once_in_a_run_at_its_step_or_the_first_after(folder: RunFolder) -> None:
    kill = {"kill": {"rank": 1, "step": 30}}
    log = RunLog(folder, {})
    assert World(log, kill, rank=0).steps(30) == []
    assert World(log, kill).steps(28, 29) == []
    assert World(log, kill).steps(31) == ["killed"]
    assert World(log, kill).steps(30, 31) == [], "after a restart"
    assert World(RunLog(folder, {}), kill).steps(30, 31) == [], "after --resume"
    assert told(folder) == [("kill", 1, 31)]


def test_kills_of_one_worker_happen_one_after_the_other(folder: RunFolder) -> None:
    kills = {"kill": [{"rank": 1, "step": 5}, {"rank": 1, "step": 5}, {"rank": 1, "step": 7}]}
    log = RunLog(folder, {})
    deaths = []
    for start in range(6):  # goes on where it died, as if every step were committed
        world = World(log, kills)
        deaths += [step for step in range(start + 1, 10) if world.steps(step)][:1]
    assert told(folder) == [("kill", 1, 5), ("kill", 1, 5), ("kill", 1, 7)]
    assert deaths[0] == 5


def test_a_kill_is_written_down_before_the_process_dies_by_sigkill(folder: RunFolder) -> None:
    program = f"""
from orchestrator.config.strategy import FaultsConfig
from orchestrator.run_folder import RunFolder
from orchestrator.run_log import RunLog
from orchestrator.training.faults import Faults

log = RunLog(RunFolder({folder.path!r}), {{}})
faults = Faults(FaultsConfig.model_validate({{"kill": {{"rank": 0, "step": 2}}}}), fire=log.fire)
for number in range(4):
    faults.before_step(number)
    print(number, flush=True)
"""
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True) for _ in range(2)]
    assert [(run.returncode, run.stdout.split()) for run in runs] == [
        (-signal.SIGKILL, ["0"]),
        (0, ["0", "1", "2", "3"]),
    ], runs[1].stderr
    assert told(folder) == [("kill", 0, 2)]


def test_the_log_lets_a_fault_happen_once_and_says_so(folder: RunFolder) -> None:
    log = RunLog(folder, {})
    assert log.fire("a", "a happens", {"kind": "kill", "shard": 0, "step": 1})
    assert not log.fire("a", "a happens", {})
    assert log.fire("b", "b happens", {"kind": "kill", "shard": 1, "step": 1})
    assert not RunLog(folder, {}).fire("b", "b happens", {})
    first = json.loads((folder.local / "events.jsonl").read_text().splitlines()[0])
    assert {name: first[name] for name in ("event", "key", "message", "kind", "shard", "step")} == {
        "event": "fault",
        "key": "a",
        "message": "a happens",
        "kind": "kill",
        "shard": 0,
        "step": 1,
    }


def test_shards_are_due_once_their_step_has_been_taken() -> None:
    config = FaultsConfig.model_validate(
        {"kill": [{"shard": 0, "step": 10}, {"shard": 1, "step": 5}, {"rank": 0, "step": 1}, {"shard": 0, "step": 20}]}
    )
    assert due_shards(config, 0, 9) == []
    first = due_shards(config, 0, 10)
    assert len(first) == 1
    both = due_shards(config, 0, 25)
    assert both[:1] == first
    assert len(set(both)) == 2
    assert len(due_shards(config, 1, 10)) == 1
    assert due_shards(config, 2, 100) == []
