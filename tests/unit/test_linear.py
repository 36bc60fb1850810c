"""nn.Linear over pixels: PyTorch's results by other algorithms, measured and looked up as 1 x 1 convolutions."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernels import dispatch, tune
from kernels.allocator import keep_freed_memory
from kernels.linear import Linear
from kernels.shapes import ConvShape
from kernels.swap import replace_convs
from kernels.table import Device, Table

CPU = torch.device("cpu")
SIZES = [(2, 5, 7, 24), (3, 6, 24), (1, 2, 1, 24)]
ALGORITHMS = ["pointwise", "vendor_nhwc", "vendor_nchw", "im2col"]


@pytest.fixture(autouse=True)
def no_table() -> Any:
    yield
    dispatch.use([], CPU)


def both(size: tuple[int, ...], algorithm: str, *, bias: bool = True) -> tuple[nn.Linear, Linear, Tensor]:
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias)
    ours = Linear(24, 40, bias=bias, algorithm=algorithm)
    ours.load_state_dict(plain.state_dict())
    return plain, ours, torch.randn(size)


def with_gradients(layer: nn.Module, pixels: Tensor) -> list[Tensor]:
    pixels = pixels.clone().requires_grad_()
    output = layer(pixels)
    output.square().sum().backward()
    assert pixels.grad is not None
    return [output.detach(), pixels.grad, *(each.grad for each in layer.parameters() if each.grad is not None)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_results_and_gradients_are_pytorchs(size: tuple[int, ...], algorithm: str, bias: bool) -> None:
    plain, ours, pixels = both(size, algorithm, bias=bias)
    for got, expected in zip(with_gradients(ours, pixels), with_gradients(plain, pixels), strict=True):
        assert got.is_contiguous()
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(5, 24), (2, 2, 2, 2, 24), (0, 3, 3, 24)], ids=str)
def test_what_are_no_pixels_is_pytorchs(size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ours, rows = both(size, "pointwise")
    monkeypatch.setattr(dispatch, "resolved", None)
    assert torch.equal(ours(rows), plain(rows))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        ours(torch.randn(2, 3, 3, 23))


def test_autocast_computes_in_its_type() -> None:
    plain, ours, pixels = both((2, 5, 7, 24), "pointwise")
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = ours(pixels), plain(pixels)
    assert got.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


def test_the_vendors_passes_of_a_linear_shape_are_its_matrix_products() -> None:
    plain, _, pixels = both((2, 5, 7, 24), "vendor", bias=False)
    output, input_gradient, weight_gradient = with_gradients(plain, pixels)
    shape = ConvShape.of_linear(plain, pixels)
    images, grads = pixels.permute(0, 3, 1, 2), (2 * output).permute(0, 3, 1, 2)
    weight = plain.weight[:, :, None, None]
    forward, input_pass, weight_pass = (
        tune.call_of("vendor", which, *tensors, shape)()
        for which, tensors in zip(tune.PASSES, [(images, weight), (grads, weight), (grads, images)], strict=True)
    )
    torch.testing.assert_close(forward.permute(0, 2, 3, 1), output)
    torch.testing.assert_close(input_pass.permute(0, 2, 3, 1), input_gradient)
    torch.testing.assert_close(weight_pass.flatten(1), weight_gradient)


class Block(nn.Module):
    """Two linear layers over pixels, as in ConvNeXt, and one over what is left of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.mix = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        pixels = self.mix(self.stem(images).permute(0, 2, 3, 1).contiguous())
        logits: Tensor = self.head(pixels.mean((1, 2)))
        return logits


def test_a_model_is_replaced_measured_and_computed_by_what_was_measured() -> None:
    torch.manual_seed(0)
    model, images = Block(), torch.randn(2, 3, 6, 5)
    expected, keys = model(images), list(model.state_dict())
    shapes = tune.shapes_of(model, images)
    assert list(shapes) == ["stem", "mix.0", "mix.2"]
    assert shapes["mix.2"] == ConvShape(n=2, c=32, h=6, w=5, k=8, r=1, s=1, linear=True)
    assert not shapes["stem"].linear

    # a model in NCHW: its linear layers meet pixels channels last all the same
    rows = tuple(tune.tune_all(shapes.values(), dtype=torch.float32, device=CPU, layout="nchw", seconds=0.001))
    assert {row.layout for row in rows if row.shape.linear} == {"nhwc"}
    forced = tuple(
        type(row)(**(vars(row) | {"algorithm": "pointwise", "seconds": row.seconds | {"pointwise": 0.0}}))
        for row in rows
    )
    table = Table(device=Device.of(CPU), rows=forced)
    assert Table.from_json(json.loads(json.dumps(table.to_json()))) == table
    dispatch.use([table], CPU)
    where = dispatch.Images("float32", "nchw", "cpu")
    assert dispatch.chosen(dispatch.entries_of(forced), "forward", shapes["mix.0"], where) == ("pointwise", "table")

    assert replace_convs(model, "auto") == dict.fromkeys(["stem", "mix.0", "mix.2", "head"], "auto")
    assert list(model.state_dict()) == keys
    output = model(images)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    by = model.mix[0](torch.randn(2, 6, 5, 8))
    assert "conv2dBackward" in _names(by.grad_fn)


def test_other_algorithms_leave_linear_layers_to_pytorch() -> None:
    model = Block()
    assert replace_convs(model, "winograd") == dict.fromkeys(["stem", "mix.0", "mix.2", "head"], "vendor")
    assert type(model.mix[0]) is nn.Linear
    assert replace_convs(model, {"mix.*": "pointwise"})["mix.2"] == "pointwise"
    assert type(model.mix[0]) is Linear


def test_memory_that_is_freed_may_be_kept() -> None:
    assert isinstance(keep_freed_memory(), bool)
    assert torch.ones(2**24).sum() == 2**24


def _names(node: Any) -> set[str]:
    return {node.name()}.union(*(_names(each) for each, _ in node.next_functions if each))
