"""Numbers in few bits: what rounding costs, and what networks learn in them.

    python -m benchmarks.precision                                    # rounding, binary: 5 minutes, alone
    python -m benchmarks.precision --parts learning                   # the digits, 3 seeds: 15 minutes
    python -m benchmarks.precision --parts learning --cifar FOLDER    # and CIFAR-10, from its train.tar and test.tar

rounding   of `--megabytes` of fp32, one thread. Stochastically to fixed point, in place: bytes read and written a
           second over those of torch's `copy_` into memory that is there, in the same round. A step of SGD on weights
           in bf16, rounded stochastically, over torch's `add_` on as many fp32 weights. Beside each, the same by
           torch's operators. In place nothing is fetched that is only written, as `copy_` does with its target, and no
           page is new. The random bits cost about ten instructions of a vector of 16.
binary     convolutions of signs, forward, packing of activations included, one thread, batch `--batch`: 3 x 3 layers of
           ResNet-18 and VGG-E, filters prepared beforehand from bits, over PyTorch's in fp32, bf16 and int8 (packed
           filters, uint8 activations), each in its better memory layout, and over Convoy's own Winograd in fp32. `in
           training` packs the filters too, from fp32, each time. Where there is a matrix unit (AMX), signs are bytes
           for it; `bits counted` does without. A vector of 16 words of bits costs an exclusive or, a count and a sum,
           of which Intel's AVX-512 makes two a cycle: 10.7 times the products of fp32, a third of those of AMX in int8,
           and two thirds of those in bf16, which PyTorch uses.
steps      training steps of VGG-16 and ResNet-50 at 224 pixels, all threads: `precision: bf16`, and with weights in
           bf16 too, over fp32 in PyTorch's better layout; the vendor's kernels in both. The first two rounds are left
           out: until a process has the memory that it needs, pages cost more than arithmetic.
learning   held-out accuracy of experiments in fixed point <IL, FL>, stochastic and nearest, with `--gradient-scale` and
           without (`unscaled`), and in dynamic fixed point, by bits; in bf16, with weights in fp32 and in
           bf16; and in fp32.
binarynet  held-out accuracy of experiments/binarynet.yaml in fp32 and with signs, and packed (`precision_binarynet`).
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks import measure, precision_binarynet
from benchmarks.precision_learning import BF16_TARGETS, INTEGER_BITS, chart_of_learning, learning, steps
from kernels.allocator import keep_freed_memory
from kernels.bf16_updates import Sgd, sgd_
from kernels.binary import convolve_bits, convolve_signs, prepare
from kernels.binary_bits import bits_of
from kernels.conv import conv2d
from kernels.rounding import round_bf16, round_fixed
from kernels.shapes import ConvShape

TARGETS = {"fixed in place over copy_": 1.5, "SGD step in bf16 over add_": 1.0}
Figures = dict[str, Any]


def by_operators(x: torch.Tensor) -> torch.Tensor:
    """Stochastic rounding to <4, 12> as one writes it with torch's operators."""
    scaled = x * 2.0**12
    below = scaled.floor()
    return (below + (torch.rand_like(x) < scaled - below)).clamp_(-(2.0**15), 2.0**15 - 1).mul_(2.0**-12)


def sgd_by_operators(weights: torch.Tensor, grads: torch.Tensor) -> None:
    wide = weights.float().add_(grads.float(), alpha=-0.01)
    bits = wide.view(torch.int32)
    bits += torch.randint_like(bits, 2**16)
    weights.copy_((bits >> 16).to(torch.int16).view(torch.bfloat16))


