"""Binary convolutions and linear layers: the signs of weights and activations, multiplied and summed bit by bit.

sign(0) is 1. In training the gradient passes the sign as if it were the identity, but for activations beyond 1 in
size, where it is zero (the straight-through estimator with the cancel); weights are kept as real numbers, for the sum
of many small steps, and clipped to [-1, 1] after each (`clip_`).

Source: Courbariaux, Hubara, Soudry, El-Yaniv & Bengio 2016, "Binarized Neural Networks" (arXiv:1602.02830), section 1.
With `scaled`, results are multiplied by the mean size of their filter's weights: XNOR-Net's alpha, Rastegari et al.
2016 (arXiv:1603.05279), eq. 6.

On a CPU in fp32 the forward pass is native/binary.c, on a GPU binary_triton.py: activations are packed to 32 a word
within the call, products are exclusive ors, sums are counts of bits. It is exact: bit for bit the fp32 convolution of
the signs. Whatever else, and a machine without a compiler, computes that. For evaluation the bits of the weights are
enough (`binary_packed.py`).
"""

import ctypes
import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kernels import triton_kernels, vendor
from kernels.binary_bits import signs_of
from kernels.layout import empty
from kernels.native import build
from kernels.native.vectors import Layout, in_lines, load_library
from kernels.shapes import ConvShape

_EXACT = 2**24  # products whose sum fp32 holds


def sign(x: Tensor) -> Tensor:
    """1 where x >= 0, else -1, in x's dtype. NaN is -1."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


class Packed(NamedTuple):
    """Filters as bits: 1/32 of their size. `words`: 16 filters a vector; `sums`: of the signs of each tap."""

    words: Tensor
    sums: Tensor


class BinaryConv2d(nn.Conv2d):
    """A convolution of signs by signs; zeros as padding. `groups` is 1. The bias, if any, is real.

    Shapes: (N, C, H, W) -> (N, K, H', W'), as nn.Conv2d's.
    """

    scaled = False

    def forward(self, input: Tensor) -> Tensor:
        if self.groups != 1 or self.padding_mode != "zeros":
            raise ValueError(
                "a binary convolution has groups=1 and padding_mode='zeros', "
                f"got groups={self.groups} and padding_mode={self.padding_mode!r}"
            )
        scale = self.weight.abs().mean((1, 2, 3)) if self.scaled else None
        options = (self.stride, self.padding, self.dilation)
        result: Tensor = _Binary.apply(input, self.weight, *options)
        if scale is not None:
            result = result * scale[:, None, None]
        return result if self.bias is None else result + self.bias[:, None, None]

    @torch.no_grad()
    def clip_(self) -> None:
        """After an update."""
        self.weight.clamp_(-1.0, 1.0)


class BinaryLinear(nn.Linear):
    """Products of signs by signs. Shapes: (..., in) -> (..., out), as nn.Linear's. The bias, if any, is real."""

    scaled = False

    def forward(self, input: Tensor) -> Tensor:
        pixels = input.reshape(-1, self.in_features, 1, 1)
        filters = self.weight[:, :, None, None]
        result: Tensor = _Binary.apply(pixels, filters, 1, 0, 1)
        result = result.view(*input.shape[:-1], self.out_features)
        if self.scaled:
            result = result * self.weight.abs().mean(1)
        return result if self.bias is None else result + self.bias

    @torch.no_grad()
    def clip_(self) -> None:
        """After an update."""
        self.weight.clamp_(-1.0, 1.0)


