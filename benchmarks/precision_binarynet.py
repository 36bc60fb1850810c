"""What a network learns with signs: the part `binarynet` of `precision`.

The network of experiments/binarynet.yaml in fp32, with binary layers, and with norms and AdaMax by powers of two as
well: held-out accuracy at the end of training, mean and spread over seeds. Each binary network is then packed: its
outputs for all validation samples must be those of before bit for bit, and its tensors are so much smaller.
"""

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from orchestrator import launch
from orchestrator.config.load import load_experiment
from orchestrator.evaluation import Restored, pack, restore_run
from orchestrator.plan import Resources
from orchestrator.run_folder import RunFolder

EXPERIMENT = Path(__file__).parent.parent / "experiments" / "binarynet.yaml"
ARMS = {
    "fp32": ["precision=fp32"],
    "binary": ["precision=binary"],
    "by powers of two": ['precision={default: binary, "*norm": shift}', "train.optimizer.name=shift_adamax"],
}
CIFAR_AUGMENT = (
    "data.augment=[random_crop: {padding: 4}, horizontal_flip, "
    "normalize: {mean: [0.4914, 0.4822, 0.4465], std: [0.2470, 0.2435, 0.2616]}]"
)


@contextlib.contextmanager
def unseen(*_: Any) -> Iterator[None]:
    yield


def trained(folder: str, overrides: list[str]) -> dict[str, Any]:
    """Train alone, in this process; accuracy, and what packing does where layers are binary."""
    chosen = load_experiment(str(EXPERIMENT), ["strategy.workers=0", *overrides, f"run.folder={folder}/run"])
    result = launch.run(chosen, resume=False, overwrite=False, watch=unseen)
    found: dict[str, Any] = {"accuracy": float(result["val_accuracy"]), "seconds": float(result["wall_s"])}
    if chosen.precision.default.name == "binary":
        restored = restore_run(RunFolder(f"{folder}/run"), chosen, Resources(1, 0), newest=True)
        restored.take_average()
        before = outputs(restored)
        size = pack(restored)
        found |= {
            "same_outputs": torch.equal(before, outputs(restored)),
            "outputs": before.numel(),
            "bytes": size.before,
            "packed_bytes": size.after,
            "layers": len(size.packing.layers),
            "folded": len(size.packing.folded),
        }
    return found


@torch.inference_mode()
def outputs(restored: Restored) -> Tensor:
    """Of all validation samples, in order. Shapes: (samples, classes)."""
    to_device = restored.to_device()
    return torch.cat([restored.learner.model(to_device(batch, training=False)[0]) for batch in restored.batches()])


def sets_of(args: argparse.Namespace) -> dict[str, list[str]]:
    """Data -> what of the experiment is other than in its file."""
    sets = {"digits": [f"train.epochs={args.epochs}"]}
    if args.cifar:
        sets["cifar10"] = [
            f"data.train=tar:{args.cifar}/train.tar?per_class={args.per_class}",
            f"data.val=tar:{args.cifar}/test.tar?per_class=200",
            "data.image_size=32",
            "data.channels=3",
            CIFAR_AUGMENT,
            f"model.options={{width: {args.width}}}",
            f"train.epochs={args.cifar_epochs}",
            "train.channels_last=true",
        ]
    return {name: overrides for name, overrides in sets.items() if name in args.sets}


def binarynet(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(max(1, args.threads))
    found: dict[str, Any] = {}
    for name, overrides in sets_of(args).items():
        runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in args.arms}
        for seed in range(args.seeds):
            for arm in args.arms:
                with tempfile.TemporaryDirectory() as folder:
                    run = trained(folder, [*overrides, *ARMS[arm], f"seed={seed}"])
                runs[arm].append(run)
                print(f"{name} seed {seed} {arm}: {run}", flush=True)
        found[name] = {arm: summary(all_) for arm, all_ in runs.items()}
        for arm, figure in found[name].items():
            print(f"{name}: {arm} {figure['mean']:.2%}, spread {figure['spread']:.2%}", flush=True)
    return found


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the runs of an arm, one a seed. `same_outputs`: of all of them; `smaller`: fp32's bytes over the packed."""
    accuracies = [run["accuracy"] for run in runs]
    about: dict[str, Any] = {
        "mean": statistics.fmean(accuracies),
        "spread": max(accuracies) - min(accuracies),
        "n": len(runs),
        "seeds": runs,
    }
    if "bytes" in runs[0]:
        about["same_outputs"] = all(run["same_outputs"] for run in runs)
        about["smaller"] = runs[0]["bytes"] / runs[0]["packed_bytes"]
    return about


def chart(axis: Any, found: dict[str, Any]) -> None:
    """Accuracies as bars, with the range over seeds."""
    bars = [(f"{name}, {arm}", figure) for name, arms in found.items() for arm, figure in arms.items()]
    for place, (label, figure) in enumerate(bars):
        accuracies = [run["accuracy"] for run in figure["seeds"]]
        mean, colour = figure["mean"], measure.COLOURS[place % len(ARMS)]
        spread = [[mean - min(accuracies)], [max(accuracies) - mean]]
        axis.barh(place, mean, color=colour, height=0.6)
        axis.errorbar(mean, place, xerr=spread, color=measure.INK, capsize=3, linewidth=1)
        smaller = f", packed to 1/{figure['smaller']:.1f}" if "smaller" in figure else ""
        axis.text(0.01, place, f" {label}: {mean:.2%}{smaller}", va="center", color="white", fontsize=9)
    axis.set_yticks([])
    axis.set_xlim(0, 1)
    axis.set_xlabel("held-out accuracy, mean and range over seeds", color=measure.INK)
