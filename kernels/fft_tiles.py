"""Into what tiles `fft.py` cuts an image: those of the least cost, by a formula.

A tile that makes m results of R taps has L = m + R - 1 points. Small ones transform and multiply the same pixels again
and again, large ones take more multiply-adds a point, as the transforms are matrix products. Any length is as good as
another (`dft.py`), so tiles are cut to fit the image.
"""

import functools
import itertools
from typing import NamedTuple

from kernels.shapes import Pair

# A number written and read again takes as long as this many multiply-adds: the least squares of 200 timings (12 layers,
# filters from 5 x 5 to 31 x 31; AMD EPYC, AVX2, 1 thread, torch 2.14.1, 2026-11) say 50, and from 24 to 64 it chooses
# the same, 4 % from the best of them.
_MOVE = 32
_MAX_SIDE = 128


class Tiles(NamedTuple):
    """Tiles of `side` points that make `made` results each, `number` of them. Each is (along y, along x)."""

    side: Pair
    made: Pair
    number: Pair


@functools.cache
def choose_tiles(n: int, c: int, k: int, filter_size: Pair, size: Pair) -> Tiles:
    """The tiles of least `cost`. `size`: that of the results, `c` and `k`: channels before and after."""
    ways = (_ways(*each) for each in zip(size, filter_size, strict=True))
    candidates = (Tiles(*zip(*both, strict=True)) for both in itertools.product(*ways))
    return min(candidates, key=lambda tiles: cost(tiles, n, c, k, filter_size))


def cost(tiles: Tiles, n: int, c: int, k: int, filter_size: Pair) -> int:
    """Multiply-adds of the transforms and products, and what moving their results costs, in multiply-adds.

    It is the same for all three passes, as a transform and its inverse take as many.
    """
    (points, across), (down, wide), (r, s) = tiles.side, tiles.made, filter_size
    half = across // 2 + 1
    num_rows, num = tiles.number[0] * down * tiles.number[1] * n, tiles.number[0] * tiles.number[1] * n
    along_x = 2 * half * (num_rows * (across * c + wide * k) + r * s * c * k)
    along_y = 4 * half * points * (num * (points * c + down * k) + r * c * k)
    products = 4 * half * points * num * c * k
    moved = 2 * half * (num_rows * (c + k) + r * c * k + points * (num * (c + k) + c * k))
    return along_x + along_y + products + _MOVE * moved


def _ways(size: int, taps: int) -> list[tuple[int, int, int]]:
    """Points, results and number of the tiles that cut `size` results into equal parts."""
    every = sorted({-(-size // number) for number in range(1, size + 1)})
    few = [made for made in every if made + taps - 1 <= _MAX_SIDE] or every[:1]
    return [(made + taps - 1, made, -(-size // made)) for made in few]
