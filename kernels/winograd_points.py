"""The three matrices of a Winograd convolution, derived from interpolation points in exact fractions.

F(m, r) makes m results of a filter with r taps by m + r - 1 products:

    y = A^T ((G g) * (B^T d)),   y_i = sum over k of g_k d_{i + k}

The products are values at points of polynomials, and A^T and B^T pass between values and coefficients: points
x_0 .. x_{n-2} and infinity, n = m + r - 1. With N(x) = (x - x_0) ... (x - x_{n-2}):

    B^T: row j has the coefficients of N(x) / (x - x_j), the last row those of N(x)
    G:   row j has x_j^k / N'(x_j),                      the last row 0 .. 0 1
    A^T: column j has x_j^i,                             the last column 0 .. 0 1

Source: Winograd 1980, "Arithmetic Complexity of Computations"; Toom-Cook's form transposed, as in Lavin & Gray 2015
(arXiv:1509.09308), section 4.1. That points other than 0, 1, -1, 2, -2 give less error: Barabasz, Anderson, Soodhalter
& Gregg 2020 (arXiv:1803.10986).
"""

import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

Rows = tuple[tuple[Fraction, ...], ...]

# +-5/8 and +-3/2 have a third of the error of +-1 and +-2 at m = 4 (C = 256, against float64), at the same cost.
POINTS: dict[int, tuple[Fraction, ...]] = {
    1: (),  # one result and one tap: infinity alone, the number itself
    4: (Fraction(0), Fraction(1), Fraction(-1)),
    6: (Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2)),
    8: (
        Fraction(0), Fraction(1), Fraction(-1), Fraction(2), Fraction(-2), Fraction(1, 2), Fraction(-1, 2)
    ),
}  # fmt: skip


class Matrices(NamedTuple):
    """A^T (m, n), G (n, r), B^T (n, n) of F(m, r), n = m + r - 1."""

    of_output: Rows
    of_filter: Rows
    of_input: Rows


@functools.cache
def matrices(m: int, r: int, points: tuple[Fraction, ...] | None = None) -> Matrices:
    """Derive F(m, r) from m + r - 2 different points, infinity being the last.

    Raises: ValueError if there are as many points as that neither given nor in POINTS, or two are the same.
    """
    n = m + r - 1
    chosen = POINTS.get(n, ()) if points is None else points
    if len(set(chosen)) != n - 1 or len(chosen) != n - 1:
        raise ValueError(
            f"points: got {', '.join(map(str, chosen)) or 'none'}, must be {n - 1} different ones for F({m}, {r}). "
            f"Give others, or take m and r so that m + r - 1 is one of {', '.join(map(str, POINTS))}."
        )
    whole = _polynomial(chosen)
    without = [_polynomial([*chosen[:j], *chosen[j + 1 :]]) for j in range(n - 1)]
    slopes = [_value(polynomial, point) for polynomial, point in zip(without, chosen, strict=True)]
    zero, one = Fraction(0), Fraction(1)
    last_of = [tuple(one if i == length - 1 else zero for i in range(length)) for length in (m, r)]
    columns = [tuple(point**i for i in range(m)) for point in chosen] + [last_of[0]]
    return Matrices(
        of_output=tuple(zip(*columns, strict=True)),
        of_filter=(
            *(tuple(point**k / slope for k in range(r)) for point, slope in zip(chosen, slopes, strict=True)),
            last_of[1],
        ),
        of_input=(*((*polynomial, zero) for polynomial in without), tuple(whole)),
    )


def _polynomial(roots: Sequence[Fraction]) -> list[Fraction]:
    """The coefficients of (x - root) ..., lowest first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [root * value for value in coefficients] + [Fraction(0)]
        coefficients = [high - low for high, low in zip(shifted, scaled, strict=True)]
    return coefficients


def _value(coefficients: Sequence[Fraction], at: Fraction) -> Fraction:
    return sum((value * at**power for power, value in enumerate(coefficients)), Fraction(0))
