"""Pointwise convolution: native and in torch, against PyTorch's in float64, over odd channels, strides and layouts."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import pointwise
from kernels.conv import conv2d
from kernels.layout import laid_out
from kernels.native import build
from kernels.shapes import ConvShape, UnsupportedShape

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, build.COMPILERS)), reason="needs a C compiler")
# n, c, h, w, k, stride: channels around the vectors' widths, images that are cut into blocks and that are joined
SIZES = [
    (2, 16, 13, 17, 24, 1),
    (1, 3, 8, 8, 5, 1),
    (2, 64, 28, 28, 96, 1),
    (1, 70, 15, 9, 37, 2),
    (3, 1, 1, 1, 1, 1),
    (9, 20, 1, 1, 50, 1),
    (9, 20, 2, 2, 35, 2),
    (5, 33, 7, 7, 65, 1),
    (2, 24, 9, 10, 17, (3, 2)),
    (1, 300, 14, 14, 270, 1),
    (2, 40, 6, 5, 72, (1, 2)),
    (2, 20, 24, 24, 31, 2),
]
# Largest error over the largest value: a sum of up to a thousand products, in fp32.
ERROR = 2e-6

Size = tuple[int, int, int, int, int, int | tuple[int, int]]


def tensors(n: int, c: int, h: int, w: int, k: int) -> list[Tensor]:
    """Images, weight, bias."""
    random = torch.Generator().manual_seed(n + 10 * c + 100 * h)
    images = torch.randn(n, c, h, w, generator=random).relu()  # as behind an activation
    return [images, torch.randn(k, c, 1, 1, generator=random) * (2 / c) ** 0.5, torch.randn(k, generator=random)]


def all_passes(algorithm: str, given: list[Tensor], stride: int | tuple[int, int]) -> list[Tensor]:
    """Output and all gradients, for an output's gradient that is the same for equal shapes."""
    given = [tensor.detach().clone().requires_grad_() for tensor in given]
    output = conv2d(*given, stride=stride, algorithm=algorithm)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    output.backward(laid_out(grad.to(output.dtype), "nhwc" if output.stride(1) == 1 else "nchw"))
    return [output.detach(), *(tensor.grad for tensor in given if tensor.grad is not None)]


def error(got: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference over the largest value."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_pass_is_pytorchs_but_for_rounding(size: Size, layout: str) -> None:
    *sizes, stride = size
    images, *rest = tensors(*sizes)  # type: ignore[arg-type]
    given = [laid_out(images, layout), *rest]
    expected = all_passes("vendor", [tensor.double() for tensor in given], stride)
    assert error(all_passes("pointwise", given, stride), expected) < ERROR
    assert error(all_passes("pointwise", [tensor.double() for tensor in given], stride), expected) < 1e-13


@pytest.mark.parametrize("size", SIZES[:4], ids=str)
def test_without_a_compiler_torch_does_it(size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    *sizes, stride = size
    given = tensors(*sizes)  # type: ignore[arg-type]
    expected = all_passes("vendor", [tensor.double() for tensor in given], stride)
    monkeypatch.setattr(pointwise, "_library", lambda: None)
    assert error(all_passes("pointwise", given, stride), expected) < ERROR


@needs_compiler
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_native_code_is_used_and_its_results_do_not_depend_on_threads(threads: int, layout: str) -> None:
    assert pointwise.load_library()
    images, *rest = tensors(3, 24, 31, 29, 40)
    given = [laid_out(images, layout), *rest]
    before = torch.get_num_threads()
    expected = all_passes("pointwise", given, 1)
    try:
        torch.set_num_threads(threads)
        got = all_passes("pointwise", given, 1)
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, got[:3], expected[:3]))  # the bias' gradient is torch's


