"""A layer's pass as training calls it, by `auto` and by PyTorch: what the part `networks` of the kernels times."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks import measure
from kernels.conv import Conv2d
from kernels.layout import LAYOUTS
from kernels.shapes import ConvShape

LEAST_TURNS, MOST_TURNS = 8, 200
# Of four calls, in which each comes once after each other one (Williams 1949): what a call leaves in the caches and in
# freed memory is much to the next one, and random orders repeated over all layers favour some of them.
ORDERS = ((0, 1, 3, 2), (1, 2, 0, 3), (2, 3, 1, 0), (3, 0, 2, 1))


def layers_together(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of each layer, the time of its three passes by PyTorch over that by `auto`, each in its better layout."""
    taken: dict[str, dict[str, float]] = {}
    for row in rows:
        of_layer = taken.setdefault(row["shape"], {"auto": 0.0, "vendor": 0.0})
        of_layer["auto"] += row["ms"]
        of_layer["vendor"] += row["ms"] * row["ratio"]
    return {shape: each["vendor"] / each["auto"] for shape, each in taken.items()}


def auto_over_vendor(shape: ConvShape, which: str, seconds: float) -> dict[str, Any]:
    """A layer's pass as training calls it, by `auto` and by nn.Conv2d, in turns, each in both layouts: how many times
    as fast the better of `auto` is as the better of the vendor, and of the same layout.
    """
    calls = {(kind, layout): call for layout in LAYOUTS for kind, call in passes_of(which, shape, layout).items()}
    times: dict[Any, list[float]] = {name: [] for name in calls}
    started = time.perf_counter()
    arms = list(calls)
    for turn in range(MOST_TURNS):
        for number in ORDERS[turn % len(ORDERS)]:
            times[arms[number]].append(measure.seconds_of(calls[arms[number]]))
        if turn + 1 >= LEAST_TURNS and (turn + 1) % len(ORDERS) == 0 and time.perf_counter() - started > seconds:
            break
    ms = {arm: 1e3 * statistics.median(taken[1:]) for arm, taken in times.items()}
    best = {kind: min(ms[kind, layout] for layout in LAYOUTS) for kind in (Conv2d, nn.Conv2d)}
    same = {layout: ms[nn.Conv2d, layout] / ms[Conv2d, layout] for layout in LAYOUTS}
    return {"ratio": best[nn.Conv2d] / best[Conv2d], "ms": best[Conv2d], "same_layout": same}


def passes_of(which: str, shape: ConvShape, layout: str) -> dict[type[nn.Conv2d], Callable[[], Any]]:
    """The forward pass of a layer, or autograd's of one gradient, by each kind of layer from the same tensors."""
    (top, bottom), (left, right) = shape.padding
    assert (top, left) == (bottom, right)
    options = (shape.c, shape.k, (shape.r, shape.s), shape.stride, (top, left), shape.dilation, shape.groups)
    torch.manual_seed(1)
    layers = {kind: kind(*options, bias=False).to(memory_format=LAYOUTS[layout]) for kind in (Conv2d, nn.Conv2d)}
    layers[Conv2d].weight = layers[nn.Conv2d].weight.requires_grad_(which == "weight_gradient")
    images = torch.randn(shape.input_size).relu().contiguous(memory_format=LAYOUTS[layout])
    if which == "forward":
        return {kind: torch.no_grad()(functools.partial(layer, images)) for kind, layer in layers.items()}
    of = layers[Conv2d].weight if which == "weight_gradient" else images.requires_grad_()
    grad = torch.randn(shape.output_size).contiguous(memory_format=LAYOUTS[layout])
    return {
        kind: functools.partial(torch.autograd.grad, layer(images), of, grad, retain_graph=True)
        for kind, layer in layers.items()
    }
