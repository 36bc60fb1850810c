"""Linear layers in fp8, by torchao: E4M3 for inputs and weights, E5M2 for gradients, each tensor with its own scale.

Source: Micikevicius et al. 2022, "FP8 formats for deep learning" (arXiv:2209.05433). Products are computed by the GPU
from compute capability 8.9; elsewhere numbers are rounded to fp8 and multiplied in wider ones.
"""

from typing import Any

import torch
from torch import nn

from orchestrator.errors import InputError

MULTIPLE = 16  # that both sides of a weight must be of, by the GPU's matrix product
_FIRST_CAPABILITY = (8, 9)


def suits(layer: nn.Module) -> bool:
    """Whether a layer can compute in fp8: linear, and of suitable sizes."""
    return isinstance(layer, nn.Linear) and layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0


def is_emulated_on(device_type: str) -> bool:
    """Whether a device has no arithmetic in fp8."""
    return device_type != "cuda" or torch.cuda.get_device_capability() < _FIRST_CAPABILITY


def become_float8(layer: nn.Linear, device_type: str) -> None:
    """Make a linear layer compute in fp8, in place: it keeps its parameters, names and hooks.

    Raises: InputError without torchao.
    """
    try:
        from torchao.float8 import Float8LinearConfig
        from torchao.float8.float8_linear import Float8Linear
    except ImportError as error:
        raise InputError(
            "precision: got fp8, must be fp32, tf32, bf16, fp16, fixed, dynamic_fixed or binary without torchao. "
            "Install it: pip install torchao."
        ) from error
    config: Any = Float8LinearConfig(emulate=is_emulated_on(device_type))
    made: Any = Float8Linear.from_float(layer, config=config)
    hooks = {name: value for name, value in vars(layer).items() if name.endswith("_hooks")}
    vars(layer).update(vars(made) | hooks)
    layer.__class__ = Float8Linear
