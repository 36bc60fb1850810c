"""Convolutions: the definition against PyTorch's over awkward shapes, and what shapes say of themselves."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
import orchestrator
import pipelines
from kernels.algorithms import ALGORITHMS, takes
from kernels.conv import conv2d
from kernels.direct import forward, input_gradient, weight_gradient
from kernels.shapes import ConvShape, UnsupportedShape

# name -> (input size, weight size, options of conv2d)
AWKWARD = {
    "odd sizes": ((2, 3, 7, 5), (4, 3, 3, 3), {}),
    "filter of two sizes": ((1, 2, 6, 9), (3, 2, 2, 5), {"padding": (0, 2)}),
    "stride 2": ((2, 3, 8, 8), (4, 3, 3, 3), {"stride": 2, "padding": 1}),
    "stride 3 leaves pixels unread": ((2, 2, 9, 11), (3, 2, 2, 2), {"stride": 3}),
    "stride larger than the filter": ((1, 2, 7, 7), (2, 2, 1, 1), {"stride": (2, 3)}),
    "padding larger than the filter": ((1, 2, 3, 4), (2, 2, 2, 2), {"padding": (3, 4)}),
    "dilation": ((2, 2, 9, 8), (3, 2, 3, 3), {"dilation": (2, 3), "padding": 2}),
    "everything at once": (
        (2, 6, 11, 9),
        (4, 3, 3, 2),
        {"stride": (2, 1), "padding": (2, 1), "dilation": (1, 2), "groups": 2},
    ),
    "groups": ((2, 6, 5, 5), (9, 2, 3, 3), {"groups": 3, "padding": 1}),
    "depthwise": ((2, 5, 6, 6), (5, 1, 3, 3), {"groups": 5, "padding": 1}),
    "depthwise, two outputs a channel": ((1, 3, 6, 6), (6, 1, 3, 3), {"groups": 3}),
    "1 x 1": ((2, 8, 5, 3), (4, 8, 1, 1), {}),
    "one pixel": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "filter as large as the image": ((2, 3, 5, 4), (6, 3, 5, 4), {}),
    "same": ((1, 2, 6, 7), (3, 2, 3, 5), {"padding": "same"}),
    "same, dilated": ((1, 2, 6, 7), (3, 2, 3, 3), {"padding": "same", "dilation": (2, 1)}),
    "valid": ((1, 2, 6, 7), (3, 2, 3, 5), {"padding": "valid"}),
    "no images": ((0, 3, 5, 5), (2, 3, 3, 3), {"padding": 1}),
}
# PyTorch warns that it copies the input to pad one side more than the other.
EVEN_SAME = ((2, 2, 5, 6), (3, 2, 2, 4), {"padding": "same"})

# What sums other products than the definition's is off by so many roundings of the largest sum, wherever it is.
TRANSFORMS = {"fft": 16, "winograd_2": 16, "winograd": 32, "winograd_6": 256}

UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


def random(*size: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def check_sum(got: Tensor, expected: Tensor, magnitude: Tensor, num_terms: int) -> None:
    """Compare two sums of the same products, taken in any two orders.

    Each is off by at most gamma * sum |products|, gamma = n u / (1 - n u), with n the number of roundings of
    a term: its product and num_terms - 1 additions (Higham 2002, "Accuracy and Stability of Numerical
    Algorithms", eq. 3.5). The products here are of the rounded inputs, so both start from the same numbers.
    """
    roundoff = num_terms * UNIT_ROUNDOFF[got.dtype]
    bound = 2 * roundoff / (1 - roundoff) * magnitude
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert ((got.double() - expected.double()).abs() <= bound).all()


def shape_of(name: str) -> ConvShape:
    input_size, weight_size, options = AWKWARD[name]
    return ConvShape.of(torch.empty(input_size), torch.empty(weight_size), **options)


def results(algorithm: str, name: str, dtype: torch.dtype) -> list[Tensor]:
    """Output and both gradients, for an output's gradient that is the same for equal shapes."""
    input_size, weight_size, options = AWKWARD[name]
    input = random(*input_size, dtype=dtype, seed=1).requires_grad_()
    weight = random(*weight_size, dtype=dtype, seed=2).requires_grad_()
    output = conv2d(input, weight, **options, algorithm=algorithm)
    output.backward(random(*output.shape, dtype=dtype, seed=3))
    return [output.detach(), input.grad, weight.grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        (algorithm, name)
        for algorithm in sorted(ALGORITHMS.keys() - {"direct"})
        for name in AWKWARD
        if takes(algorithm, shape_of(name))
    ],
)
def test_every_algorithm_equals_the_definition_forward_and_backward(
    algorithm: str, name: str, dtype: torch.dtype
) -> None:
    shape = shape_of(name)
    per_group, taps = shape.c // shape.groups, shape.r * shape.s
    num_terms = per_group * taps, shape.k // shape.groups * taps, shape.n * shape.out_h * shape.out_w
    input, weight, grad = (
        random(*size, dtype=dtype, seed=seed).double().abs()
        for seed, size in enumerate((shape.input_size, shape.weight_size, shape.output_size), start=1)
    )
    magnitudes = (
        forward(input, weight, shape),
        input_gradient(grad, weight, shape),
        weight_gradient(grad, input, shape),
    )
    both = results(algorithm, name, dtype), results("direct", name, dtype)
    for got, expected, magnitude, terms in zip(*both, magnitudes, num_terms, strict=True):
        if algorithm in TRANSFORMS and magnitude.numel():
            magnitude, terms = magnitude.max().expand_as(magnitude), TRANSFORMS[algorithm]
        check_sum(got, expected, magnitude, terms)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
