from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.config.experiment import AdamaxConfig, AdamWConfig, SgdConfig, ShiftAdamaxConfig
from orchestrator.training.optim import build_optimizer

SGD = SgdConfig(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
ADAMW = AdamWConfig(lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
ADAMAX = AdamaxConfig(lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
SHIFT = ShiftAdamaxConfig(lr=0.01, betas=(0.75, 0.9), eps=1e-6, weight_decay=0.1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.batch = nn.BatchNorm2d(4)
        self.group = nn.GroupNorm(2, 4)
        self.layer = nn.LayerNorm([4, 6, 6])
        self.attention = nn.MultiheadAttention(4, 2)
        self.classifier = nn.Linear(4, 2)


def names(optimizer: torch.optim.Optimizer) -> list[list[str]]:
    return [group["param_names"] for group in optimizer.param_groups]


@pytest.mark.parametrize("config", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_weight_decay_spares_norms_and_biases_and_keeps_the_order_of_the_model(
    config: SgdConfig | AdamWConfig,
) -> None:
    optimizer = build_optimizer(Net(), config)
    assert names(optimizer) == [
        ["conv.weight", "attention.in_proj_weight", "attention.out_proj.weight", "classifier.weight"],
        [
            "conv.bias",
            "batch.weight",
            "batch.bias",
            "group.weight",
            "group.bias",
            "layer.weight",  # three dimensions, but a norm's
            "layer.bias",
            "attention.in_proj_bias",
            "attention.out_proj.bias",
            "classifier.bias",
        ],
    ]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [config.weight_decay, 0.0]


def test_the_state_of_the_optimizer_keeps_the_names() -> None:
    model = nn.Linear(2, 2)
    groups = build_optimizer(model, SGD).state_dict()["param_groups"]
    assert [group["param_names"] for group in groups] == [["weight"], ["bias"]]


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    model[0].requires_grad_(False)
    assert names(build_optimizer(model, SGD)) == [["1.weight"]]


def test_a_shared_parameter_is_updated_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    assert names(build_optimizer(model, SGD)) == [["0.weight"]]


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (ADAMW, {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6}),
        (ADAMAX, {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6}),
        (SHIFT, {"lr": 0.01, "betas": (0.75, 0.9), "eps": 1e-6}),
    ],
    ids=["sgd", "adamw", "adamax", "shift_adamax"],
)
def test_every_option_reaches_the_optimizer(config: SgdConfig | AdamWConfig, options: dict[str, Any]) -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), config)
    for group in optimizer.param_groups:
        assert {name: group[name] for name in options} == options


@pytest.mark.parametrize("config", [SGD, ADAMW, ADAMAX, SHIFT], ids=lambda config: config.name)
def test_channels_last_weights_go_on_rightly_from_a_state_with_another_memory_order(
    config: SgdConfig | AdamWConfig,
) -> None:
    """A checkpoint gives the momentum back contiguous: torch's fused CPU optimizers mix up its elements."""
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=memory_format)  # type: ignore[call-overload]
        optimizer = build_optimizer(model, config)
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape))
            optimizer.step()
            state = optimizer.state_dict()
            for tensors in state["state"].values():
                tensors.update({key: value.contiguous() for key, value in tensors.items()})
            optimizer.load_state_dict(state)
        results.append(model.weight.detach())
    assert torch.equal(*results)


def test_shift_adamax_is_algorithm_4() -> None:
    model = nn.Linear(20, 3, bias=False)
    optimizer = build_optimizer(model, SHIFT)
    w = model.weight.detach().double()
    m, v = torch.zeros_like(w), torch.zeros_like(w)

    def nearest(x: Any) -> Any:
        return 2.0 ** torch.as_tensor(x).double().log2().round()

    for step in range(1, 6):
        optimizer.param_groups[0]["lr"] = lr = 0.01 * step  # as a schedule does
        model.weight.grad = torch.randn(3, 20)
        model.weight.grad[0, 0] = 0.0
        g = model.weight.grad.double() + 0.1 * w
        m = 0.75 * m + 0.25 * g
        v = torch.maximum(0.9 * v, g.abs() + 1e-6)
        w = w - nearest(lr / (1 - 0.75**step)) * m / nearest(v)
        optimizer.step()
        torch.testing.assert_close(model.weight.detach().double(), w, rtol=1e-5, atol=1e-6)


def test_steps_of_shift_adamax_are_those_of_adamax_within_factors_of_two() -> None:
    steps = []
    for config in (ADAMAX, ShiftAdamaxConfig(lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)):
        torch.manual_seed(0)
        model = nn.Linear(50, 50)
        before = model.weight.detach().clone()
        model.weight.grad = torch.randn(50, 50)
        build_optimizer(model, config).step()
        steps.append(model.weight.detach() - before)
    ratio = steps[1] / steps[0]
    assert ratio.min() > 0.49
    assert ratio.max() < 2.04
    assert not torch.allclose(*steps, rtol=0.1)
