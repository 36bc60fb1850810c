"""Half precision by the vendor's fp32 kernels, for CPUs without arithmetic for fp16 or bf16.

The vendor's own kernels for such types go number by number there. Here each number is widened, the convolution computed
in fp32, and the result rounded once. fp32 and fp64 are computed by the vendor as they are.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import vendor
from kernels.passes import Passes
from kernels.shapes import ConvShape


def _widened(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def computed(first: Tensor, second: Tensor, shape: ConvShape, bias: Tensor | None = None) -> Tensor:
        dtype = torch.promote_types(first.dtype, torch.float32)
        with_bias = () if bias is None else (bias.to(dtype),)
        return compute(first.to(dtype), second.to(dtype), shape, *with_bias).to(first.dtype)

    return computed


PASSES = Passes(
    vendor.check, _widened(vendor.forward), _widened(vendor.input_gradient), _widened(vendor.weight_gradient)
)
