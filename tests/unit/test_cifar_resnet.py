"""The residual networks for CIFAR-10, against the tables and sentences of He et al. 2015 (arXiv:1512.03385)."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from orchestrator.models.cifar_resnet import CIFAR_RESNETS, CifarResNet, PlainBlock

# Table 6: layers with weights, millions of weights.
TABLE_6 = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_there_are_the_networks_of_table_6() -> None:
    assert list(CIFAR_RESNETS) == [f"resnet{num_layers}" for num_layers in TABLE_6]


@pytest.mark.parametrize("num_layers", TABLE_6)
def test_a_network_has_the_weights_and_layers_of_table_6(num_layers: int) -> None:
    model = CIFAR_RESNETS[f"resnet{num_layers}"](10, 3, 32)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    digits = 1 if millions > 1 else 2
    assert round(millions, digits) == TABLE_6[num_layers]
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == num_layers


def test_stages_have_the_sizes_and_channels_of_section_4_2() -> None:
    model = CifarResNet(20, 10, 3, 32)
    shapes: list[tuple[int, ...]] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape[1:])))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == 3 * [(16, 32, 32)] + 3 * [(32, 16, 16)] + 3 * [(64, 8, 8)]


def test_shortcuts_are_option_a_the_same_pixels_and_zeros_for_new_channels() -> None:
    block = PlainBlock(2, 4, stride=2)
    nn.init.zeros_(block.norm2.weight)  # what is left is the shortcut
    x = torch.rand(3, 2, 5, 6)
    expected = torch.zeros(3, 4, 3, 3)
    for sample in range(3):
        for channel in range(2):
            for row in range(3):
                for column in range(3):
                    expected[sample, channel, row, column] = x[sample, channel, 2 * row, 2 * column]
    assert torch.equal(block(x), expected)
    assert torch.equal(block(x.to(memory_format=torch.channels_last)), expected)


def test_every_weight_has_a_gradient() -> None:
    torch.manual_seed(0)
    model = CifarResNet(20, 10, 1, 9, width=4)
    model(torch.randn(4, 1, 9, 9)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0, name


def test_a_block_adds_its_branch_to_its_shortcut() -> None:
    torch.manual_seed(0)
    block = PlainBlock(3, 3, stride=1).eval()
    x = torch.randn(2, 3, 5, 5)
    branch = block.norm2(block.conv2(block.norm1(block.conv1(x)).clamp(min=0)))
    assert torch.equal(block(x), (branch + x).clamp(min=0))


@pytest.mark.parametrize("width", [0, 2.5, "16"])
def test_a_width_out_of_range_is_refused(width: object) -> None:
    with pytest.raises(ValueError, match=r"width: got .*, must be a whole number >= 1"):
        CifarResNet(20, 10, 3, 32, width=width)  # type: ignore[arg-type]
