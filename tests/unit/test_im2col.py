"""im2col: its columns, what they take, and batches cut into chunks. Results: test_kernels.py, test_operators.py."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import im2col
from kernels.shapes import ConvShape

# n, c, h, w, k, r, s, options of ConvShape.of
SHAPES = {
    "padded": ((3, 4, 9, 7), (6, 4, 3, 3), {"padding": 1}),
    "strided, dilated": ((2, 3, 11, 12), (5, 3, 3, 2), {"stride": (2, 1), "dilation": (1, 2), "padding": (0, 3)}),
    "large filter": ((2, 2, 8, 8), (3, 2, 7, 7), {"padding": 3}),
    "one pixel, strided": ((2, 4, 6, 6), (3, 4, 1, 1), {"stride": 2}),
    "one pixel, padded": ((2, 4, 6, 6), (3, 4, 1, 1), {"padding": 1}),
}
POINTWISE = ((3, 4, 5, 6), (2, 4, 1, 1), {})


def tensors(name: str) -> tuple[Tensor, Tensor, ConvShape]:
    input_size, weight_size, options = SHAPES[name]
    random = torch.Generator().manual_seed(1)
    images = torch.randn(input_size, generator=random, dtype=torch.float64)
    weight = torch.randn(weight_size, generator=random, dtype=torch.float64)
    return images, weight, ConvShape.of(images, weight, **options)


@pytest.mark.parametrize("name", SHAPES)
def test_columns_are_those_of_pytorchs_unfold(name: str) -> None:
    images, _, shape = tensors(name)
    (rows, _), (left, _) = shape.padding
    expected = F.unfold(images, (shape.r, shape.s), shape.dilation, (rows, left), shape.stride)  # n, c r s, h' w'
    by_position = expected.unflatten(1, (shape.c, -1)).permute(0, 3, 2, 1)
    assert torch.equal(im2col.columns(images, shape)[0], by_position.reshape(-1, shape.r * shape.s * shape.c))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=["fp16", "fp32", "fp64"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_workspace_is_the_size_of_the_columns(name: str, dtype: torch.dtype) -> None:
    images, _, shape = tensors(name)
    made = im2col.columns(images.to(dtype), shape)
    assert im2col.images_at_once(shape) == shape.n
    assert im2col.workspace_bytes(shape, max(4, images.to(dtype).element_size())) == made.untyped_storage().nbytes()


def test_the_workspace_of_a_3x3_filter_is_nine_times_the_images() -> None:
    shape = ConvShape(n=2, c=64, h=28, w=28, k=64, r=3, s=3, padding=((1, 1), (1, 1)))
    assert im2col.workspace_bytes(shape) == 9 * 2 * 64 * 28 * 28 * 4


def test_a_large_batch_takes_no_more_than_a_chunk_of_it() -> None:
    shape = ConvShape(n=64, c=64, h=56, w=56, k=64, r=3, s=3, padding=((1, 1), (1, 1)))
    of_one = 9 * 64 * 56 * 56 * 4
    assert im2col.workspace_bytes(shape) == im2col.images_at_once(shape) * of_one
    assert 1 <= im2col.images_at_once(shape) < 64


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_filters_of_one_pixel_need_no_copy_of_the_images(layout: torch.memory_format) -> None:
    input_size, weight_size, _ = POINTWISE
    images = torch.randn(input_size).contiguous(memory_format=layout)
    shape = ConvShape.of(images, torch.empty(weight_size))
    assert im2col.workspace_bytes(shape) == 0
    for part in im2col.chunks(images, shape):
        assert im2col.columns(images[part], shape).data_ptr() == images[part].data_ptr()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", SHAPES)
def test_a_batch_in_chunks_gives_what_it_gives_at_once(name: str, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images, weight, shape = tensors(name)
    if shape.c % groups or shape.k % groups:
        return
    weight = weight[:, : shape.c // groups]
    shape = dataclasses.replace(shape, groups=groups)
    grad = torch.randn(shape.output_size, dtype=torch.float64)

    def results() -> list[Tensor]:
        forward, input_gradient, weight_gradient = im2col.PASSES[1:4]
        return [
            forward(images, weight, shape), input_gradient(grad, weight, shape), weight_gradient(grad, images, shape)
        ]  # fmt: skip

    at_once = results()
    monkeypatch.setattr(im2col, "_CHUNK_VALUES", 1)
    assert im2col.images_at_once(shape) == 1
    torch.testing.assert_close(results(), at_once, rtol=0, atol=1e-12)


def test_the_matrix_product_is_the_one_given() -> None:
    asked: list[tuple[torch.Size, torch.Size]] = []

    def multiply(a: Tensor, b: Tensor) -> Tensor:
        asked.append((a.shape, b.shape))
        return torch.bmm(a, b)

    images, weight, shape = tensors("padded")
    forward, input_gradient, weight_gradient = im2col.passes(multiply)[1:4]
    grad = forward(images, weight, shape)
    input_gradient(grad, weight, shape)
    weight_gradient(grad, images, shape)
    pixels, seen = 3 * 9 * 7, 9 * 4
    assert asked == [
        ((1, pixels, seen), (1, seen, 6)),
        ((1, pixels, 6), (1, 6, seen)),
        ((1, 6, pixels), (1, pixels, seen)),
    ]
