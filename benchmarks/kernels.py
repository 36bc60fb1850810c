"""Convolution algorithms against the vendor's better memory layout: layers, networks, training steps, errors.

    python -m benchmarks.kernels REFERENCE       # the folder of vgg_e_layers.csv; hours on two cores
    python -m benchmarks.kernels REFERENCE --parts layers --batches 8
    python -m benchmarks.kernels - --parts networks --networks resnet50

layers     the 3 x 3 layers of VGG-E (Simonyan & Zisserman 2014), each pass: milliseconds, effective TFLOPS (the
           definition's operations over time) and the speed-up of the fastest, as tables 5 and 6 of Lavin & Gray 2015
           (arXiv:1509.09308). Transforms of weights count, as in training.
inference  the same forward at batch 1 on one thread, weights transformed beforehand (`kernels.inference`).
networks   every distinct layer of the networks at batch 8: `convoy tune` chooses, then, on other samples and in turns,
           each pass as training calls it, `auto` against nn.Conv2d, in both layouts; the better of each two counts.
           What is below 0.97 is measured again, five times as long: below both times it is named. (Where `auto` is
           the vendor's own code, single measurements of 0.3 s go down to 0.93.)
steps      forward, backward and SGD of whole networks at batch 16: PyTorch in both layouts against `kernels: auto` in
           the same two, in turns; the better of each two counts. With --precision bf16 under autocast.
accuracy   `convoy train` of an experiment with the vendor's and with `auto` (or --choices), three seeds each: held-out
           accuracy.
errors     every algorithm and pass against float64: largest difference over the largest value, fresh random numbers.
memory     of the layers of VGG-E, a depthwise and a 1 x 1 one: time and peak memory beside the tensors, measured, and
           im2col's columns over the size of the input.
strassen   products of square matrices: the size from which one level of Strassen's wins over the vendor's sgemm.
depthwise  the weight's gradient of depthwise layers, one thread.
fft        filters from 5 x 5 to 31 x 31 over 64 channels of 56 x 56, one thread.

Every time is of a result that is allocated anew; the process keeps the memory that it frees, as Convoy's workers do
(`kernels/allocator.py`), else the system's clearing of pages is what is measured. The targets were set on a CPU with
AVX-512. Where the vendor runs at 95 % of peak, only fewer multiplications beat it.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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
    strassens,
)  # fmt: skip
from benchmarks.kernel_passes import auto_over_vendor, layers_together
from kernels import dispatch, tune
from kernels.algorithms import ALGORITHMS, takes
from kernels.allocator import keep_freed_memory
from kernels.layout import LAYOUTS
from kernels.shapes import ConvShape
from kernels.swap import replace_convs
from kernels.table import Device, Row, Table

ROOT = Path(__file__).parent.parent
NETWORKS = (
    "alexnet", "vgg19", "googlenet", "inception_v3", "resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0",
    "convnext_tiny",
)  # fmt: skip
AGAIN = 5.0  # times as long
WITH_AUXILIARY = ("googlenet", "inception_v3")
STEP_TARGETS = {"vgg16": 2.2, "resnet50": 1.4, "convnext_tiny": 1.3}
NEVER_BELOW = 0.97
# Rounds of steps that do not count: until a process has the memory that it needs, pages cost more than arithmetic.
WARM_UP = 3
AUTOCAST = {"bf16": torch.bfloat16}
TARGETS: dict[str, Any] = {
    "inference": INFERENCE_TARGET,
    "layers": LAYER_TARGETS,
    "networks": NEVER_BELOW,
    "steps": STEP_TARGETS,
    "depthwise": DEPTHWISE_TARGETS,
    "fft": FFT_TARGETS,
}


def networks(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name in args.networks:
        met = tune.shapes_of(*outline(name, 8)).values()
        shapes = [shape for shape in dict.fromkeys(met) if not shape.linear]
        tuned = tuned_in_both_layouts(shapes, args.seconds)
        dispatch.use([Table(device=Device.of(CPU), rows=tuned)], CPU)
        chosen = {(row.shape, row.which, row.layout): row.algorithm for row in tuned}
        rows = []
        for shape in shapes:
            for which in tune.PASSES:
                found = auto_over_vendor(shape, which, args.pass_seconds)
                names = {layout: chosen[shape, which, layout] for layout in LAYOUTS}
                rows.append({"shape": str(shape), "pass": which, "chosen": names} | found)
                if found["ratio"] < NEVER_BELOW:
                    rows[-1]["again"] = auto_over_vendor(shape, which, AGAIN * args.pass_seconds)
        below = [row for row in rows if max(row["ratio"], row.get("again", row)["ratio"]) < NEVER_BELOW]
        mean = statistics.geometric_mean([row["ratio"] for row in rows])
        layers = layers_together(rows)
        lowest = min(layers.values())
        print(
            f"{name}: {len(rows)} passes, geometric mean {mean:.2f}, {len(below)} below {NEVER_BELOW}; lowest layer, "
            f"its three passes together, {lowest:.2f}",
            flush=True,
        )
        for row in below:
            both = f"{row['ratio']:.2f} {row['again']['ratio']:.2f}"
            print(f"  {both}  {row['ms']:.3f} ms  {row['chosen']}  {row['pass']}  {row['shape']}")
        yield {
            "network": name, "geometric_mean": mean, "below": len(below), "lowest_layer": lowest, "layers": layers,
            "passes": rows,
        }  # fmt: skip


def tuned_in_both_layouts(
    shapes: Iterable[ConvShape], seconds: float, dtype: torch.dtype = torch.float32
) -> tuple[Row, ...]:
    return tuple(
        row
        for layout in LAYOUTS
        for row in tune.tune_all(shapes, dtype=dtype, device=CPU, layout=layout, seconds=seconds)
    )


def steps(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name, target in STEP_TARGETS.items():
        if name not in args.step_networks:
            continue
        shapes = tune.shapes_of(*outline(name, args.step_batch))
        rows = tuned_in_both_layouts(shapes.values(), args.seconds, AUTOCAST.get(args.precision, torch.float32))
        dispatch.use([Table(device=Device.of(CPU), rows=rows)], CPU)
        arms = {
            f"{kind} {layout}": step_of(name, kind, layout, args)
            for kind in ("vendor", "auto")
            for layout in ("nchw", "nhwc")
        }
        values = measure.in_turns(
            {arm: (lambda call=call: measure.seconds_of(call)) for arm, call in arms.items()}, args.rounds
        )
        better = {
            kind: min((f"{kind} nchw", f"{kind} nhwc"), key=lambda arm: statistics.median(values[arm][WARM_UP:]))
            for kind in ("vendor", "auto")
        }
        ratio = measure.ratio({arm: taken[WARM_UP:] for arm, taken in values.items()}, better["vendor"], better["auto"])
        target = target if args.precision == "fp32" else NEVER_BELOW
        print(
            f"{name}, {args.precision}: a training step {ratio['median']:.2f} times as fast (target {target})",
            flush=True,
        )
        yield {"network": name, "precision": args.precision, "target": target, "ratio": ratio, "seconds": values}


def step_of(name: str, kind: str, layout: str, args: argparse.Namespace) -> Callable[[], None]:
    """`kind`: vendor or auto. Weights, loss and optimizer stay in fp32, as `precision: bf16` has it."""
    batch, dtype = args.step_batch, AUTOCAST.get(args.precision)
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
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            outputs = model(images)
        nn.functional.cross_entropy(outputs.float(), labels).backward()
        optimizer.step()

    return step


def accuracy(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    _convoy("tune", args.experiment, *args.override)
    for choice in args.choices:
        found, chosen = [], Counter[str]()
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                run = Path(folder) / "run"
                _convoy("train", args.experiment, f"kernels={choice}", f"seed={seed}", f"run.folder={run}",
                        *args.override)  # fmt: skip
                found.append(json.loads((run / "result.json").read_text())["val_accuracy"])
                chosen = _chosen(run / "kernels.json")
        spread = max(found) - min(found)
        print(
            f"{args.experiment}, {choice}: {statistics.fmean(found):.2%}, spread {spread:.2%}, {args.seeds} seeds",
            flush=True,
        )
        print(f"  by {', '.join(f'{name} {count}' for name, count in chosen.items()) or 'the vendor'}", flush=True)
        yield {"experiment": args.experiment, "kernels": choice, "accuracies": found, "passes": dict(chosen)}


def _chosen(path: Path) -> Counter[str]:
    """How many passes each algorithm computes in a run with `auto`, layers of one shape counted each."""
    layers = json.loads(path.read_text())["layers"].values() if path.exists() else []
    return Counter(row["algorithm"] for rows in layers for row in rows for _ in row["layers"])


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
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the part steps")
    parser.add_argument("--turns", type=int, default=7, help="of a pass of a layer")
    parser.add_argument("--pass-seconds", type=float, default=0.4, help="of the part networks, after six turns")
    parser.add_argument("--rounds", type=int, default=8, help="of training steps; the first three are not counted")
    parser.add_argument("--seconds", type=float, default=0.3, help="to tune a pass of a layer")
    parser.add_argument("--experiment", default="experiments/digits.yaml", help="of the part accuracy")
    parser.add_argument("--override", nargs="*", default=["strategy.workers=0"], help="dotted.path=value, for it")
    parser.add_argument("--choices", nargs="+", default=["vendor", "auto"], help="of `kernels`, for it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    for part in args.parts:
        here, found = measure.machine(), list(PARTS[part](args))
        override = [re.sub(r"/.*/", "", said) for said in args.override]  # without this machine's folders
        record = {
            "title": f"Convolution algorithms over PyTorch's, {args.precision}: {part}",
            "targets": TARGETS.get(part),
            "settings": vars(args) | {"reference": None, "override": override},
            "machine": here,
            part: found,
        }
        bars = bars_of(part, found)
        suffix = "-bf16" if part == "steps" and args.precision == "bf16" else ""
        if part == "accuracy":
            suffix = f"-{Path(args.experiment).stem}"
        if part == "layers" and args.batches != parser.get_default("batches"):
            suffix = f"-batch-{'-'.join(map(str, args.batches))}"
        measure.write(f"kernels-{part}{suffix}", record, (lambda axis, bars=bars: chart(axis, bars)) if bars else None)


if __name__ == "__main__":
    main()
