"""Winograd's convolution: native and in torch, against PyTorch's in float64, over odd sizes, layouts and borders."""

import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import winograd, winograd_native
from kernels.conv import conv2d
from kernels.layout import laid_out
from kernels.native import build
from kernels.shapes import ConvShape, UnsupportedShape

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, build.COMPILERS)), reason="needs a C compiler")

# n, c, h, w, k, padding: channels around the vectors' widths, images around the tiles', padding beyond the filter
SIZES = [
    (2, 16, 13, 17, 24, 1),
    (1, 3, 8, 8, 5, 0),
    (2, 64, 28, 28, 64, 1),
    (1, 70, 15, 9, 37, (2, 3)),
    (1, 5, 3, 4, 2, (4, 5)),
    (3, 1, 1, 1, 1, 1),
    (2, 4, 6, 7, 3, "same"),
    (1, 300, 6, 5, 20, 1),
    (1, 20, 40, 40, 17, 1),
]


# Largest error over the largest value that fp32 may have: the larger the tiles, the more rounding.
ERRORS = {"winograd_2": 1e-6, "winograd": 5e-6, "winograd_6": 4e-5}
# algorithm, filter: what each takes beside 3 x 3
FILTERS = [
    ("winograd_2", (1, 3)),
    ("winograd", (3, 1)),
    ("winograd", (5, 5)),
    ("winograd", (3, 5)),
    ("winograd_6", (5, 5)),
    ("winograd_6", (1, 7)),
    ("winograd_6", (7, 7)),
]


def tensors(n: int, c: int, h: int, w: int, k: int, taps: tuple[int, int] = (3, 3)) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(n + 10 * c + 100 * h)
    images = torch.randn(n, c, h, w, generator=random).relu()  # as behind an activation
    return images, torch.randn(k, c, *taps, generator=random) * (2 / (math.prod(taps) * c)) ** 0.5


def all_passes(algorithm: str, images: Tensor, weight: Tensor, padding: object) -> list[Tensor]:
    """Output and both gradients, for an output's gradient that is the same for equal shapes."""
    images, weight = images.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    output = conv2d(images, weight, padding=padding, algorithm=algorithm)  # type: ignore[arg-type]
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    output.backward(grad.to(output.dtype))
    assert images.grad is not None
    assert weight.grad is not None
    return [output.detach(), images.grad, weight.grad]


def errors(got: list[Tensor], expected: list[Tensor]) -> list[float]:
    """The largest difference over the largest value, of each."""
    return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, expected, strict=True)]


