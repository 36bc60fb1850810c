"""What the suites share: the digits experiment, made small, and a run of it by the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pyarrow.parquet as pq
import pytest

if TYPE_CHECKING:
    from tests.one_ray import OneRay

# How long a case takes is not what is tested.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

ROOT = Path(__file__).parent.parent
DIGITS = str(ROOT / "experiments" / "digits.yaml")
# Two epochs with a random crop and a flip; no batch statistics, so that any number of workers computes the same.
SMALL = (
    "train.epochs=2",
    "trace.samples=true",
    "model.options={width: 8, norm: group}",
    "data.augment=[{random_crop: {padding: 1}}, horizontal_flip, {normalize: {mean: [0.305], std: [0.376]}}]",
)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1", "PYTHONPATH": str(ROOT)}


def convoy(*arguments: str, cwd: Path, timeout_s: float = 500) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout_s
    )


def trace_rows(folder: Path) -> list[tuple[Any, ...]]:
    """The rows of a trace but for the rank, sorted by position."""
    columns = ["epoch", "step", "position", "sample_id", "pixels_crc32"]
    table = pq.read_table(folder / "trace.parquet", columns=columns)
    return sorted(zip(*(table[name].to_pylist() for name in columns), strict=True))


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def step_losses(folder: Path) -> dict[int, float]:
    """The loss of each step, of its last attempt."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}


def result_of(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    return result


@pytest.fixture(scope="module")
def one_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator["OneRay"]:
    from tests.one_ray import OneRay  # which needs what is above

    one_ray = OneRay(tmp_path_factory.mktemp("said"))
    yield one_ray
    one_ray.close()


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small experiment, undisturbed, in one process without Ray: what all others are compared with."""
    folder = tmp_path_factory.mktemp("alone")
    done = convoy("train", DIGITS, *SMALL, "strategy.workers=0", f"run.folder={folder / 'run'}", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"
