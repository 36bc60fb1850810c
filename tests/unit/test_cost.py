"""What networks cost: totals against published figures, receptive fields against those that gradients show."""

import math
from typing import Any

import pytest
import torch
import torchvision.models
from torch import Tensor, nn

from kernels.cost import Field, LayerCost, of_model, total
from kernels.shapes import ConvShape
from orchestrator.models.small import SmallResNet

NETWORKS = [
    "alexnet", "vgg16", "vgg19_bn", "squeezenet1_0", "resnet18", "resnet50", "resnext50_32x4d", "densenet121",
    "inception_v3", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0", "efficientnet_b0", "mnasnet1_0",
    "regnet_y_400mf", "convnext_tiny", "vit_b_16", "swin_t", "swin_v2_t", "maxvit_t",
]  # fmt: skip


def network(name: str, **options: Any) -> nn.Module:
    if name.startswith("regnet"):  # its builder computes with tensors
        return torchvision.models.get_model(name, weights=None, **options)
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, **options)


def costs(name: str, side: int = 224) -> list[LayerCost]:
    options = {"init_weights": False} if name == "inception_v3" else {}
    return of_model(network(name, **options), (3, side, side))


@pytest.mark.parametrize("name", NETWORKS)
def test_totals_are_those_that_torchvision_publishes(name: str) -> None:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    found = total(costs(name, weights.transforms().crop_size[0]))
    assert found.parameters == weights.meta["num_params"]
    assert found.parameter_bytes == 4 * found.parameters
    assert found.multiply_adds / 1e9 == pytest.approx(weights.meta["_ops"], abs=0.0006)  # there rounded to 0.001


# arXiv:1409.1556, configuration E, as Lavin & Gray 2015 (arXiv:1509.09308) list it in table 4: GFLOP of an image.
VGG_E = {
    "0": 0.17, "2": 3.70, "5": 1.85, "7": 3.70, "10": 1.85, "12": 3.70, "14": 3.70, "16": 3.70, "19": 1.85,
    "21": 3.70, "23": 3.70, "25": 3.70, "28": 0.92, "30": 0.92, "32": 0.92, "34": 0.92,
}  # fmt: skip


def test_layers_of_vgg_e_are_those_of_the_paper() -> None:
    rows = {row.name: row for row in costs("vgg19") if row.kind == "conv"}
    assert {name.removeprefix("features."): round(2e-9 * row.multiply_adds, 2) for name, row in rows.items()} == VGG_E
    assert rows["features.7"].output_size == (128, 112, 112)
    assert rows["features.7"].detail == "3x3"


def test_the_multiply_adds_and_intensity_of_a_convolution_are_those_of_its_shape() -> None:
    conv = nn.Conv2d(32, 48, 3, stride=2, padding=1, groups=4, bias=False)
    shape = ConvShape.of_module(conv, torch.empty(1, 32, 15, 17))
    (row,) = of_model(conv, (32, 15, 17))
    assert 2 * row.multiply_adds == shape.flops
    assert row.intensity == shape.intensity()
    assert row.parameter_bytes == shape.parameter_bytes()
    assert row.input_bytes + row.output_bytes == shape.activation_bytes()
    assert (row.kind, row.detail, row.output_size) == ("conv", "3x3 /2 4 groups", (48, 8, 9))


# Araujo, Norris & Sim 2019 (Distill), table of receptive fields and effective strides.
@pytest.mark.parametrize(
    ("name", "size", "side"), [("alexnet", 195, 224), ("vgg16", 212, 224), ("inception_v3", 1311, 299)]
)
def test_receptive_fields_are_the_published_ones(name: str, size: int, side: int) -> None:
    maps = [row for row in costs(name, side) if len(row.output_size) == 3 and row.output_size[1] > 1]
    sizes = [row.field.size for row in maps if row.field]
    assert [max(lengths) for lengths in zip(*sizes, strict=True)] == [size, size]
    assert maps[-1].field
    assert maps[-1].field.jump == (32, 32)


class Branches(nn.Module):
    """Two ways that meet in a sum or side by side."""

    def __init__(self, first: nn.Module, second: nn.Module, *, beside: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.beside = first, second, beside

    def forward(self, images: Tensor) -> Tensor:
        both = self.first(images), self.second(images)
        return torch.cat(both, dim=1) if self.beside else both[0] + both[1]


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 2, 1), nn.Sigmoid())
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        return features * self.gate(features)


# Padded so that a map keeps its size where branches meet; images are large enough for the fields in their middle.
STACKS = {
    "three of 3 x 3": nn.Sequential(*(nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))),
    "stride first": nn.Sequential(nn.Conv2d(2, 2, 3, stride=2), nn.Conv2d(2, 2, 5)),
    "sides differ": nn.Sequential(nn.Conv2d(2, 2, (1, 5), stride=(1, 2)), nn.Conv2d(2, 2, (3, 1), stride=(2, 1))),
    "dilation": nn.Sequential(nn.Conv2d(2, 2, 3, dilation=(2, 3), stride=2), nn.Conv2d(2, 2, 3, dilation=2)),
    "pools": nn.Sequential(nn.AvgPool2d(3, 2), nn.Conv2d(2, 2, 3), nn.MaxPool2d(2), nn.AvgPool2d((1, 3))),
    "dilated pool": nn.Sequential(nn.Conv2d(2, 2, 3), nn.MaxPool2d(2, 1, dilation=2)),
    "residual": nn.Sequential(Branches(nn.Conv2d(2, 2, 5, padding=2), nn.Identity()), nn.Conv2d(2, 2, 3)),
    "side by side": nn.Sequential(
        Branches(nn.Conv2d(2, 1, (1, 7), padding=(0, 3)), nn.Conv2d(2, 1, (3, 1), padding=(1, 0)), beside=True),
        nn.Conv2d(2, 2, 3, stride=3),
    ),
    "norms": nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 2)),
}


