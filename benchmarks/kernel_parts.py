"""What benchmarks/kernels.py measures layer by layer: races of algorithms, their memory, where each should win."""

import argparse
import contextlib
import csv
import functools
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from kernels import im2col, strassen, tune
from kernels.algorithms import ALGORITHMS, takes
from kernels.memory import extra_bytes
from kernels.shapes import ConvShape

CPU = torch.device("cpu")
LAYOUTS = ("nchw", "nhwc")
VENDORS = tuple(f"vendor {layout}" for layout in LAYOUTS)
HOPELESS = 2.0  # times the fastest, where a race is lost
INFERENCE_TARGET = 3.0
LAYER_TARGETS = {"forward": 2.6, "input_gradient": 2.5, "weight_gradient": 2.5}
# n, channels, side, filter
DEPTHWISE = ((8, 96, 56, 7), (8, 384, 14, 7), (8, 256, 28, 3), (4, 64, 56, 15), (4, 64, 56, 31), (8, 256, 14, 31))
DEPTHWISE_TARGETS = {7: 4.0, 31: 20.0}
FFT_TARGETS = {9: 1.2, 21: 2.0}  # from that filter up
BEYOND_VGG = {
    "1x1": {"c": 256, "h": 56, "w": 56, "k": 64, "r": 1, "s": 1},
    "depthwise": {"c": 96, "h": 56, "w": 56, "k": 96, "r": 7, "s": 7, "padding": ((3, 3), (3, 3)), "groups": 96},
}


def vgg_layers(path: Path, batch: int) -> dict[str, ConvShape]:
    with path.open() as file:
        return {
            line["layer"]: ConvShape(
                n=batch, c=int(line["in_channels"]), h=int(line["height"]), w=int(line["width"]),
                k=int(line["out_channels"]), r=3, s=3, padding=((1, 1), (1, 1)),
            )
            for line in csv.DictReader(file)
            if int(line["kernel"]) == 3
        }  # fmt: skip


def calls_of(shape: ConvShape, which: str) -> dict[str, Callable[[], torch.Tensor]]:
    """The vendor on images of either layout, and each algorithm that takes the shape."""
    calls = {
        vendor: tune.call_of("vendor", which, *tune.tensors_for(which, shape, torch.float32, CPU, layout), shape)
        for vendor, layout in zip(VENDORS, LAYOUTS, strict=True)
    }
    first, second = tune.tensors_for(which, shape, torch.float32, CPU, "nhwc")
    names = (each for each in ALGORITHMS if not each.startswith("vendor") and each != "direct" and takes(each, shape))
    return calls | {each: tune.call_of(each, which, first, second, shape) for each in names}


def raced(calls: dict[str, Callable[[], Any]], turns: int, *, most: float = HOPELESS) -> dict[str, list[float]]:
    """The seconds of each call, in turns after a first one that does not count, of the vendor's and of those that take
    less than `most` times as long as the fastest.
    """
    first = {name: measure.seconds_of(call) for name, call in calls.items()}
    first = {name: min(taken, measure.seconds_of(calls[name])) for name, taken in first.items()}
    hopeful = [name for name in calls if name in VENDORS or first[name] < most * min(first.values())]
    times: dict[str, list[float]] = {name: [] for name in hopeful}
    for turn in range(turns):
        for each in sorted(hopeful, reverse=bool(turn % 2)):
            times[each].append(measure.seconds_of(calls[each]))
    return times


def compared(shape: ConvShape, times: dict[str, list[float]]) -> dict[str, Any]:
    """The fastest that is not the vendor's over the vendor's better layout: chosen by the first half of the turns,
    measured by the others.
    """
    half = len(next(iter(times.values()))) // 2
    chosen_by = {each: statistics.median(taken[:half] or taken) for each, taken in times.items()}
    vendor = min(VENDORS, key=lambda each: chosen_by[each])
    fastest = min(set(times) - set(VENDORS), key=lambda each: chosen_by[each], default=vendor)
    others = {each: taken[half:] for each, taken in times.items()}
    median = {each: statistics.median(taken) for each, taken in others.items()}
    return {
        "vendor_ms": median[vendor] * 1e3,
        "fastest": fastest,
        "ms": median[fastest] * 1e3,
        "tflops": shape.flops / median[fastest] / 1e12,
        "speed_up": measure.ratio(others, vendor, fastest),
        "all_ms": {each: taken * 1e3 for each, taken in median.items()},
    }


