"""What benchmarks compute from what they measured, the images they make, and how `convoy bench` names them."""

import io
import tarfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import encoded

from benchmarks import cifar10, plain_cifar, precision_binarynet
from benchmarks.disk import filesystem_of
from benchmarks.overlap import figures, judged, verdicts
from benchmarks.photos import copy_photos, link_photos, unpack, write_tars
from orchestrator.cli import app
from orchestrator.config.experiment import CosineConfig
from orchestrator.config.load import load_experiment
from orchestrator.errors import InputError
from orchestrator.training.schedule import rate
from pipelines.sources import open_source

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text())


def test_bench_without_a_name_lists_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    app(["bench"], standalone_mode=False)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == NAMES


def test_bench_refuses_a_name_that_there_is_not_and_says_which_there_are() -> None:
    with pytest.raises(InputError, match="NAME: got nothing_such, must be cifar10, decode, disk, "):
        app(["bench", "nothing_such"], standalone_mode=False)


def test_the_page_about_benchmarks_has_all_of_them() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in page] == [], "a row in docs/benchmarks.md for each"


def steps(waits: list[float], epochs: list[int], at: list[float], step_s: float) -> list[dict[str, Any]]:
    return [
        {
            "kind": "step",
            "epoch": epoch,
            "time": time - wait,
            "step_s": wait + step_s,
            "seconds": {"data_wait": wait, "checkpoint": 0.25 * epoch},
        }
        for wait, epoch, time in zip(waits, epochs, at, strict=True)
    ]


def test_overlap_leaves_the_start_out_and_finds_the_gap_at_an_epochs_edge() -> None:
    arrived = [10.0, 11.0, 12.0, 14.5, 15.5, 16.5]
    asked = [2.0, 10.9, 11.9, 12.9, 15.4, 16.4]
    waits = [came - ask for came, ask in zip(arrived, asked, strict=True)]
    lines = [*steps(waits, [0, 0, 0, 1, 1, 1], arrived, 0.9), {"kind": "epoch", "evaluation_s": 0.5}]
    found = figures({"asked": asked, "arrived": arrived}, lines, started=1.0, step_s=0.9)
    assert found["start_up_s"] == 9.0
    assert found["total_s"] == pytest.approx(16.5 + 0.9 - 10)
    assert found["gaps_at_epoch_edges_s"] == [2.5]
    assert (found["evaluations_s"], found["commits_s"]) == ([0.5], [0.25])
    assert found["median_gap_s"] == 1.0
    assert found["longest_gap_within_s"] == 1.0
    assert found["wait_true_s"] == pytest.approx(0.1 * 4 + 1.6)
    assert found["wait_reported_s"] == pytest.approx(0.1 * 4 + 1.6)


def one(total_s: float, step_s: float, *, reported: float = 1.0, edge: float = 1.0) -> dict[str, Any]:
    return {
        "step_s": step_s, "steps": 11, "start_up_s": 5.0, "total_s": total_s, "wait_reported_s": reported,
        "wait_true_s": 1.0, "gaps_at_epoch_edges_s": [0.5, edge], "median_gap_s": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("measured", "data_s", "expected"),
    [
        (one(11.0, 1.0), 0.5, {"total": 1.0, "wait_error": 0.0, "edge": 1.0}),  # the step is the longer
        (one(10.5, 0.5), 1.0, {"total": 1.0, "edge": 1.0}),  # the data is: ten batches behind one step
        (one(21.0, 1.0, edge=3.0), 2.0, {"total": 1.0, "edge": 33 / 21}),  # a step's time is total_s / steps
        (one(11.0, 1.0, reported=0.9), 0.5, {"wait_error": 0.1, "wait_error_of_total": 0.1 / 11}),
    ],
)
def test_overlap_compares_with_what_no_overlap_can_beat(
    measured: dict[str, Any], data_s: float, expected: dict[str, float]
) -> None:
    found = judged(measured, data_s)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_overlap_reaches_its_target_by_the_median_but_by_the_longest_gap() -> None:
    rounds = [{"t": judged(one(total, 1.0, edge=edge), 0.5)} for total, edge in ((11.0, 1.0), (11.1, 1.5), (22.0, 5.0))]
    found = verdicts(rounds)["t"]
    assert found["total"] == pytest.approx(11.1 / 11)
    assert found["reached"] == {"total": True, "wait": True, "edge": False}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.JPEG").write_bytes(encoded(np.full((8, 8, 3), 60 * number, np.uint8), "JPEG"))
    return folder


@pytest.mark.parametrize("place", [link_photos, copy_photos])
def test_photos_are_repeated_into_class_folders(photos: Path, tmp_path: Path, place: Any) -> None:
    place(photos, tmp_path / "images", 25)
    source = open_source(f"imagefolder:{tmp_path}/images", "train")
    assert len(source.listing) == 25
    assert len(source.listing.classes) == 10
    made = tmp_path / "images" / "class4" / "000014.jpg"
    assert made.read_bytes() == (photos / "2.JPEG").read_bytes()
    assert made.is_symlink() == (place is link_photos)


def test_a_folder_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="holds no JPEG file"):
        link_photos(tmp_path, tmp_path / "images", 2)


