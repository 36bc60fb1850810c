"""What `auto` is where nothing was measured: rules within their bounds, where their native code can be had."""

import dataclasses
import logging
from typing import Any

import pytest
import torch

from kernels import defaults, dispatch
from kernels.algorithms import ALGORITHMS, takes
from kernels.conv import conv2d
from kernels.defaults import RULES, SIZES, Rule, default
from kernels.native.build import NotBuilt
from kernels.passes import Choice
from kernels.shapes import ConvShape
from kernels.table import Device, Row, Table

DENSE = ConvShape(n=8, c=128, h=112, w=112, k=128, r=3, s=3, padding=((1, 1), (1, 1)))
DEPTHWISE = ConvShape(n=8, c=96, h=56, w=56, k=96, r=7, s=7, padding=((3, 3), (3, 3)), groups=96)
CPU = torch.device("cpu")


def but(shape: ConvShape, **sizes: Any) -> ConvShape:
    return dataclasses.replace(shape, **sizes)


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A CPU of any kind, with a compiler."""

    def of(vectors: str, *, fp16: bool = False) -> None:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
        monkeypatch.setattr(defaults, "_has_fp16", lambda: fp16)
        monkeypatch.setattr(defaults, "_can_be_had", lambda *_: True)

    return of


CHOICES = {
    "3 x 3": ("forward", DENSE, "float32", "winograd"),
    "3 x 3, a gradient": ("weight_gradient", DENSE, "float32", "winograd"),
    "5 x 5": ("forward", but(DENSE, r=5, s=5), "float32", None),
    "3 x 1": ("forward", but(DENSE, s=1), "float32", None),
    "strided": ("forward", but(DENSE, stride=(2, 2)), "float32", None),
    "few channels in": ("forward", but(DENSE, c=3), "float32", None),
    "few tiles": ("forward", but(DENSE, n=1, h=14, w=14), "float32", None),
    "fp64": ("forward", DENSE, "float64", None),
    "depthwise 7 x 7, weight": ("weight_gradient", DEPTHWISE, "float32", "depthwise"),
    "depthwise 7 x 7, forward": ("forward", DEPTHWISE, "float32", None),
    "depthwise 3 x 3": ("weight_gradient", but(DEPTHWISE, r=3, s=3), "float32", None),
    "not depthwise 7 x 7": ("weight_gradient", but(DEPTHWISE, groups=1), "float32", None),
    "fp16": ("forward", DENSE, "float16", "cast"),
    "bf16": ("forward", DENSE, "bfloat16", None),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_shape_within_the_bounds_of_a_rule_has_a_default(name: str, cpu: Any) -> None:
    which, shape, dtype, expected = CHOICES[name]
    cpu("AVX512")
    assert default(which, shape, dtype, "cpu") == expected
    assert default(which, shape, dtype, "cuda") is None
    cpu("DEFAULT")
    assert default(which, shape, dtype, "cpu") is None


def test_fp16_is_the_vendors_where_the_cpu_has_arithmetic_for_it(cpu: Any) -> None:
    cpu("AVX512", fp16=True)
    assert default("forward", DENSE, "float16", "cpu") is None


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_rule_names_what_there_is(rule: Rule) -> None:
    assert rule.algorithm in ALGORITHMS
    assert {*rule.least, *rule.most} <= SIZES.keys()
    assert set(rule.passes) <= set(Choice._fields)
    assert isinstance(getattr(torch, rule.dtype), torch.dtype)
    assert str(rule).startswith(f"{rule.algorithm} for ")


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_at_a_bound_a_rule_holds_and_beyond_it_does_not(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "takes", lambda *_: True)
    sizes = dict.fromkeys(SIZES, 10**9) | rule.least | rule.most
    monkeypatch.setattr(defaults, "SIZES", {size: (lambda _, size=size: sizes[size]) for size in SIZES})
    which = rule.passes[-1]
    assert rule.holds(which, DENSE, rule.dtype)
    for bounds, step in ((rule.least, -1), (rule.most, 1)):
        for size, bound in bounds.items():
            sizes[size] = bound + step
            assert not rule.holds(which, DENSE, rule.dtype), size
            sizes[size] = bound


def test_without_a_compiler_it_is_the_vendors_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise NotBuilt("no C compiler")

    monkeypatch.setattr(defaults, "RULES", (dataclasses.replace(RULES[0], load=fails),))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    with caplog.at_level(logging.WARNING):
        assert [default("forward", DENSE, "float32", "cpu") for _ in range(3)] == [None] * 3
        assert list(defaults.rules_here()) == []
    assert [record.getMessage() for record in caplog.records] == [
        "auto leaves to PyTorch what winograd would compute: no C compiler. Install a C compiler."
    ]


def test_what_was_measured_comes_first_then_the_defaults_then_the_vendor(cpu: Any) -> None:
    cpu("AVX512")
    images = dispatch.Images("float32", "nchw", "cpu")
    row = Row(
        which="forward", shape=DENSE, dtype="float32", layout="nchw", algorithm="vendor_nhwc", seconds={}, errors={}
    )
    entries = dispatch.entries_of([row])
    assert dispatch.chosen(entries, "forward", DENSE, images) == ("vendor_nhwc", "table")
    assert dispatch.chosen(entries, "input_gradient", DENSE, images) == ("winograd", "defaults")
    assert dispatch.chosen(entries, "forward", but(DENSE, c=3), images) == ("vendor", "vendor")


def test_auto_computes_by_the_default(cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu("AVX512")
    used: list[str] = []
    depthwise = ALGORITHMS["depthwise"]

    def noted(*args: Any) -> torch.Tensor:
        used.append("depthwise")
        return depthwise.weight_gradient(*args)

    monkeypatch.setitem(ALGORITHMS, "depthwise", depthwise._replace(weight_gradient=noted))
    dispatch.use([Table(device=Device.of(CPU))], CPU)
    shape = but(DEPTHWISE, c=32, k=32, groups=32, h=14, w=14)
    assert takes("depthwise", shape)
    images, weight = torch.randn(shape.input_size), torch.randn(shape.weight_size, requires_grad=True)
    expected = torch.autograd.grad(torch.nn.functional.conv2d(images, weight, None, 1, 3, 1, 32).sum(), weight)
    got = torch.autograd.grad(conv2d(images, weight, None, 1, 3, 1, 32, algorithm="auto").sum(), weight)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-2)
    assert used == ["depthwise"]
    dispatch.use([], CPU)
