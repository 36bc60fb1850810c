"""Make the optimizer of an experiment, and those that keep weights in bf16.

Norms and biases have no weight decay: to shrink them does not make a network simpler (He et al. 2018,
arXiv:1812.01187, section 3.1, "no bias decay", after Jia et al. 2018, arXiv:1807.11205).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kernels import bf16_updates
from kernels.rounding import stream
from orchestrator.config.experiment import (
    AdaGradConfig,
    AdamaxConfig,
    AdamWConfig,
    OptimizerConfig,
    SgdConfig,
    ShiftAdamaxConfig,
)
from orchestrator.config.precision import WeightsConfig
from orchestrator.training.shift_adamax import ShiftAdamax

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, weights: WeightsConfig | None = None, seed: int = 0
) -> torch.optim.Optimizer:
    """Make an optimizer over the trained parameters of `model`: a group with weight decay, and one without.

    Without are all parameters of norm layers and those with one dimension, as every bias has. Within a group
    the order is that of `model.named_parameters()`; an empty group is left out. A group has the names of its
    parameters under `param_names`, and so has the optimizer's state. `weights`, `seed`: of rounding, where weights are
    in bf16.
    Source: Loshchilov & Hutter 2019 (arXiv:1711.05101) for AdamW; for SGD, eq. 9 of Goyal et al. 2017
    (arXiv:1706.02677), whose momentum needs no correction when the rate changes.
    """
    groups = _groups(model, config.weight_decay)
    if weights is not None and weights.weights == "bf16":
        return _in_bf16(groups, config, weights, seed)
    # Not `fused`: on the CPU it goes through tensors as they lie in memory and never looks at their
    # strides, so that channels_last filters with a contiguous momentum, as after loading a checkpoint, are
    # updated wrongly and silently (torch 2.14.1, x86 with AVX-512, November 2026).
    if isinstance(config, SgdConfig):
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, foreach=True)
    if isinstance(config, AdaGradConfig):
        return torch.optim.Adagrad(groups, lr=config.lr, eps=config.eps, foreach=True)
    if isinstance(config, AdamaxConfig):
        return torch.optim.Adamax(groups, lr=config.lr, betas=config.betas, eps=config.eps, foreach=True)
    if isinstance(config, ShiftAdamaxConfig):
        return ShiftAdamax(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    assert isinstance(config, AdamWConfig)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, foreach=True)


class _InBf16(torch.optim.Optimizer):
    """Updates of parameters in bf16, before those of torch for all others. Mixed into an optimizer of torch's."""

    rounding: WeightsConfig
    seed: int
    numbers: dict[Tensor, int]
    """Of all weights, from 1 on in their order: part of what their chance hangs on."""

    def set_rounding(self, rounding: WeightsConfig, seed: int) -> None:
        self.rounding, self.seed = rounding, seed
        weights = (weight for group in self.param_groups for weight in group["params"])
        self.numbers = {weight: number for number, weight in enumerate(weights, start=1)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "Convoy's loop has none"
        grads: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.dtype == torch.bfloat16 and weight.grad is not None:
                    self._update(weight, weight.grad, group, self.numbers[weight])
                    grads.append((weight, weight.grad))
                    weight.grad = None
        super().step()
        for weight, grad in grads:
            weight.grad = grad

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but buffers keep their own dtype, where torch gives them that of the weights."""
        super().load_state_dict(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for weight, number in zip(group["params"], saved["params"], strict=True):
                for name, value in state_dict["state"].get(number, {}).items():
                    if weight.dtype == torch.bfloat16 and isinstance(value, Tensor) and value.ndim:
                        self.state[weight][name] = value.detach().clone().to(weight.device)

    def _update(self, weight: Tensor, grad: Tensor, group: dict[str, Any], number: int) -> None:
        raise NotImplementedError

    def _state_of(self, weight: Tensor, *names: str) -> tuple[dict[str, Any], int]:
        """What is remembered of a weight, with zeros for `names` at first, and the number of its next update."""
        state = self.state[weight]
        if not state:
            dtype = torch.bfloat16 if self.rounding.state == "bf16" else torch.float32
            state["step"] = torch.tensor(0.0)
            state.update({name: torch.zeros_like(weight, dtype=dtype) for name in names})
        state["step"] += 1
        return state, int(state["step"])

    def _seed_of(self, step: int, number: int) -> int | None:
        return stream(self.seed, step, number) if self.rounding.rounding == "stochastic" else None


class SgdInBf16(_InBf16, torch.optim.SGD):
    """SGD whose parameters in bf16 have no copy in fp32 (`kernels/bf16_updates.py`)."""

    def _update(self, weight: Tensor, grad: Tensor, group: dict[str, Any], number: int) -> None:
        names = ("momentum_buffer",) if group["momentum"] else ()
        state, step = self._state_of(weight, *names)
        by = bf16_updates.Sgd(group["lr"], group["momentum"], group["weight_decay"], group["nesterov"])
        bf16_updates.sgd_(weight, grad, state.get("momentum_buffer"), by, seed=self._seed_of(step, number))


class AdamWInBf16(_InBf16, torch.optim.AdamW):
    """AdamW whose parameters in bf16 have no copy in fp32 (`kernels/bf16_updates.py`)."""

    def _update(self, weight: Tensor, grad: Tensor, group: dict[str, Any], number: int) -> None:
        state, step = self._state_of(weight, "exp_avg", "exp_avg_sq")
        by = bf16_updates.AdamW(group["lr"], step, group["betas"], group["eps"], group["weight_decay"])
        seed = self._seed_of(step, number)
        bf16_updates.adamw_(weight, grad, state["exp_avg"], state["exp_avg_sq"], by, seed=seed)


def _in_bf16(
    groups: list[dict[str, Any]], config: OptimizerConfig, weights: WeightsConfig, seed: int
) -> torch.optim.Optimizer:
    optimizer: SgdInBf16 | AdamWInBf16
    if isinstance(config, SgdConfig):
        optimizer = SgdInBf16(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    else:
        assert isinstance(config, AdamWConfig), "checked with the experiment"
        optimizer = AdamWInBf16(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    optimizer.set_rounding(weights, seed)
    return optimizer


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    spared = {name for name, parameter in trained if _is_spared(model, name, parameter)}
    groups = [
        {"params": [(name, p) for name, p in trained if name not in spared], "weight_decay": weight_decay},
        {"params": [(name, p) for name, p in trained if name in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _is_spared(model: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter has no decay: all of a norm layer's, and any with one dimension, as biases have."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return isinstance(owner, NORMS) or parameter.ndim <= 1
