from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.config.experiment import ModelConfig
from orchestrator.errors import InputError
from orchestrator.models.binarynet import BinaryNet
from orchestrator.models.mlp import Mlp
from orchestrator.models.small import Block, SmallResNet, num_halvings
from orchestrator.models.zoo import adapt_input_channels, build_model, check_model, model_names, outline


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(name: str, channels: int = 3, image_size: int = 32, **options: Any) -> nn.Module:
    config = ModelConfig(name=name, options=options)
    return build_model(config, num_classes=7, channels=channels, image_size=image_size)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# --- mlp


def test_mlp_has_the_weights_of_its_layers_and_trains_them_all() -> None:
    model = Mlp(7, 3, 8, hidden=[20, 10])
    sizes = [3 * 64 * 20 + 20, 20 * 10 + 10, 10 * 7 + 7]
    assert sum(p.numel() for p in model.parameters()) == sum(sizes)
    model(torch.randn(4, 3, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_mlp_without_hidden_layers_is_a_linear_classifier() -> None:
    assert [tuple(p.shape) for p in Mlp(7, 1, 4, hidden=[]).parameters()] == [(7, 16), (7,)]


@pytest.mark.parametrize("hidden", [[0], [3, -1], ["4"]])
def test_mlp_refuses_sizes_that_are_none(hidden: list[Any]) -> None:
    with pytest.raises(ValueError, match="whole numbers >= 1"):
        Mlp(7, 1, 4, hidden=hidden)


# --- small_resnet


@pytest.mark.parametrize(
    ("image_size", "halvings"), [(2, 0), (4, 0), (7, 0), (8, 1), (16, 2), (28, 2), (32, 3), (64, 3)]
)
def test_small_resnet_halves_while_four_pixels_remain(image_size: int, halvings: int) -> None:
    assert num_halvings(image_size) == halvings
    model = SmallResNet(10, 3, image_size, width=4)
    sides = []
    model.blocks.register_forward_hook(lambda _module, _inputs, output: sides.append(output.shape))
    assert model(torch.randn(2, 3, image_size, image_size)).shape == (2, 10)
    assert sides == [(2, 4 * 2**halvings, -(-image_size // 2**halvings), -(-image_size // 2**halvings))]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("width", [5, 24])
@pytest.mark.parametrize("depth", [1, 2])
def test_small_resnet_trains_every_parameter(channels: int, norm: Any, width: int, depth: int) -> None:
    torch.manual_seed(0)
    model = SmallResNet(10, channels, 9, width=width, depth=depth, norm=norm, dropout=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # the gains that start at zero let gradients through from the second step on
        optimizer.zero_grad()
        model(torch.randn(4, channels, 9, 9)).square().sum().backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0, name


def test_depth_counts_blocks_at_each_resolution() -> None:
    model = SmallResNet(10, 3, 32, width=4, depth=3)
    strides = [block.conv1.stride[0] for block in model.blocks if isinstance(block, Block)]
    assert strides == [1, 1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1]


def test_every_block_starts_as_its_shortcut() -> None:
    block = SmallResNet(10, 3, 8, width=4).blocks[0]
    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(block(x), x)


def test_with_group_norm_a_sample_does_not_see_its_batch() -> None:
    torch.manual_seed(0)
    model = SmallResNet(10, 1, 8, width=16, norm="group")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)  # so that no branch is zero
    images = torch.randn(6, 1, 8, 8)
    whole = model(images)
    parts = torch.cat([model(images[:2]), model(images[2:])])
    # A convolution may add up in another order for another batch: 6 layers, at most 16 * 2 * 9 products each.
    torch.testing.assert_close(parts, whole, rtol=6 * 288 * 2.0**-24, atol=6 * 288 * 2.0**-24)
    batch = SmallResNet(10, 1, 8, width=16, norm="batch")
    assert not torch.allclose(batch(images)[:2], batch(images[:2]), rtol=1e-2)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = SmallResNet(10, 1, 8, width=8, dropout=0.5, norm="group")
    images = torch.randn(2, 1, 8, 8)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"width": 0}, "width: got 0, must be a whole number >= 1"),
        ({"width": 2.5}, "width: got 2.5, must be a whole number >= 1"),
        ({"depth": 0}, "depth: got 0, must be a whole number >= 1"),
        ({"norm": "layer"}, "norm: got 'layer', must be 'batch' or 'group'"),
        ({"dropout": 1.0}, "dropout: got 1.0, must be >= 0 and < 1"),
        ({"dropout": "much"}, "dropout: got 'much', must be >= 0 and < 1"),
    ],
    ids=str,
)
def test_small_resnet_refuses_options_out_of_range(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SmallResNet(10, 3, 8, **options)
    with pytest.raises(InputError, match=match):
        build("small_resnet", **options)


def test_small_resnet_is_of_the_size_that_its_recipes_assume() -> None:
    digits = SmallResNet(10, 1, 8, width=32)
    cifar = SmallResNet(10, 3, 32, width=64)
    assert [weights(model).numel() for model in (digits, cifar)] == [77_290, 4_903_242]


# --- binarynet


def test_binarynet_is_the_papers_network_for_cifar() -> None:
    model = BinaryNet(10, 3, 32)
    convolutions = [m.weight.shape[:2] for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions == [(128, 3), (128, 128), (256, 128), (256, 256), (512, 256), (512, 512)]
    linear = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear)]
    assert linear == [(1024, 512 * 4 * 4), (1024, 1024), (10, 1024)]
    layers = [type(m).__name__ for m in model.features[1]]
    assert layers == ["Conv2d", "MaxPool2d", "BatchNorm2d", "Hardtanh"]


@pytest.mark.parametrize(("image_size", "pools"), [(4, 0), (8, 1), (9, 1), (32, 3), (40, 3)])
@pytest.mark.parametrize("depth", [1, 3])
def test_binarynet_takes_images_of_any_size_and_trains_every_parameter(image_size: int, pools: int, depth: int) -> None:
    model = BinaryNet(7, 2, image_size, width=4, depth=depth)
    assert sum(isinstance(m, nn.MaxPool2d) for m in model.modules()) == pools
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == depth * max(1, pools)
    model(torch.randn(4, 2, image_size, image_size)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("options", [{"width": 0}, {"depth": 1.5}])
def test_binarynet_refuses_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be a whole number >= 1"):
        build("binarynet", **options)


# --- zoo


def test_names_are_ours_and_the_classification_networks_of_torchvision() -> None:
    names = model_names()
    assert names[:3] == ["small_resnet", "resnet20", "resnet32"]
    assert {"resnet18", "convnext_tiny", "vit_b_16"} <= set(names)
    assert not {"fcn_resnet50", "fasterrcnn_resnet50_fpn", "raft_large", "r3d_18"} & set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "name",
    [
        "small_resnet",
        "mlp",
        "binarynet",
        "resnet20",
        "resnet18",
        "vit_b_16",
        "swin_t",
        "maxvit_t",
        "googlenet",
        "inception_v3",
        "regnet_x_8gf",
    ],
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_networks_take_the_images_and_classes_of_the_data(name: str, channels: int) -> None:
    model = outline(ModelConfig(name=name), num_classes=7, channels=channels, image_size=224)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    model.train()
    with torch.device("meta"):
        logits = model(torch.empty(2, channels, 224, 224))
    assert logits.shape == (2, 7)


def test_an_outline_has_the_shapes_of_the_network_and_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    drawn = outline(ModelConfig(name="resnet18"), num_classes=7, channels=1, image_size=32)
    assert torch.equal(torch.get_rng_state(), state)
    built = build("resnet18", channels=1)
    assert {n: t.shape for n, t in drawn.state_dict().items()} == {n: t.shape for n, t in built.state_dict().items()}


@pytest.mark.parametrize(("name", "channels"), [("small_resnet", 3), ("squeezenet1_1", 1), ("mobilenet_v3_small", 3)])
def test_weights_depend_on_the_seed_only(name: str, channels: int) -> None:
    built = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        built.append(weights(build(name, channels)))
    assert torch.equal(built[0], built[1])
    assert not torch.equal(built[0], built[2])


def test_options_reach_the_builder() -> None:
    model = build("resnet18", zero_init_residual=True)
    assert not model.get_parameter("layer1.0.bn2.weight").any()
    assert build("small_resnet", width=16).get_parameter("classifier.weight").shape == (7, 128)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        (
            "resnet19",
            {},
            'model.name: got "resnet19", must be small_resnet, resnet20, resnet32, resnet44, resnet56, resnet110, mlp, '
            "binarynet or a classification network of torchvision "
            "such as resnet18; did you mean resnet18?",
        ),
        ("ResNet18", {}, "did you mean resnet18?"),
        ("small_restnet", {}, "did you mean small_resnet?"),
        ("raft_large", {}, 'model.name: got "raft_large", must be'),
        (
            "small_resnet",
            {"widht": 3},
            "model.options.widht: got 3, but small_resnet takes width, depth, norm and dropout; did you mean width?",
        ),
        ("vgg11", {"drop_out": 0.1}, "vgg11 takes init_weights and dropout; did you mean dropout?"),
        ("resnet18", {"weights": "DEFAULT"}, 'model.options.weights: got "DEFAULT", but resnet18 takes'),
        ("googlenet", {"aux_logits": True}, "model.options.aux_logits: got true, but googlenet takes"),
        (
            "resnet18",
            {"num_classes": 3},
            "model.options.num_classes: got 3, but the data decides it. Leave it out",
        ),
        ("small_resnet", {"channels": 3}, "model.options.channels: got 3, but the data decides it"),
    ],
)
def test_names_and_options_that_do_not_exist_are_refused(name: str, options: Any, match: str) -> None:
    config = ModelConfig(name=name, options=options)
    with pytest.raises(InputError, match=_literally(match)):
        check_model(config)
    with pytest.raises(InputError, match=_literally(match)):
        build_model(config, num_classes=7, channels=3, image_size=32)


