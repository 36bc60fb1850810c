"""What holds of every algorithm: PyTorch's own samples, derivatives, and all that PyTorch does with an operator."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils.checkpoint import checkpoint

from kernels import operators
from kernels.algorithms import ALGORITHMS
from kernels.conv import Conv2d, conv2d
from kernels.passes import Choice
from kernels.shapes import ConvShape, UnsupportedShape

(CONV2D,) = (info for info in op_db if info.name == "nn.functional.conv2d")
EVERY = pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
# Of the largest value: what the transforms of Winograd and Fourier lose, and for half types, which are compared with
# the results in float64, a rounding of two values of that size (vendors round partial sums too).
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}
# One shape that each algorithm takes, if it is not the first: input, weight, options
SHAPES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 9, 8), (4, 3, 3, 3), {"padding": 1}),
    ((2, 4, 6, 5), (4, 1, 3, 3), {"padding": 1, "groups": 4}),
    ((2, 4, 6, 5), (3, 4, 1, 1), {}),
]


def tensors(*sizes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    random = torch.Generator().manual_seed(7)
    return [torch.randn(size, generator=random, dtype=torch.float64).to(dtype).requires_grad_() for size in sizes]


def shape_for(algorithm: str) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    for input_size, weight_size, options in SHAPES:
        try:
            ALGORITHMS[algorithm].check(ConvShape.of(torch.empty(input_size), torch.empty(weight_size), **options))
        except UnsupportedShape:
            continue
        return input_size, weight_size, options
    raise AssertionError(f"{algorithm} takes none of SHAPES: add one")


def values_and_gradients(compute: Callable[..., Tensor], sample: Any, dtype: torch.dtype | None = None) -> list[Tensor]:
    given = [sample.input, *sample.args]
    given = [
        each.detach().to(dtype, copy=True).requires_grad_() if isinstance(each, Tensor) else each for each in given
    ]
    output = compute(*given, **sample.kwargs)
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).to(output.dtype).view_as(output)
    wanted = [each for each in given if isinstance(each, Tensor)]
    return [output.detach(), *torch.autograd.grad(output, wanted, weights)]


def samples(dtype: torch.dtype) -> Iterator[Any]:
    yield from CONV2D.sample_inputs("cpu", dtype, requires_grad=True)
    yield from CONV2D.reference_inputs("cpu", dtype, requires_grad=True)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@EVERY
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_pytorchs_samples_give_pytorchs_results(algorithm: str, dtype: torch.dtype) -> None:
    taken = 0
    for sample in samples(dtype):
        try:
            got = values_and_gradients(lambda *args, **kwargs: conv2d(*args, **kwargs, algorithm=algorithm), sample)
        except UnsupportedShape:
            continue
        expected = values_and_gradients(F.conv2d, sample, torch.float64)
        taken += 1
        for one, other in zip(got, expected, strict=True):
            assert one.shape == other.shape
            assert one.dtype == dtype
            assert (one.double() - other).abs().max() <= TOLERANCE[dtype] * other.abs().max().clamp(min=1)
    assert taken or algorithm == "pointwise"  # no sample has a 1 x 1 filter


@EVERY
def test_what_pytorch_refuses_is_refused_in_its_words(algorithm: str) -> None:
    for mistake in CONV2D.error_inputs("cpu"):
        sample = mistake.sample_input
        with pytest.raises(mistake.error_type, match=mistake.error_regex):
            conv2d(sample.input, *sample.args, **sample.kwargs, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS) - {"vendor", "vendor_nchw", "vendor_nhwc"}))
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_other_numbers_than_floating_point_are_the_vendors(algorithm: str, dtype: torch.dtype) -> None:
    input_size, weight_size, options = shape_for(algorithm)
    images, weight = torch.ones(input_size, dtype=dtype), torch.ones(weight_size, dtype=dtype)
    with pytest.raises(UnsupportedShape, match=f"{algorithm}: got torch.*, must be a floating-point type"):
        conv2d(images, weight, **options, algorithm=algorithm)


@EVERY
def test_first_and_second_derivatives_are_those_of_the_values(algorithm: str) -> None:
    input_size, weight_size, options = shape_for(algorithm)
    given = tensors(input_size, weight_size, weight_size[:1])
    assert torch.autograd.gradcheck(lambda *all: conv2d(*all, **options, algorithm=algorithm), given, fast_mode=True)
    assert torch.autograd.gradgradcheck(
        lambda *all: conv2d(*all, **options, algorithm=algorithm), given, fast_mode=True
    )


@EVERY
def test_every_algorithm_adds_the_bias(algorithm: str) -> None:
    input_size, weight_size, options = shape_for(algorithm)
    input, weight, bias = tensors(input_size, weight_size, weight_size[:1])
    without = conv2d(input, weight, **options, algorithm=algorithm)
    with_bias = conv2d(input, weight, bias, **options, algorithm=algorithm)
    torch.testing.assert_close(with_bias - without, bias.view(1, -1, 1, 1).expand_as(without))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@EVERY
def test_the_operators_are_what_pytorch_asks_of_operators(algorithm: str) -> None:
    input_size, weight_size, options = shape_for(algorithm)
    input, weight, bias = tensors(input_size, weight_size, weight_size[:1])
    shape = ConvShape.of(input, weight, **options)
    (grad,) = tensors(shape.output_size)
    rest = ([1, 1, *shape.padding[0], *shape.padding[1], 1, 1, shape.groups], ",".join(Choice.of(algorithm)))
    torch.library.opcheck(operators.forward.overload, (input, weight, bias, *rest))
    torch.library.opcheck(operators.forward.overload, (input, weight, None, *rest))
    torch.library.opcheck(operators.input_gradient.overload, (grad, weight, input_size, *rest))
    torch.library.opcheck(operators.weight_gradient.overload, (grad, input, weight_size, *rest))


@EVERY
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_lie_as_the_images_do(algorithm: str, layout: torch.memory_format) -> None:
    input_size, weight_size, options = shape_for(algorithm)
    input, weight = tensors(input_size, weight_size)
    input = input.detach().contiguous(memory_format=layout).requires_grad_()
    output = conv2d(input, weight, **options, algorithm=algorithm)
    assert output.is_contiguous(memory_format=layout)
    (gradient,) = torch.autograd.grad(output, [input], torch.ones_like(output))
    assert gradient.is_contiguous(memory_format=layout)


def test_only_the_gradients_that_are_asked_for_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    direct = ALGORITHMS["direct"]

    def noted(name: str) -> Callable[..., Tensor]:
        def computed(*args: Any) -> Tensor:
            asked.append(name)
            result: Tensor = getattr(direct, name)(*args)
            return result

        return computed

    passes = {name: noted(name) for name in Choice._fields}
    monkeypatch.setitem(ALGORITHMS, "direct", direct._replace(**passes))
    input, weight = tensors((1, 2, 4, 4), (3, 2, 3, 3))
    conv2d(input.detach(), weight, algorithm="direct").sum().backward()
    assert asked == ["forward", "weight_gradient"]
    asked.clear()
    conv2d(input, weight, algorithm=Choice("vendor", "direct", "vendor")).sum().backward()
    assert asked == ["input_gradient"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Conv2d(3, 8, 3, padding=1, algorithm="winograd")
        self.last = Conv2d(8, 4, 3, stride=2, algorithm=Choice("direct", "vendor", "direct"))

    def forward(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.first(images).relu()
        return self.last(hidden)  # type: ignore[no-any-return]


def gradients_of(model: nn.Module, compute: Callable[[Tensor], Tensor]) -> list[Tensor]:
    (images,) = tensors((2, 3, 9, 9), dtype=torch.float32)
    model.zero_grad()
    compute(images).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_a_compiled_model_is_one_graph_and_gives_the_same_gradients() -> None:
    model = Net()
    expected = gradients_of(model, model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients_of(model, compiled), expected)


def test_activations_may_be_computed_again() -> None:
    model = Net()
    expected = gradients_of(model, model)
    again = gradients_of(model, lambda images: checkpoint(model, images, use_reentrant=False))  # type: ignore[arg-type]
    assert all(map(torch.equal, again, expected))


def test_inside_autocast_it_is_computed_in_that_type() -> None:
    model, images = Net(), tensors((2, 3, 9, 9), dtype=torch.float32)[0]
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images)
    assert output.dtype == torch.bfloat16
    exact = model(images)
    assert 0 < (output - exact).abs().max() < 0.05 * exact.abs().max()


def test_the_module_is_pytorchs_with_another_algorithm() -> None:
    options: dict[str, Any] = {"stride": 2, "padding": 1, "padding_mode": "reflect", "bias": False}
    theirs, ours = nn.Conv2d(3, 4, 3, **options), Conv2d(3, 4, 3, **options, algorithm="direct")
    ours.load_state_dict(theirs.state_dict())
    (images,) = tensors((3, 8, 8), dtype=torch.float32)
    torch.testing.assert_close(ours(images), theirs(images))
    assert copy.deepcopy(ours).algorithm == "direct"
    assert "algorithm='direct'" in repr(ours)


@EVERY
def test_results_are_of_the_tensors_type_whatever_new_tensors_are(algorithm: str) -> None:
    input_size, weight_size, options = shape_for(algorithm)
    input, weight = (tensor.float().detach() for tensor in tensors(input_size, weight_size))
    expected = conv2d(input, weight, **options, algorithm=algorithm)
    torch.set_default_dtype(torch.float16)
    try:
        got = conv2d(input, weight, **options, algorithm=algorithm)
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)