@pytest.mark.parametrize("algorithm", ERRORS)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_pass_is_pytorchs_but_for_rounding(
    size: tuple[int, int, int, int, int, object], layout: str, algorithm: str
) -> None:
    *sizes, padding = size
    images, weight = (laid_out(each, layout) for each in tensors(*sizes))  # type: ignore[arg-type]
    expected = all_passes("vendor", images.double(), weight.double(), padding)
    assert max(errors(all_passes(algorithm, images, weight, padding), expected)) < ERRORS[algorithm]
    in_double = all_passes(algorithm, images.double(), weight.double(), padding)
    assert max(errors(in_double, expected)) < 1e-13


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(("algorithm", "taps"), FILTERS, ids=str)
def test_filters_of_other_sizes_are_taken(algorithm: str, taps: tuple[int, int], layout: str) -> None:
    images, weight = (laid_out(each, layout) for each in tensors(2, 20, 17, 12, 33, taps))
    for padding in ((taps[0] // 2, taps[1] // 2), (0, taps[1])):
        expected = all_passes("vendor", images.double(), weight.double(), padding)
        assert max(errors(all_passes(algorithm, images, weight, padding), expected)) < ERRORS[algorithm]
        assert max(errors(all_passes(algorithm, images.double(), weight.double(), padding), expected)) < 1e-13


@needs_compiler
@pytest.mark.parametrize(("n", "c", "h", "k"), [(1, 200, 7, 300), (2, 530, 9, 40), (5, 48, 40, 64)])
def test_filters_or_tiles_come_in_blocks(n: int, c: int, h: int, k: int) -> None:
    """Few tiles with many filters, channels beyond those that are summed at a time, and sums of many blocks."""
    images, weight = tensors(n, c, h, h, k)
    expected = all_passes("vendor", images.double(), weight.double(), 1)
    assert max(errors(all_passes("winograd", images, weight, 1), expected)) < 2 * ERRORS["winograd"]


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_native_code_is_used_and_its_results_do_not_depend_on_threads(threads: int) -> None:
    assert winograd_native.load_library()
    images, weight = tensors(2, 24, 21, 19, 40)
    before = torch.get_num_threads()
    expected = all_passes("winograd", images, weight, 1)
    try:
        torch.set_num_threads(threads)
        got = all_passes("winograd", images, weight, 1)
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("size", SIZES[:4], ids=str)
def test_without_a_compiler_torch_does_it(
    size: tuple[int, int, int, int, int, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    *sizes, padding = size
    images, weight = tensors(*sizes)  # type: ignore[arg-type]
    expected = all_passes("vendor", images.double(), weight.double(), padding)
    monkeypatch.setattr(winograd_native, "_library", lambda *_: None)
    assert max(errors(all_passes("winograd", images, weight, padding), expected)) < 1e-5


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_results_lie_as_the_images_do(last: bool) -> None:
    images, weight = tensors(2, 8, 9, 10, 16)
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    output = conv2d(images, weight, padding=1, algorithm="winograd")
    assert output.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    view = images.transpose(2, 3)
    turned = conv2d(view, weight.transpose(2, 3), padding=1, algorithm="winograd")
    assert errors([turned.transpose(2, 3)], [output])[0] < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision_is_computed_in_fp32_and_rounded_once(dtype: torch.dtype) -> None:
    images, weight = (tensor.to(dtype) for tensor in tensors(2, 8, 9, 10, 16))
    exact = F.conv2d(images.double(), weight.double(), padding=1)
    got = conv2d(images, weight, padding=1, algorithm="winograd")
    assert got.dtype == dtype
    assert (got.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


def test_gradients_are_those_of_the_forward_pass() -> None:
    images, weight = (tensor.double().requires_grad_() for tensor in tensors(1, 2, 3, 5, 2))
    assert torch.autograd.gradcheck(lambda *both: conv2d(*both, padding=(1, 2), algorithm="winograd"), (images, weight))


def test_no_images_give_no_results() -> None:
    images, weight = torch.empty(0, 3, 5, 5), torch.ones(2, 3, 3, 3)
    output, images_grad, weight_grad = all_passes("winograd", images, weight, 1)
    assert output.shape == (0, 2, 5, 5)
    assert images_grad.shape == images.shape
    assert not weight_grad.any()


@pytest.mark.parametrize(
    ("weight_size", "options", "message"),
    [
        ((4, 4, 4, 3), {}, r"got filter \(4, 3\), must be 3 or 5 along an axis, and that or 1 along the other"),
        ((4, 4, 1, 1), {}, r"got filter \(1, 1\), must be 3 or 5"),
        ((4, 4, 3, 3), {"stride": 2}, r"got stride \(2, 2\), must be \(1, 1\)"),
        ((4, 4, 3, 3), {"dilation": (1, 2)}, r"got dilation \(1, 2\)"),
        ((4, 2, 3, 3), {"groups": 2}, "got groups 2, must be 1"),
    ],
)
def test_what_it_does_not_do_is_said(weight_size: tuple[int, ...], options: dict[str, int], message: str) -> None:
    with pytest.raises(UnsupportedShape, match=f"winograd: {message}.*Use another algorithm"):
        conv2d(torch.ones(1, 4, 9, 9), torch.ones(weight_size), **options, algorithm="winograd")


@needs_compiler
def test_what_the_native_code_reads_and_writes_lies_inside_the_tensors() -> None:
    """Neighbours of the images are not read: not-a-numbers there would show."""
    images, weight = tensors(1, 8, 10, 11, 16)
    expected = conv2d(images, weight, padding=1, algorithm="winograd")
    framed = torch.full((3, 10, 11, 8), torch.nan)
    framed[1] = images[0].permute(1, 2, 0)
    shape = ConvShape.of(images, weight, padding=1)
    got = winograd.PASSES.forward(framed[1:2].permute(0, 3, 1, 2), weight, shape)
    assert torch.equal(got.contiguous(), expected)