def test_same_padding_of_an_even_filter_adds_the_odd_zero_at_the_end() -> None:
    input_size, weight_size, options = EVEN_SAME
    input, weight = random(*input_size, seed=1), random(*weight_size, seed=2)
    shape = ConvShape.of(input, weight, **options)
    assert shape.padding == ((0, 1), (1, 2))
    assert shape.output_size == (2, 3, 5, 6)
    check_sum(
        conv2d(input, weight, **options, algorithm="direct"),
        F.conv2d(input, weight, **options),
        forward(input.abs(), weight.abs(), shape),
        num_terms=2 * 2 * 4,
    )


def test_the_definition_equals_a_convolution_written_out_by_hand() -> None:
    image = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]]])
    weight = torch.tensor([[[[1.0, 10.0], [100.0, 1000.0]]]])
    assert conv2d(image, weight, algorithm="direct").tolist() == [[[[5421.0, 6532.0], [8754.0, 9865.0]]]]


@pytest.mark.parametrize("name", ["everything at once", "depthwise", "same", "padding larger than the filter"])
def test_gradients_are_those_of_the_forward_pass(name: str) -> None:
    input_size, weight_size, options = AWKWARD[name]
    inputs = random(*input_size, seed=1), random(*weight_size, seed=2), random(weight_size[0], seed=3)
    for tensor in inputs:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda *args: conv2d(*args, **options, algorithm="direct"), inputs)


def test_only_the_gradients_that_are_asked_for_are_computed() -> None:
    input, weight = random(1, 2, 4, 4), random(3, 2, 3, 3).requires_grad_()
    conv2d(input, weight, algorithm="direct").sum().backward()
    assert input.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("algorithm", ["direct", "im2col", "strassen", "fft", "cast"])
def test_half_precision_is_summed_in_fp32_and_rounded_once(algorithm: str, dtype: torch.dtype) -> None:
    input, weight = random(2, 8, 5, 5, dtype=dtype, seed=1), random(4, 8, 3, 3, dtype=dtype, seed=2)
    shape = ConvShape.of(input, weight, padding=1)
    grad = random(*shape.output_size, dtype=dtype, seed=3)
    for compute, first, second in zip(
        ALGORITHMS[algorithm][1:4], (input, grad, grad), (weight, weight, input), strict=True
    ):
        assert torch.equal(compute(first, second, shape), compute(first.float(), second.float(), shape).to(dtype))


VIEWS = {
    "turned": lambda size: random(*size[:2], size[3], size[2]).transpose(2, 3),
    "channels last, turned": lambda size: random(size[0], size[3], size[2], size[1]).permute(0, 3, 2, 1),
    "every second": lambda size: random(*(2 * length for length in size))[1::2, ::2, ::2, 1::2],
    "one number": lambda size: random(1).expand(size),
    "one image": lambda size: random(*size[1:]).expand(size),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_tensors_may_lie_in_memory_as_they_like(algorithm: str, view: str) -> None:
    name = next(name for name in ("odd sizes", "depthwise", "1 x 1") if takes(algorithm, shape_of(name)))
    shape, passes = shape_of(name), ALGORITHMS[algorithm]
    input, weight, grad = (VIEWS[view](size) for size in (shape.input_size, shape.weight_size, shape.output_size))
    for compute, first, second in zip(passes[1:4], (input, grad, grad), (weight, weight, input), strict=True):
        expected = compute(first.contiguous(), second.contiguous(), shape)
        torch.testing.assert_close(compute(first, second, shape), expected, rtol=0, atol=1e-12)


def test_an_unknown_algorithm_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"algorithm: got 'winogard', must be auto or .*vendor.*\. Did you mean 'winog"
    ):
        conv2d(random(1, 1, 3, 3), random(1, 1, 3, 3), algorithm="winogard")


