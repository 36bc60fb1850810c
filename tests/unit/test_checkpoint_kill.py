import multiprocessing
import multiprocessing.forkserver as forkserver
import os
import random
import re
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from checkpoint_samples import FailingMemory, check_is_of_step, never, skipped_by, snapshot, steps_in

from orchestrator.errors import CheckpointError
from orchestrator.training.atomic_folder import ABANDONED_S
from orchestrator.training.checkpoint_store import CheckpointStore


@pytest.fixture
def failing() -> type[FailingMemory]:
    return FailingMemory.fresh()


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    """Makes processes in milliseconds: torch is imported once, by the server that they fork from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
        yield context


def commit_until_killed(folder: str, first: int, said: Connection) -> None:
    store = CheckpointStore(folder, keep=2)
    for step in range(first, first + 10_000):
        store.commit(snapshot(step, size=20_000), score=None)
        if step % 3 == 0:
            store.commit(snapshot(step, size=20_000), score=None)  # in the place of the other
        said.send(step)


def commit_until_event(folder: str, step: int, events_left: int) -> None:
    """Commit, but be killed at the n-th time that Python touches a file."""

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal events_left
        if event.startswith(("open", "os.", "shutil.")) and folder in str(arguments):
            events_left -= 1
            if events_left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    CheckpointStore(folder, keep=1).commit(snapshot(step), score=None)


def test_a_kill_at_a_random_moment_leaves_whole_commits(processes: ForkServerContext, tmp_path: Path) -> None:
    chance = random.Random(0)
    store = CheckpointStore(str(tmp_path), keep=2)
    last = 0
    for _ in range(10):
        hear, said = processes.Pipe(duplex=False)
        process = processes.Process(target=commit_until_killed, args=(str(tmp_path), last + 1, said))
        process.start()
        said.close()
        for _ in range(chance.randint(1, 4)):
            committed = hear.recv()
        hear.poll(chance.uniform(0, 0.01))  # some way into the next commit, or past it
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        found, skipped = skipped_by(store.newest)
        assert skipped == []
        assert found is not None
        assert found.step >= committed
        check_is_of_step(found, found.step, size=20_000)
        last = found.step
    store.commit(snapshot(last + 1), score=None)
    assert len(steps_in(tmp_path)) == 2


@pytest.mark.parametrize("step", [5, 6], ids=["the same step again", "the next step"])
def test_a_kill_at_each_touch_of_a_file_leaves_a_whole_commit(
    processes: ForkServerContext, tmp_path: Path, step: int
) -> None:
    killed = 0
    for events in range(100):
        folder = tmp_path / str(events)
        store = CheckpointStore(str(folder), keep=1)
        store.commit(snapshot(5), score=None)
        process = processes.Process(target=commit_until_event, args=(str(folder), step, events))
        process.start()
        process.join()
        found = store.newest(never)
        assert found is not None
        assert found.step in (5, step)
        check_is_of_step(found, found.step)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        killed += 1
        store.commit(snapshot(7), score=None)
        assert steps_in(folder) == ["step-00000007"]
    assert process.exitcode == 0
    assert killed > 8


def why_not_valid(store: CheckpointStore) -> list[str]:
    """The reason for each folder that is no valid commit; `newest` stops at the first that is."""
    reasons: list[str] = []
    for folder in store._folders():
        store._first_valid([folder], lambda _, reason: reasons.append(reason), store._verify)
    return reasons


@pytest.mark.parametrize("step", [4, 5, 6], ids=["a step before", "the same step again", "the next step"])
def test_an_object_store_that_fails_at_any_change_keeps_an_earlier_commit(
    failing: type[FailingMemory], step: int
) -> None:
    store = CheckpointStore("fsspec+failing://bucket/run", keep=2)
    failed = 0
    for changes in range(100):
        failing.changes_left = float("inf")
        failing.store.clear()
        for earlier in (3, 5):
            store.commit(snapshot(earlier), score=None)
        failing.changes_left = changes
        try:
            store.commit(snapshot(step), score=None)
            break
        except CheckpointError as error:
            message = str(error)
        assert re.match(r"run.folder: could not .*failing://bucket/run.* No space left on device\. ", message)
        failed += 1
        found, _ = skipped_by(store.newest)
        assert found is not None
        check_is_of_step(found, found.step)
        assert all(reason.startswith("manifest.json: ") for reason in why_not_valid(store))
        failing.changes_left = float("inf")
        store.commit(snapshot(7), score=None)
        check_is_of_step(store.newest(never), 7)
    assert failed > 9
    check_is_of_step(store.newest(never), step)


def test_a_full_disk_leaves_the_earlier_commit_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(str(tmp_path), keep=1)
    store.commit(snapshot(1), score=None)

    def full(descriptor: int) -> None:  # noqa: ARG001
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = r"run.folder: could not commit step 2 to .*/step-00000002: .*No space left on device\. It must be"
    with pytest.raises(CheckpointError, match=message):
        store.commit(snapshot(2), score=None)
    check_is_of_step(store.newest(never), 1)
    assert steps_in(tmp_path) == ["step-00000001"]


def test_what_dead_writers_left_is_deleted_and_what_living_ones_write_is_not(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    process = processes.Process(target=int)
    process.start()
    process.join()
    here, unique = os.uname().nodename, "0" * 32
    dead = tmp_path / f".writing-{here}-{process.pid}-{unique}"
    living = tmp_path / f".writing-{here}-{os.getpid()}-{unique}"
    elsewhere = tmp_path / f".writing-another-host-{process.pid}-{unique}"
    long_ago = tmp_path / f".writing-another-host-1-{unique}"
    for path in (dead, living, elsewhere, long_ago):
        path.mkdir()
    old = long_ago.stat().st_mtime - ABANDONED_S - 1
    os.utime(long_ago, (old, old))
    CheckpointStore(str(tmp_path), keep=1).commit(snapshot(1), score=None)
    assert steps_in(tmp_path) == sorted([living.name, elsewhere.name, "step-00000001"])
