"""Which algorithm is chosen: measured, kept, looked up, and put into a model."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernels import dispatch, operators, table, tune
from kernels.algorithms import ALGORITHMS
from kernels.conv import Conv2d, conv2d
from kernels.passes import Choice
from kernels.shapes import ConvShape, UnsupportedShape
from kernels.swap import replace_convs
from kernels.table import Device, Row, Table

CPU = torch.device("cpu")
SHAPE = ConvShape(n=4, c=3, h=9, w=9, k=5, r=3, s=3, padding=((1, 1), (1, 1)))


def row(algorithm: str, *, which: str = "forward", shape: ConvShape = SHAPE, layout: str = "nchw") -> Row:
    seconds = {"vendor": 2.0, "vendor_nhwc": 1.5, algorithm: 1.0}
    return Row(
        which=which, shape=shape, dtype="float32", layout=layout, algorithm=algorithm, seconds=seconds, errors={}
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path
    dispatch.use([], CPU)


def slowed(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, list[float]]) -> None:
    """Have each algorithm take the times given, over and over; the names left out are not in the race."""
    monkeypatch.setattr(tune, "ALGORITHMS", {name: ALGORITHMS[name] for name in seconds})
    turns = {name: iter(times * 100) for name, times in seconds.items()}
    monkeypatch.setattr(tune, "call_of", lambda name, *_: lambda: torch.ones(1) * hash(name))
    monkeypatch.setattr(tune, "errors_of", lambda names, *_: dict.fromkeys(names, 0.0))
    names = {float(torch.ones(1) * hash(name)): name for name in seconds}
    monkeypatch.setattr(tune, "_seconds", lambda call, _: next(turns[names[float(call())]]))


RACES = {
    "clearly faster": ({"vendor": [2.0], "winograd": [1.0]}, "winograd"),
    "slower": ({"vendor": [1.0], "winograd": [1.2]}, "vendor"),
    "within the margin": ({"vendor": [1.02], "winograd": [1.0]}, "vendor"),
    "faster in the median, slower in two of five": ({"vendor": [1.0], "winograd": [0.8, 0.8, 0.8, 1.1, 1.1]}, "vendor"),
    "the vendor's other layout": ({"vendor": [2.0], "vendor_nhwc": [1.0], "winograd": [1.5]}, "vendor_nhwc"),
    "the best of two": ({"vendor": [2.0], "vendor_nhwc": [1.5], "winograd": [1.2]}, "winograd"),
}


@pytest.mark.parametrize("name", RACES)
def test_the_fastest_wins_by_more_than_the_noise_or_the_vendor_stays(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds, winner = RACES[name]
    slowed(monkeypatch, seconds)
    got = tune.tune(SHAPE, "forward", dtype=torch.float32, device=CPU, layout="nchw", seconds=0.001)
    assert got.algorithm == winner


LAYERS = {
    # seconds of the vendor and of Winograd -> what all three passes are left to
    "gains": (2e-3, 1e-3, "winograd"),
    "gains less than it costs to be called": (1.1e-4, 1e-4, "vendor"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_the_vendors_unless_its_passes_gain_what_our_operators_cost(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor, winograd, left_to = LAYERS[name]
    slowed(monkeypatch, {"vendor": [vendor] * 5, "winograd": [winograd] * 5})
    rows = list(tune.tune_all([SHAPE], dtype=torch.float32, device=CPU, layout="nchw", seconds=0.001))
    assert {row.algorithm for row in rows} == {left_to}
    assert {row.which for row in rows} == set(tune.PASSES)


def test_a_layer_that_was_the_vendors_is_chosen_anew_with_other_tables() -> None:
    images, layer = torch.randn(SHAPE.input_size), Conv2d(3, 5, 3, padding=1)
    for _ in range(2):
        assert layer(images).grad_fn.name() == "ConvolutionBackward0"
    dispatch.use([Table(device=Device.of(CPU), rows=(row("winograd"),))], CPU)
    assert layer(images).grad_fn.name() == "conv2dBackward"
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(images).dtype == torch.bfloat16
    layer.algorithm = "direct"
    assert layer(images).grad_fn.name() == "conv2dBackward"


def test_what_a_layer_remembers_is_of_images_that_lie_so_and_of_any_type() -> None:
    images, layer = torch.randn(SHAPE.input_size), Conv2d(3, 5, 3, padding=1)
    channels_last = images.contiguous(memory_format=torch.channels_last)

    def computed_by(images: Tensor) -> str:
        return str(layer(images).grad_fn.name())

    dispatch.use([Table(device=Device.of(CPU), rows=(row("winograd", layout="nhwc"),))], CPU)
    for _ in range(2):
        assert computed_by(images) == "ConvolutionBackward0"
        assert computed_by(channels_last) == "conv2dBackward"
    in_bf16 = dataclasses.replace(row("winograd"), dtype="bfloat16")
    dispatch.use([Table(device=Device.of(CPU), rows=(in_bf16,))], CPU)
    for _ in range(2):
        assert computed_by(images) == "ConvolutionBackward0"
        with torch.autocast("cpu", torch.bfloat16):
            assert computed_by(images) == "conv2dBackward"


def test_what_is_remembered_of_a_type_does_not_hold_of_another() -> None:
    """As where `auto` computes fp16 by fp32, for want of arithmetic."""
    in_fp16 = dataclasses.replace(row("cast"), dtype="float16")
    dispatch.use([Table(device=Device.of(CPU), rows=(in_fp16,))], CPU)
    images, layer = torch.randn(SHAPE.input_size), Conv2d(3, 5, 3, padding=1)
    for _ in range(2):
        assert layer(images).grad_fn.name() == "ConvolutionBackward0"
    with torch.autocast("cpu", torch.float16):
        assert layer(images).grad_fn.name() == "conv2dBackward"
    layer.half()
    assert layer(images.half()).grad_fn.name() == "conv2dBackward"


def test_what_is_remembered_without_gradients_does_not_hold_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    images, layer = torch.randn(SHAPE.input_size), Conv2d(3, 5, 3, padding=1)
    dispatch.use([Table(device=Device.of(CPU), rows=(row("winograd", which="weight_gradient"),))], CPU)
    called: list[str] = []
    monkeypatch.setattr("kernels.dispatch.resolved", lambda *_: called.append("chosen") or Choice.of("vendor"))
    with torch.no_grad():
        for _ in range(3):
            layer(images)
    assert called == ["chosen"], "once"
    monkeypatch.undo()
    assert layer(images).grad_fn.name() == "conv2dBackward"


def test_who_is_not_exact_enough_is_not_in_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch, {"vendor": [2.0], "winograd": [1.0]})
    monkeypatch.setattr(tune, "errors_of", lambda names, *_: dict.fromkeys(names, 1e-3))
    got = tune.tune(SHAPE, "forward", dtype=torch.float32, device=CPU, layout="nchw", seconds=0.001)
    assert got.seconds.keys() == {"vendor"}


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("which", tune.PASSES)
def test_a_measurement_has_every_algorithm_that_takes_the_shape_and_is_not_hopeless(which: str, layout: str) -> None:
    got = tune.tune(SHAPE, which, dtype=torch.float32, device=CPU, layout=layout, seconds=0.001)
    assert "vendor" in got.seconds
    assert got.seconds.keys() <= ALGORITHMS.keys() - {"direct"}
    assert all(seconds > 0 for seconds in got.seconds.values())
    assert all(0 <= error < 1e-4 for error in got.errors.values())
    assert got.extra_bytes.keys() == got.seconds.keys()


def test_a_table_is_kept_for_its_device_and_merged() -> None:
    here = Device.of(CPU)
    there = Device(name="another", threads=1, version="0")
    table.store(Table(device=here, rows=(row("winograd"),)))
    table.store(Table(device=there, rows=(row("direct"),)))
    kept = table.stored(here)
    assert kept.rows == (row("winograd"),)
    assert {each.device for each in table.all_stored()} == {here, there}
    merged = kept.merged((row("vendor_nhwc"), row("winograd", which="input_gradient")))
    assert [each.algorithm for each in merged.rows] == ["vendor_nhwc", "winograd"]
    assert Table.from_json(json.loads(json.dumps(merged.to_json()))) == merged
    assert row("winograd").ratio == 1.5


def test_a_run_takes_the_rows_of_its_own_convolutions_at_any_batch_size() -> None:
    others = ConvShape(**(vars(SHAPE) | {"k": 6}))
    rows = tuple(row("winograd", shape=ConvShape(**(vars(SHAPE) | sizes))) for sizes in ({}, {"n": 9}))
    measured = Table(device=Device.of(CPU), rows=(*rows, row("winograd", shape=others)))
    assert measured.only([ConvShape(**(vars(SHAPE) | {"n": 1}))]).rows == rows


def test_a_table_of_before_memory_was_measured_is_read() -> None:
    document = Table(device=Device.of(CPU), rows=(row("winograd"),)).to_json()
    del document["rows"][0]["extra_bytes"]
    assert Table.from_json(document).rows == (row("winograd"),)


def test_auto_is_what_the_table_of_this_device_says(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    noted = ALGORITHMS["winograd"]._replace(
        forward=lambda *args: (used.append("winograd"), ALGORITHMS["direct"].forward(*args))[1]
    )
    monkeypatch.setitem(ALGORITHMS, "winograd", noted)
    images, weight = torch.randn(SHAPE.input_size), torch.randn(SHAPE.weight_size)

    def computed_by_winograd(images: Tensor, weight: Tensor = weight, padding: int = 1) -> bool:
        used.clear()
        conv2d(images, weight, padding=padding, algorithm="auto")
        return bool(used)

    assert not computed_by_winograd(images)
    elsewhere = Table(device=Device(name="another", threads=1, version="0"), rows=(row("winograd"),))
    assert dispatch.use([elsewhere], CPU) == 0
    assert not computed_by_winograd(images)
    assert dispatch.use([elsewhere, Table(device=Device.of(CPU), rows=(row("winograd"),))], CPU) == 1
    assert computed_by_winograd(images)
    assert computed_by_winograd(images[:2]), "half as many images"
    assert not computed_by_winograd(images[:1]), "a quarter"
    assert not computed_by_winograd(images.to(memory_format=torch.channels_last))
    assert not computed_by_winograd(images.double(), weight.double())
    assert not computed_by_winograd(images, padding=0)


def test_where_the_vendor_is_best_in_every_pass_nothing_stands_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator in Python costs a tenth of a millisecond."""
    rows = tuple(row("vendor", which=which) for which in tune.PASSES)
    dispatch.use([Table(device=Device.of(CPU), rows=rows)], CPU)
    monkeypatch.setattr(operators, "forward", None)
    images, weight = torch.randn(SHAPE.input_size), torch.randn(SHAPE.weight_size).requires_grad_()
    output = conv2d(images, weight, padding=1, algorithm="auto")
    assert output.grad_fn is not None
    assert output.grad_fn.name() == "ConvolutionBackward0"
    dispatch.use([Table(device=Device.of(CPU), rows=(*rows[:2], row("direct", which="weight_gradient")))], CPU)
    with pytest.raises(TypeError, match="NoneType"):
        conv2d(images, weight, padding=1, algorithm="auto")


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Sequential(nn.Conv2d(4, 2, 3, stride=2))
    )


