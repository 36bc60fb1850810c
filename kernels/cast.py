"""Half precision by the vendor's fp32 kernels, for CPUs without arithmetic for fp16 or bf16.

The vendor's own kernels for such types go number by number there. Here each number is widened, the convolution computed
in fp32, and the result rounded once. fp32 and fp64 are computed by the vendor as they are.
"""

import torch
from torch import Tensor

from kernels import vendor
from kernels.passes import Pass, Passes
from kernels.shapes import ConvShape


def _widened(compute: Pass) -> Pass:
    def computed(first: Tensor, second: Tensor, shape: ConvShape) -> Tensor:
        dtype = torch.promote_types(first.dtype, torch.float32)
        return compute(first.to(dtype), second.to(dtype), shape).to(first.dtype)

    return computed


PASSES = Passes(vendor.check, *map(_widened, (vendor.forward, vendor.input_gradient, vendor.weight_gradient)))
