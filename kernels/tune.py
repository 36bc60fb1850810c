"""Measure which algorithm is fastest for a convolution, pass by pass.

All that take the shape run in turns, through the operators that training calls, each after a call of PyTorch's: as in
training the caches are full of something else, or what moves much memory would find its own there and be taken for
faster than it is (the gradient of 7 x 7 filters' images by im2col: 22 ms after itself, 34 ms after another, 30 ms by
the vendor's). Out of the race is who is less exact than the budget, and who takes several times as long as the vendor:
on one image already, or at first.
Another than the vendor's is chosen only if it is faster by more than the noise: in the median of the turns by MARGIN,
and in three of four of them at all. PyTorch's is always in the race, in both memory layouts.

Gains below a tenth are not worth a change: in another process, with other pages of memory, they were losses of a tenth.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from kernels import operators
from kernels.algorithms import ALGORITHMS, takes
from kernels.layout import laid_out, layout_met
from kernels.memory import extra_bytes
from kernels.passes import VENDOR, Choice
from kernels.shapes import ConvShape
from kernels.table import Row

PASSES = Choice._fields
MARGIN = 1.1
ERROR_BUDGET = 1e-4
# Times as long as the vendor, on one image and on all of a batch.
_LOST, _HOPELESS = 6.0, 3.0
_LEAST_TURNS, _MOST_TURNS = 5, 40
# What a pass costs through our operators and autograd beyond PyTorch's own, with caches full of images as in training:
# 6 us of Python forward and 13 us backward when it is warm, 50 to 90 us when it is not.
_OPERATOR_SECONDS = 80e-6
# Made to be read, not to be fast; the vendor's again unless the type is one to widen.
_NEVER, _TO_WIDEN = ("direct",), {"cast": (torch.float16, torch.bfloat16)}


def shapes_of(model: nn.Module, images: Tensor) -> dict[str, ConvShape]:
    """Module name -> shape of every nn.Conv2d, and nn.Linear over pixels, that a forward pass meets, in that order.

    Shapes: images (N, C, H, W).
    """
    shapes: dict[str, ConvShape] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Conv2d):
            shapes[name] = ConvShape.of_module(module, inputs[0])
        elif isinstance(module, nn.Linear) and inputs[0].dim() in (3, 4):
            shapes[name] = ConvShape.of_linear(module, inputs[0])

    hooks = [
        module.register_forward_pre_hook(functools.partial(note, name))
        for name, module in model.named_modules()
        if getattr(module, "padding_mode", "zeros") == "zeros"
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return shapes


def tune(
    shape: ConvShape,
    which: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    layout: str,
    seconds: float = 0.5,
    error_budget: float = ERROR_BUDGET,
) -> Row:
    """Measure one pass of one convolution, for about `seconds` after a first turn of all.

    `error_budget`: the largest difference from float64 allowed, over the largest value; twice the type's own precision
    if that is more.
    """
    layout = layout_met(shape, layout)
    allowed = max(error_budget, 2 * torch.finfo(dtype).eps)
    as_it_lies = "" if shape.linear else f"{VENDOR}_{layout}"  # the vendor's once more
    candidates = [
        name
        for name in ALGORITHMS
        if name not in {*_NEVER, as_it_lies} and dtype in _TO_WIDEN.get(name, (dtype,)) and takes(name, shape)
    ]
    errors = errors_of(candidates, which, shape, dtype, device, layout)
    names = [name for name in candidates if errors[name] <= allowed or name == VENDOR]
    calls: dict[str, Callable[[], Tensor]] = {}
    for met, most in ((dataclasses.replace(shape, n=1), _LOST), (shape, _HOPELESS)):
        first, second = tensors_for(which, met, dtype, device, layout)
        calls = {name: call_of(name, which, first, second, met) for name in names}
        names = _hopeful(calls, device, most)
    times = _in_turns({name: calls[name] for name in names}, device, seconds)
    return Row(
        which=which,
        shape=shape,
        dtype=str(dtype).removeprefix("torch."),
        layout=layout,
        algorithm=_winner(times),
        seconds={name: statistics.median(taken) for name, taken in times.items()},
        errors={name: errors[name] for name in times},
        extra_bytes={name: extra_bytes(calls[name], device) for name in times},
    )


def tune_all(
    shapes: Iterable[ConvShape], *, dtype: torch.dtype, device: torch.device, layout: str, seconds: float
) -> Iterator[Row]:
    """Every pass of every distinct shape; the first layer's input has a gradient too, which costs little to know."""
    for shape in dict.fromkeys(shapes):
        rows = [tune(shape, which, dtype=dtype, device=device, layout=layout, seconds=seconds) for which in PASSES]
        yield from rows if _gains(rows) else (dataclasses.replace(row, algorithm=VENDOR) for row in rows)