def rounding(args: argparse.Namespace) -> Figures:
    torch.set_num_threads(1)
    count = args.megabytes * 10**6 // 4
    x, target = torch.randn(count), torch.zeros(count)
    half, weights, grads = (torch.zeros(count, dtype=torch.bfloat16) for _ in range(3))
    wide, wide_grads, moments = torch.randn(count), torch.randn(count) * 1e-3, torch.zeros(count)
    weights.copy_(wide)
    grads.copy_(wide_grads)
    calls: dict[str, tuple[Callable[[], object], int]] = {  # and the bytes of an element that it reads and writes
        "copy_": (lambda: target.copy_(x), 8),
        "fixed in place": (lambda: round_fixed(x, INTEGER_BITS, 12, out=x, seed=1), 8),
        "fixed in place, nearest": (lambda: round_fixed(x, INTEGER_BITS, 12, "nearest", out=x), 8),
        "fixed by operators": (lambda: by_operators(x), 8),
        "bf16": (lambda: round_bf16(x, out=half, seed=1), 6),
        "add_": (lambda: wide.add_(wide_grads, alpha=-0.01), 12),
        "SGD step in bf16": (lambda: sgd_(weights, grads, None, Sgd(0.01), seed=1), 6),
        "SGD step in bf16, momentum in fp32": (lambda: sgd_(weights, grads, moments, Sgd(0.01, 0.9), seed=1), 14),
        "SGD step in bf16 by operators": (lambda: sgd_by_operators(weights, grads), 6),
    }
    arms = {
        name: partial(measure.seconds_of, call, 1 if "operators" in name else 3) for name, (call, _) in calls.items()
    }
    for arm in arms.values():
        arm()
    seconds = measure.in_turns(arms, args.rounds)
    bandwidth = {name: [calls[name][1] * count / s / 1e9 for s in values] for name, values in seconds.items()}
    speed = {name: [1 / s for s in values] for name, values in seconds.items()}
    ratios = {
        "fixed in place over copy_": measure.ratio(bandwidth, "fixed in place", "copy_"),
        "fixed in place over operators": measure.ratio(bandwidth, "fixed in place", "fixed by operators"),
        "SGD step in bf16 over add_": measure.ratio(speed, "SGD step in bf16", "add_"),
        "SGD step in bf16 over operators": measure.ratio(speed, "SGD step in bf16", "SGD step in bf16 by operators"),
    }
    for name, figure in ratios.items():
        print(f"{name}: {figure['median']:.2f}", flush=True)
    return {
        "ratios": ratios,
        "bandwidth": measure.summary(bandwidth, "GB/s"),
        "seconds": measure.summary(seconds, "s"),
    }


LAYERS = {  # channels, filters, pixels of a side, stride
    "ResNet-18 layer1": (64, 64, 56, 1),
    "ResNet-18 layer2": (128, 128, 28, 1),
    "ResNet-18 layer3": (256, 256, 14, 1),
    "ResNet-18 layer4": (512, 512, 7, 1),
    "VGG-E 1.2": (64, 64, 224, 1),
    "VGG-E 2.2": (128, 128, 112, 1),
    "VGG-E 3.2": (256, 256, 56, 1),
    "VGG-E 4.2": (512, 512, 28, 1),
    "VGG-E 5": (512, 512, 14, 1),
}
BINARY_TARGETS = {"fp32": 11.0, "bf16": 5.5, "int8": 3.2}


