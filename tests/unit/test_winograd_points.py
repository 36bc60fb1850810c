from fractions import Fraction

import pytest

from kernels.winograd_points import POINTS, matrices

SIZES = [(2, 3), (3, 2), (4, 3), (3, 4), (2, 5), (6, 3), (4, 5), (2, 7), (1, 1)]


@pytest.mark.parametrize(("m", "r"), SIZES)
def test_the_bilinear_form_is_the_convolution_without_any_rounding(m: int, r: int) -> None:
    """sum over j of A^T[i, j] G[j, k] B^T[j, l] is the coefficient of g_k d_l in y_i: 1 if l = i + k, else 0."""
    of_output, of_filter, of_input = matrices(m, r)
    n = m + r - 1
    for i in range(m):
        for k in range(r):
            for place in range(n):
                total = sum(of_output[i][j] * of_filter[j][k] * of_input[j][place] for j in range(n))
                assert total == (1 if place == i + k else 0)


def test_f_2_3_of_the_paper_comes_of_its_points() -> None:
    of_output, of_filter, _ = matrices(2, 3)
    half = Fraction(1, 2)
    assert of_output == ((1, 1, 1, 0), (0, 1, -1, 1))
    assert [tuple(map(abs, row)) for row in of_filter] == [(1, 0, 0), (half, half, half), (half, half, half), (0, 0, 1)]


@pytest.mark.parametrize("points", [(0, 1), (0, 1, 1), (0, 1, -1, 2)])
def test_points_that_are_too_few_too_many_or_the_same_are_refused(points: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"points: got 0, 1.*, must be 3 different ones for F\(2, 3\)"):
        matrices(2, 3, tuple(map(Fraction, points)))


def test_sizes_without_points_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got none, must be 10 different ones for F\(9, 3\).*one of 1, 4, 6, 8"):
        matrices(9, 3)
    assert sorted(POINTS) == [1, 4, 6, 8]