def _gains(passes: list[Row]) -> bool:
    """Whether the passes of a layer gain together: where one is not PyTorch's own, none is."""
    vendor, chosen = (
        sum(times) for times in zip(*((r.seconds[VENDOR], r.seconds[r.algorithm]) for r in passes), strict=True)
    )
    return vendor > MARGIN * chosen and vendor - chosen > _OPERATOR_SECONDS * len(passes)


def tensors_for(
    which: str, shape: ConvShape, dtype: torch.dtype, device: torch.device, layout: str
) -> tuple[Tensor, Tensor]:
    """What a pass is computed from, images as behind an activation: the first two arguments of its operator."""
    random = torch.Generator().manual_seed(0)
    scale = (2 / (shape.c // shape.groups * shape.r * shape.s)) ** 0.5
    made = {
        "input": torch.randn(shape.input_size, generator=random).relu(),
        "weight": torch.randn(shape.weight_size, generator=random) * scale,
        "grad": torch.randn(shape.output_size, generator=random),
    }
    names = {"forward": ("input", "weight"), "input_gradient": ("grad", "weight"), "weight_gradient": ("grad", "input")}
    first, second = (laid_out(made[name].to(device, dtype), layout) for name in names[which])
    return first, second


def call_of(name: str, which: str, first: Tensor, second: Tensor, shape: ConvShape) -> Callable[[], Tensor]:
    """The pass by the algorithm of that name, through the operator that training calls; the vendor's without."""
    if name == VENDOR:
        compute = getattr(ALGORITHMS[VENDOR], which)
        return torch.no_grad()(lambda: compute(first, second, shape))
    choice = ",".join(Choice.of(name))

    @torch.no_grad()
    def call() -> Tensor:
        if which == "forward":
            return operators.forward(first, second, None, shape.geometry, choice)
        if which == "input_gradient":
            return operators.input_gradient(first, second, shape.input_size, shape.geometry, choice)
        return operators.weight_gradient(first, second, shape.weight_size, shape.geometry, choice)

    return call


def errors_of(
    names: Iterable[str], which: str, shape: ConvShape, dtype: torch.dtype, device: torch.device, layout: str
) -> dict[str, float]:
    """Of one image, by each algorithm: the largest difference from the vendor's in float64 from the same numbers, over
    the largest value.
    """
    shape = dataclasses.replace(shape, n=1)
    first, second = tensors_for(which, shape, dtype, device, layout)
    exact = call_of(VENDOR, which, first.double(), second.double(), shape)()
    largest = exact.abs().max()
    results = ((name, call_of(name, which, first, second, shape)()) for name in names)
    return {name: float((got.double() - exact).abs().max() / largest) for name, got in results}


def _hopeful(calls: dict[str, Callable[[], Tensor]], device: torch.device, most: float) -> list[str]:
    """Those that take at most so many times as long as the vendor, in the better of two calls after a first one."""
    for call in calls.values():
        call()
    best = {name: min(_seconds(call, device), _seconds(call, device)) for name, call in calls.items()}
    return [name for name in calls if best[name] <= most * best[VENDOR]]


def _in_turns(calls: dict[str, Callable[[], Tensor]], device: torch.device, seconds: float) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    started = time.perf_counter()
    for turn in range(_MOST_TURNS):
        if turn >= _LEAST_TURNS and time.perf_counter() - started > seconds:
            break
        for name in calls if turn % 2 else reversed(calls):
            if name != VENDOR:
                calls[VENDOR]()
            times[name].append(_seconds(calls[name], device))
    return times


def _seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _winner(times: dict[str, list[float]]) -> str:
    """The fastest of those that beat the vendor by more than the noise; none: the vendor."""
    for name in sorted(times, key=lambda name: statistics.median(times[name])):
        ratios = sorted(theirs / ours for theirs, ours in zip(times[VENDOR], times[name], strict=True))
        if name == VENDOR or (statistics.median(ratios) > MARGIN and ratios[len(ratios) // 4] > 1):
            return name
    return VENDOR
