"""`ray job submit` to a real head with token authentication: exit codes, and logs that say why."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import environment

HEAD = Path(__file__).parent / "job_on_a_head.py"
OWN_NETWORK = ("unshare", "--net", "--map-root-user")


def can_have_its_own_network() -> bool:
    try:
        return subprocess.run([*OWN_NETWORK, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job")


@pytest.fixture(scope="module")
def ended(folder: Path) -> dict[str, dict[str, Any]]:
    """How each job ended: `exit_code` and `log`."""
    jobs = {
        "good": ["train.epochs=3", "strategy.workers=1", f"run.folder={folder / 'good'}"],
        "diverging": ["train.optimizer.lr=1e30", "strategy.workers=1", f"run.folder={folder / 'diverging'}"],
        "mistaken": ["train.epoch=1"],
    }
    command = [sys.executable, str(HEAD), str(folder), json.dumps(jobs)]
    if can_have_its_own_network():
        command = [*OWN_NETWORK, *command, "--own-network"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr + (folder / "head.txt").read_text()
    outcome: dict[str, dict[str, Any]] = json.loads((folder / "ended.json").read_text())
    return outcome


def test_a_submitted_job_trains_the_digits(ended: dict[str, dict[str, Any]], folder: Path) -> None:
    assert ended["good"]["exit_code"] == 0, ended["good"]["log"]
    assert "finished: validation accuracy" in ended["good"]["log"]
    result = json.loads((folder / "good" / "result.json").read_text())
    assert result["steps"] == 69
    assert result["val_accuracy"] > 0.3, "ten classes: chance is 0.1"


def test_a_job_that_diverges_fails_and_says_where(ended: dict[str, dict[str, Any]], folder: Path) -> None:
    assert ended["diverging"]["exit_code"] != 0
    assert (
        "the loss became NaN or infinite in step 2 (epoch 0) on rank 0, whose samples were"
        in (ended["diverging"]["log"])
    )
    result = json.loads((folder / "diverging" / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["restarts"] == 0, "it would only diverge again"


def test_a_mistake_in_a_job_is_named_in_its_log(ended: dict[str, dict[str, Any]]) -> None:
    assert ended["mistaken"]["exit_code"] != 0
    assert "train.epoch: unknown; did you mean train.epochs?" in ended["mistaken"]["log"]


def test_a_stranger_without_the_token_can_submit_nothing(ended: dict[str, dict[str, Any]]) -> None:
    assert ended["stranger"]["exit_code"] != 0
    assert "Invalid authentication token" in ended["stranger"]["log"]
