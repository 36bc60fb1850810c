"""Real kills, from outside: what was trained is what an undisturbed run trains."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import DIGITS, SMALL, command, convoy, environment, events, trace_rows
from tests.processes import own_processes

COMMITS = "checkpoint.every_steps=5"


def start(folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    with output_of(folder).open("w") as output:
        return subprocess.Popen(
            command("train", DIGITS, *SMALL, COMMITS, f"run.folder={folder}", *overrides),
            cwd=folder.parent,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def output_of(folder: Path) -> Path:
    return folder.parent / "output.txt"


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], timeout_s: float = 400) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, "the run ended early"
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.005)


def committed(folder: Path, step: int) -> Callable[[], bool]:
    return lambda: (folder / "checkpoints" / f"step-{step:08d}").exists()


def weights(folder: Path, step: int = 46) -> dict[str, bytes]:
    tensors = load_file(folder / "checkpoints" / f"step-{step:08d}" / "model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_a_run_killed_as_a_whole_resumes_to_the_same_weights_bit_for_bit(tmp_path: Path, alone: Path) -> None:
    run = tmp_path / "run"
    process = start(run, "strategy.workers=0")
    wait_for(committed(run, 10), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "result.json").exists(), "the kill came too late"
    done = convoy("train", str(run), "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert weights(run) == weights(alone)
    assert trace_rows(run) == trace_rows(alone)


def test_a_stopped_run_commits_exits_cleanly_and_goes_on(tmp_path: Path, alone: Path) -> None:
    run = tmp_path / "run"
    process = start(run, "strategy.workers=0")
    wait_for(committed(run, 5), process)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=120)
    assert process.returncode == 0, output_of(run).read_text()
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "stopped"
    assert committed(run, result["steps"])()
    assert convoy("train", str(run), "--resume", cwd=tmp_path).returncode == 0
    assert weights(run) == weights(alone)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_newest_checkpoint_is_named_and_skipped(damage: str, tmp_path: Path, alone: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    newest = run / "checkpoints" / "step-00000046" / "model.safetensors"
    content = newest.read_bytes()
    if damage == "truncated":
        newest.write_bytes(content[:-7])
    elif damage == "flipped":
        newest.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    else:
        newest.unlink()
    done = convoy("train", str(run), "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    skipped = [event for event in events(run) if event["event"] == "skipped_checkpoint"]
    assert [Path(event["path"]).name for event in skipped] == ["step-00000046"]
    assert "model.safetensors" in skipped[0]["reason"]
    assert weights(run) == weights(alone)


def test_a_second_start_of_a_run_that_is_going_on_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, "strategy.workers=0", "train.epochs=200")
    try:
        wait_for(committed(run, 5), process)
        second = convoy("train", str(run), "--resume", cwd=tmp_path)
        assert second.returncode == 2
        assert "is held by a run that is going on" in second.stderr
    finally:
        process.kill()
        process.wait()


def test_a_killed_worker_is_replaced_and_nothing_is_lost_or_doubled(tmp_path: Path, alone: Path) -> None:
    run = tmp_path / "run"
    process = start(run, "strategy.workers=2", "checkpoint.every_steps=1")
    wait_for(committed(run, 3), process)
    victim = worker_of(process.pid)
    os.kill(victim, signal.SIGKILL)
    process.wait(timeout=500)
    assert process.returncode == 0, output_of(run).read_text()
    names = [event["event"] for event in events(run)]
    assert "failure" in names, "the kill came too late"
    assert "restart" in names
    assert trace_rows(run) == trace_rows(alone)


def test_a_group_killed_as_a_whole_resumes_with_nothing_lost_or_doubled(tmp_path: Path, alone: Path) -> None:
    run = tmp_path / "run"
    process = start(run, "strategy.workers=2", "checkpoint.every_steps=3")
    wait_for(committed(run, 6), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "result.json").exists(), "the kill came too late"
    done = convoy("train", str(run), "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert trace_rows(run) == trace_rows(alone)
    assert json.loads((run / "result.json").read_text())["steps"] == 46


def test_a_run_that_gives_up_says_which_worker_died_where_and_what_it_last_said(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, "strategy.workers=2", "failure.workers=0")
    wait_for(committed(run, 5), process)
    os.kill(worker_of(process.pid), signal.SIGKILL)
    process.wait(timeout=500)
    output = output_of(run).read_text()
    assert process.returncode == 1, output
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["restarts"] == 0
    message = result["error"]
    assert message in output
    assert "failure.workers" in message
    assert re.search(r"rank [01]", message), message
    assert "Traceback" not in output


def worker_of(driver: int) -> int:
    """A Ray Train worker that belongs to this driver."""
    workers = list(own_processes(b"RayTrainWorker", driver))
    assert workers, "no Ray Train worker was found"
    return workers[0]
