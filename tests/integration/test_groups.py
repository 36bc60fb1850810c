"""Ray groups against one process: the same samples, the same pixels, the same numbers."""

import json
from pathlib import Path

import pytest

from tests.conftest import DIGITS, SMALL, convoy, step_losses, trace_rows


@pytest.fixture(scope="module", params=[1, 2], ids=["1 worker", "2 workers"])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("group")
    run = folder / "run"
    done = convoy("train", DIGITS, *SMALL, f"strategy.workers={request.param}", f"run.folder={run}", cwd=folder)
    assert done.returncode == 0, done.stderr
    return run


def test_every_position_has_the_same_sample_and_pixels_on_any_number_of_workers(group: Path, alone: Path) -> None:
    assert trace_rows(group) == trace_rows(alone)


def test_the_loss_curve_is_that_of_one_process_to_float_rounding(group: Path, alone: Path) -> None:
    """Sums of 64 losses and gradients in another order: relative 64 * 2^-24 = 4e-6 a step, growing over 46 steps."""
    ours, reference = step_losses(group), step_losses(alone)
    assert ours.keys() == reference.keys()
    assert ours == pytest.approx(reference, rel=1e-3)
    assert ours[1] == pytest.approx(reference[1], rel=4e-6)


def test_a_group_writes_everything_that_a_run_folder_holds(group: Path) -> None:
    result = json.loads((group / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["steps"] == 46
    assert result["samples_seen"] == 2 * 1437
    assert (group / "report.html").stat().st_size > 10_000
