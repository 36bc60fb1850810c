"""Convolution algorithms against the vendor's better memory layout: layers, networks, training steps, errors.

    python -m benchmarks.kernels REFERENCE       # the folder of vgg_e_layers.csv; hours on two cores
    python -m benchmarks.kernels REFERENCE --parts layers --batches 8
    python -m benchmarks.kernels - --parts networks --networks resnet50

layers     the 3 x 3 layers of VGG-E (Simonyan & Zisserman 2014), each pass: milliseconds, effective TFLOPS (the
           definition's operations over time) and the speed-up of the fastest, as tables 5 and 6 of Lavin & Gray 2015
           (arXiv:1509.09308). Transforms of weights count, as in training.
inference  the same forward at batch 1 on one thread, weights transformed beforehand (`kernels.inference`).
networks   every distinct layer of the networks at batch 8: `convoy tune` chooses, then, on other samples and in turns,
           the choice against the vendor in both layouts. Below 0.97 it is named.
steps      forward, backward and SGD of whole networks at batch 16: PyTorch in both layouts against `kernels: auto` in
           the same two, in turns; the better of each two counts.
accuracy   `convoy train` of an experiment with the vendor's and with `auto`, three seeds each: held-out accuracy.
errors     every algorithm and pass against float64: largest difference over the largest value, fresh random numbers.
memory     of the layers of VGG-E, a depthwise and a 1 x 1 one: time and peak memory beside the tensors, measured, and
           im2col's columns over the size of the input.
strassen   products of square matrices: the size from which one level of Strassen's wins over the vendor's sgemm.
depthwise  the weight's gradient of depthwise layers, one thread.
fft        filters from 5 x 5 to 31 x 31 over 64 channels of 56 x 56, one thread.

Every time is of a result in fresh memory. The targets were set on a CPU with AVX-512. Where the vendor runs at 95 % of
peak, only fewer multiplications beat it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from benchmarks import measure
from benchmarks.kernel_parts import (
    CPU,
    DEPTHWISE_TARGETS,
    FFT_TARGETS,
    INFERENCE_TARGET,
    LAYER_TARGETS,
    depthwise,
    fft,
    inference,
    layers,
    memory,
    seconds_of,
    strassens,
)  # fmt: skip
from kernels import dispatch, tune
from kernels.algorithms import ALGORITHMS, takes
from kernels.shapes import ConvShape
from kernels.swap import replace_convs
from kernels.table import Device, Row, Table

ROOT = Path(__file__).parent.parent
NETWORKS = (
    "alexnet", "vgg19", "googlenet", "inception_v3", "resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0",
    "convnext_tiny",
)  # fmt: skip
WITH_AUXILIARY = ("googlenet", "inception_v3")
STEP_TARGETS = {"vgg16": 2.2, "resnet50": 1.4, "convnext_tiny": 1.3}
NEVER_BELOW = 0.97
# Rounds of steps that do not count: until a process has the memory that it needs, pages cost more than arithmetic
# (ResNet-50: 2.1 s a step at first, 1.3 s from the fourth on).
WARM_UP = 3
TARGETS: dict[str, Any] = {
    "inference": INFERENCE_TARGET,
    "layers": LAYER_TARGETS,
    "networks": NEVER_BELOW,
    "steps": STEP_TARGETS,
    "depthwise": DEPTHWISE_TARGETS,
    "fft": FFT_TARGETS,
}


def measured(shape: ConvShape, which: str, seconds: float) -> Row:
    return tune.tune(shape, which, dtype=torch.float32, device=CPU, layout="nhwc", seconds=seconds)


def networks(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name in args.networks:
        model, images = outline(name, 8)
        shapes = list(dict.fromkeys(tune.shapes_of(model, images).values()))
        rows = []
        for shape in shapes:
            for which in tune.PASSES:
                chosen = measured(shape, which, args.seconds).algorithm
                rows.append(
                    {"shape": str(shape), "pass": which, "chosen": chosen} | against(chosen, shape, which, args.turns)
                )
        below = [row for row in rows if row["ratio"] < NEVER_BELOW]
        mean = statistics.geometric_mean([row["ratio"] for row in rows])
        print(f"{name}: {len(rows)} passes, geometric mean {mean:.2f}, {len(below)} below {NEVER_BELOW}", flush=True)
        for row in below:
            print(f"  {row['ratio']:.2f}  {row['chosen']}  {row['pass']}  {row['shape']}")
        yield {"network": name, "geometric_mean": mean, "below": len(below), "passes": rows}


def against(chosen: str, shape: ConvShape, which: str, turns: int) -> dict[str, Any]:
    """How many times as fast as the vendor's better layout the choice is, on samples of their own, in turns."""
    calls = {
        layout: tune.call_of("vendor", which, *tune.tensors_for(which, shape, torch.float32, CPU, layout), shape)
        for layout in ("nchw", "nhwc")
    }
    calls["chosen"] = tune.call_of(chosen, which, *tune.tensors_for(which, shape, torch.float32, CPU, "nhwc"), shape)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name in sorted(calls, reverse=bool(turn % 2)):
            times[name].append(seconds_of(calls[name]))
    median = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    return {"ratio": min(median["nchw"], median["nhwc"]) / median["chosen"], "ms": median["chosen"] * 1e3}


