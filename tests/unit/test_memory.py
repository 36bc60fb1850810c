"""The memory that a call takes beside its arguments and its result, measured."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import depthwise, im2col, tune, winograd
from kernels.memory import extra_bytes
from kernels.native.build import NotBuilt
from kernels.shapes import ConvShape

CPU = torch.device("cpu")
MILLION = torch.ones(10**6)
# for the few bytes that operators keep of numbers
FEW = 1024

SHAPES = {
    "3 x 3": ConvShape(n=2, c=64, h=28, w=28, k=64, r=3, s=3, padding=((1, 1), (1, 1))),
    "in chunks": ConvShape(n=5, c=64, h=56, w=56, k=16, r=3, s=3, padding=((1, 1), (1, 1))),
    "strided": ConvShape(n=2, c=8, h=64, w=64, k=64, r=7, s=7, stride=(2, 2), padding=((3, 3), (3, 3))),
    "few channels in, many out": ConvShape(n=1, c=4, h=32, w=32, k=256, r=3, s=3),
    "1 x 1": ConvShape(n=2, c=64, h=28, w=28, k=32, r=1, s=1),
}
DEPTHWISE = ConvShape(n=2, c=32, h=28, w=28, k=32, r=7, s=7, padding=((3, 3), (3, 3)), groups=32)


def measured(name: str, which: str, shape: ConvShape, layout: str = "nhwc") -> int:
    tensors = tune.tensors_for(which, shape, torch.float32, CPU, layout)
    return extra_bytes(tune.call_of(name, which, *tensors, shape), CPU)


def with_two_copies() -> Tensor:
    return (MILLION + 1) * (MILLION + 2)


def with_a_copy_freed_before_the_result() -> Tensor:
    total = torch.cat([MILLION, MILLION]).sum()
    return MILLION + total


CALLS = {
    "the result alone": (lambda: MILLION + 1, 0),
    "two copies": (with_two_copies, 8 * 10**6),
    "a copy that the result takes the place of": (with_a_copy_freed_before_the_result, 4 * 10**6),
    "nothing at all": (lambda: MILLION[:5], 0),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_was_live_at_once_counts_less_the_result(name: str) -> None:
    call, expected = CALLS[name]
    assert extra_bytes(call, CPU) == pytest.approx(expected, abs=FEW)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("name", SHAPES)
def test_im2col_takes_the_columns_that_it_predicts_and_the_copies_around_them(name: str, layout: str) -> None:
    shape = SHAPES[name]
    if name == "1 x 1" and layout == "nchw":
        return  # goes image by image
    images = im2col.images_at_once(shape)
    padded = images * shape.c * shape.padded_h * shape.padded_w if shape.r > 1 else 0
    product = images * shape.k * shape.out_h * shape.out_w
    filters = shape.parameter_bytes() if shape.r > 1 and layout == "nchw" else 0
    expected = im2col.workspace_bytes(shape) + filters + 4 * max(padded, product)
    assert measured("im2col", "forward", shape, layout) == pytest.approx(expected, abs=FEW)


@pytest.mark.parametrize("which", tune.PASSES)
@pytest.mark.parametrize(("module", "shape"), [(winograd, SHAPES["3 x 3"]), (depthwise, DEPTHWISE)])
def test_native_code_says_what_a_call_works_in_and_not_what_it_keeps(module: Any, shape: ConvShape, which: str) -> None:
    try:
        module.load_library()
    except NotBuilt as reason:
        pytest.skip(str(reason))
    name = module.__name__.removeprefix("kernels.")
    first = measured(name, which, shape)
    larger = ConvShape(**(vars(shape) | {"n": 4, "h": 56, "w": 56}))
    assert measured(name, which, larger) > 0
    assert measured(name, which, shape) == first > 0
