"""Training in few bits: how long a step takes in bf16, and what networks learn. Parts of benchmarks/precision.py."""

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from benchmarks import measure
from orchestrator import launch
from orchestrator.config.experiment import SgdConfig
from orchestrator.config.load import load_experiment
from orchestrator.config.precision import PrecisionConfig
from orchestrator.training.optim import build_optimizer
from orchestrator.training.precision import Precision

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "experiments" / "digits.yaml"
CIFAR = ROOT / "experiments" / "cifar10.yaml"
INTEGER_BITS = 4
BF16_TARGETS = {"vgg16: bf16 over fp32": 1.6}
STEP_NETWORKS = ("vgg16", "resnet50")
WARM_UP = 2
STYLES = {"stochastic": "-o", "stochastic unscaled": ":o", "nearest": "-s", "nearest unscaled": ":s", "dynamic": "-.^"}
Figures = dict[str, Any]


def step_in(name: str, precision: dict[str, Any], layout: torch.memory_format, batch: int) -> Callable[[], float]:
    """A training step by Convoy's own precision and optimizer."""
    torch.manual_seed(0)
    config = PrecisionConfig.model_validate(precision)
    model = torchvision.models.get_model(name, weights=None).to(memory_format=layout)
    arithmetic = Precision(config, torch.device("cpu"), model, 0)
    optimizer = build_optimizer(model, SgdConfig(lr=0.01, momentum=0.9), config.optimizer)
    images = torch.randn(batch, 3, 224, 224).contiguous(memory_format=layout)
    labels = torch.randint(1000, (batch,))

    def step() -> float:
        optimizer.zero_grad()
        with arithmetic.autocast():
            outputs = model(images)
        loss = nn.functional.cross_entropy(outputs.float(), labels)
        arithmetic.backward(loss)
        arithmetic.step(optimizer, 0.0)
        return loss.item()

    return lambda: measure.seconds_of(step)


def steps(args: argparse.Namespace) -> Figures:
    found: Figures = {"ratios": {}, "seconds": {}}
    bf16 = {"default": {"name": "bf16"}}
    arms = {
        "fp32, nchw": ({}, torch.contiguous_format),
        "fp32, nhwc": ({}, torch.channels_last),
        "bf16": (bf16, torch.channels_last),
        "bf16, weights too": (bf16 | {"optimizer": {"weights": "bf16"}}, torch.channels_last),
    }
    for name in STEP_NETWORKS:
        calls = {arm: step_in(name, precision, layout, args.step_batch) for arm, (precision, layout) in arms.items()}
        seconds = {arm: taken[WARM_UP:] for arm, taken in measure.in_turns(calls, args.rounds + WARM_UP).items()}
        better = min(("fp32, nchw", "fp32, nhwc"), key=lambda arm: statistics.median(seconds[arm]))
        speed = {arm: [1 / taken for taken in all_] for arm, all_ in seconds.items()} | {
            "fp32": [1 / taken for taken in seconds[better]]
        }
        for arm in ("bf16", "bf16, weights too"):
            ratio = found["ratios"][f"{name}: {arm} over fp32"] = measure.ratio(speed, arm, "fp32")
            print(f"{name}: a step in {arm} {ratio['median']:.2f} times as fast as in fp32", flush=True)
        found["seconds"][name] = measure.summary(seconds, "s")
    return found


@contextlib.contextmanager
def unseen(*_: Any) -> Iterator[None]:
    yield


def accuracy_of(experiment: Path, *overrides: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        chosen = load_experiment(str(experiment), ["strategy.workers=0", *overrides, f"run.folder={folder}/run"])
        result = launch.run(chosen, resume=False, overwrite=False, watch=unseen)
    return float(result["val_accuracy"])


def formats(bits: list[int], gradient_scale: int) -> dict[str, str]:
    """Name -> the section `precision`; fixed point with four bits before the point."""
    found = {"fp32": "fp32", "bf16": "bf16", "bf16, weights too": "{default: bf16, optimizer: {weights: bf16}}"}
    for total in bits:
        found[f"{total} bits dynamic"] = f"{{dynamic_fixed: {{bits: {total}}}}}"
        grid = f"integer_bits: {INTEGER_BITS}, fraction_bits: {total - INTEGER_BITS}"
        for how in ("stochastic", "nearest"):
            for name, scale in ((how, gradient_scale), (f"{how} unscaled", 1)):
                found[f"{total} bits {name}"] = f"{{fixed: {{{grid}, rounding: {how}, gradient_scale: {scale}}}}}"
    return found


def learning(args: argparse.Namespace) -> Figures:
    sets: dict[str, tuple[Path, list[int], list[str]]] = {
        "digits": (DIGITS, args.bits, [f"train.epochs={args.epochs}"])
    }
    if args.cifar:
        data = [
            f"data.train=tar:{args.cifar}/train.tar?per_class={args.per_class}",
            f"data.val=tar:{args.cifar}/test.tar?per_class=200",
        ]
        small = ["model.options={width: 8}", f"train.epochs={args.cifar_epochs}"]
        quick = ["train.global_batch=64", "train.optimizer.lr=0.1"]
        sets["cifar10"] = (CIFAR, args.cifar_bits, [*data, *small, *quick])
    found: Figures = {}
    for name in (name for name in sets if name in args.sets):
        experiment, bits, overrides = sets[name]
        arms = formats(bits, args.gradient_scale)
        runs: dict[str, list[float]] = {arm: [] for arm in arms}
        for seed in range(args.seeds):
            for arm, precision in arms.items():
                runs[arm].append(accuracy_of(experiment, *overrides, f"precision={precision}", f"seed={seed}"))
                print(f"{name} seed {seed} {arm}: {runs[arm][-1]:.2%}", flush=True)
        found[name] = {
            arm: {"mean": statistics.fmean(all_), "spread": max(all_) - min(all_), "n": len(all_), "seeds": all_}
            for arm, all_ in runs.items()
        }
        for arm, figure in found[name].items():
            print(f"{name}: {arm} {figure['mean']:.2%}, spread {figure['spread']:.2%}", flush=True)
    return found


def chart_of_learning(axis: Any, found: Figures) -> None:
    """Accuracy by bits."""
    for number, (name, arms) in enumerate(found.items()):
        colour = measure.COLOURS[number]
        for how, style in STYLES.items():
            points = [(int(arm.split()[0]), figure) for arm, figure in arms.items() if arm.endswith(f"bits {how}")]
            axis.plot(
                [bits for bits, _ in points], [figure["mean"] for _, figure in points], style, color=colour,
                markersize=4, linewidth=1.2, label=f"{name}, {how}",
            )  # fmt: skip
        axis.axhline(arms["fp32"]["mean"], color=colour, linewidth=0.8, linestyle="--", label=f"{name}, fp32")
    axis.legend(fontsize=7)
    axis.set_xlabel("bits of weights, activations and gradients; held-out accuracy", color=measure.INK)
