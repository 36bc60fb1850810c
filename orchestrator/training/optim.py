"""Make the optimizer of an experiment.

Norms and biases have no weight decay: to shrink them does not make a network simpler (He et al. 2018,
arXiv:1812.01187, section 3.1, "no bias decay", after Jia et al. 2018, arXiv:1807.11205).
"""

from typing import Any

import torch
from torch import nn

from orchestrator.config.experiment import AdaGradConfig, AdamWConfig, OptimizerConfig, SgdConfig

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Make an optimizer over the trained parameters of `model`: a group with weight decay, and one without.

    Without are all parameters of norm layers and those with one dimension, as every bias has. Within a group
    the order is that of `model.named_parameters()`; an empty group is left out. A group has the names of its
    parameters under `param_names`, and so has the optimizer's state.
    Source: Loshchilov & Hutter 2019 (arXiv:1711.05101) for AdamW; for SGD, eq. 9 of Goyal et al. 2017
    (arXiv:1706.02677), whose momentum needs no correction when the rate changes.
    """
    groups = _groups(model, config.weight_decay)
    # Not `fused`: on the CPU it goes through tensors as they lie in memory and never looks at their
    # strides, so that channels_last filters with a contiguous momentum, as after loading a checkpoint, are
    # updated wrongly and silently (torch 2.14.1, x86 with AVX-512, November 2026).
    if isinstance(config, SgdConfig):
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, foreach=True)
    if isinstance(config, AdaGradConfig):
        return torch.optim.Adagrad(groups, lr=config.lr, eps=config.eps, foreach=True)
    assert isinstance(config, AdamWConfig)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, foreach=True)


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
