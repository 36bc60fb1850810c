"""The arithmetic of training: where to round, and how to keep gradients in range.

In bf16 and fp16, autocast rounds the inputs of matrix products and convolutions to 16 bits; weights, their gradients
and the optimizer stay in fp32 unless `precision.optimizer` says otherwise. Half precision has 5 bits of exponent, so
small gradients would become zero: the loss is multiplied by a scale that grows while all gradients stay finite and
shrinks when one does not (Micikevicius et al. 2017, arXiv:1710.03740, sections 3.1 and 3.2). bfloat16 has fp32's
exponent and needs no scale. Layers may have formats of their own (`formats.py`).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.config.precision import PrecisionConfig
from orchestrator.errors import CheckpointError, InputError
from orchestrator.training.formats import Draws, Formats

ROUNDED = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}


class Precision:
    """All that depends on the arithmetic between a batch and the weights' update.

    For each part of a step: the forward pass within `autocast()`, then `backward()`; once a step: `step()`.
    The scale changes in `step()` only, so all parts of a step have the same.
    """

    def __init__(self, config: PrecisionConfig, device: torch.device, model: nn.Module, seed: int) -> None:
        self._config = config
        self._device = device
        if device.type == "cuda":
            _set_products_of_fp32(config, device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.default.name == "fp16")
        self._formats = Formats(model, config, seed, dist.get_rank() if dist.is_initialized() else 0, device.type)
        self.skipped_in_a_row = 0
        """Steps without an update, since the last one that had it."""

    @property
    def draws(self) -> Draws:
        """The random numbers of rounding by chance."""
        return self._formats.draws

    def autocast(self) -> AbstractContextManager[object]:
        """Surround a forward pass. The loss belongs outside, in fp32."""
        if self._config.default.name not in ROUNDED:
            return nullcontext()
        return torch.autocast(self._device.type, ROUNDED[self._config.default.name])

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, times the scale, to the parameters' `grad`."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: torch.optim.Optimizer, clip_grad_norm: float) -> bool:
        """Undo the scale, clip all gradients together to a 2-norm of `clip_grad_norm` (0 is off) and update.

        Gradients must be summed over all workers before, so that all decide alike.
        Returns: whether the update took place. In fp16 it does not where a gradient is infinite or NaN: the
        scale is halved instead. It is doubled after 2,000 updates in a row.
        Source: Pascanu et al. 2012 (arXiv:1211.5063), algorithm 1 for the clipping.
        """
        self._scaler.unscale_(optimizer)
        if clip_grad_norm > 0.0:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, clip_grad_norm, foreach=True)
        self._formats.before_update()
        updated = self._note(lambda: self._scaler.step(optimizer))
        self._formats.after_update()
        return updated

    def unscale(self, optimizer: torch.optim.Optimizer) -> bool:
        """Undo the scale, for an update that takes place elsewhere; returns whether it may, as `step` does."""
        if self._scaler.is_enabled():
            self._scaler.unscale_(optimizer)
        self._formats.before_update()
        updated = not self._scaler.is_enabled() or self._note(lambda: None)
        self._formats.after_update()
        return updated

    def _note(self, update: Callable[[], object]) -> bool:
        scale = self._scaler.get_scale()
        update()
        self._scaler.update()
        updated = self._scaler.get_scale() >= scale
        self.skipped_in_a_row = 0 if updated else self.skipped_in_a_row + 1
        return updated

    def scale_state(self) -> dict[str, Any]:
        """What is remembered of the scale of the loss; nothing but in fp16."""
        return self._scaler.state_dict()

    def load_scale(self, state: dict[str, Any]) -> None:
        """Go on from what `scale_state()` gave."""
        self._scaler.load_state_dict(state)

    def widened(self) -> list[str]:
        """Layers that the guard gave wider formats since this was last asked, in words."""
        return self._formats.widened()

    def state(self) -> dict[str, Any]:
        """What is remembered between steps, fit for JSON: in fp16 the scale and its history; what chance hangs on."""
        return self.scale_state() | self._formats.state()

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave. Raises: CheckpointError if that was in another precision."""
        scale = self._formats.load(state)
        if bool(scale) != self._scaler.is_enabled():
            written = "with fp16" if scale else "without fp16"
            raise CheckpointError(
                f"precision.default: got {self._config.default.name}, but the checkpoint was written {written}. "
                "Go on in the precision that the run began with, or start another run."
            )
        if scale:
            self.load_scale(scale)


def _set_products_of_fp32(config: PrecisionConfig, device: torch.device) -> None:
    """Whether products of fp32 are those of tf32, in this process. PyTorch's convolutions would be, unless told."""
    major, minor = torch.cuda.get_device_capability(device)
    wanted = config.default.name == "tf32"
    if wanted and major < 8:
        raise InputError(
            f"precision: got tf32, must be fp32 or fp16 on {torch.cuda.get_device_name(device)}, whose compute "
            f"capability is {major}.{minor}: tf32 begins with 8.0."
        )
    how = "tf32" if wanted else "ieee"
    torch.backends.cuda.matmul.fp32_precision = how
    torch.backends.cudnn.conv.fp32_precision = how  # type: ignore[attr-defined]