@pytest.mark.parametrize(
    ("name", "options", "image_size"),
    [
        ("alexnet", {}, 32),  # its pooling leaves nothing
        ("vit_h_14", {}, 32),  # not a whole number of patches
        ("maxvit_t", {}, 32),  # not a whole number of windows
        ("resnet18", {"layers": [1, 1]}, 32),  # the name says it
        ("resnext50_32x4d", {"groups": 2}, 32),  # the name says it
        ("alexnet", {"dropout": "much"}, 224),
    ],
)
def test_options_and_image_sizes_that_do_not_work_are_refused(name: str, options: Any, image_size: int) -> None:
    match = rf"model.name: got {name}, which does not work with .* data.image_size={image_size}: .+[^.]\. Change"
    with pytest.raises(InputError, match=match):
        outline(ModelConfig(name=name, options=options), num_classes=7, channels=3, image_size=image_size)


def test_a_grey_image_gives_what_it_would_in_three_equal_colours() -> None:
    torch.manual_seed(0)
    colour = nn.Sequential(nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1)), nn.Conv2d(5, 5, 3))
    grey = nn.Sequential(nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1)), nn.Conv2d(5, 5, 3))
    grey.load_state_dict(colour.state_dict())
    adapt_input_channels(grey, 1)
    image = torch.randn(2, 1, 9, 9)
    # Sums of 27 products below 4 in the first layer, 45 in the second.
    torch.testing.assert_close(grey(image), colour(image.expand(2, 3, 9, 9)), rtol=0.0, atol=72 * 4 * 2.0**-24)


def test_more_channels_take_the_filters_in_turn_and_keep_the_response_to_grey() -> None:
    conv = nn.Conv2d(3, 2, 1)
    original = conv.weight.detach().clone()
    adapt_input_channels(conv, 6)
    assert conv.in_channels == 6
    torch.testing.assert_close(conv.weight.detach(), torch.cat([original, original], dim=1) / 2)


def _literally(text: str) -> str:
    for special in ".?()":
        text = text.replace(special, f"\\{special}")
    return text
