"""Packed networks predict bit for bit what they did in training's form, from less memory."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.binary import BinaryConv2d, BinaryLinear
from kernels.binary_bits import bits_of, signs_of
from kernels.binary_packed import PackedConv2d, PackedLinear, Threshold, first_change, pack_for_evaluation
from kernels.shift_norm import ShiftBatchNorm1d, ShiftBatchNorm2d

NORMS = {"batch norm": (nn.BatchNorm1d, nn.BatchNorm2d), "shift": (ShiftBatchNorm1d, ShiftBatchNorm2d)}


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (5, 31, 3, 2), (2, 32, 1, 1), (3, 33, 2, 2), (16, 64, 3, 3)])
def test_bits_and_signs_are_the_same(size: tuple[int, int, int, int]) -> None:
    weight = torch.randn(size)
    weight.view(-1)[::5] = 0.0
    bits = bits_of(weight)
    assert bits.shape == (size[0], size[2] * size[3], -(-size[1] // 32))
    assert torch.equal(signs_of(bits, size), torch.where(weight >= 0, 1.0, -1.0))


class Net(nn.Module):
    """Binary layers with norms behind, pooling before and after them, a residual, and real layers around."""

    def __init__(self, norms: tuple[Any, Any], width: int, *, scaled: bool, bias: bool) -> None:
        super().__init__()
        line, plane = norms
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), plane(width), nn.Hardtanh())
        self.body = nn.Sequential(
            BinaryConv2d(width, 2 * width, 3, padding=1, bias=bias), nn.MaxPool2d(2), plane(2 * width), nn.Hardtanh(),
            BinaryConv2d(2 * width, width, (2, 3), stride=(1, 2), padding=(0, 1), bias=bias),
            plane(width), nn.Hardtanh(), nn.Dropout(0.5), nn.MaxPool2d(2, stride=1, padding=1),
        )  # fmt: skip
        self.conv = BinaryConv2d(width, width, 3, padding="same", bias=bias)
        self.norm = plane(width)
        self.last_conv = BinaryConv2d(width, width, 1, bias=bias)
        self.first = BinaryLinear(width * 7 * 6, 40, bias=bias)
        self.norm1, self.norm2 = line(40), line(24)
        self.second, self.third = BinaryLinear(40, 24, bias=bias), nn.Linear(24, 10)
        for module in self.modules():
            if isinstance(module, BinaryConv2d | BinaryLinear):
                module.scaled = scaled

    def forward(self, images: Tensor) -> Tensor:
        x = self.body(self.stem(images))
        x = self.last_conv(x + self.norm(self.conv(x)))
        x = F.hardtanh(self.norm1(self.first(torch.flatten(x, 1))))
        return self.third(F.hardtanh(self.norm2(self.second(x))))


FOLDED = {"body.0": "body.2", "first": "norm1"}
"""Not body.4, whose norm the residual sees; nor conv; nor second, whose norm a real layer sees."""


def trained(norm: str, seed: int, *, scaled: bool, bias: bool, width: int) -> Net:
    """With statistics of its own activations, and norms of either sign, one zero, one that is always the same."""
    torch.manual_seed(seed)
    net = Net(NORMS[norm], width, scaled=scaled, bias=bias)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias, std=0.5)
            module.weight.data[0] = 0.0
            module.bias.data[1] = 1e6
            module.momentum = 1.0
        if isinstance(module, BinaryConv2d | BinaryLinear):
            module.weight.data.view(-1)[::13] = 0.0
    net(torch.randn(8, 3, 15, 18))
    return net.eval()


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(3))
def test_packed_networks_give_the_same_logits_bit_for_bit(norm: str, seed: int, bias: bool, scaled: bool) -> None:
    net = trained(norm, seed, scaled=scaled, bias=bias, width=(8, 20, 33)[seed])
    images = torch.randn(16, 3, 15, 18)
    with torch.no_grad():
        expected = net(images)
        in_nhwc = net(images.contiguous(memory_format=torch.channels_last))
        packing = pack_for_evaluation(net)
        assert torch.equal(net(images), expected)
        assert torch.equal(net(images.contiguous(memory_format=torch.channels_last)), in_nhwc)
        with torch.autocast("cpu", torch.bfloat16):
            net(images)
    assert packing.folded == FOLDED
    assert packing.untraced is None
    assert packing.layers == ("body.0", "body.4", "conv", "last_conv", "first", "second")


def test_a_state_dict_is_a_32th_and_loads_into_another_packed_network() -> None:
    net = trained("batch norm", 0, scaled=True, bias=True, width=64)
    other = Net(NORMS["batch norm"], 64, scaled=True, bias=True).eval()
    images = torch.randn(4, 3, 15, 18)
    with torch.no_grad():
        expected = net(images)
        weights = {name: each for name, each in net.state_dict().items() if name.startswith("body.0.w")}
        pack_for_evaluation(net)
        pack_for_evaluation(other)
        assert not torch.equal(other(images), expected)
        other.load_state_dict(net.state_dict())
        assert torch.equal(other(images), expected)
    (weight,) = weights.values()
    packed = net.state_dict()["body.0.bits"]
    assert packed.nbytes * 32 == weight.nbytes
    assert not any(name.startswith(("body.2.weight", "body.2.running", "body.0.bias")) for name in net.state_dict())


def test_layers_alone_are_what_they_were() -> None:
    torch.manual_seed(0)
    conv, linear = BinaryConv2d(40, 17, 3, stride=2, padding=(1, 0), dilation=2), BinaryLinear(70, 9)
    net = nn.ModuleDict({"conv": conv, "linear": linear}).eval()
    x, y = torch.randn(2, 40, 9, 11), torch.randn(2, 3, 70)
    with torch.no_grad():
        expected = conv(x), linear(y)
        packing = pack_for_evaluation(net)
        assert isinstance(net["conv"], PackedConv2d)
        assert isinstance(net["linear"], PackedLinear)
        assert torch.equal(net["conv"](x), expected[0])
        assert torch.equal(net["linear"](y), expected[1])
    assert packing.folded == {}
    assert packing.untraced is not None
    assert "NotImplementedError" in packing.untraced


def small(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(BinaryLinear(8, 6), *between, BinaryLinear(6, 3)).eval()


@pytest.mark.parametrize(
    ("net", "folded"),
    [
        (small(nn.BatchNorm1d(6)), {"0": "1"}),
        (small(nn.Dropout(), nn.BatchNorm1d(6), nn.Tanh()), {"0": "2"}),
        (small(nn.BatchNorm1d(6), nn.ReLU()), {}),
        (small(nn.BatchNorm1d(6), nn.ReLU6()), {}),
        (small(nn.BatchNorm1d(6), nn.Hardtanh(0.5, 1.0)), {}),
        (small(nn.BatchNorm1d(6), nn.Linear(6, 6)), {}),
        (small(nn.BatchNorm1d(6, track_running_stats=False)), {}),
        (small(nn.Hardtanh(), nn.BatchNorm1d(6)), {}),
        (small(nn.LayerNorm(6)), {}),
        (nn.Sequential(BinaryLinear(8, 6), nn.BatchNorm1d(6)).eval(), {}),
    ],
    ids=str,
)
def test_a_norm_is_folded_where_only_its_signs_are_seen(net: nn.Sequential, folded: dict[str, str]) -> None:
    x = torch.randn(32, 8)
    with torch.no_grad():
        expected = net(x)
        assert pack_for_evaluation(net).folded == folded
        assert torch.equal(net(x), expected)


def test_a_norm_over_other_dimensions_is_not_folded_or_refused() -> None:
    x = torch.randn(5, 4, 8)
    net = small(nn.BatchNorm1d(4))  # of the positions, which are 4
    with torch.no_grad():
        expected = net(x)
        assert pack_for_evaluation(net).folded == {}
        assert torch.equal(net(x), expected)
    net = small(nn.BatchNorm1d(6))
    assert pack_for_evaluation(net).folded == {"0": "1"}
    with pytest.raises(ValueError, match="sums: got 3 dimensions, must be 2, of which the second are channels"):
        net(torch.randn(5, 6, 8))


def test_what_is_used_twice_is_packed_and_not_folded() -> None:
    layer, norm = BinaryLinear(6, 6), nn.BatchNorm1d(6)
    net = nn.Sequential(layer, norm, layer, nn.BatchNorm1d(6), BinaryLinear(6, 2)).eval()
    x = torch.randn(32, 6)
    with torch.no_grad():
        expected = net(x)
        assert pack_for_evaluation(net).folded == {}
        assert net[0] is net[2]
        assert torch.equal(net(x), expected)


@pytest.mark.parametrize("most", [1, 2, 7, 4608])
def test_the_change_is_found_wherever_it_is(most: int) -> None:
    """For every threshold from never to always, rising and falling; then against all sums."""
    at = torch.unique(torch.cat([torch.arange(-most, most + 2)[:9], torch.tensor([0, 1, most, most + 1])]))
    both = torch.cat([at, at])
    falls = torch.arange(len(both)) >= len(at)

    def positive(sums: Tensor) -> Tensor:
        return (sums >= both) != falls

    thresholds, falling = first_change(positive, most, both.int())
    sums = torch.arange(-most, most + 1).float()[:, None]
    result = Threshold(thresholds, falling, images=False)(sums.expand(-1, len(both)))
    assert torch.equal(result > 0, (sums >= both) != falls)


def test_zero_is_positive_and_roundings_of_the_norm_decide() -> None:
    """gamma / sigma rounds so that beta is met exactly, or missed by a bit, at whole numbers."""
    torch.manual_seed(0)
    net = small(nn.BatchNorm1d(6), nn.Hardtanh())
    norm = net[1]
    sums = net[0](torch.randn(64, 8)).detach()
    with torch.no_grad():
        for seed in range(200):
            torch.manual_seed(seed)
            nn.init.normal_(norm.weight)
            norm.running_var.uniform_(0.1, 20)
            norm.running_mean.copy_(sums[seed % 64])  # so that the norm is beta there, but for rounding
            norm.bias.copy_(torch.randint(-1, 2, (6,)) * 2.0**-24)
            every = torch.arange(-9, 10).float()[:, None].expand(-1, 6)
            seen = norm(every) >= 0
            thresholds, falling = first_change(lambda s: (norm(s.float()[None]) >= 0)[0], 9, torch.ones(6).int())
            assert torch.equal(Threshold(thresholds, falling, images=False)(every) > 0, seen)


def test_a_network_in_training_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model: got one in training mode, must be in evaluation mode\. Call"):
        pack_for_evaluation(nn.Sequential(BinaryLinear(2, 2)))
