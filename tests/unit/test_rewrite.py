"""Rewrites of convolutions: what they save, that receptive fields and sizes stay, and what they refuse."""

import itertools
from fractions import Fraction
from typing import Any, get_args

import pytest
import torch
from torch import nn

from kernels.cost import of_model, total
from kernels.rewrite import REWRITES, activation_of, apply, rewritten
from kernels.shapes import UnsupportedShape
from orchestrator.config.experiment import ModelConfig, RewriteConfig, RewriteName
from orchestrator.errors import InputError
from orchestrator.models.zoo import build_model


def costs(layer: nn.Module, channels: int, height: int = 12, width: int = 12) -> tuple[int, int]:
    found = total(of_model(layer, (channels, height, width)))
    return found.parameters, found.multiply_adds


# What the lecture says of C = K: parameters in units of C^2; depthwise for C = 64.
LECTURE = [
    ("stack3x3", 7, Fraction(27)),
    ("stack3x3", 5, Fraction(18)),
    ("factorize", 3, Fraction(6)),
    ("factorize", 7, Fraction(14)),
    ("bottleneck", 3, Fraction(13, 4)),
    ("depthwise_separable", 3, Fraction(9, 64) + 1),
]


@pytest.mark.parametrize(("name", "size", "squares"), LECTURE, ids=str)
def test_a_rewrite_leaves_what_the_lecture_says(name: str, size: int, squares: Fraction) -> None:
    conv = nn.Conv2d(64, 64, size, padding=size // 2, bias=False)
    assert costs(conv, 64) == (size**2 * 64**2, size**2 * 64**2 * 144)
    assert costs(rewritten(conv, name), 64) == (squares * 64**2, squares * 64**2 * 144)


TAKEN = {
    "stack3x3": [5, 7, 11],
    "factorize": [2, 3, 7, (3, 5)],
    "bottleneck": [2, 3, 7, (1, 5)],
    "depthwise_separable": [3, 5, (3, 1)],
}
OPTIONS = [
    {"stride": stride, "padding": padding, "dilation": dilation}
    for stride, padding, dilation in itertools.product((1, 2, (3, 1)), (0, 1, 3, (2, 5), 7), (1, 2, (1, 3)))
] + [{"padding": word, "dilation": dilation} for word in ("same", "valid") for dilation in (1, (2, 1))]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("name", REWRITES)
def test_output_sizes_and_receptive_fields_stay(name: str) -> None:
    for size, options in itertools.product(TAKEN[name], OPTIONS):
        conv = nn.Conv2d(3, 8, size, device="meta", **options)
        for height, width in ((33, 37), (34, 32)):
            (before,), after = of_model(conv, (3, height, width)), of_model(rewritten(conv, name), (3, height, width))
            assert after[-1].output_size == before.output_size, (size, options)
            assert after[-1].field == before.field, (size, options)
            kinds = [row.kind for row in after]
            assert kinds == ["conv", "activation"] * (len(kinds) // 2) + ["conv"]


@pytest.mark.parametrize("name", REWRITES)
@pytest.mark.parametrize("bias", [True, False])
def test_bias_type_border_and_mode_stay(name: str, bias: bool) -> None:
    conv = nn.Conv2d(4, 6, 5, padding=2, bias=bias, padding_mode="reflect", dtype=torch.float64).eval()
    stack = rewritten(conv, name)
    parts = [layer for layer in stack if isinstance(layer, nn.Conv2d)]
    assert {part.padding_mode for part in parts} == {"reflect"}
    assert {part.weight.dtype for part in parts} == {torch.float64}
    assert {part.bias is not None for part in parts} == {bias}
    assert not any(part.bias.any() for part in parts if part.bias is not None)
    assert not stack.training
    assert stack(torch.rand(2, 4, 9, 9, dtype=torch.float64)).shape == (2, 6, 9, 9)


@pytest.mark.parametrize("name", REWRITES)
def test_new_weights_keep_the_size_of_values(name: str) -> None:
    torch.manual_seed(0)
    values = torch.randn(4, 128, 24, 24)
    stack = rewritten(nn.Conv2d(128, 128, 5, bias=False), name)
    for layer in stack:
        values = layer(values)
        if isinstance(layer, nn.Conv2d):  # He's: 2 times the mean square that a ReLU leaves
            assert 0.5 < values.square().mean() < 3
            values = values / values.square().mean().sqrt()


def test_every_convolution_that_matches_is_rewritten_in_place() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 7), nn.SiLU(), nn.Sequential(nn.Conv2d(8, 8, 5), nn.SiLU(), nn.Conv2d(8, 8, 3))
    )
    assert apply(model, "stack3x3") == ["0", "2.0"]
    assert [type(layer).__name__ for layer in model[0]] == ["Conv2d", "SiLU", "Conv2d", "SiLU", "Conv2d"]
    assert isinstance(model[2][2], nn.Conv2d)
    assert apply(model, "factorize", "2.*") == ["2.0.0", "2.0.2", "2.2"]
    assert model(torch.rand(1, 3, 20, 20)).shape == (1, 8, 8, 8)