def steps(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name, target in STEP_TARGETS.items():
        if name not in args.step_networks:
            continue
        shapes = tune.shapes_of(*outline(name, args.step_batch))
        rows = tuple(
            row
            for layout in ("nchw", "nhwc")
            for row in tune.tune_all(
                shapes.values(), dtype=torch.float32, device=CPU, layout=layout, seconds=args.seconds
            )
        )
        dispatch.use([Table(device=Device.of(CPU), rows=rows)], CPU)
        arms = {
            f"{kind} {layout}": step_of(name, kind, layout, args.step_batch)
            for kind in ("vendor", "auto")
            for layout in ("nchw", "nhwc")
        }
        values = measure.in_turns(
            {arm: (lambda call=call: seconds_of(call)) for arm, call in arms.items()}, args.rounds
        )
        better = {
            kind: min((f"{kind} nchw", f"{kind} nhwc"), key=lambda arm: statistics.median(values[arm][WARM_UP:]))
            for kind in ("vendor", "auto")
        }
        ratio = measure.ratio({arm: taken[WARM_UP:] for arm, taken in values.items()}, better["vendor"], better["auto"])
        print(f"{name}: a training step {ratio['median']:.2f} times as fast (target {target})", flush=True)
        yield {"network": name, "target": target, "ratio": ratio, "seconds": values}


def step_of(name: str, kind: str, layout: str, batch: int) -> Any:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    replace_convs(model, kind)
    memory_format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    model = model.to(memory_format=memory_format)
    images = torch.randn(batch, 3, 224, 224).contiguous(memory_format=memory_format)
    labels = torch.randint(1000, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def accuracy(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    _convoy("tune", args.experiment, *args.override)
    for choice in ("vendor", "auto"):
        found = []
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                _convoy("train", args.experiment, f"kernels={choice}", f"seed={seed}", f"run.folder={folder}/run",
                        *args.override)  # fmt: skip
                found.append(json.loads((Path(folder) / "run" / "result.json").read_text())["val_accuracy"])
        spread = max(found) - min(found)
        print(
            f"{args.experiment}, {choice}: {statistics.fmean(found):.2%}, spread {spread:.2%}, {args.seeds} seeds",
            flush=True,
        )
        yield {"experiment": args.experiment, "kernels": choice, "accuracies": found}


def _convoy(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "orchestrator", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def errors(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    del args
    for shape in (
        ConvShape(n=2, c=64, h=56, w=56, k=64, r=3, s=3, padding=((1, 1), (1, 1))),
        ConvShape(n=2, c=64, h=28, w=28, k=128, r=1, s=1),
        ConvShape(n=2, c=96, h=28, w=28, k=96, r=7, s=7, padding=((3, 3), (3, 3)), groups=96),
        ConvShape(n=2, c=32, h=56, w=56, k=32, r=11, s=11, padding=((5, 5), (5, 5))),
    ):
        names = [name for name in ALGORITHMS if takes(name, shape)]
        found = {which: tune.errors_of(names, which, shape, torch.float32, CPU, "nchw") for which in tune.PASSES}
        for name in names:
            of_name = {which: errors[name] for which, errors in found.items()}
            print(f"{shape.r} x {shape.s}, groups {shape.groups}  {name:<12} "
                  + "  ".join(f"{which} {error:.1e}" for which, error in of_name.items()))  # fmt: skip
            yield {"shape": str(shape), "algorithm": name, "errors": of_name}


def outline(name: str, batch: int) -> tuple[nn.Module, torch.Tensor]:
    with torch.device("meta"):
        options: dict[str, Any] = {"aux_logits": False, "init_weights": False} if name in WITH_AUXILIARY else {}
        model = torchvision.models.get_model(name, weights=None, **options)
        side = 299 if name == "inception_v3" else 224
        return model.eval(), torch.empty(batch, 3, side, side)


PARTS = {
    "inference": inference, "layers": layers, "networks": networks, "steps": steps, "errors": errors, "memory": memory,
    "strassen": strassens, "depthwise": depthwise, "fft": fft, "accuracy": accuracy,
}  # fmt: skip


def chart(axis: Any, bars: dict[str, float]) -> None:
    for place, (name, value) in enumerate(bars.items()):
        axis.barh(place, value, color=measure.COLOURS[0], height=0.6)
        axis.text(0.02, place, f" {name}: {value:.2f}", va="center", color="white", fontsize=8)
    axis.axvline(1, color=measure.INK, linestyle="--", linewidth=1)
    axis.set_yticks([])
    axis.set_xlabel("times as fast as PyTorch's better memory layout", color=measure.INK)


def bars_of(part: str, found: list[dict[str, Any]]) -> dict[str, float]:
    """What a part's chart shows; nothing for those that are tables."""
    if part in ("layers", "inference"):
        return {f"VGG-E, batch {each['batch']}, {each['pass']}": each["without_first_layer"] for each in found}
    if part == "networks":
        return {f"{each['network']}, every layer": each["geometric_mean"] for each in found}
    if part == "steps":
        return {f"{each['network']}, a step": each["ratio"]["median"] for each in found}
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", help="the folder of vgg_e_layers.csv; - without layers and memory")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--memory-batch", type=int, default=1)
    parser.add_argument("--strassen-sizes", nargs="+", type=int, default=[1024, 2048, 4096, 6144])
    parser.add_argument("--fft-filters", nargs="+", type=int, default=[5, 7, 9, 11, 15, 21, 31])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--step-networks", nargs="+", choices=STEP_TARGETS, default=list(STEP_TARGETS))
    parser.add_argument("--step-batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=7, help="of a pass of a layer")
    parser.add_argument("--rounds", type=int, default=8, help="of training steps; the first three are not counted")
    parser.add_argument("--seconds", type=float, default=0.3, help="to tune a pass of a layer")
    parser.add_argument("--experiment", default="experiments/digits.yaml", help="of the part accuracy")
    parser.add_argument("--override", nargs="*", default=["strategy.workers=0"], help="dotted.path=value, for it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for part in args.parts:
        here, found = measure.machine(), list(PARTS[part](args))
        record = {
            "title": f"Convolution algorithms over PyTorch's, fp32: {part}",
            "targets": TARGETS.get(part),
            "settings": vars(args) | {"reference": None},
            "machine": here,
            part: found,
        }
        bars = bars_of(part, found)
        measure.write(f"kernels-{part}", record, (lambda axis, bars=bars: chart(axis, bars)) if bars else None)


if __name__ == "__main__":
    main()