def layers(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for batch in args.batches:
        for which in tune.PASSES:
            yield _vgg(args, batch, which, calls_of, LAYER_TARGETS[which])


def inference(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    with _threads(1):
        yield _vgg(args, 1, "forward", prepared_of, INFERENCE_TARGET)


def prepared_of(shape: ConvShape, which: str) -> dict[str, Callable[[], torch.Tensor]]:
    """The vendor on images of either layout, and each algorithm that prepares its weights, with weights prepared."""
    calls = {name: call for name, call in calls_of(shape, which).items() if name in VENDORS}
    images, weight = tune.tensors_for(which, shape, torch.float32, CPU, "nhwc")
    for name, passes in ALGORITHMS.items():
        if passes.prepare and passes.takes(shape):
            calls[name] = functools.partial(passes.prepare(weight, shape), images, shape, None)
    return calls


def _vgg(
    args: argparse.Namespace, batch: int, which: str, calls_of: Callable[..., Any], target: float
) -> dict[str, Any]:
    rows = []
    for layer, shape in vgg_layers(Path(args.reference) / "vgg_e_layers.csv", batch).items():
        rows.append({"layer": layer} | compared(shape, raced(calls_of(shape, which), args.turns)))
        print(
            f"batch {batch}  {which:<15} {layer}: vendor {rows[-1]['vendor_ms']:8.2f} ms, "
            f"{rows[-1]['fastest']} {rows[-1]['ms']:8.2f} ms, {rows[-1]['tflops']:.3f} TFLOPS, "
            f"{rows[-1]['speed_up']['median']:.2f}",
            flush=True,
        )
    # an image of three channels has nothing to save; the vendor's stays
    speed_ups = [max(1.0, row["speed_up"]["median"]) for row in rows]
    mean, beyond_first = statistics.geometric_mean(speed_ups), statistics.geometric_mean(speed_ups[1:])
    print(
        f"batch {batch}  {which}: geometric mean {mean:.2f}, without the first layer {beyond_first:.2f} "
        f"(target {target}), {torch.get_num_threads()} threads",
        flush=True,
    )
    return {
        "batch": batch, "pass": which, "threads": torch.get_num_threads(), "geometric_mean": mean,
        "without_first_layer": beyond_first, "target": target, "layers": rows,
    }  # fmt: skip


def memory(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    beyond = {name: ConvShape(n=args.memory_batch, **sizes) for name, sizes in BEYOND_VGG.items()}
    layers = vgg_layers(Path(args.reference) / "vgg_e_layers.csv", args.memory_batch) | beyond
    for layer, shape in layers.items():
        input_bytes = 4 * shape.n * shape.c * shape.h * shape.w
        columns = im2col.workspace_bytes(shape) / input_bytes
        print(f"{layer}, input {input_bytes / 1e6:.1f} MB, columns of im2col {columns:.1f}x the input")
        for which in tune.PASSES:
            calls = calls_of(shape, which)
            extra = {name: extra_bytes(call, CPU) for name, call in calls.items()}
            times = raced(calls, args.turns, most=math.inf)
            ms = {name: 1e3 * statistics.median(taken) for name, taken in times.items()}
            for name in calls:
                over = f"{extra[name] / 1e6:8.1f} MB, {extra[name] / input_bytes:5.1f}x the input"
                print(f"  {which:<15} {name:<12} {ms[name]:9.2f} ms {over}", flush=True)
            yield {
                "layer": layer, "pass": which, "input_bytes": input_bytes, "columns_over_input": columns,
                "extra_bytes": extra, "ms": ms,
            }  # fmt: skip


def strassens(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    wins_from = None
    for n in sorted(args.strassen_sizes):
        a, b = torch.randn(n, n), torch.randn(n, n)
        times = raced({
            "sgemm": lambda a=a, b=b: a @ b,
            "one level": lambda a=a, b=b, n=n: strassen.matmul(a, b, cutoff=n),
        }, args.turns)  # fmt: skip
        ratio = measure.ratio(times, "sgemm", "one level")
        wins = ratio["median"] > tune.MARGIN
        wins_from = (wins_from or n) if wins else None
        gflops = 2 * n**3 / statistics.median(times["sgemm"]) / 1e9
        print(f"strassen, n = {n}: {ratio['median']:.3f} over sgemm at {gflops:.0f} GFLOP/s", flush=True)
        yield {"n": n, "ratio": ratio, "sgemm_gflops": gflops}
    said = f"wins from n = {wins_from}" if wins_from else f"does not win up to n = {max(args.strassen_sizes)}"
    print(f"strassen: one level {said}, by more than {tune.MARGIN}")
    yield {"wins_from": wins_from, "up_to": max(args.strassen_sizes), "margin": tune.MARGIN}


def depthwise(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for n, c, side, k in DEPTHWISE:
        shape = ConvShape(n=n, c=c, h=side, w=side, k=c, r=k, s=k, padding=((k // 2, k // 2),) * 2, groups=c)
        target = DEPTHWISE_TARGETS.get(k)
        yield _on_one_thread("depthwise", shape, "weight_gradient", args.turns) | {"target": target}


def fft(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for k in args.fft_filters:
        shape = ConvShape(n=2, c=64, h=56, w=56, k=64, r=k, s=k, padding=((k // 2, k // 2),) * 2)
        target = max((least for size, least in FFT_TARGETS.items() if size <= k), default=None)
        for which in tune.PASSES:
            yield _on_one_thread("fft", shape, which, args.turns) | {"target": target}


def _on_one_thread(name: str, shape: ConvShape, which: str, turns: int) -> dict[str, Any]:
    """One algorithm over the vendor's better layout."""
    with _threads(1):
        calls = calls_of(shape, which)
        found = compared(shape, raced({each: calls[each] for each in (*VENDORS, name)}, turns))
    size = f"{shape.n} x {shape.c} x {shape.h} x {shape.w}, {shape.r} x {shape.s}"
    gflops = 1e3 * found["tflops"]
    print(f"{name}, {size}, {which}: {found['speed_up']['median']:.2f}, {gflops:.1f} GFLOP/s", flush=True)
    return {"shape": size, "filter": shape.r, "pass": which} | found


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
