"""The trace of `convoy train`: the same samples and pixels from any source, for any workers, from any commit."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.order import order
from tests.conftest import environment, events, trace_rows
from tests.integration.traces_on_ray import NUM_IMAGES, PARTS, RESUMED, WHOLE, images

SCRIPT = Path(__file__).parent / "traces_on_ray.py"
EPOCHS, BATCH, SEED = 2, 32, 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traces")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], env=environment(), capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_trace_is_every_sample_once_an_epoch_in_the_order_of_the_seed(folder: Path) -> None:
    rows = trace_rows(folder / "folder, alone")
    traced = sorted({sample_id for _, _, _, sample_id, _ in rows})
    assert 0.7 * NUM_IMAGES < len(traced) < 0.9 * NUM_IMAGES, f"the rest is held out by {PARTS}"
    assert set(traced) < set(images())
    expected = [
        (epoch, position, traced[index])
        for epoch in range(EPOCHS)
        for position, index in enumerate(order(SEED, epoch, len(traced)))
    ]
    assert [(epoch, position, sample_id) for epoch, _, position, sample_id, _ in rows] == expected
    steps_an_epoch = -(-len(traced) // BATCH)
    assert all(step == epoch * steps_an_epoch + position // BATCH + 1 for epoch, step, position, _, _ in rows)
    assert len({checksum for *_, checksum in rows}) > 0.9 * len(rows), "pixels differ from sample to sample and epoch"


@pytest.mark.parametrize("name", list(WHOLE)[1:])
def test_samples_and_pixels_do_not_depend_on_source_or_workers(name: str, folder: Path) -> None:
    assert trace_rows(folder / name) == trace_rows(folder / "folder, alone")


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_that_goes_on_from_a_commit_has_the_trace_of_one_that_never_stopped(name: str, folder: Path) -> None:
    *_, workers, step = RESUMED[name]
    start = [event for event in events(folder / name) if event["event"] == "start"][-1]
    assert (start["step"], start["workers"]) == (step, max(workers, 1)), "it began somewhere else"
    assert trace_rows(folder / name) == trace_rows(folder / "folder, alone")
