"""How much memory a call takes beside its arguments and its result: a peak that is measured, not what a formula says.

On a CPU: what PyTorch's allocator hands out, to PyTorch's own kernels too, and what native code works in. Not seen is
what a library of the vendor's takes from the system by itself, such as the packed matrices of a matrix product.
"""

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._C import _autograd, _profiler

from kernels.native.vectors import scratch_bytes


def extra_bytes(call: Callable[[], Tensor], device: torch.device) -> int:
    """The most bytes that were live at once during the call and were not before, less those of its result."""
    scratch_bytes()
    result, peak = _on_gpu(call, device) if device.type == "cuda" else _on_cpu(call)
    return max(0, peak - result.numel() * result.element_size()) + scratch_bytes()


def _on_gpu(call: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, int]:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    return result, torch.cuda.max_memory_allocated(device) - before


def _on_cpu(call: Callable[[], Tensor]) -> tuple[Tensor, int]:
    collects = gc.isenabled()
    gc.disable()  # what it frees was there before, and would be taken off
    try:
        with watched_on_cpu() as peak:
            result = call()
    finally:
        if collects:
            gc.enable()
    return result, peak()


_ERRORS = 2  # of c10's levels of what is logged


@contextmanager
def watched_on_cpu() -> Iterator[Callable[[], int]]:
    """Follow what PyTorch's allocator hands out to this thread; afterwards what comes back gives the most bytes that
    were live at once and were not before.

    By PyTorch's older profiler: torch.profiler takes a second to start and writes to standard error.
    """
    peaks: list[int] = []
    _autograd._enable_profiler_legacy(
        _profiler.ProfilerConfig(
            state=_profiler.ProfilerState.CPU,
            report_input_shapes=False,
            profile_memory=True,
            with_stack=False,
            with_flops=False,
            with_modules=False,
            experimental_config=_profiler._ExperimentalConfig(),
        )
    )
    try:
        with _without_warnings():
            yield lambda: sum(peaks)
    finally:
        threads = _autograd._disable_profiler_legacy()
        peaks += [_peak([event.cpu_memory_usage() for event in events]) for events in threads]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep PyTorch's C++ from writing that it frees memory which it had handed out before, as any step does."""
    try:
        level = ctypes.c_int.in_dll(ctypes.CDLL("libc10.so"), "FLAGS_caffe2_log_level")
    except (OSError, ValueError):  # another build of PyTorch
        yield
        return
    before, level.value = level.value, _ERRORS
    try:
        yield
    finally:
        level.value = before


def _peak(changes: list[int]) -> int:
    live = peak = 0
    for change in changes:
        live += change
        peak = max(peak, live)
    return peak
