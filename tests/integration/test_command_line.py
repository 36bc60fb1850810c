"""The command line as a user meets it: one message, the right exit code, no traceback."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import DIGITS, SMALL, convoy

MISTAKES = {
    "unknown key": ("data.agument=[]", "data.agument: unknown; did you mean data.augment?"),
    "wrong type": ("train.epochs=many", "train.epochs"),
    "uneven batch": ("train.global_batch=63", "train.global_batch: got 63, must be divisible by strategy.workers=2"),
    "missing path": ("data.train=imagefolder:nowhere", "data.train"),
    "unknown model": ("model.name=resnet", "model.name"),
    "too many workers": ("strategy.workers=64", "strategy.workers: got 64"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(name: str, tmp_path: Path) -> None:
    override, message = MISTAKES[name]
    done = convoy("train", DIGITS, override, "--explain", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [], "nothing may be started"


def test_a_run_is_neither_replaced_nor_continued_by_accident(tmp_path: Path, alone: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    again = convoy("train", DIGITS, "strategy.workers=0", f"run.folder={run}", cwd=tmp_path)
    assert again.returncode == 2
    assert "holds a run already" in again.stderr
    other = convoy("train", str(run), "seed=7", "--resume", cwd=tmp_path)
    assert other.returncode == 2
    assert "seed: got 7" in other.stderr


def test_overwrite_replaces_a_run_of_another_network(tmp_path: Path, alone: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    options = (
        *SMALL,
        "model.options={width: 4}",
        "train.epochs=1",
        "train.schedule.warmup_epochs=1",
        "strategy.workers=0",
        f"run.folder={run}",
    )
    done = convoy("train", DIGITS, *options, "--overwrite", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "result.json").read_text())["steps"] == 23


def test_an_unreadable_image_fails_the_run_in_its_folder_too(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "0.png").write_bytes(b"no image")
    source = f"imagefolder:{tmp_path / 'images'}"
    run = tmp_path / "run"
    done = convoy(
        "train", DIGITS, f"data.train={source}", f"data.val={source}", "train.global_batch=2", "strategy.workers=0",
        f"run.folder={run}", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "a/0.png" in done.stderr
    assert json.loads((run / "result.json").read_text())["status"] == "failed"


def test_evaluate_gives_the_accuracy_of_the_run(tmp_path: Path, alone: Path) -> None:
    result = json.loads((alone / "result.json").read_text())
    done = convoy("evaluate", str(alone), "--newest", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"validation accuracy {result['val_accuracy']:.2%}" in done.stdout
