"""The peak of a worker's memory on its device, measured.

On a GPU: torch.cuda.max_memory_allocated since the training began. On a CPU, where nothing counts all the time: what
PyTorch's allocator hands out in the second step (in which the optimizer has its state), and what of the learner was
there before; what libraries of the vendor's take by themselves is not in it, nor is evaluation.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kernels.memory import watched_on_cpu

HOW = {
    "cuda": "torch.cuda.max_memory_allocated of the whole run",
    "cpu": "what PyTorch allocated on the CPU in one training step, and the learner's tensors",
}
OF = {"cuda": "peak", "cpu": "training"}
"""Which part of the forecast is the same thing."""
WATCHED_STEP = 2


class PeakMeter:
    """Measures while steps are taken. `peak_bytes`: 0 while nothing is known."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps = 0
        self._peak_bytes = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else self._peak_bytes

    @contextmanager
    def step(self, resident: Iterable[Tensor]) -> Iterator[None]:
        """Surround a step. `resident`: the tensors that were there before."""
        self._steps += 1
        if self._device.type == "cuda" or self._steps != WATCHED_STEP:
            yield
            return
        before = _bytes_of(resident)
        with watched_on_cpu() as peak:
            yield
        self._peak_bytes = before + peak()


def available_bytes(device: torch.device) -> int:
    """What this process can have of its device's memory, with what it has."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    """Each storage once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
