"""Convolutions of workers elsewhere: measured where they are, and said in words where nothing was measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DIGITS, SMALL, convoy, environment, events

SCRIPT = Path(__file__).parent / "tuning_on_ray.py"
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # what makes Ray's nodes use 127.0.0.1
FEW = ("train.epochs=1", "train.schedule.warmup_epochs=1", "kernels=auto", "strategy.workers=2")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_each_kind_of_node_is_measured_there_and_kept_here(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], env=environment() | LOOPBACK, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["on_cluster"]
    assert found["threads"] == 2, "of the 4 CPUs of the cluster, not of this machine's"
    ((device, rows),) = found["rows"].items()
    assert rows == ["forward", "input_gradient", "weight_gradient"] * 2
    assert found["kinds"] == dict.fromkeys(found["nodes"][:2], 3)
    assert sorted(found["stored"]) == sorted([[device, 2, 6], *([node, 2, 3] for node in found["nodes"][:2])])


def test_workers_whose_device_was_not_measured_say_so_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = convoy("train", DIGITS, *SMALL, *FEW, f"run.folder={run}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (event,) = (event for event in events(run) if event["event"] == "kernels")
    assert "nothing of this network is measured there, see convoy tune" in event["message"]
    assert f"kernels: {event['message']}" in done.stdout
    assert "Convolutions" not in (run / "report.html").read_text()


def test_workers_choose_by_what_was_measured_with_as_many_threads(tmp_path: Path) -> None:
    done = convoy("tune", DIGITS, *SMALL, *FEW, "--seconds", "0.01", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    done = convoy("train", DIGITS, *SMALL, *FEW, f"run.folder={run}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (event,) = (event for event in events(run) if event["event"] == "kernels")
    assert event["measured"] > 0
    assert f"by {event['measured']} measured passes" in event["message"]
    assert "Convolutions of a step" in (run / "report.html").read_text()
