"""Convolutions of signs: bit for bit those of fp32, with gradients by the straight-through estimator."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels import binary
from kernels.binary import BinaryConv2d, BinaryLinear, convolve_bits, convolve_signs, sign
from kernels.binary_bits import bits_of
from kernels.shapes import ConvShape

# images (N, C, H, W), filters (K, C, R, S), options: channels and filters around words of 32 and vectors of 16
CASES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 64, 9, 7), (32, 64, 3, 3), {"padding": 1}),
    ((1, 32, 5, 19), (16, 32, 3, 3), {}),
    ((2, 3, 6, 6), (5, 3, 3, 3), {"padding": 1}),
    ((1, 33, 8, 9), (17, 33, 3, 2), {"stride": (2, 3), "padding": (2, 1), "dilation": (2, 1)}),
    ((2, 70, 7, 40), (49, 70, 1, 1), {"stride": 2}),
    ((1, 40, 3, 3), (33, 40, 3, 3), {"padding": 4}),
    ((1, 8, 5, 5), (48, 8, 2, 4), {"padding": "same"}),
    ((3, 100, 1, 1), (20, 100, 1, 1), {}),
]


def tensors(images: tuple[int, ...], weight: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """With zeros of both signs, and a NaN."""
    generator = torch.Generator().manual_seed(1)
    x, w = torch.randn(images, generator=generator), torch.randn(weight, generator=generator)
    x.view(-1)[::7], x.view(-1)[3::11] = 0.0, -0.0
    w.view(-1)[::5] = 0.0
    x.view(-1)[1] = torch.nan
    return x, w


def by_definition(x: Tensor, w: Tensor, options: dict[str, Any]) -> Tensor:
    signs = (torch.where(each >= 0, 1.0, -1.0) for each in (x, w))
    return F.conv2d(*signs, **options)


pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@pytest.fixture(params=["by instruction", "by arithmetic", "by torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "by torch":
        monkeypatch.setattr(binary, "_library", lambda: None)
    elif (library := binary._library()) is None:
        pytest.skip("needs a C compiler")
    elif request.param == "by instruction" and not library.convoy_binary_counts_vectors():
        pytest.skip("needs AVX-512 VPOPCNTDQ")
    monkeypatch.setattr(binary, "_BY_INSTRUCTION", request.param == "by instruction")
    return str(request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("images", "weight", "options"), CASES, ids=str)
def test_it_is_the_convolution_of_signs_bit_for_bit(
    images: tuple[int, ...], weight: tuple[int, ...], options: dict[str, Any], layout: torch.memory_format
) -> None:
    x, w = tensors(images, weight)
    x = x.contiguous(memory_format=layout)
    shape = ConvShape.of(x, w, **options)
    result = convolve_signs(x, w, shape)
    assert torch.equal(result, by_definition(x, w, options))
    assert result.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(("images", "weight", "options"), CASES[:4], ids=str)
def test_a_part_of_images_and_several_threads_change_nothing(
    images: tuple[int, ...], weight: tuple[int, ...], options: dict[str, Any]
) -> None:
    x, w = tensors(images, weight)
    frame = torch.randn(images[0] + 1, images[1] + 2, images[2] + 3, images[3] + 5)
    inside = frame[1:, 1:-1, 2:-1, 3:-2]
    inside.copy_(x)
    shape, threads = ConvShape.of(x, w, **options), torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            assert torch.equal(convolve_signs(inside, w, shape), by_definition(x, w, options))
            assert torch.equal(
                convolve_signs(x.expand(*x.shape), w.transpose(2, 3).contiguous().transpose(2, 3), shape),
                by_definition(x, w, options),
            )
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("images", "weight", "options"), CASES, ids=str)
def test_filters_that_are_kept_as_bits_give_the_same(
    images: tuple[int, ...], weight: tuple[int, ...], options: dict[str, Any]
) -> None:
    x, w = tensors(images, weight)
    shape = ConvShape.of(x, w, **options)
    assert torch.equal(convolve_bits(x, bits_of(w), shape), by_definition(x, w, options))


def test_gradients_are_those_of_signs_and_stop_where_activations_are_large() -> None:
    x, w = (each.nan_to_num() for each in tensors((2, 5, 6, 7), (4, 5, 3, 3)))
    layer = BinaryConv2d(5, 4, 3, padding=1, bias=False)
    layer.weight.data = w.clone()
    x.requires_grad_()
    grad = torch.randn(2, 4, 6, 7)
    layer(x).backward(grad)
    signs = [sign(x.detach()).requires_grad_(), sign(w).requires_grad_()]
    F.conv2d(*signs, padding=1).backward(grad)
    assert x.grad is not None
    assert layer.weight.grad is not None
    torch.testing.assert_close(x.grad, signs[0].grad * (x.detach().abs() <= 1))
    torch.testing.assert_close(layer.weight.grad, signs[1].grad)
    assert (x.grad == 0).any()


@pytest.mark.parametrize("scaled", [False, True])
def test_layers_compute_signs_with_real_biases_and_scales(scaled: bool) -> None:
    torch.manual_seed(0)
    conv, linear = BinaryConv2d(6, 5, 3, stride=2), BinaryLinear(12, 7)
    x, y = torch.randn(2, 6, 9, 9), torch.randn(3, 4, 12)
    for layer in (conv, linear):
        layer.scaled = scaled
    of_conv, of_linear = conv.weight.abs().mean((1, 2, 3)), linear.weight.abs().mean(1)
    expected = F.conv2d(sign(x), sign(conv.weight), None, 2) * (of_conv[:, None, None] if scaled else 1)
    torch.testing.assert_close(conv(x), expected + conv.bias[:, None, None])
    expected = F.linear(sign(y), sign(linear.weight)) * (of_linear if scaled else 1)
    torch.testing.assert_close(linear(y), expected + linear.bias)


def test_a_layer_learns_and_its_weights_stay_within_one() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), BinaryLinear(32, 32), nn.BatchNorm1d(32), nn.Linear(32, 2)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    x = torch.randn(256, 8)
    labels = (x[:, 0] * x[:, 1] > 0).long()
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
        net[2].clip_()
        assert net[2].weight.abs().max() <= 1
    assert loss.item() < 0.3


def test_what_cannot_be_binary_is_said() -> None:
    with pytest.raises(ValueError, match=r"a binary convolution has groups=1 .* got .*groups=2"):
        BinaryConv2d(4, 4, 3, groups=2)(torch.randn(1, 4, 5, 5))