@needs_compiler
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("n", [8, 9])
def test_large_results_go_past_the_caches(n: int, layout: str) -> None:
    """With a last block that is not whole, and channels of which some vectors are not."""
    for c, k in ((16, 48), (17, 64)):
        images, *rest = tensors(n, c, 56, 56, k)
        given = [laid_out(images, layout), *rest]
        expected = all_passes("vendor", [tensor.double() for tensor in given], 1)
        assert error(all_passes("pointwise", given, 1), expected) < ERROR


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_results_lie_as_the_images_do(layout: str) -> None:
    images, weight, _ = tensors(2, 8, 9, 10, 16)
    output = conv2d(laid_out(images, layout), weight, stride=2, algorithm="pointwise")
    assert output.is_contiguous(memory_format=torch.channels_last if layout == "nhwc" else torch.contiguous_format)


def test_pixels_may_lie_in_other_orders() -> None:
    images, weight, _ = tensors(2, 8, 9, 10, 16)
    expected = conv2d(images, weight, algorithm="pointwise")
    for axes in ((2, 3), (0, 1)):
        view = images.transpose(*axes).contiguous().transpose(*axes)
        assert error([conv2d(view, weight, algorithm="pointwise")], [expected]) < ERROR


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision_is_computed_in_fp32_and_rounded_once(dtype: torch.dtype) -> None:
    images, weight, bias = (tensor.to(dtype) for tensor in tensors(2, 8, 9, 10, 16))
    exact = F.conv2d(images.double(), weight.double(), bias.double())
    got = conv2d(images, weight, bias, algorithm="pointwise")
    assert got.dtype == dtype
    assert (got.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


def test_no_images_give_no_results() -> None:
    output, images_grad, weight_grad, _ = all_passes(
        "pointwise", [torch.empty(0, 3, 5, 5), torch.ones(2, 3, 1, 1), torch.ones(2)], 2
    )
    assert output.shape == (0, 2, 3, 3)
    assert images_grad.shape == (0, 3, 5, 5)
    assert not weight_grad.any()


@pytest.mark.parametrize(
    ("weight_size", "options", "message"),
    [
        ((4, 4, 1, 3), {}, r"got filter \(1, 3\), must be \(1, 1\)"),
        ((4, 4, 1, 1), {"padding": 1}, r"got padding \(\(1, 1\), \(1, 1\)\), must be \(\(0, 0\), \(0, 0\)\)"),
        ((4, 2, 1, 1), {"groups": 2}, "got groups 2, must be 1"),
    ],
)
def test_what_it_does_not_do_is_said(weight_size: tuple[int, ...], options: dict[str, int], message: str) -> None:
    with pytest.raises(UnsupportedShape, match=f"pointwise: {message}.*Use another algorithm"):
        conv2d(torch.ones(1, 4, 9, 9), torch.ones(weight_size), **options, algorithm="pointwise")


@needs_compiler
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_what_the_native_code_reads_and_writes_lies_inside_the_tensors(layout: str) -> None:
    """Neighbours of the images are not read: not-a-numbers there would show."""
    images, weight, _ = tensors(1, 8, 10, 11, 17)
    framed = laid_out(torch.full((3, 8, 10, 11), torch.nan), layout)
    framed[1] = images[0]
    for stride in (1, 2):
        shape = ConvShape.of(images, weight, stride=stride)
        expected = conv2d(images, weight, stride=stride, algorithm="pointwise")
        grad = expected.detach().cos()
        assert torch.equal(pointwise.forward(framed[1:2], weight, shape), expected)
        got = pointwise.weight_gradient(laid_out(grad, layout), framed[1:2], shape)
        assert error([got], [pointwise.weight_gradient(grad, images, shape)]) < ERROR


def test_filters_that_lie_in_another_order_are_held_while_they_are_used() -> None:
    """Of a size whose memory the allocator gives back at once."""
    weight = torch.randn(3000, 3100, generator=torch.Generator().manual_seed(0)).T[:, :, None, None]
    images = torch.randn(1, 3000, 1, 2)
    output = conv2d(images, weight, algorithm="pointwise")
    torch.testing.assert_close(output, F.conv2d(images, weight), rtol=1e-4, atol=1e-3)
    images = images.requires_grad_()
    conv2d(images, weight, algorithm="pointwise").sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad[0, :, 0, 0], weight.sum((0, 2, 3)), rtol=1e-4, atol=1e-3)