def int8_conv(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    quantized = torch.quantize_per_tensor(weight, 0.01, 0, torch.qint8)
    packed = torch.ops.quantized.conv2d_prepack(quantized, None, [1, 1], [1, 1], [1, 1], 1)
    return lambda x: torch.ops.quantized.conv2d(x, packed, 0.1, 0)


def layer_arms(layer: tuple[int, int, int, int], batch: int) -> dict[str, Callable[[], object]]:
    channels, filters, side, stride = layer
    weight, x = torch.randn(filters, channels, 3, 3) * 0.05, torch.randn(batch, channels, side, side)
    shape = ConvShape.of(x, weight, stride=stride, padding=1)
    nhwc = x.contiguous(memory_format=torch.channels_last)
    filters_nhwc = weight.contiguous(memory_format=torch.channels_last)
    bits = bits_of(weight)
    kept = prepare(bits, shape)
    counted = kept._replace(bytes=None)  # as without a matrix unit
    arms: dict[str, Callable[[], object]] = {
        "binary": lambda: convolve_bits(nhwc, bits, shape, kept),
        "binary, nchw": lambda: convolve_bits(x, bits, shape, kept),
        "counted": lambda: convolve_bits(nhwc, bits, shape, counted),
        "training": lambda: convolve_signs(nhwc, weight, shape),
        "training, nchw": lambda: convolve_signs(x, weight, shape),
        "fp32": lambda: F.conv2d(nhwc, filters_nhwc, None, stride, 1),
        "fp32, nchw": lambda: F.conv2d(x, weight, None, stride, 1),
        "winograd": lambda: conv2d(nhwc, filters_nhwc, None, stride, 1, algorithm="winograd"),
    }
    halves = [each.bfloat16() for each in (nhwc, filters_nhwc, x, weight)]
    arms["bf16"] = lambda: F.conv2d(halves[0], halves[1], None, stride, 1)
    arms["bf16, nchw"] = lambda: F.conv2d(halves[2], halves[3], None, stride, 1)
    bytes_ = torch.quantize_per_tensor(nhwc, 0.05, 64, torch.quint8)
    in_int8 = int8_conv(weight)
    arms["int8"] = lambda: in_int8(bytes_)
    return arms


@torch.inference_mode()
def binary(args: argparse.Namespace) -> Figures:
    torch.set_num_threads(1)
    found: Figures = {"layers": {}}
    for name, layer in LAYERS.items():
        calls = layer_arms(layer, args.batch)
        times = {arm: max(1, int(0.05 / measure.seconds_of(call))) for arm, call in calls.items() if call() is not None}
        arms = {arm: partial(measure.seconds_of, call, times[arm]) for arm, call in calls.items()}
        seconds = measure.in_turns(arms, args.rounds)
        best = {
            arm: [min(pair) for pair in zip(seconds[arm], seconds.get(f"{arm}, nchw", seconds[arm]), strict=True)]
            for arm in ("binary", "counted", "training", "fp32", "bf16", "int8", "winograd")
        }
        speed = {arm: [1 / s for s in values] for arm, values in best.items()}
        ratios = {arm: measure.ratio(speed, "binary", arm) for arm in ("fp32", "bf16", "int8", "winograd")}
        ratios["fp32, in training"] = measure.ratio(speed, "training", "fp32")
        ratios["fp32, bits counted"] = measure.ratio(speed, "counted", "fp32")
        found["layers"][name] = {"ratios": ratios, "seconds": measure.summary(seconds, "s")}
        print(name, {arm: round(ratio["median"], 2) for arm, ratio in ratios.items()}, flush=True)
    found["ratios"] = {}
    for arm in (*BINARY_TARGETS, "winograd", "fp32, in training", "fp32, bits counted"):
        rounds = zip(*(layer["ratios"][arm]["rounds"] for layer in found["layers"].values()), strict=True)
        means = [statistics.geometric_mean(each) for each in rounds]
        figure = {"median": statistics.median(means), "lowest": min(means), "highest": max(means), "n": len(means)}
        found["ratios"][f"binary over {arm}, geometric mean"] = figure | {"rounds": means}
        print(f"binary over {arm}: {figure['median']:.2f}", flush=True)
    return found


def chart(axis: Any, found: Figures) -> None:
    measure.bars(axis, found["ratios"], target=1.0, label="speed over torch's")


PARTS: dict[str, tuple[Callable[[argparse.Namespace], Figures], Callable[..., None], dict[str, float] | None]] = {
    "rounding": (rounding, chart, TARGETS),
    "binary": (binary, chart, BINARY_TARGETS),
    "steps": (steps, chart, BF16_TARGETS),
    "learning": (learning, chart_of_learning, None),
    "binarynet": (precision_binarynet.binarynet, precision_binarynet.chart, None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["rounding", "binary"])
    parser.add_argument("--megabytes", type=int, default=400, help="of the part rounding; more than caches hold")
    parser.add_argument("--rounds", type=int, default=7, help="of the parts rounding and binary")
    parser.add_argument("--batch", type=int, default=1, help="of the part binary")
    parser.add_argument("--step-batch", type=int, default=16, help="of the part steps")
    parser.add_argument("--bits", nargs="+", type=int, default=[16, 14, 12, 10, 8], help="of the part learning")
    parser.add_argument("--cifar-bits", nargs="+", type=int, default=[16, 12, 8])
    parser.add_argument("--gradient-scale", type=int, default=512, help="in fixed point; the part learning")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", choices=("digits", "cifar10"), default=["digits", "cifar10"])
    parser.add_argument("--epochs", type=int, default=20, help="of the digits")
    parser.add_argument("--cifar", help="the folder of train.tar and test.tar")
    parser.add_argument("--cifar-epochs", type=int, default=5)
    parser.add_argument("--per-class", type=int, default=500)
    parser.add_argument("--arms", nargs="+", choices=precision_binarynet.ARMS, default=list(precision_binarynet.ARMS))
    parser.add_argument("--width", type=int, default=32, help="of the part binarynet on CIFAR-10; the paper's is 128")
    parser.add_argument("--threads", type=int, default=2, help="of the part binarynet")
    args = parser.parse_args()
    here = measure.machine()
    keep_freed_memory()
    for part in args.parts:
        compute, draw, targets = PARTS[part]
        figures = compute(args)
        record = {
            "title": f"Few bits: {part}",
            "targets": targets,
            "settings": vars(args) | {"cifar": bool(args.cifar)},
            "machine": here,
            part: figures,
        }
        one_set = f"-{args.sets[0]}" if part in ("learning", "binarynet") and len(args.sets) == 1 else ""
        measure.write(f"precision-{part}{one_set}", record, partial(draw, found=figures))


if __name__ == "__main__":
    main()
