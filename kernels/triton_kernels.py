"""Whether Triton computes a convolution, for every algorithm with a twin NAME_triton.py. Triton itself is not imported.

The twins run on NVIDIA GPUs of compute capability 8.0 or later (A100, H100), on fp32, fp16 and bf16. torch's wheels for
Linux bring Triton; where it is missing, and for whatever else, the algorithm is what it is without a twin. Under
TRITON_INTERPRET=1, Triton's own switch, they run number by number on CPU tensors too, for tests.

Triton: Tillet, Kung & Cox 2019, "Triton: an intermediate language and compiler for tiled neural network computations".
"""

import functools
import importlib
import importlib.util
import math
import os
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.passes import Choice, Passes
from kernels.shapes import ConvShape

# algorithm -> module and the name of its passes there
TWINS = {
    "depthwise": ("depthwise_triton", "PASSES"),
    "winograd_2": ("winograd_triton", "SMALL"),
    "winograd": ("winograd_triton", "PASSES"),
    "im2col": ("im2col_triton", "PASSES"),
}
CAPABILITY = (8, 0)

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_PLACES = 2**31  # what 32 bits count
_PROGRAMS = 512  # two to four for each multiprocessor of an A100 or H100


def with_twin(name: str, passes: Passes) -> Passes:
    """The algorithm of that name, by its twin where that takes the shape and Triton takes the tensors."""

    def either(which: str) -> Callable[..., Tensor]:
        def computed(first: Tensor, second: Tensor, shape: ConvShape, *bias: Tensor | None) -> Tensor:
            chosen = passes
            if takes(shape, first, second) and twin(name).takes(shape):
                chosen = twin(name)
                bias = tuple(each if each is None else each.contiguous() for each in bias)
            result: Tensor = getattr(chosen, which)(first, second, shape, *bias)
            return result

        return computed

    forward, input_gradient, weight_gradient = map(either, Choice._fields)
    return passes._replace(forward=forward, input_gradient=input_gradient, weight_gradient=weight_gradient)


def twin(name: str) -> Passes:
    """An algorithm in Triton, which is imported for it."""
    module, attribute = TWINS[name]
    passes: Passes = getattr(importlib.import_module(f"kernels.{module}"), attribute)
    return passes


def takes(shape: ConvShape, *tensors: Tensor) -> bool:
    """Whether Triton runs here on such tensors: in a type that it takes, not empty, with places that 32 bits count."""
    results = (math.prod(shape.input_size), math.prod(shape.output_size))
    return (
        all(each.dtype in _DTYPES and each.numel() and _reach(each) < _PLACES for each in tensors)
        and min(results) > 0
        and max(results) < _PLACES
        and runs_on(tensors[0].device)
    )


def runs_on(device: torch.device) -> bool:
    return missing(device) is None


def missing(device: torch.device) -> str | None:
    """What Triton lacks to run on the device, in words, or None."""
    if not is_installed():
        return "the package triton is not installed"
    if device.type == "cuda":
        return capability_lacks(device.index if device.index is not None else torch.cuda.current_device())
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return "it needs an NVIDIA GPU"


@functools.cache
def is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def capability_lacks(index: int) -> str | None:
    """What the GPU of that number lacks, in words, or None."""
    if torch.version.hip is not None:
        return "it needs an NVIDIA GPU"
    capability = torch.cuda.get_device_capability(index)
    if capability < CAPABILITY:
        return f"compute capability {'.'.join(map(str, capability))}, must be {'.'.join(map(str, CAPABILITY))} or more"
    return None


def parts(programs: int, steps: int) -> int:
    """How many programs share a sum of so many steps, where each of `programs` blocks has one: to fill a GPU.

    Fixed by the sizes alone, so a sum is taken in the same order on every GPU.
    """
    return max(1, min(steps, _PROGRAMS // programs))


def precision(dtype: torch.dtype) -> str:
    """Of products in tl.dot: fp32 by fp32 arithmetic, off by some 1e-6 of the largest value.

    By 'tf32', ten bits of each factor, it would be 5e-4, more than training's budget of 1e-4 (`tune.ERROR_BUDGET`).
    """
    return "ieee" if dtype == torch.float32 else "tf32"


def _reach(tensor: Tensor) -> int:
    """The places from the first to the last element."""
    return sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