def test_a_convolution_that_stands_in_two_places_stays_one() -> None:
    shared = nn.Conv2d(4, 4, 5)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert apply(model, "stack3x3") == ["0", "2"]
    assert model[0] is model[2]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([], nn.ReLU),
        ([nn.GELU(), nn.GELU(), nn.ReLU()], nn.GELU),
        ([nn.SiLU(), nn.Softmax(), nn.Softmax()], nn.SiLU),
    ],
)
def test_the_activation_is_the_one_the_model_has_most_of(layers: list[nn.Module], expected: type[nn.Module]) -> None:
    assert activation_of(nn.Sequential(*layers)) is expected


@pytest.mark.parametrize(
    ("name", "conv", "message"),
    [
        ("stack3x3", nn.Conv2d(4, 4, 5, groups=2), "stack3x3: got groups=2, must be 1"),
        ("depthwise_separable", nn.Conv2d(4, 4, 3, groups=4), "depthwise_separable: got groups=4, must be 1"),
        ("stack3x3", nn.Conv2d(4, 4, 3), "got a filter of 3 x 3 .*must be N x N with N odd and >= 5"),
        ("stack3x3", nn.Conv2d(4, 4, 6), "got a filter of 6 x 6"),
        ("stack3x3", nn.Conv2d(4, 4, (5, 7)), "got a filter of 5 x 7"),
        ("factorize", nn.Conv2d(4, 4, (1, 3)), "got a filter of 1 x 3 .*both > 1"),
        ("bottleneck", nn.Conv2d(4, 4, 1), "got a filter of 1 x 1 .*larger than 1 x 1"),
        ("bottleneck", nn.Conv2d(4, 1, 3), "with 1 channels behind it, must be .* 2 channels or more"),
        ("depthwise_separable", nn.Conv2d(4, 4, 1), "must be larger than 1 x 1"),
    ],
)
def test_what_a_rewrite_does_not_take_is_said(name: str, conv: nn.Conv2d, message: str) -> None:
    with pytest.raises(UnsupportedShape, match=message):
        rewritten(conv, name)


@pytest.mark.parametrize(
    ("name", "where", "message"),
    [
        ("stack", "*", "rewrite: got 'stack', must be one of stack3x3, factorize, bottleneck, depthwise_separable"),
        ("bottleneck", "stem*", r"where: got 'stem\*', which is the name of no convolution, must be a glob such as 0"),
        ("stack3x3", "*", r"got stack3x3 where '\*', but none of 2 convolutions is taken; 0: stack3x3: got a filter"),
        ("bottleneck", "2", "none of 1 convolutions is taken; 2: bottleneck: got groups=3"),
    ],
)
def test_a_rewrite_with_nothing_to_do_is_refused(name: str, where: str, message: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3, groups=3))
    with pytest.raises(ValueError, match=message):
        apply(model, name, where)
    assert isinstance(model[0], nn.Conv2d)


def test_a_model_without_convolutions_is_refused() -> None:
    with pytest.raises(ValueError, match="must be left out: the model has none"):
        apply(nn.Linear(2, 2), "factorize")


# --- in experiments


def test_an_experiment_can_name_every_rewrite() -> None:
    assert set(get_args(RewriteName)) == {"none", *REWRITES}


def build(**options: Any) -> nn.Module:
    config = ModelConfig(name="small_resnet", rewrite=RewriteConfig(**options))
    return build_model(config, num_classes=5, channels=1, image_size=8)


def test_an_experiments_network_is_rewritten_and_every_parameter_trains() -> None:
    model = build(name="factorize", where="blocks.*")
    assert isinstance(model.get_submodule("blocks.0.conv1"), nn.Sequential)
    assert isinstance(model.get_submodule("stem.0"), nn.Conv2d)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # the gains that start at zero let gradients through from the second step on
        optimizer.zero_grad()
        model(torch.randn(4, 1, 8, 8)).square().sum().backward()
        optimizer.step()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_a_rewrite_that_cannot_be_is_a_mistake_of_the_experiment() -> None:
    with pytest.raises(InputError, match=r"model\.rewrite: where: got 'layer1\*', which is the name of no"):
        build(name="factorize", where="layer1*")
