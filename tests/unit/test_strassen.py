"""Strassen's matrix product: exact on whole numbers, seven products a level, and its bound of error."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import im2col, strassen
from kernels.algorithms import ALGORITHMS
from kernels.passes import Choice
from kernels.shapes import ConvShape

SIZES = [(8, 8, 8), (9, 9, 9), (7, 12, 10), (16, 5, 31), (2, 2, 2), (3, 2, 2), (33, 18, 4), (64, 64, 64), (1, 40, 40)]


def whole_numbers(*size: int) -> Tensor:
    return torch.randint(-9, 10, size, generator=torch.Generator().manual_seed(sum(size))).double()


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.count += name in ("mm", "bmm", "baddbmm", "baddbmm_") and 0 not in args[-1].shape + args[-2].shape
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("cutoff", [2, 3, 8])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_whole_numbers_are_multiplied_exactly(size: tuple[int, int, int], cutoff: int) -> None:
    rows, inner, columns = size
    a, b = whole_numbers(rows, inner), whole_numbers(inner, columns)
    assert torch.equal(strassen.matmul(a, b, cutoff=cutoff), a @ b)


def test_many_matrices_and_transposed_ones_are_multiplied() -> None:
    a, b = whole_numbers(3, 13, 9), whole_numbers(3, 11, 9).transpose(1, 2)
    assert torch.equal(strassen.matmul(a, b, cutoff=4), a @ b)


@pytest.mark.parametrize(("cutoff", "count"), [(33, 1), (32, 7), (16, 49), (8, 343)])
def test_a_level_takes_seven_products(cutoff: int, count: int) -> None:
    with Products() as products:
        strassen.matmul(whole_numbers(32, 32), whole_numbers(32, 32), cutoff=cutoff)
    assert products.count == count


def test_the_error_is_within_highams_bound() -> None:
    """Higham 2002, theorem 23.3, Winograd's form: n = 4 n0, two levels, in the norm of the largest value."""
    n, n0, roundoff = 128, 32, 2.0**-24
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(n, n, generator=random), torch.randn(n, n, generator=random)
    error = (strassen.matmul(a, b, cutoff=n0 + 1).double() - a.double() @ b.double()).abs().max()
    assert 0 < error <= (18**2 * (n0**2 + 6 * n0) - 6 * n) * roundoff * a.abs().max() * b.abs().max()


def test_a_cutoff_that_never_ends_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cutoff: got 1, must be >= 2\. Use"):
        strassen.matmul(whole_numbers(2, 2), whole_numbers(2, 2), cutoff=1)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_by_it_are_those_of_the_definition(groups: int) -> None:
    images, weight = whole_numbers(2, 6, 9, 7), whole_numbers(4, 6 // groups, 3, 3)
    shape = ConvShape.of(images, weight, 2, 1, groups=groups)
    grad = whole_numbers(*shape.output_size)
    ours = im2col.passes(functools.partial(strassen.matmul, cutoff=2))
    for name, got, expected in zip(Choice._fields, ours[1:4], ALGORITHMS["direct"][1:4], strict=True):
        first, second = (images, weight) if name == "forward" else (grad, weight if "input" in name else images)
        assert torch.equal(got(first, second, shape), expected(first, second, shape))
