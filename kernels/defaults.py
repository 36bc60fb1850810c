"""What `auto` takes where nothing was measured: a few rules by kind of CPU and of shape, else the vendor's.

A rule is for what is faster on every CPU of its kind by far; what depends on the machine is for `convoy tune` to find.
It holds only where the native code behind it can be built: without, the algorithm would be torch's slow one.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from kernels import depthwise, winograd
from kernels.algorithms import takes
from kernels.native.build import NotBuilt
from kernels.passes import Choice
from kernels.shapes import ConvShape

_LOG = logging.getLogger(__name__)

SIZES: dict[str, Callable[[ConvShape], int]] = {
    "rows of the filter": lambda shape: shape.r,
    "columns of the filter": lambda shape: shape.s,
    "channels in": lambda shape: shape.c,
    "channels out": lambda shape: shape.k,
    "rows of results": lambda shape: shape.out_h,
    "columns of results": lambda shape: shape.out_w,
    "results a channel": lambda shape: shape.n * shape.out_h * shape.out_w,
    "operations": lambda shape: shape.flops,
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """An algorithm, and for what it is taken: all must hold.

    `vectors`: of the CPU, as torch.backends.cpu calls them. `least`, `most`: bounds by names of SIZES. `load`: the
    native code that it needs, raises NotBuilt. `without_fp16`: only for CPUs that have no arithmetic for fp16.
    """

    algorithm: str
    vectors: tuple[str, ...]
    passes: tuple[str, ...] = Choice._fields
    dtype: str = "float32"
    least: Mapping[str, int] = field(default_factory=dict)
    most: Mapping[str, int] = field(default_factory=dict)
    load: Callable[[], Any] | None = None
    without_fp16: bool = False

    def __str__(self) -> str:
        exact = {size for size, least in self.least.items() if self.most.get(size) == least}
        bounds = [f"{size} {'' if size in exact else '>= '}{least:,}" for size, least in self.least.items()]
        bounds += [f"{size} <= {most:,}" for size, most in self.most.items() if size not in exact]
        passes = "all passes" if self.passes == Choice._fields else ", ".join(self.passes).replace("_", " ")
        return f"{self.algorithm} for {passes} in {self.dtype}: {', '.join(bounds)}"

    def holds(self, which: str, shape: ConvShape, dtype: str) -> bool:
        """Whether it is for such a pass, wherever it is computed."""
        return (
            which in self.passes
            and dtype == self.dtype
            and all(SIZES[size](shape) >= least for size, least in self.least.items())
            and all(SIZES[size](shape) <= most for size, most in self.most.items())
            and takes(self.algorithm, shape)
        )


_FILTER_3X3 = {"rows of the filter": 3, "columns of the filter": 3}


def _winograd(vectors: str, side: int) -> Rule:
    """For layers that take a good part of a step, with results of that side at least."""
    sizes = {"channels in": 64, "channels out": 64, "rows of results": side, "columns of results": side}
    least = _FILTER_3X3 | sizes | {"results a channel": 6272, "operations": 10**10}
    return Rule(
        algorithm="winograd", vectors=(vectors,), least=least, most=_FILTER_3X3, load=winograd.load_library
    )  # fmt: skip


# The first that holds is taken.
RULES = (
    _winograd("AVX512", 14),
    _winograd("AVX2", 28),
    Rule(
        algorithm="depthwise",
        vectors=("AVX512", "AVX2"),
        passes=("weight_gradient",),
        least={"rows of the filter": 7, "columns of the filter": 7, "channels in": 32, "results a channel": 1568},
        load=depthwise.load_library,
    ),
    Rule(
        algorithm="cast",
        vectors=("AVX512", "AVX2"),
        dtype="float16",
        least={"operations": 10**7},
        without_fp16=True,
    ),
)


def default(which: str, shape: ConvShape, dtype: str, device: str) -> str | None:
    """The algorithm of the first rule that holds here; None leaves it to the vendor. `device`: 'cpu', 'cuda', ..."""
    if device != "cpu":
        return None
    holding = (rule for rule in RULES if _is_for_this_cpu(rule) and rule.holds(which, shape, dtype))
    return next((rule.algorithm for rule in holding if _can_be_had(rule.algorithm, rule.load)), None)


def rules_here() -> Iterator[Rule]:
    """Those for this machine's CPU whose native code can be had."""
    return (rule for rule in RULES if _is_for_this_cpu(rule) and _can_be_had(rule.algorithm, rule.load))


def _is_for_this_cpu(rule: Rule) -> bool:
    here = torch.backends.cpu.get_cpu_capability() in rule.vectors
    return here and not (rule.without_fp16 and _has_fp16())


@functools.cache
def _has_fp16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_fp16_supported()


@functools.cache
def _can_be_had(algorithm: str, load: Callable[[], Any] | None) -> bool:
    """Warns if not, once."""
    try:
        if load:
            load()
    except NotBuilt as reason:
        _LOG.warning("auto leaves to PyTorch what %s would compute: %s. Install a C compiler.", algorithm, reason)
        return False
    return True
