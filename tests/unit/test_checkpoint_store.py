import pickle
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_samples import FILES, Bomb, FailingMemory, check_is_of_step, never, snapshot, steps_in

from orchestrator.errors import CheckpointError
from orchestrator.training.checkpoint import Snapshot
from orchestrator.training.checkpoint_store import CheckpointStore


@pytest.fixture
def failing() -> type[FailingMemory]:
    return FailingMemory.fresh()


@pytest.fixture(params=["path", "file://", "fsspec+failing://"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, failing: type[FailingMemory]) -> str:  # noqa: ARG001
    return {"path": "", "file://": "file://", "fsspec+failing://": "fsspec+failing:/"}[request.param] + str(tmp_path)


def test_a_commit_comes_back_from_another_store(folder: str) -> None:
    commit = CheckpointStore(folder, keep=2).commit(snapshot(120), score=0.5)
    store = CheckpointStore(folder + "/", keep=2)
    check_is_of_step(store.newest(never), 120)
    check_is_of_step(store.best(never), 120)
    assert store.newest_state(never) == {"step": 120}
    assert store.newest_path() == commit.path == f"{folder}/step-00000120"
    assert commit.step == 120


def test_a_commit_without_average_has_no_file_for_it(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), keep=1)
    commit = store.commit(Snapshot(1, {}, {}, None, {}), score=None)
    files = sorted(Path(commit.path).iterdir())
    assert [path.name for path in files] == sorted(set(FILES) - {"ema.safetensors"})
    assert commit.bytes == sum(path.stat().st_size for path in files)
    found = store.newest(never)
    assert found is not None
    assert found.ema is None


def test_a_folder_that_is_not_there_or_empty_has_no_commit(folder: str) -> None:
    store = CheckpointStore(f"{folder}/checkpoints", keep=1)
    assert (store.newest(never), store.newest_state(), store.newest_path(), store.best(never)) == (None,) * 4


@pytest.mark.parametrize(
    ("keep", "scores", "kept", "best"),
    [
        (1, [None, None, None], [3], 3),
        (2, [None, None, None], [2, 3], 3),
        (1, [0.5, 0.9, None, 0.7], [2, 4], 2),
        (2, [0.9, 0.1, 0.2, 0.3], [1, 3, 4], 1),
        (1, [0.5, 0.5], [2], 2),
        (1, [0.0, None], [1, 2], 1),
        (3, [0.1, 0.2], [1, 2], 2),
    ],
)
def test_the_newest_and_the_best_are_kept(
    folder: str, keep: int, scores: list[float | None], kept: list[int], best: int
) -> None:
    store = CheckpointStore(folder, keep=keep)
    for step, score in enumerate(scores, start=1):
        store.commit(snapshot(step), score=score)
    assert [name.step for name in reversed(store._folders())] == kept
    check_is_of_step(store.newest(never), len(scores))
    check_is_of_step(store.best(never), best)


def test_a_commit_replaces_one_of_its_step_and_those_of_later_steps(folder: str) -> None:
    """A run that started again from step 1, for step 3 was damaged then, meets what it wrote before."""
    store = CheckpointStore(folder, keep=3)
    for step in (1, 2, 3):
        store.commit(snapshot(step), score=0.1 * step)
    again = Snapshot(2, {"weight": torch.zeros(1)}, {}, None, {"attempt": 2})
    store.commit(again, score=0.05)
    assert [name.name for name in store._folders()] == ["step-00000002", "step-00000001"]
    assert store.newest_state(never) == {"attempt": 2}
    check_is_of_step(store.best(never), 1)


def test_a_replaced_commit_counts_until_the_new_one_has_its_name(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), keep=2)
    for step in (1, 2):
        store.commit(snapshot(step), score=None)
    (tmp_path / "step-00000002").rename(tmp_path / "step-00000002.replaced")
    check_is_of_step(store.newest(never), 2)
    assert store.newest_path() == f"{tmp_path}/step-00000002.replaced"
    store.commit(snapshot(3), score=None)
    assert steps_in(tmp_path) == ["step-00000002.replaced", "step-00000003"]
    store.commit(snapshot(2), score=None)
    assert steps_in(tmp_path) == ["step-00000002"]


@pytest.mark.parametrize("again", [1, 2], ids=["the replaced is there", "both are there"])
def test_a_step_can_be_replaced_again_after_a_kill(tmp_path: Path, again: int) -> None:
    store = CheckpointStore(str(tmp_path), keep=1)
    store.commit(snapshot(7), score=None)
    shutil.copytree(tmp_path / "step-00000007", tmp_path / "step-00000007.replaced")
    if again == 1:
        shutil.rmtree(tmp_path / "step-00000007")
    store.commit(snapshot(7), score=None)
    assert steps_in(tmp_path) == ["step-00000007"]
    check_is_of_step(store.newest(never), 7)


def test_what_is_no_commit_is_left_alone(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), keep=1)
    strangers = ["notes", "step-12", "step-latest", "step-00000009.bak", "best.pt", ".hidden"]
    for name in strangers:
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000008").write_text("a file")
    for step in (1, 2):
        store.commit(snapshot(step), score=None)
    (tmp_path / "step-00000002" / "extra.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    check_is_of_step(store.newest(never), 2)
    assert steps_in(tmp_path) == sorted([*strangers, "step-00000008", "step-00000002"])


def test_storage_that_fails_does_not_make_a_run_start_further_back(failing: type[FailingMemory]) -> None:
    store = CheckpointStore("fsspec+failing://a", keep=2)
    for step in (1, 2):
        store.commit(snapshot(step), score=None)
    failing.reads_fail = True
    with pytest.raises(
        CheckpointError, match=r"could not read the checkpoint fsspec\+failing://a/step-00000002: .*denied"
    ):
        store.newest(never)


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    store = CheckpointStore(str(tmp_path / "checkpoints"), keep=1)
    with pytest.raises(CheckpointError, match=r"run.folder: could not list .*/checkpoints: .*must be a folder"):
        store.newest(never)
    with pytest.raises(CheckpointError, match=r"run.folder: could not commit step 1 to .*/checkpoints/step-00000001"):
        store.commit(snapshot(1), score=None)
