"""A model as one flat vector, as a parameter server has it: parameters become views of it, as they lie in memory.

Parameters that decay come first, as the groups of the optimizer have it. Floating-point buffers (batch statistics) are
another vector, which is not trained.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.float32]


class FlatModel:
    """The trained parameters of `model`, all float32 on one device, in the order of the groups of `optimizer`."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model, self._optimizer = model, optimizer
        groups = sorted(optimizer.param_groups, key=lambda group: group["weight_decay"] == 0)
        self.parameters: list[Tensor] = [parameter for group in groups for parameter in group["params"]]
        self.num_decayed = sum(p.numel() for group in groups if group["weight_decay"] for p in group["params"])
        self.device = self.parameters[0].device
        self._weights = self._new()
        with torch.no_grad():
            for parameter, view in zip(self.parameters, self._views(self._weights), strict=True):
                view.copy_(parameter)
                parameter.data = view
        self._gradient = self._new()
        self._gradient_views = list(self._views(self._gradient))
        self._buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._link = _Link(self.size, self.device) if self.device.type == "cuda" else None

    @property
    def size(self) -> int:
        return self._weights.numel()

    @torch.no_grad()
    def gradient(self) -> Floats:
        """The gradients (size,) on the host; zero where a parameter has none. They hold until the next call.

        What is done with the weights meanwhile does not change them.
        """
        there = [(view, p.grad) for view, p in zip(self._gradient_views, self.parameters, strict=True)]
        with_gradient = [(view, gradient) for view, gradient in there if gradient is not None]
        if len(with_gradient) < len(there):
            self._gradient.zero_()
        torch._foreach_copy_([view for view, _ in with_gradient], [gradient for _, gradient in with_gradient])
        return self._gradient.numpy() if self._link is None else self._link.down(self._gradient)

    @torch.no_grad()
    def set_weights(self, weights: Floats) -> None:
        """Take weights (size,) from the host."""
        if self._link is None:
            np.copyto(self._weights.numpy(), weights)
        else:
            self._link.up(weights, self._weights)

    def weights(self) -> Floats:
        """A copy (size,) on the host."""
        return self._weights.cpu().numpy().copy()

    def buffers(self) -> Floats | None:
        """The floating-point buffers as one vector on the host; None if there are none."""
        if not self._buffers:
            return None
        together = torch.cat([buffer.detach().float().flatten() for buffer in self._buffers])
        return together.cpu().numpy()

    @torch.no_grad()
    def set_buffers(self, values: Floats | None) -> None:
        if values is None:
            return
        parts = torch.split(torch.from_numpy(np.array(values)), [buffer.numel() for buffer in self._buffers])
        for buffer, part in zip(self._buffers, parts, strict=True):
            buffer.copy_(part.view(buffer.shape))

    def optimizer_state(self) -> dict[str, Any]:
        """The state of the optimizer, flat, by torch's names; empty before the first step. Steps are counted alike."""
        states = [self._optimizer.state.get(parameter, {}) for parameter in self.parameters]
        flat: dict[str, Any] = {}
        for name, value in states[0].items():
            if name == "step":
                flat[name] = int(value)
            elif value is not None:
                vector = self._new("cpu")
                for view, state in zip(self._views(vector), states, strict=True):
                    view.copy_(state[name])
                flat[name] = vector.numpy()
        return flat

    def set_optimizer_state(self, flat: dict[str, Any]) -> None:
        """Give the optimizer the state that a server has, so that a commit has it in torch's form."""
        self._optimizer.state.clear()
        for name, value in flat.items():
            if name == "step":
                for parameter in self.parameters:
                    self._optimizer.state[parameter][name] = torch.tensor(float(value))
                continue
            views = self._views(torch.from_numpy(value).to(self.device))
            for parameter, view in zip(self.parameters, views, strict=True):
                self._optimizer.state[parameter][name] = view.clone()

    def named(self, values: Floats) -> dict[str, Tensor]:
        """A flat vector as tensors by the names of the parameters."""
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        views = self._views(torch.from_numpy(values))
        return {names[id(parameter)]: view for parameter, view in zip(self.parameters, views, strict=True)}

    def flat_of(self, named: dict[str, Tensor]) -> Floats:
        """Tensors by the names of the parameters as a flat vector on the host."""
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        vector = self._new("cpu")
        for parameter, view in zip(self.parameters, self._views(vector), strict=True):
            view.copy_(named[names[id(parameter)]])
        return vector.numpy()

    def _new(self, device: str | None = None) -> Tensor:
        total = sum(parameter.numel() for parameter in self.parameters)
        return torch.zeros(total, device=device or self.device)

    def _views(self, vector: Tensor) -> Iterator[Tensor]:
        """Of a flat vector, one for each parameter, of its shape and its order in memory."""
        at = 0
        for parameter in self.parameters:
            part = vector[at : at + parameter.numel()]
            stride = torch.empty_like(parameter, device="meta").stride()  # dense, in the parameter's order
            yield part.as_strided(parameter.shape, stride)
            at += parameter.numel()


class _Link:
    """Between a GPU and pinned memory of the host, one buffer each way, on a stream of its own."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._device = device
        self._from_device, self._to_device = (torch.zeros(size, pin_memory=True) for _ in range(2))
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def down(self, vector: Tensor) -> Floats:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._from_device.copy_(vector, non_blocking=True)
        self._stream.synchronize()
        return self._from_device.numpy()

    def up(self, values: Floats, vector: Tensor) -> None:
        np.copyto(self._to_device.numpy(), values)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            vector.copy_(self._to_device, non_blocking=True)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._stream.synchronize()  # the buffer is written to again
