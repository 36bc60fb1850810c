"""Strassen's matrix product, 7 products of quadrants in place of 8, and convolution by im2col with it.

Winograd's form: 4 sums of each factor's quadrants and 7 of the products', 15 in all; five of those are left to the
library's product, which adds to what is there. Odd rows and columns are peeled off and done by the definition.

Source: Strassen 1969, "Gaussian Elimination is not Optimal"; Winograd's form as in Higham 2002, "Accuracy and Stability
of Numerical Algorithms", section 23.1; peeling: Huss-Lederman et al. 1996, "Implementation of Strassen's Algorithm for
Matrix Multiplication".
"""

import torch
from torch import Tensor

from kernels import im2col

CUTOFF = 4096


def matmul(a: Tensor, b: Tensor, *, cutoff: int = CUTOFF) -> Tensor:
    """Multiply matrices, by another level of Strassen's as long as all three sizes are at least `cutoff`.

    The error grows by some 3 times a level. Shapes: (..., X, Y), (..., Y, Z) -> (..., X, Z), the dots being nothing or
    one number of matrices. Raises: ValueError if `cutoff` is less than 2.
    """
    if cutoff < 2:
        raise ValueError(f"cutoff: got {cutoff}, must be >= 2. Use {CUTOFF}, from which it is faster.")
    if a.dim() == 2:
        return matmul(a[None], b[None], cutoff=cutoff)[0]
    if min(*a.shape[1:], b.shape[2]) < cutoff:
        return torch.bmm(a, b)
    x, y, z = (size - size % 2 for size in (*a.shape[1:], b.shape[2]))
    product = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    _multiply_even(a[:, :x, :y], b[:, :y, :z], product[:, :x, :z], cutoff)
    if y < a.shape[2]:
        product[:, :x, :z].baddbmm_(a[:, :x, y:], b[:, y:, :z])
    product[:, x:, :z] = a[:, x:] @ b[:, :, :z]
    product[:, :, z:] = a @ b[:, :, z:]
    return product


def _multiply_even(a: Tensor, b: Tensor, product: Tensor, cutoff: int) -> None:
    (a11, a12), (a21, a22) = _quadrants(a)
    (b11, b12), (b21, b22) = _quadrants(b)
    (c11, c12), (c21, c22) = _quadrants(product)
    left, right = a21 + a22, b12 - b11
    _put(c22, left, right, cutoff)
    torch.sub(left, a11, out=left)
    torch.sub(b22, right, out=right)
    _put(c11, a11, b11, cutoff)
    c12.copy_(c11)
    _put(c12, left, right, cutoff, keep=1)
    c21.copy_(c12)
    c12 += c22
    _put(c12, torch.sub(a12, left, out=left), b22, cutoff, keep=1)
    _put(c21, torch.sub(a11, a21, out=left), b22 - b12, cutoff, keep=1)
    c22 += c21
    _put(c21, a22, torch.sub(b21, right, out=right), cutoff, keep=1)
    _put(c11, a12, b21, cutoff, keep=1)


def _put(total: Tensor, a: Tensor, b: Tensor, cutoff: int, *, keep: int = 0) -> None:
    """total = keep total + a b."""
    if min(*a.shape[1:], b.shape[2]) < cutoff:
        total.baddbmm_(a, b, beta=keep)
    elif keep:
        total += matmul(a, b, cutoff=cutoff)
    else:
        total.copy_(matmul(a, b, cutoff=cutoff))


def _quadrants(matrix: Tensor) -> list[tuple[Tensor, ...]]:
    return [half.chunk(2, dim=2) for half in matrix.chunk(2, dim=1)]


PASSES = im2col.passes(matmul)