def test_a_shape_counts_work_and_memory() -> None:
    # Layer 1.2 of VGG-E at batch 1: 3.7 GFLOP, as in Lavin & Gray 2015 (arXiv:1509.09308), table 4.
    shape = ConvShape(n=1, c=64, h=224, w=224, k=64, r=3, s=3, padding=((1, 1), (1, 1)))
    assert shape.output_size == (1, 64, 224, 224)
    assert shape.flops == 2 * 64 * 64 * 9 * 224 * 224 == 3_699_376_128
    assert shape.parameter_bytes() == 64 * 64 * 9 * 4
    assert shape.activation_bytes(element_bytes=2) == 2 * 64 * 224 * 224 * 2
    assert shape.intensity() == shape.flops / (147_456 + 25_690_112)


def test_groups_divide_work_and_weights() -> None:
    dense = ConvShape(n=2, c=8, h=6, w=6, k=8, r=3, s=3)
    depthwise = ConvShape(n=2, c=8, h=6, w=6, k=8, r=3, s=3, groups=8)
    assert depthwise.flops * 8 == dense.flops
    assert depthwise.parameter_bytes() * 8 == dense.parameter_bytes()
    assert depthwise.activation_bytes() == dense.activation_bytes()


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_output_sizes_are_those_of_pytorch(stride: int, padding: int) -> None:
    for height, size, dilation in itertools.product((7, 8, 10), (1, 2, 3), (1, 2)):
        input, weight = torch.empty(1, 1, height, 9, device="meta"), torch.empty(1, 1, size, 3, device="meta")
        expected = F.conv2d(input, weight, None, stride, padding, dilation).shape
        assert ConvShape.of(input, weight, stride, padding, dilation).output_size == expected


def test_a_module_has_the_shape_of_its_call() -> None:
    conv = nn.Conv2d(4, 8, (3, 5), stride=(2, 1), padding=(1, 2), groups=2)
    input = torch.empty(3, 4, 9, 10)
    shape = ConvShape.of_module(conv, input)
    assert shape.output_size == conv(input).shape
    assert shape.weight_size == conv.weight.shape
    assert len({shape, ConvShape.of_module(conv, input)}) == 1


def test_a_module_that_pads_with_pixels_is_unsupported() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")
    with pytest.raises(UnsupportedShape, match=r"padding_mode: got 'reflect', must be 'zeros'\. Pad the input"):
        ConvShape.of_module(conv, torch.empty(1, 1, 4, 4))


MISTAKES = {
    "negative batch": ({"n": -1}, r"n: got -1, must be >= 0\."),
    "no channels": ({"c": 0}, r"c: got 0, must be >= 1\."),
    "no stride": ({"stride": (1, 0)}, r"stride: got \(1, 0\), must be >= 1\."),
    "negative padding": ({"padding": ((0, 0), (-1, 0))}, r"padding: got \(0, 0, -1, 0\), must be >= 0\."),
    "groups that do not divide the input": (
        {"c": 5, "groups": 2, "k": 4},
        r"groups: got 2, must divide c=5\.",
    ),
    "groups that do not divide the output": ({"k": 5, "groups": 2}, r"groups: got 2, must divide k=5\."),
    "filter larger than the image": ({"r": 9}, r"h, w: got 8 x 8, must hold a filter of 9 x 3"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_shape_that_cannot_exist_is_refused(name: str) -> None:
    changes, message = MISTAKES[name]
    sizes = {"n": 1, "c": 4, "h": 8, "w": 8, "k": 4, "r": 3, "s": 3} | changes
    with pytest.raises(ValueError, match=message):
        ConvShape(**sizes)


ILL_FITTING = {
    "channels": (
        (1, 4, 8, 8),
        (2, 3, 3, 3),
        {},
        r"weight: got 3 input channels a group, must be C / groups = 4 / 1",
    ),
    "dimensions": ((4, 8, 8), (2, 4, 3, 3), {}, r"input, weight: got 3 and 4 dimensions, must be 4 each"),
    "groups": ((1, 4, 8, 8), (2, 4, 3, 3), {"groups": 0}, r"groups: got 0, must be >= 1\."),
    "same with a stride": (
        (1, 4, 8, 8),
        (2, 4, 3, 3),
        {"padding": "same", "stride": 2},
        r"padding: got 'same' with stride=\(2, 2\), must be with stride 1\.",
    ),
    "word": (
        (1, 4, 8, 8),
        (2, 4, 3, 3),
        {"padding": "full"},
        r"padding: got 'full', must be numbers, 'same' or",
    ),
}


@pytest.mark.parametrize("name", ILL_FITTING)
def test_tensors_that_do_not_fit_are_refused(name: str) -> None:
    input_size, weight_size, options, message = ILL_FITTING[name]
    with pytest.raises(ValueError, match=message):
        ConvShape.of(torch.empty(input_size), torch.empty(weight_size), **options)


@pytest.mark.parametrize("package", [kernels, orchestrator, pipelines], ids=lambda package: package.__name__)
def test_packages_that_share_a_name_with_others_on_pypi_are_ours(package: object) -> None:
    assert Path(package.__file__).parent.parent == Path(__file__).parents[2]
