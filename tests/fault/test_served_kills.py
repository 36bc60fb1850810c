"""Real kills while a parameter server leads: others go on, no sample is missed or doubled, it learns none the worse.

Who is disturbed trains until the fault is behind it, and as long as the undisturbed at least; then Ctrl-C is pressed.
"""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import DIGITS, events, result_of, trace_rows
from tests.one_ray import OneRay

# 45 steps an epoch, a fence every 15. The rate falls in time for figures that hardly change from epoch to epoch.
LEARNS = (
    "trace.samples=true",
    "model.options={width: 16}",
    "train={epochs: 200, global_batch: 32, optimizer: {name: sgd, lr: 0.2, nesterov: true}}",
    "train.schedule={name: steps, epochs: [5]}",
    "checkpoint.every_steps=15",
)
EPOCHS = 6
EPOCH_SAMPLES, VAL_SAMPLES, BATCH = 1437, 360, 32
ASYNC = "strategy={name: async, workers: 2, snapshot_every: 10}"
SLOW = "faults.slow=[{rank: 0, extra_ms: 25}, {rank: 1, extra_ms: 25}]"


@pytest.fixture(scope="module")
def undisturbed(one_ray: OneRay, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of two seeds; the first is that of the runs that are disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for seed in (0, 1):
        overrides = [ASYNC, f"train.epochs={EPOCHS}", f"seed={seed}", f"run.folder={folder / str(seed)}"]
        ended = one_ray.run("train", DIGITS, *LEARNS, *overrides)
        assert ended.code == 0, ended.stderr
    return [folder / "0", folder / "1"]


class Disturbed:
    """A run that goes on, both of whose workers have begun."""

    def __init__(self, one_ray: OneRay, run: Path, *overrides: str) -> None:
        self.one_ray, self.run = one_ray, run
        one_ray.start("train", DIGITS, *LEARNS, SLOW, f"run.folder={run}", *overrides)
        self.wait_for(lambda: {event["rank"] for event in self.named("fault")} == {0, 1})

    def wait_for(self, condition: Callable[[], object]) -> None:
        self.one_ray.wait_for(condition)

    def named(self, name: str) -> list[dict[str, Any]]:
        there = (self.run / "events.jsonl").exists()
        return [event for event in events(self.run) if event["event"] == name] if there else []

    def wait_for_event(self, name: str) -> dict[str, Any]:
        self.wait_for(lambda: self.named(name))
        return self.named(name)[-1]

    def signal(self, title: bytes, number: int = signal.SIGKILL) -> int:
        """Send a signal to the first process of that title; returns its id."""
        process = self.one_ray.processes(title)[0]
        os.kill(process, number)
        return process

    def stop(self) -> None:
        self.one_ray.press_ctrl_c()
        self.end("stopped")

    def end(self, status: str) -> None:
        ended = self.one_ray.end()
        assert ended.code == 0, ended.stderr
        assert result_of(self.run)["status"] == status


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def has_learnt(run: Path) -> bool:
    """Whether it has been trained for as long as the undisturbed."""
    return len({record["epoch"] for record in records(run, "epoch")}) >= EPOCHS


def steps_between(run: Path, first: dict[str, Any], last: dict[str, Any]) -> int:
    return sum(first["time"] < record["time"] < last["time"] for record in records(run, "step"))


def samples_by_rank(run: Path) -> Counter[int]:
    return Counter(pq.read_table(run / "trace.parquet", columns=["rank"])["rank"].to_pylist())


def assert_traced_once(run: Path, undisturbed: list[Path]) -> None:
    """Up to where the run stands, every position once, and with the pixels of an undisturbed run where that was too."""
    rows = {(epoch, position): tuple(rest) for epoch, _, position, *rest in trace_rows(run)}
    assert len(rows) == len(trace_rows(run)), "doubled"
    epochs, steps = divmod(result_of(run)["steps"], -(-EPOCH_SAMPLES // BATCH))
    whole = {(epoch, position) for epoch in range(epochs) for position in range(EPOCH_SAMPLES)}
    assert rows.keys() == whole | {(epochs, position) for position in range(steps * BATCH)}
    reference = {(epoch, position): tuple(rest) for epoch, _, position, *rest in trace_rows(undisturbed[0])}
    both = rows.keys() & reference.keys()
    assert {key: rows[key] for key in both} == {key: reference[key] for key in both}


def assert_as_accurate(run: Path, undisturbed: list[Path]) -> None:
    """No worse than the worse of the undisturbed, but for three standard errors of an accuracy on so few samples."""
    worst = min(result_of(each)["val_accuracy"] for each in undisturbed)
    assert worst > 0.9, "they have not learnt enough to be compared with"
    assert result_of(run)["val_accuracy"] > worst - 3 * (worst * (1 - worst) / VAL_SAMPLES) ** 0.5


def assert_back_while_others_went_on(run: Disturbed) -> None:
    failure, restart = run.named("failure")[0], run.named("restart")[0]
    assert failure["ranks"] == [restart["rank"]]
    assert steps_between(run.run, failure, restart) >= 3
    assert result_of(run.run)["restarts"] == 1
    assert [event["step"] for event in run.named("start")] == [0], "nobody began anew"


def assert_losses_are_told(run: Disturbed) -> None:
    """Of one server that was killed; each event says how many are known to be lost by then."""
    told = [event["updates"] for event in run.named("updates_lost")]
    assert result_of(run.run)["updates_lost"] == max(told, default=0) < EPOCHS * 90
    assert result_of(run.run)["updates"] == 2 * result_of(run.run)["steps"], "what was lost was done again"


def test_a_killed_worker_comes_back_and_the_other_goes_on_meanwhile(
    one_ray: OneRay, undisturbed: list[Path], tmp_path: Path
) -> None:
    run = Disturbed(one_ray, tmp_path / "run", ASYNC)
    run.signal(b"RayTrainWorker")
    run.wait_for_event("failure")
    run.wait_for_event("restart")
    run.wait_for(lambda: has_learnt(run.run))
    run.stop()
    assert_back_while_others_went_on(run)
    assert run.named("left")[0]["rank"] == run.named("failure")[0]["ranks"][0]
    assert result_of(run.run)["updates_lost"] == 0
    assert_traced_once(run.run, undisturbed)
    assert_as_accurate(run.run, undisturbed)


@pytest.mark.parametrize(
    ("strategy", "killed"), [(ASYNC, b"ServerActor"), (f"{ASYNC[:-1]}, shards: 2}}", b"FollowerActor")]
)
def test_a_killed_shard_goes_on_from_its_snapshot_and_says_what_was_lost(
    strategy: str, killed: bytes, one_ray: OneRay, undisturbed: list[Path], tmp_path: Path
) -> None:
    run = Disturbed(one_ray, tmp_path / "run", strategy, f"train.epochs={EPOCHS}")
    run.wait_for_event("commit")
    run.signal(killed)
    assert run.wait_for_event("server")["version"] > 0
    run.end("finished")
    assert len(run.named("server")) == 1
    assert run.named("failure") == [], "no worker was started anew"
    assert_losses_are_told(run)
    assert_traced_once(run.run, undisturbed)
    assert_as_accurate(run.run, undisturbed)


def test_a_worker_and_then_the_server_are_killed_in_one_run(
    one_ray: OneRay, undisturbed: list[Path], tmp_path: Path
) -> None:
    run = Disturbed(one_ray, tmp_path / "run", ASYNC)
    run.signal(b"RayTrainWorker")
    run.wait_for_event("failure")
    run.signal(b"ServerActor")  # which so never hears that the worker is gone
    run.wait_for_event("server")
    run.wait_for_event("restart")
    run.wait_for(lambda: has_learnt(run.run))
    run.stop()
    assert_back_while_others_went_on(run)
    assert_losses_are_told(run)
    assert_traced_once(run.run, undisturbed)
    assert_as_accurate(run.run, undisturbed)


def test_planned_kills_happen_once_in_a_run_and_not_again_when_it_is_resumed(
    one_ray: OneRay, undisturbed: list[Path], tmp_path: Path
) -> None:
    kills = "faults.kill=[{rank: 0, step: 10}, {shard: 0, step: 30}]"
    run = Disturbed(one_ray, tmp_path / "run", ASYNC, kills)
    run.wait_for_event("server")
    run.wait_for_event("restart")
    run.stop()
    stopped = result_of(run.run)
    assert_losses_are_told(run)
    # In one process, which is worker and server.
    alone = ["strategy.workers=0", "faults.slow=[]", f"train.epochs={stopped['epochs'] + 1}"]
    assert one_ray.run("train", str(run.run), "--resume", *alone).code == 0
    fired = [event for event in run.named("fault") if event["kind"] == "kill"]
    assert [(event.get("rank"), event.get("shard")) for event in fired] == [(0, None), (None, 0)]
    assert fired[0]["step"] >= 10
    assert fired[1]["step"] == 30
    assert [len(run.named(name)) for name in ("failure", "restart", "server")] == [1, 1, 1]
    assert [event["step"] for event in run.named("start")] == [0, stopped["steps"]]
    assert result_of(run.run)["updates_lost"] == stopped["updates_lost"]
    assert_traced_once(run.run, undisturbed)


def test_a_worker_that_hangs_is_named_and_its_shares_are_done_by_the_other(
    one_ray: OneRay, undisturbed: list[Path], tmp_path: Path
) -> None:
    run = Disturbed(one_ray, tmp_path / "run", ASYNC, "strategy.hang_s=4", "train.epochs=3")
    hanging = run.signal(b"RayTrainWorker", signal.SIGSTOP)
    hang = run.wait_for_event("hang")
    run.wait_for(lambda: run.named("commit") and run.named("commit")[-1]["time"] > hang["time"])
    os.kill(hanging, signal.SIGCONT)
    run.end("finished")
    assert len(run.named("hang")) == 1
    assert run.named("failure") == []
    done = samples_by_rank(run.run)
    assert done[hang["rank"]] < done[1 - hang["rank"]]
    assert result_of(run.run)["updates_lost"] == 0
    assert_traced_once(run.run, undisturbed)


@pytest.mark.parametrize("strategy", ["{name: stale, workers: 2, staleness: 1}", "{name: backup, workers: 2}"])
def test_no_strategy_waits_for_a_killed_worker_for_ever(
    strategy: str, one_ray: OneRay, undisturbed: list[Path], tmp_path: Path
) -> None:
    run = Disturbed(one_ray, tmp_path / "run", f"strategy={strategy}")
    run.signal(b"RayTrainWorker")
    run.wait_for_event("restart")
    run.stop()
    assert_back_while_others_went_on(run)
    assert result_of(run.run)["updates"] == result_of(run.run)["steps"]
    assert_traced_once(run.run, undisturbed)