def test_a_tar_gives_an_even_part_of_its_classes(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for label in ("cat", "dog"):
            for number in range(6):
                member = tarfile.TarInfo(f"train/{label}/{number}.jpg")
                member.size = 3
                tar.addfile(member, io.BytesIO(f"{label[0]}{number}.".encode()))
    images = tmp_path / "images"
    images.mkdir()
    unpack(tmp_path / "train.tar", images, 4)
    found = {path.relative_to(images).as_posix(): path.read_text() for path in images.rglob("*.jpg")}
    assert found == {"cat/0.jpg": "c0.", "cat/3.jpg": "c3.", "dog/0.jpg": "d0.", "dog/3.jpg": "d3."}


def test_tars_hold_the_same_images_and_labels_as_the_folders(photos: Path, tmp_path: Path) -> None:
    link_photos(photos, tmp_path / "images", 25)
    write_tars(tmp_path / "images", tmp_path / "tars", 10)
    assert sorted(path.name for path in (tmp_path / "tars").iterdir()) == ["0000.tar", "0001.tar", "0002.tar"]
    folders = open_source(f"imagefolder:{tmp_path}/images", "train")
    tars = open_source(f"tar:{tmp_path}/tars/*.tar", "train")

    def samples(source: Any) -> list[tuple[int, bytes]]:
        return sorted((int(label), source.read(i)) for i, label in enumerate(source.listing.labels))

    assert samples(tars) == samples(folders)


def test_the_filesystem_of_a_folder_is_that_of_the_longest_mount_point() -> None:
    assert filesystem_of(Path("/proc/self"))["type"] == "proc"


def epoch(time: float, accuracy: float, train_s: float, wait_s: float) -> dict[str, float]:
    return {
        "time": time,
        "val_accuracy": accuracy,
        "train_s": train_s,
        "data_wait_s": wait_s,
        "evaluation_s": 2.0,
    }


def test_cifar10_splits_a_command_into_start_epochs_and_rest() -> None:
    epochs = [epoch(112.0, 0.5, 8.0, 1.0), epoch(120.0, 0.7, 6.0, 0.0), epoch(131.0, 0.6, 6.0, 3.0)]
    found = cifar10.figures(epochs, num_images=100, started=100.0, ended=140.0)
    assert found == {
        "accuracy": 0.6,
        "total_s": 40.0,
        "epoch_s": 8.0,
        "start_s": 2.0,
        "images_per_s": 15.0,
        "data_wait_share": 0.2,
        "curve": [(12.0, 0.5), (20.0, 0.7), (31.0, 0.6)],
    }


def test_the_plain_script_has_the_recipe_of_the_cifar_experiment() -> None:
    experiment = load_experiment(str(cifar10.EXPERIMENT), ["train.epochs=4", "train.schedule.warmup_epochs=0.5"])
    plain_cifar.check(experiment)
    names = [type(step).__name__ for step in plain_cifar.transform(experiment, training=True).transforms]
    assert names == ["PILToTensor", "RandomCrop", "RandomHorizontalFlip", "RandomApply", "ToDtype", "Normalize"]
    names = [type(step).__name__ for step in plain_cifar.transform(experiment, training=False).transforms]
    assert names == ["PILToTensor", "ToDtype", "Normalize"]
    assert isinstance(experiment.train.schedule, CosineConfig)
    for step in range(40):
        ours = rate(experiment.train.schedule, base_lr=1.0, step=step, steps_per_epoch=10, epochs=4)
        assert plain_cifar.rate(experiment, step, 10) == pytest.approx(ours)


@pytest.mark.parametrize("override", ["train.ema_decay=0.9", "precision=bf16", "train.schedule.final=0.1"])
def test_the_plain_script_refuses_a_recipe_that_it_has_not(override: str) -> None:
    with pytest.raises(SystemExit, match=override.split("=")[0].removesuffix(".final")):
        plain_cifar.check(load_experiment(str(cifar10.EXPERIMENT), [override]))


def test_binarynets_seeds_are_summed_up_and_one_that_differs_is_told() -> None:
    sizes = {"bytes": 300, "packed_bytes": 20, "layers": 3, "folded": 2}
    runs = [{"accuracy": 0.5, "same_outputs": True, **sizes}, {"accuracy": 0.75, "same_outputs": False, **sizes}]
    found = precision_binarynet.summary(runs)
    assert {name: found[name] for name in ("mean", "spread", "n", "same_outputs", "smaller")} == {
        "mean": 0.625, "spread": 0.25, "n": 2, "same_outputs": False, "smaller": 15.0,
    }  # fmt: skip
    assert "smaller" not in precision_binarynet.summary([{"accuracy": 0.5}])


@pytest.mark.parametrize("arm", precision_binarynet.ARMS)
@pytest.mark.parametrize("folder", [None, "somewhere"])
def test_binarynets_arms_are_experiments(arm: str, folder: str | None) -> None:
    args = Namespace(sets=["digits", "cifar10"], epochs=2, cifar=folder, cifar_epochs=3, per_class=10, width=16)
    for overrides in precision_binarynet.sets_of(args).values():
        chosen = load_experiment(
            str(precision_binarynet.EXPERIMENT), [*overrides, *precision_binarynet.ARMS[arm], "strategy.workers=0"]
        )
    assert chosen.data.image_size == (8 if folder is None else 32)
    assert chosen.train.epochs == (2 if folder is None else 3)
    assert (chosen.precision.default.name == "binary") == (arm != "fp32")