class _Binary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
        shape = ConvShape.of(input, weight, stride=stride, padding=padding, dilation=dilation)
        ctx.save_for_backward(input, weight)
        ctx.shape = shape
        return convolve_signs(input, weight, shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        input, weight = ctx.saved_tensors
        (grad,) = grads
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            of_input = vendor.input_gradient(grad, sign(weight), ctx.shape) * (input.abs() <= 1)
        if ctx.needs_input_grad[1]:
            of_weight = vendor.weight_gradient(grad, sign(input), ctx.shape)
        return of_input, of_weight, None, None, None


def convolve_signs(input: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """The convolution of sign(input) by sign(weight).

    Shapes: input (N, C, H, W), weight (K, C, R, S) -> (N, K, H', W').
    """
    if _triton_takes(input, shape) and triton_kernels.takes(shape, weight):
        from kernels import binary_triton

        return binary_triton.convolve(input, binary_triton.bits_of(weight), shape)
    library = _library() if _takes(input, shape) and weight.dtype == torch.float32 else None
    if library is None:
        return vendor.forward(sign(input), sign(weight), shape)
    return _by_library(library, input, pack(weight, shape), shape)


def convolve_bits(input: Tensor, bits: Tensor, shape: ConvShape) -> Tensor:
    """The convolution of sign(input) by filters of bits (`binary_bits.py`).

    Shapes: input (N, C, H, W), bits (K, R S, ceil(C / 32)) -> (N, K, H', W').
    """
    if _triton_takes(input, shape):
        from kernels import binary_triton

        return binary_triton.convolve(input, bits, shape)
    library = _library() if _takes(input, shape) else None
    if library is None:
        return vendor.forward(sign(input), signs_of(bits, shape.weight_size).to(input.dtype), shape)
    filters = _room_for_filters(shape)
    library.convoy_binary_arrange_filters(
        ctypes.c_void_p(bits.contiguous().data_ptr()), ctypes.byref(_Sizes.of(shape)),
        ctypes.c_void_p(filters.words.data_ptr()), ctypes.c_void_p(filters.sums.data_ptr()),
    )  # fmt: skip
    return _by_library(library, input, filters, shape)


def pack(weight: Tensor, shape: ConvShape) -> Packed:
    """The signs of filters as native/binary.c takes them. Shapes: weight (K, C, R, S). Needs a compiler."""
    library = _library()
    if library is None:
        raise RuntimeError("binary filters cannot be packed without a C compiler")
    packed, filters = _room_for_filters(shape), weight.detach().contiguous()
    failed = library.convoy_binary_pack_filters(
        ctypes.c_void_p(filters.data_ptr()), ctypes.byref(_Sizes.of(shape)),
        ctypes.c_void_p(packed.words.data_ptr()), ctypes.c_void_p(packed.sums.data_ptr()),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no memory to pack the signs of filters of {shape.c} x {shape.r} x {shape.s}")
    return packed


def _room_for_filters(shape: ConvShape) -> Packed:
    blocks, taps = -(-shape.k // 16), shape.r * shape.s
    words = torch.empty(blocks * taps * -(-shape.c // 32) * 16, dtype=torch.int32)
    return Packed(words, torch.empty(blocks * taps * 16, dtype=torch.int32))


def _by_library(library: ctypes.CDLL, input: Tensor, filters: Packed, shape: ConvShape) -> Tensor:
    images, output = in_lines(input), empty(shape.output_size, input)
    sizes, threads = _Sizes.of(shape), torch.get_num_threads()
    bits = torch.empty(library.convoy_binary_words(ctypes.byref(sizes)), dtype=torch.int32)
    library.convoy_binary_pack(
        ctypes.c_void_p(images.data_ptr()),
        Layout.of(images),
        ctypes.byref(sizes),
        ctypes.c_void_p(bits.data_ptr()),
        threads,
    )
    library.convoy_binary_convolve(
        ctypes.c_void_p(bits.data_ptr()), ctypes.byref(sizes), ctypes.c_void_p(filters.words.data_ptr()),
        ctypes.c_void_p(filters.sums.data_ptr()), ctypes.c_void_p(output.data_ptr()), Layout.of(output),
        int(_BY_INSTRUCTION), threads,
    )  # fmt: skip
    return output


_BY_INSTRUCTION = True


class _Sizes(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int)
        for name in [
            "n",
            "c",
            "h",
            "w",
            "k",
            "out_h",
            "out_w",
            "r",
            "s",
            "stride_h",
            "stride_w",
            "dilation_h",
            "dilation_w",
            "top",
            "left",
        ]
    ]

    @classmethod
    def of(cls, shape: ConvShape) -> "_Sizes":
        _, _, out_h, out_w = shape.output_size
        (top, _), (left, _) = shape.padding
        return cls(
            shape.n, shape.c, shape.h, shape.w, shape.k, out_h, out_w, shape.r, shape.s, *shape.stride, *shape.dilation,
            top, left,
        )  # fmt: skip


def _takes(input: Tensor, shape: ConvShape) -> bool:
    in_fp32 = input.device.type == "cpu" and input.dtype == torch.float32
    return in_fp32 and min(input.numel(), *shape.output_size) > 0 and shape.c * shape.r * shape.s <= _EXACT


def _triton_takes(input: Tensor, shape: ConvShape) -> bool:
    """Only on GPUs: interpreted, it is for tests."""
    in_fp32 = input.device.type == "cuda" and input.dtype == torch.float32
    return in_fp32 and shape.c * shape.r * shape.s <= _EXACT and triton_kernels.takes(shape, input)


@functools.cache
def _library() -> ctypes.CDLL | None:
    def load() -> ctypes.CDLL:
        library = load_library("binary")
        library.convoy_binary_words.restype = ctypes.c_long
        return library

    return build.loaded(load, "Binary convolutions are computed by torch in fp32, which is slower")
