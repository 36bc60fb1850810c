"""Triton's kernels against the definition in float64, and its rounding against torch's.

test_triton_kernels.py runs this file in a process of its own.

There with TRITON_INTERPRET=1, which Triton reads when it is imported; on a GPU without.
"""

import math
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import triton_kernels
from kernels.binary import sign
from kernels.binary_bits import bits_of
from kernels.conv import conv2d
from kernels.layout import laid_out
from kernels.rounding import Grid, by_torch_to_bf16, by_torch_to_grid, round_bf16, round_fixed, stream
from kernels.shapes import ConvShape

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# Of the largest value. fp32: F(4x4, 3x3) multiplies roundings of 6e-8 by some ten, im2col by less. The half types: a
# rounding of the result, and two of factors, which the transforms of F(4x4, 3x3) have made several times as large.
TOLERANCE = {torch.float32: 5e-6, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}
OF_LARGE_TILES = {torch.float32: 5e-6, torch.float16: 2.0**-8, torch.bfloat16: 2.0**-5}
EVERY_TYPE = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
LAYOUTS = ("nchw", "nhwc", "in a frame")

# algorithm -> images (N, C, H, W), weight (K, C / groups, R, S), options: odd sizes, channels around the blocks' sizes
CASES: dict[str, list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]]] = {
    "winograd": [
        ((2, 3, 7, 5), (5, 3, 3, 3), {"padding": 1}),
        ((1, 18, 5, 9), (35, 18, 3, 3), {"padding": (0, 1)}),
        ((1, 2, 2, 3), (2, 2, 3, 3), {"padding": (5, 4)}),
        ((1, 1, 4, 4), (1, 1, 3, 3), {"padding": "same"}),
    ],
    "winograd_2": [
        ((1, 18, 6, 5), (5, 18, 3, 3), {"padding": 1}),
        ((2, 2, 3, 3), (2, 2, 3, 3), {"padding": (0, 4)}),
    ],
    "im2col": [
        ((2, 3, 9, 7), (5, 3, 3, 3), {"stride": 2, "padding": 1}),
        ((1, 20, 11, 9), (33, 20, 3, 2), {"stride": (2, 3), "padding": (2, 1), "dilation": (2, 1)}),
        ((1, 4, 7, 8), (70, 4, 1, 1), {"stride": (3, 2)}),
        ((1, 2, 6, 7), (3, 2, 2, 4), {"padding": "same", "dilation": (2, 1)}),
        ((2, 2, 2, 2), (3, 2, 2, 2), {"padding": (3, 4)}),
        ((1, 2, 13, 13), (2, 2, 2, 2), {"stride": 4, "dilation": 2}),
        ((3, 16, 5, 5), (8, 16, 5, 5), {}),
    ],
    "depthwise": [
        ((2, 5, 6, 7), (5, 1, 3, 3), {"stride": 2, "padding": 1, "groups": 5}),
        ((1, 20, 9, 7), (20, 1, 3, 2), {"stride": (2, 3), "padding": (2, 1), "dilation": (2, 1), "groups": 20}),
        ((1, 3, 5, 8), (3, 1, 5, 5), {"padding": "same", "groups": 3}),
        ((2, 70, 3, 3), (70, 1, 1, 2), {"padding": 1, "groups": 70}),
        ((1, 1, 6, 6), (1, 1, 3, 3), {"groups": 1}),
    ],
}
ALL = [pytest.param(name, *case, id=f"{name} {case[0]}") for name, cases in CASES.items() for case in cases]
ONE_EACH = [pytest.param(name, *cases[0], id=name) for name, cases in CASES.items()]


@pytest.fixture(autouse=True)
def products_of_bf16_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter (3.8) holds bf16 as its bits, and tl.dot multiplies the bits: widen factors first."""
    if not INTERPRETED:
        return
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    create_dot = InterpreterBuilder.create_dot

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    monkeypatch.setattr(
        InterpreterBuilder,
        "create_dot",
        lambda self, a, b, *rest: create_dot(self, widened(a), widened(b), *rest),
    )


def tensors(*sizes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    random = torch.Generator().manual_seed(3)
    return [torch.randn(size, generator=random).to(dtype).to(DEVICE) for size in sizes]


def lying(images: Tensor, layout: str) -> Tensor:
    """The images in a layout; 'in a frame': within larger ones that are not numbers, which must not be read."""
    if layout != "in a frame":
        return laid_out(images, layout)
    n, c, height, width = images.shape
    frame = images.new_full((n + 2, height + 2, c + 2, width + 4), torch.nan)
    frame[1:-1, 1:-1, 1:-1, 2:-2] = images.transpose(1, 2)
    return frame[1:-1, 1:-1, 1:-1, 2:-2].transpose(1, 2)


def all_passes(
    images: Tensor, weight: Tensor, bias: Tensor, options: dict[str, Any], algorithm: str, layout: str = "nchw"
) -> list[Tensor]:
    """Output and gradients of images and weight, whose bias and output's gradient are the same for the same sizes."""
    given = [lying(images, layout).requires_grad_(), weight.clone().requires_grad_()]
    output = conv2d(*given, bias, **options, algorithm=algorithm)
    (grad,) = tensors(tuple(output.shape))
    grads = torch.autograd.grad(output, given, lying(grad.to(output.dtype), layout))
    return [output.detach(), *grads]


