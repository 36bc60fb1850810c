"""What keeps a network from fitting its training samples too closely, beside augmentation and decay."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from orchestrator.errors import CheckpointError


class WeightAverage:
    """An exponential moving average of a network: w_avg <- decay * w_avg + (1 - decay) * w after each step.

    It is kept in fp32, begins with the weights at construction and is not corrected for that: the first
    weights are a share decay^steps of it. Floating-point buffers (the statistics of batch norms) are
    averaged alike, because the newest statistics do not fit weights of many steps ago; other buffers are
    copied. So does `ModelEmaV3` in timm. torch's `AveragedModel` would keep a second module, with other
    names in its state.
    Source: Polyak & Juditsky 1992; Szegedy et al. 2015 (arXiv:1512.00567), section 8 for this form.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self._averages = {name: _copied(tensor) for name, tensor in _tensors(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the module's weights after a step."""
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for name, value in _tensors(module).items():
            average = self._averages[name]
            if average.is_floating_point():
                averages.append(average)
                values.append(value.float())
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1.0 - self._decay)

    @contextmanager
    def applied_to(self, module: nn.Module) -> Iterator[None]:
        """Put the averages into the module, and what was there back at the end, bit for bit."""
        tensors = _tensors(module)
        with torch.no_grad():
            kept = {name: tensor.clone() for name, tensor in tensors.items()}
        try:
            _copy(self._averages, tensors)
            yield
        finally:
            _copy(kept, tensors)

    def state(self) -> dict[str, Tensor]:
        """The averages by the names of parameters and buffers: not copies, the next update changes them."""
        return dict(self._averages)

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state()` gave. Raises: CheckpointError if names or shapes are other ones."""
        saved = {name: tensor.shape for name, tensor in state.items()}
        needed = {name: tensor.shape for name, tensor in self._averages.items()}
        differing = sorted(name for name in saved | needed if saved.get(name) != needed.get(name))
        if differing:
            raise CheckpointError(
                "train.ema_decay: the checkpoint's average of weights is of another network; missing in one "
                f"of the two or of another shape: {', '.join(differing)}. "
                "Go on with the model that the run began with."
            )
        _copy(state, self._averages)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a tensor that has several names comes once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _copied(tensor: Tensor) -> Tensor:
    kept = tensor.detach()
    return kept.to(torch.float32 if kept.is_floating_point() else kept.dtype, copy=True)


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])
