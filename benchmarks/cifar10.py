"""CIFAR-10 from files to accuracy: `convoy train` with 2 workers, and a plain torch script of the same recipe.

    python -m benchmarks.cifar10 FOLDER      # FOLDER holds train.tar and test.tar, class folders of JPEG files
    python -m benchmarks.cifar10 FOLDER --rounds 1 --images 2000 --override train.epochs=1     # a try

Both train experiments/cifar10.yaml from the same class folders; the plain script is benchmarks/plain_cifar.py, which
says what a user would write. Each is a command of its own, in turns, start-up and shut-down included: Convoy's starts
Ray, commits every epoch and writes its report; the plain script keeps nothing. Their draws differ, hence their pixels,
and their accuracies by as much as with another seed.

Reported of each: accuracy on the 10,000 held-out images after the last epoch (neither chooses an epoch by it), seconds
in all, of an epoch with its evaluation, and before the first step, images/s in training, share of that waited for data.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.photos import unpack

ROOT = Path(__file__).parent.parent
EXPERIMENT = ROOT / "experiments" / "cifar10.yaml"
NUM_TRAIN, NUM_VAL = 50_000, 10_000
UNITS = {
    "accuracy": "of 1",
    "total_s": "s",
    "epoch_s": "s",
    "start_s": "s",
    "images_per_s": "images/s",
    "data_wait_share": "of 1",
}
Figures = dict[str, Any]


def figures(epochs: list[dict[str, float]], *, num_images: int, started: float, ended: float) -> Figures:
    """What one command did.

    `epochs`: of each the Unix `time` of its end, `val_accuracy`, and seconds: `train_s`, of which `data_wait_s`, and
    `evaluation_s`. `started` and `ended`: the command's.
    """
    train_s = sum(epoch["train_s"] for epoch in epochs)
    first = epochs[0]
    return {
        "accuracy": epochs[-1]["val_accuracy"],
        "total_s": ended - started,
        "epoch_s": statistics.median(epoch["train_s"] + epoch["evaluation_s"] for epoch in epochs),
        "start_s": first["time"] - first["train_s"] - first["evaluation_s"] - started,
        "images_per_s": num_images * len(epochs) / train_s,
        "data_wait_share": sum(epoch["data_wait_s"] for epoch in epochs) / train_s,
        "curve": [(epoch["time"] - started, epoch["val_accuracy"]) for epoch in epochs],
    }


def epochs_of_run(folder: Path) -> list[dict[str, float]]:
    """Convoy's own record of a run, as `figures` takes it."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        {
            "time": record["time"],
            "val_accuracy": record["val_accuracy"],
            "train_s": sum(record["seconds"].values()),
            "data_wait_s": record["seconds"]["data_wait"],
            "evaluation_s": record["evaluation_s"],
        }
        for record in records
        if record["kind"] == "epoch"
    ]


def run_convoy(images: Path, args: argparse.Namespace) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        started = time.time()
        _output(
            "orchestrator", "train", str(EXPERIMENT), f"data.train=imagefolder:{images}/train",
            f"data.val=imagefolder:{images}/val", f"strategy.workers={args.workers}", f"run.folder={run}",
            *args.override,
        )  # fmt: skip
        ended = time.time()
        return figures(epochs_of_run(run), num_images=args.images, started=started, ended=ended)


def run_plain(images: Path, args: argparse.Namespace) -> Figures:
    started = time.time()
    workers = (f"--workers={args.workers}", f"--loaders={args.loaders}")
    printed = _output("benchmarks.plain_cifar", str(images), *workers, "--override", *args.override)
    epochs = json.loads(printed.splitlines()[-1])
    return figures(epochs, num_images=args.images, started=started, ended=time.time())


def _output(module: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def curves(axis: Any, rounds: dict[str, list[Figures]]) -> None:
    """Accuracy over the seconds since the command was given, a line a run."""
    for colour, (name, runs) in zip(measure.COLOURS, rounds.items(), strict=False):
        for number, run in enumerate(runs):
            seconds, accuracies = zip(*run["curve"], strict=True)
            percent = [100 * accuracy for accuracy in accuracies]
            axis.plot(seconds, percent, color=colour, marker="o", markersize=3, label=None if number else name)
    axis.set_xlabel("seconds since the command was given", color=measure.INK)
    axis.set_ylabel("held-out accuracy, %", color=measure.INK)
    axis.set_xlim(0, None)
    axis.legend(frameon=False)


def report(args: argparse.Namespace, here: dict[str, Any], rounds: dict[str, list[Figures]]) -> None:
    def of(figure: str) -> dict[str, list[float]]:
        return {name: [run[figure] for run in runs] for name, runs in rounds.items()}

    ratios = {
        "images/s": measure.ratio(of("images_per_s"), "Convoy", "plain script"),
        "seconds in all": measure.ratio(of("total_s"), "Convoy", "plain script"),
    }
    for name, runs in rounds.items():
        median = {figure: statistics.median(run[figure] for run in runs) for figure in UNITS}
        print(
            f"{name}: {median['accuracy']:.2%}, {median['total_s']:.0f} s in all, {median['epoch_s']:.1f} s an epoch, "
            f"{median['images_per_s']:,.0f} images/s, {median['data_wait_share']:.1%} of it waiting for data"
        )
    for name, figure in ratios.items():
        print(
            f"{name}, of the plain script's: {figure['median']:.3f} ({figure['lowest']:.3f} to {figure['highest']:.3f})"
        )
    record = {
        "title": f"CIFAR-10, {args.workers} workers: Convoy and a plain torch script of the same recipe",
        "settings": {name: getattr(args, name) for name in ("rounds", "images", "workers", "loaders", "override")},
        "recipe": EXPERIMENT.read_text(),
        "machine": here,
        "ratios": ratios,
        "values": {
            f"{name}, {figure}": measure.summary(of(figure), unit)[name]
            for name in rounds
            for figure, unit in UNITS.items()
        },
        "accuracy_over_seconds": {name: [run["curve"] for run in runs] for name, runs in rounds.items()},
    }
    measure.write("cifar10", record, lambda axis: curves(axis, rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--images", type=int, default=NUM_TRAIN, help="to train on; a fifth as many are held out")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--loaders", type=int, default=1, help="DataLoader's processes of each worker")
    parser.add_argument("--override", nargs="*", default=[], help="dotted.path=value, for both")
    args = parser.parse_args()
    rounds: dict[str, list[Figures]] = {"plain script": [], "Convoy": []}
    here = measure.machine()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder)
        for tar, name, number in (("train", "train", args.images), ("test", "val", args.images * NUM_VAL // NUM_TRAIN)):
            (images / name).mkdir()
            unpack(args.folder / f"{tar}.tar", images / name, number)

        def seconds(name: str, run: Callable[[Path, argparse.Namespace], Figures]) -> float:
            rounds[name].append(run(images, args))
            return float(rounds[name][-1]["total_s"])

        arms = {"plain script": run_plain, "Convoy": run_convoy}
        measure.in_turns({name: partial(seconds, name, run) for name, run in arms.items()}, args.rounds)
    report(args, here, rounds)


if __name__ == "__main__":
    main()