def errors(got: list[Tensor], exact: list[Tensor]) -> list[float]:
    """The largest difference over the largest value, of each."""
    return [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(got, exact, strict=True)]


def check(name: str, given: list[Tensor], options: dict[str, Any], layout: str) -> None:
    assert triton_kernels.takes(ConvShape.of(*given[:2], **options), *given[:2])
    in_double = [each.double() for each in given]
    exact = all_passes(*in_double, options, "direct")
    got = all_passes(*given, options, name, layout)
    assert {each.dtype for each in got} == {given[0].dtype}
    tolerance = OF_LARGE_TILES if name == "winograd" else TOLERANCE
    assert max(errors(got, exact)) < tolerance[given[0].dtype]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize(("name", "images", "weight", "options"), ALL)
def test_every_pass_is_the_definitions_but_for_rounding(
    name: str, images: tuple[int, ...], weight: tuple[int, ...], options: dict[str, Any]
) -> None:
    check(name, tensors(images, weight, weight[:1]), options, "in a frame")


@pytest.mark.parametrize("layout", LAYOUTS)
@EVERY_TYPE
@pytest.mark.parametrize(("name", "images", "weight", "options"), ONE_EACH)
def test_in_every_type_and_layout(
    name: str,
    images: tuple[int, ...],
    weight: tuple[int, ...],
    options: dict[str, Any],
    dtype: torch.dtype,
    layout: str,
) -> None:
    check(name, tensors(images, weight, weight[:1], dtype=dtype), options, layout)


@pytest.mark.parametrize(("name", "images", "weight", "options"), ONE_EACH)
def test_results_are_the_same_bit_for_bit(
    name: str, images: tuple[int, ...], weight: tuple[int, ...], options: dict[str, Any]
) -> None:
    given = tensors(images, weight, weight[:1])
    assert all(map(torch.equal, all_passes(*given, options, name), all_passes(*given, options, name)))


def test_what_the_twin_does_not_do_is_done_without_it() -> None:
    groups = tensors((1, 4, 5, 5), (4, 2, 3, 3), (4,))
    doubles = [each.double() for each in tensors((1, 2, 5, 5), (4, 2, 3, 3), (4,))]
    large = tensors((1, 2, 7, 7), (4, 2, 5, 5), (4,))
    for name, given, options in (("im2col", groups, {"groups": 2}), ("im2col", doubles, {}), ("winograd", large, {})):
        exact = all_passes(*(each.double() for each in given), options, "direct")
        assert max(errors(all_passes(*given, options, name), exact)) < TOLERANCE[torch.float32]


def test_a_bias_may_lie_anyhow() -> None:
    images, weight, bias = tensors((1, 3, 5, 5), (4, 3, 3, 3), (8,))
    exact = all_passes(images.double(), weight.double(), bias[::2].double(), {}, "direct")
    for name in ("winograd", "im2col"):
        assert max(errors(all_passes(images, weight, bias[::2], {}, name), exact)) < TOLERANCE[torch.float32]


BINARY: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 64, 5, 7), (33, 64, 3, 3), {"padding": 1}),
    ((1, 33, 8, 9), (17, 33, 3, 2), {"stride": (2, 3), "padding": (2, 1), "dilation": (2, 1)}),
    ((2, 3, 4, 4), (5, 3, 2, 4), {"padding": "same"}),
    ((1, 40, 3, 3), (3, 40, 3, 3), {"padding": 4}),
    ((5, 100, 1, 1), (20, 100, 1, 1), {}),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("images", "weight", "options"), BINARY, ids=str)
def test_signs_are_convolved_bit_for_bit(
    images: tuple[int, ...], weight: tuple[int, ...], options: dict[str, Any], layout: str
) -> None:
    from kernels import binary_triton

    x, w = tensors(images, weight)
    x.view(-1)[::7], x.view(-1)[3::11], x.view(-1)[1] = 0.0, -0.0, math.nan
    expected = torch.nn.functional.conv2d(sign(x), sign(w), **options)
    bits = binary_triton.bits_of(w)
    assert torch.equal(bits, bits_of(w))
    assert torch.equal(binary_triton.convolve(lying(x, layout), bits, ConvShape.of(x, w, **options)), expected)


@pytest.mark.parametrize("seed", [0, 2**64 - 1, stream(3, 1)])
def test_rounding_is_torchs_bit_for_bit(seed: int) -> None:
    line = torch.cat([torch.randn(3000) * 4, torch.tensor([0.0, -0.0, 8.0, -9.0, math.inf, -math.inf, math.nan])])
    rounded = [
        round_fixed(line.to(DEVICE), 4, 12, seed=seed),
        round_fixed(line.to(DEVICE), 4, 12, "nearest"),
        round_bf16(line.to(DEVICE), seed=seed),
    ]
    grid = Grid(4, 12)
    expected = [
        by_torch_to_grid(line, grid, seed),
        by_torch_to_grid(line, grid, None),
        by_torch_to_bf16(line, seed),
    ]
    for ours, theirs in zip(rounded, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=0, equal_nan=True)