@pytest.mark.parametrize("name", STACKS)
def test_receptive_fields_are_where_gradients_come_from(name: str) -> None:
    model = STACKS[name].double().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # positive weights: nothing cancels, no activation stops a gradient
            nn.init.uniform_(module.weight, 0.1, 0.2)
    images = torch.rand(1, 2, 60, 60, dtype=torch.float64)
    if "dilated" in name or "pools" in name:  # else the largest value of a window alone has a gradient
        model = nn.Sequential(*(_mean_instead(module) for module in model))
    images.requires_grad_()
    output = model(images)
    middle = output.shape[2] // 2, output.shape[3] // 2
    seen = [
        _extent(images, output[0, :, row, column].sum()) for row, column in (middle, (middle[0] + 1, middle[1] + 1))
    ]
    field = of_model(STACKS[name], (2, 60, 60))[-1].field
    assert field is not None
    assert field.size == tuple(length for _, length in seen[0])
    assert field.jump == tuple(after - before for (before, _), (after, _) in zip(*seen, strict=True))


def _extent(images: Tensor, value: Tensor) -> list[tuple[int, int]]:
    """First row and number of rows, first column and number of columns, that have a gradient."""
    (gradient,) = torch.autograd.grad(value, images, retain_graph=True)
    hit = gradient[0].abs().sum(0) > 0
    ends = [hit.any(1 - axis).nonzero().flatten() for axis in (0, 1)]
    return [(int(where[0]), int(where[-1] - where[0]) + 1) for where in ends]


def _mean_instead(module: nn.Module) -> nn.Module:
    """A convolution with the window of a maximum pool."""
    if not isinstance(module, nn.MaxPool2d):
        return module
    taps = nn.Conv2d(2, 2, module.kernel_size, module.stride, dilation=module.dilation).double()
    nn.init.uniform_(taps.weight, 0.1, 0.2)
    return taps


def test_a_layer_on_channels_keeps_the_field_and_one_on_the_whole_map_sees_all() -> None:
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.on_channels, self.on_all = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4 * 6 * 8, 5)

        def forward(self, images: Tensor) -> Tensor:
            return self.on_all(self.on_channels(self.conv(images).permute(0, 2, 3, 1)).flatten(1))

    fields = {row.name: row.field for row in of_model(Ends(), (3, 8, 10))}
    assert fields == {"conv": Field((3, 3)), "on_channels": Field((3, 3)), "on_all": Field((8, 10), (6, 8))}


def test_a_gate_that_all_positions_share_does_not_widen_the_field() -> None:
    rows = of_model(nn.Sequential(Gated(), nn.Conv2d(2, 2, 3)), (2, 16, 16))
    assert rows[-1].field == Field((5, 5))


def test_behind_attention_there_is_no_field() -> None:
    fields = [row.field for row in costs("vit_b_16")]
    assert fields[0] == Field((16, 16), (16, 16))
    assert fields[-1] is None


def test_what_modules_compute_by_functions_is_found_and_named() -> None:
    rows = of_model(SmallResNet(10, 3, 8, width=4), (3, 8, 8))
    assert [row.kind for row in rows if row.name == "blocks.1"] == ["activation", "activation"]
    assert [(row.kind, row.output_size) for row in rows[-2:]] == [("pool", (8,)), ("linear", (10,))]


def test_what_runs_twice_costs_twice_but_for_its_parameters() -> None:
    twice = nn.Conv2d(4, 4, 3, padding=1)
    first, second = of_model(nn.Sequential(twice, twice), (4, 6, 6))
    assert first.multiply_adds == second.multiply_adds == 4 * 4 * 9 * 36
    assert (first.parameters, second.parameters) == (4 * 4 * 9 + 4, 0)


def test_parameters_that_no_layer_uses_are_rows_too() -> None:
    (*_, free) = costs("vit_b_16")
    assert free.kind == "parameters"
    kinds = {row.name: row.parameters for row in costs("convnext_tiny") if row.kind == "parameters"}
    assert kinds["features.1.0"] == 96  # layer_scale


def test_a_transposed_convolution_is_counted_by_its_input() -> None:
    conv = nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1, bias=False)
    (row,) = of_model(conv, (3, 6, 6))
    assert row.multiply_adds == 3 * 5 * 16 * 36
    assert row.output_size == (5, 12, 12)
    assert row.field is None


def test_the_model_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).half()
    model[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = of_model(model, (3, 8, 8))
    assert [module.training for module in model] == [True, True, False]
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert rows[0].parameter_bytes == 2 * rows[0].parameters  # fp16
    assert rows[0].output_bytes == 2 * math.prod(rows[0].output_size)


def test_a_model_that_fails_is_left_without_hooks() -> None:
    class Fails(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise ValueError(f"no images of {images.shape[-1]} pixels")

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Fails())
    with pytest.raises(ValueError, match="no images of 6 pixels"):
        of_model(model, (3, 8, 8))
    assert model[1].training
    assert not model[0]._forward_hooks
