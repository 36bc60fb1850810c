"""Local SGD on Ray: it learns, and a worker that is killed on purpose is replaced as if nothing had happened."""

import json
from pathlib import Path

from tests.conftest import DIGITS, convoy, events

# An epoch has 45 steps. The outer step is a little longer than to the mean, and remembers.
LOCAL = (
    "strategy={name: local, workers: 2, every: 4, outer: {lr: 0.8, momentum: 0.3}}",
    "train={epochs: 4, global_batch: 32, optimizer: {name: sgd, lr: 0.2, nesterov: true}}",
    "model.options={width: 16}",
    "checkpoint.every_steps=25",
)


def last_commit(run: Path) -> dict[str, bytes]:
    """Its tensors: weights, and the momentum of both steps."""
    return {path.name: path.read_bytes() for path in (run / "checkpoints" / "step-00000180").glob("*.safetensors")}


def test_it_learns_the_digits_and_goes_on_after_a_kill_bit_for_bit(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = convoy("train", DIGITS, *LOCAL, f"run.folder={whole}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((whole / "result.json").read_text())
    assert result["samples_seen"] == 4 * 1437
    assert result["val_accuracy"] > 0.9

    kill = "faults.kill={rank: 1, step: 70}"
    done = convoy("train", DIGITS, *LOCAL, kill, f"run.folder={killed}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    fired = [event for event in events(killed) if event["event"] == "fault"]
    assert [(event["kind"], event["rank"], event["step"]) for event in fired] == [("kill", 1, 70)]
    assert [event["step"] for event in events(killed) if event["event"] == "start"] == [0, 50]
    assert last_commit(killed) == last_commit(whole)