def test_a_models_convolutions_are_replaced_in_place() -> None:
    net = model()
    images = torch.randn(2, 3, 8, 8)
    expected, keys, first = net(images), list(net.state_dict()), net[0].weight
    seen: list[str] = []
    net[0].register_forward_hook(lambda *_: seen.append("hook"))
    assert replace_convs(net, "winograd") == {"0": "winograd", "2": "vendor", "3.0": "vendor"}
    assert list(net.state_dict()) == keys
    assert net[0].weight is first
    torch.testing.assert_close(net(images), expected, rtol=1e-4, atol=1e-5)
    assert seen == ["hook"]
    assert [type(net[0]), type(net[2])] == [Conv2d, nn.Conv2d]


def test_globs_name_layers_and_the_last_that_matches_counts() -> None:
    choice = {"default": "direct", "3.*": "vendor", "0": "winograd"}
    assert replace_convs(model(), choice) == {"0": "winograd", "2": "direct", "3.0": "vendor"}
    assert replace_convs(model(), {"*": "direct", "2": "auto"}) == {"0": "direct", "2": "auto", "3.0": "direct"}


def test_replaced_layers_may_be_replaced_again() -> None:
    net = model()
    replace_convs(net, "direct")
    assert replace_convs(net, "vendor") == {"0": "vendor", "2": "vendor", "3.0": "vendor"}
    assert net[0].algorithm == "vendor"


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        ("winogard", ValueError, "got 'winogard', must be auto or .* Did you mean 'winograd'"),
        ({"4.*": "winograd"}, ValueError, "got '4.*', must be 'default' or match the name of a convolution"),
        ({"3.*": "winograd"}, UnsupportedShape, r"'3\.\*', which is 3\.0: winograd: got stride \(2, 2\)"),
    ],
)
def test_what_does_not_go_together_is_refused(choice: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replace_convs(model(), choice)


def test_shapes_are_those_that_a_forward_pass_meets() -> None:
    shapes = tune.shapes_of(model(), torch.empty(2, 3, 9, 9))
    assert list(shapes) == ["0", "2", "3.0"]
    assert shapes["3.0"] == ConvShape(n=2, c=4, h=9, w=9, k=2, r=3, s=3, stride=(2, 2))
