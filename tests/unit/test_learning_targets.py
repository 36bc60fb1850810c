"""Runs in this process, without Ray, on a parquet file: several classes and values are learned from images."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_files import encoded
from torch import Tensor
from typer.testing import CliRunner

from orchestrator import launch
from orchestrator.cli import app
from orchestrator.config.load import load_experiment
from orchestrator.errors import InputError
from orchestrator.live import row
from orchestrator.plan import Resources
from orchestrator.prepare import prepare
from orchestrator.report.build import write_report
from orchestrator.report.figures import figures
from orchestrator.report.record import read_record
from orchestrator.run_folder import RunFolder
from orchestrator.run_log import RunLog
from orchestrator.strategies.base import Strategy
from orchestrator.strategies.sync import OneWorker
from orchestrator.training.evaluate import Evaluation, evaluate
from orchestrator.training.learner import Learner
from orchestrator.training.measures import MEASURES
from orchestrator.worker import build_learner
from pipelines.device import ToDevice
from pipelines.loader import Batch
from tests.conftest import DIGITS

NUM = 240


def write(path: Path, kind: str) -> Path:
    """Squares with more or less red and blue in them, each by itself; labels say which there is, or how much."""
    draws = np.random.default_rng(0)
    light = draws.random((NUM, 2))
    pixels = draws.random((NUM, 8, 8, 3)) * 50
    pixels[..., ::2] += light[:, None, None] * 200
    label: Any = light.tolist()
    if kind == "classes":
        label = [[name for name, value in zip(("red", "blue"), row, strict=True) if value > 0.5] for row in light]
    images = [encoded(image.astype(np.uint8)) for image in pixels]
    pq.write_table(pa.table({"image": images, "label": label}), path)
    return path


def overrides(folder: Path, kind: str, *more: str) -> list[str]:
    source = f"parquet:{write(folder / 'x.parquet', kind)}?val_fraction=0.25"
    return [
        f"data.train={source}", f"data.val={source}", f"run.folder={folder / 'run'}", "strategy.workers=0",
        "model.options={width: 8}", "data.channels=3",
        "data.augment=[{normalize: {mean: [0.5, 0.1, 0.5], std: [0.25, 0.25, 0.25]}}]",
        "train.epochs=6", "train.global_batch=20", "train.schedule.warmup_epochs=0", "train.label_smoothing=0",
        "train.optimizer={name: adamw, lr: 0.01}", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For images this small, threads that wait for each other take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "resources_here", lambda: Resources(1, 0))
        yield


def no_watch(*_: object) -> AbstractContextManager[None]:
    return nullcontext()


@pytest.fixture(scope="module", params=["classes", "values"])
def learned(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, Any]]:
    """A run of each kind: the kind, its folder, its result."""
    folder = tmp_path_factory.mktemp(request.param)
    experiment = load_experiment(DIGITS, overrides(folder, request.param, "checkpoint.keep=1"))
    return request.param, folder, launch.run(experiment, resume=False, overwrite=False, watch=no_watch)


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def test_the_run_learns_and_its_figures_are_written(learned: tuple[str, Path, dict[str, Any]]) -> None:
    kind, folder, result = learned
    first, *_, last = lines(folder, "epoch")
    if kind == "classes":
        assert result["best_by"] == "mean_average_precision"
        assert result["val_mean_average_precision"] > 0.98
        assert result["val_f1"] > 0.9
        assert result["classes"] == ["blue", "red"]
        assert last["train_f1"] > first["train_f1"]
        assert {"f1", "exact_match"} <= lines(folder, "step")[0].keys()
    else:
        assert result["best_by"] == "rmse"
        assert result["val_rmse"] < 0.1, "evenly spread numbers from 0 to 1 have a deviation of 0.29"
        assert result["val_r2"] > 0.85
        assert last["train_mae"] < first["train_mae"]
    assert result["val_loss"] == last["val_loss"]


def test_the_best_commit_by_the_figure_that_decides_is_kept(learned: tuple[str, Path, dict[str, Any]]) -> None:
    kind, folder, result = learned
    name, choose = ("val_mean_average_precision", max) if kind == "classes" else ("val_rmse", min)
    best = choose(epoch[name] for epoch in lines(folder, "epoch"))
    assert result[f"best_{name}"] == best
    kept = {path.name for path in (folder / "run" / "checkpoints").iterdir()}
    steps = {f"step-{epoch['step']:08d}" for epoch in lines(folder, "epoch") if epoch[name] == best}
    assert kept & steps
    commits = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]
    assert [event[name] for event in commits if event["event"] == "commit"] == [
        epoch[name] for epoch in lines(folder, "epoch")
    ]


def test_evaluate_gives_the_figures_of_the_best_commit(learned: tuple[str, Path, dict[str, Any]]) -> None:
    kind, folder, result = learned
    done = CliRunner().invoke(app, ["evaluate", str(folder / "run")])
    assert done.exit_code == 0, done.output
    measure = MEASURES[result["best_by"]]
    assert f"validation {measure.title} {measure.text(result[f'best_val_{measure.name}'])}, " in done.output
    assert ("exact match" if kind == "classes" else "R\u00b2") in done.output


def test_the_report_names_what_the_run_was_judged_by(learned: tuple[str, Path, dict[str, Any]]) -> None:
    kind, folder, result = learned
    record = read_record(folder / "run")
    assert record.measures[0].name == result["best_by"]
    assert record.steps.measure.name == ("f1" if kind == "classes" else "rmse")
    key = figures(record)
    assert key.best_val == result[f"best_val_{result['best_by']}"]
    page = write_report(folder / "run").read_text()
    title = MEASURES[result["best_by"]].title
    for text in (f"Validation {title}", f"Best validation {title}", f"{title} by epoch", f"val. {title}"):
        assert text in page
    assert "ccuracy" not in page


def test_the_live_table_has_the_figures_of_the_task(learned: tuple[str, Path, dict[str, Any]]) -> None:
    kind, folder, _ = learned
    experiment = load_experiment(str(folder / "run" / "experiment.yaml"), [])
    plan = prepare(experiment, Resources(2, 0)).plan
    log = RunLog(RunFolder(str(folder / "run")), {})
    shown = row(log.view(), plan, experiment)
    assert list(shown)[3:5] == (["F1", "val mAP"] if kind == "classes" else ["RMSE", "val RMSE"])


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_two_workers_evaluate_to_the_figures_of_one(kind: str, tmp_path: Path) -> None:
    experiment = load_experiment(DIGITS, overrides(tmp_path, kind))
    prepared = prepare(experiment, Resources(2, 0))
    setup = prepared.setup(RunFolder(experiment.run.path))
    cpu, recipe, epoch = torch.device("cpu"), prepared.recipe(False), setup.val_epoch
    to_device = ToDevice(experiment.data, 0, cpu, channels_last=False)

    def evaluated(strategy: Strategy, learner: Learner) -> Evaluation:
        def batches() -> Iterator[Batch]:
            for step in range(epoch.num_steps):
                positions = epoch.share(step, strategy.rank, strategy.world_size)
                made = recipe.produce(0, positions)
                yield Batch(0, step, positions, made.images, made.labels, made.keys)

        return evaluate(learner, strategy, batches(), epoch, to_device)

    alone, *learners = (build_learner(setup, cpu) for _ in range(3))
    expected = evaluated(OneWorker(), alone)
    box: dict[int, Tensor] = {}
    barrier = threading.Barrier(2)
    workers = [Pair(rank, box, barrier) for rank in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        pair = list(pool.map(evaluated, workers, learners))
    assert pair[0] == pair[1]
    assert pair[0].figures == pytest.approx(expected.figures, abs=1e-5)
    assert pair[0].mean_loss == pytest.approx(expected.mean_loss, rel=1e-5)


class Pair(OneWorker):
    """One of two workers in threads of this process; they only add."""

    world_size = 2

    def __init__(self, rank: int, box: dict[int, Tensor], barrier: threading.Barrier) -> None:
        self.rank, self._box, self._barrier = rank, box, barrier  # type: ignore[misc]

    def sum(self, values: Tensor) -> Callable[[], Tensor]:
        self._box[self.rank] = values
        self._barrier.wait()
        total = self._box[0] + self._box[1]
        self._barrier.wait()
        return lambda: total


def test_label_smoothing_of_several_classes_is_refused_before_anything_starts(tmp_path: Path) -> None:
    experiment = load_experiment(DIGITS, overrides(tmp_path, "classes", "train.label_smoothing=0.1"))
    with pytest.raises(InputError, match=r"train\.label_smoothing: got 0\.1, must be 0"):
        launch.run(experiment, resume=False, overwrite=False, watch=no_watch)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_smooth_l1_and_mixup_train_too_in_parts_and_go_on_where_they_stopped(tmp_path: Path) -> None:
    more = ("train.loss=smooth_l1", "data.augment=[mixup]", "train.accumulate=3", "train.ema_decay=0.9")
    short = load_experiment(
        DIGITS, overrides(tmp_path, "values", *more, "train.epochs=1", "train.schedule.name=constant")
    )
    first = launch.run(short, resume=False, overwrite=False, watch=no_watch)
    (tmp_path / "run" / "result.json").write_text(json.dumps(first | {"wall_s": 1000.0}))
    longer = short.model_copy(update={"train": short.train.model_copy(update={"epochs": 2})})
    result = launch.run(longer, resume=True, overwrite=False, watch=no_watch)
    epochs = lines(tmp_path, "epoch")
    assert [epoch["epoch"] for epoch in epochs] == [0, 1]
    assert result["best_val_rmse"] == min(epoch["val_rmse"] for epoch in epochs)
    assert result["wall_s"] > 1000, "the time before it stopped counts too"
