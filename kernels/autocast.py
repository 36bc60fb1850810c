"""What autocast does to the arguments of a convolution or a linear layer, which PyTorch lists among what it casts."""

from typing import Any

import torch
from torch import Tensor


def as_autocast_wants(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in the type of the region that this is called in."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        tensor.to(dtype) if tensor is not None and tensor.is_floating_point() else tensor for tensor in tensors
    )
