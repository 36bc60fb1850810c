"""An optimizer whose state lies in the host's memory while the device computes; the numbers stay the same.

The state goes to the device for the update, a chunk of weights at a time, and back. So the device holds the state of a
chunk, and each update moves the whole state twice: worth it where the state is large and the link is not what a step
waits for. The idea is that of ZeRO-Offload (Ren et al. 2021, arXiv:2101.06840), which also computes the update on the
host; here the device does, so that it is the same bits. On a GPU the host's memory is pinned, and all copies are in the
order of the device's stream: nothing waits but a read of the state.

Where the device is the CPU, the host's memory is the device's: there is nothing to gain (`Learner` leaves it out).
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 32 * 2**20
"""Large enough that a copy is not all latency."""


def offload(optimizer: torch.optim.Optimizer, chunk_bytes: int = CHUNK_BYTES) -> None:
    """Have an optimizer keep its state on the host, in place. `chunk_bytes`: of weights, updated at a time."""
    for weight, state in optimizer.state.items():
        state.update({name: _on_host(value, weight) for name, value in state.items() if _is_large(value)})
    chosen: Any = optimizer
    kind: Any = type(optimizer)
    chosen.__class__ = _offloaded(kind)
    chosen.chunk_bytes = chunk_bytes


class _Offloaded(torch.optim.Optimizer):
    """Mixed into an optimizer of torch's."""

    chunk_bytes: int

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "Convoy's loop has none"
        groups = self.param_groups
        try:
            for group in groups:
                for chunk in self._chunks(group["params"]):
                    on_host = self._to_device(chunk)
                    self.param_groups = [group | {"params": chunk}]
                    super().step()
                    self._to_host(chunk, on_host)
        finally:
            self.param_groups = groups

    def state_dict(self) -> dict[str, Any]:
        self._wait()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the state goes to the host at once, and as it is."""
        super().load_state_dict({**state_dict, "state": {}})
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for weight, number in zip(group["params"], saved["params"], strict=True):
                for name, value in state_dict["state"].get(number, {}).items():
                    self.state[weight][name] = _on_host(value, weight) if _is_large(value) else value
        self._wait()

    def _chunks(self, weights: list[Tensor]) -> Iterator[list[Tensor]]:
        """Of weights with a gradient, in their order."""
        chunk, size = list[Tensor](), 0
        for weight in weights:
            if weight.grad is None:
                continue
            if chunk and size + weight.nbytes > self.chunk_bytes:
                yield chunk
                chunk, size = [], 0
            chunk.append(weight)
            size += weight.nbytes
        if chunk:
            yield chunk

    def _to_device(self, chunk: list[Tensor]) -> list[dict[str, Tensor]]:
        """Have the state of a chunk on the device; returns what is of it on the host."""
        on_host = []
        for weight in chunk:
            state = self.state[weight]
            on_host.append({name: value for name, value in state.items() if _is_large(value)})
            for name, value in on_host[-1].items():
                state[name] = torch.empty_like(value, device=weight.device).copy_(value, non_blocking=True)
        return on_host

    def _to_host(self, chunk: list[Tensor], on_host: list[dict[str, Tensor]]) -> None:
        for weight, kept in zip(chunk, on_host, strict=True):
            state = self.state[weight]
            for name, value in state.items():
                if name in kept:
                    state[name] = kept[name].copy_(value, non_blocking=True)
                elif _is_large(value):
                    state[name] = _on_host(value, weight)

    def _wait(self) -> None:
        """Until the copies have arrived."""
        if any(weight.is_cuda for group in self.param_groups for weight in group["params"]):
            torch.cuda.synchronize()


@functools.cache
def _offloaded(kind: Any) -> Any:
    return type(kind.__name__, (_Offloaded, kind), {"__module__": kind.__module__})


def _is_large(value: Any) -> bool:
    """Whether it is a tensor of the weight's size; numbers of steps are on the host anyway."""
    return isinstance(value, Tensor) and value.ndim > 0


def _on_host(value: Tensor, weight: Tensor) -> Tensor:
    """A copy on the host, from where a GPU can fetch it while the host goes on."""
    return torch.empty_like(value, device="cpu", pin_memory=weight.is_cuda).copy_(value, non_blocking=True)
