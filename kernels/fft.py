"""Convolution in the frequency domain, by overlap-save: tiles of the image, one product a frequency and channel pair.

A tile of L x L pixels gives m x m results, m = L - R + 1: correlation wraps round at the tile's border, and what it
spoils is not kept. Where the definition takes R S products for each result and channel pair, this takes
4 L (L / 2 + 1) / m^2, whatever the filter: from some 7 x 7 up it pays for its transforms. Both transforms and products
over the channels are real matrix products (`dft.py`), so that one library call does each of them for many frequencies,
and nothing is moved between them: channels stay innermost from the first to the last.

The weight's gradient is the correlation of image tiles with gradient tiles of m x m, which are its filters.

Source: Mathieu, Henaff & LeCun 2013 (arXiv:1312.5851), section 2; tiles as in Vasilache et al. 2014
(arXiv:1412.7580), section 6, and Zlateski et al. 2018 (arXiv:1809.07851).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.dft import Dft
from kernels.fft_tiles import Tiles, choose_tiles
from kernels.layout import laid_out, layout_of
from kernels.passes import Passes, adding_bias
from kernels.shapes import ConvShape, Pair, check_allowed

# Floats of one band of frequencies, between its transforms, that stay in the caches; what all frequencies may take.
_BAND, _CHUNK = 2**19, 2**25
_MIN_ROWS = 32

Complex = tuple[Tensor, Tensor]


def check(shape: ConvShape) -> None:
    """Raises: UnsupportedShape, with the reason."""
    check_allowed(
        "fft", ("stride", shape.stride, (1, 1)), ("dilation", shape.dilation, (1, 1)), ("groups", shape.groups, 1)
    )


def forward(input: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: input (N, C, H, W), weight (K, C, R, S) -> (N, K, H', W')."""
    corner = (shape.padding[0][0], shape.padding[1][0])
    return _correlation(input, weight, corner, (shape.out_h, shape.out_w))


def input_gradient(grad_output: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: grad_output (N, K, H', W'), weight (K, C, R, S) -> (N, C, H, W)."""
    corner = (shape.r - 1 - shape.padding[0][0], shape.s - 1 - shape.padding[1][0])
    return _correlation(grad_output, weight.flip(2, 3).transpose(0, 1), corner, (shape.h, shape.w))


def weight_gradient(grad_output: Tensor, input: Tensor, shape: ConvShape) -> Tensor:
    """Shapes: grad_output (N, K, H', W'), input (N, C, H, W) -> (K, C, R, S)."""
    tiles = choose_tiles(shape.n, shape.c, shape.k, (shape.r, shape.s), (shape.out_h, shape.out_w))
    corner = (shape.padding[0][0], shape.padding[1][0])
    dtype = torch.promote_types(input.dtype, torch.float32)
    total = input.new_zeros(shape.r, shape.s, shape.c * shape.k, dtype=dtype)
    for part in _chunks(shape.n, tiles, shape.c + shape.k):
        images, grads = _pixels_first(input[part], dtype), _pixels_first(grad_output[part], dtype)
        total += _weight_gradient(images, grads, corner, tiles)
    return total.view(shape.r, shape.s, shape.c, shape.k).permute(3, 2, 0, 1).to(input.dtype).contiguous()


PASSES = Passes(check, adding_bias(forward), input_gradient, weight_gradient)


class _Rows(NamedTuple):
    """What is transformed along x and not yet along y.

    `values` (H, 2 parts, F, M): M is tiles across x images x channels. Tile row t starts at pixel row
    `start + t * step`, and `down` (2 L, 2 taps) transforms it.
    """

    values: Tensor
    down: Tensor
    start: int = 0
    step: int = 0

    def spectra(self, rows: range, band: slice, channels: int) -> tuple[Tensor, Tensor]:
        """Real and imaginary part of these rows of tiles. Shapes: -> (band x L, rows x M / channels, channels) each."""
        height, _, _, size = self.values.shape
        seen = self.values[:, :, band].permute(2, 0, 1, 3)
        parts = self.down.chunk(2)
        results = [seen.new_empty(len(seen), len(part), len(rows), size) for part in parts]
        for place, row in enumerate(rows):
            first = self.start + row * self.step
            low = min(max(first, 0), height)
            high = min(max(first + self.down.shape[1] // 2, low), height)
            pixels = seen[:, low:high].reshape(len(seen), 2 * (high - low), size)
            for part, result in zip(parts, results, strict=True):
                matrix = part[:, 2 * (low - first) : 2 * (high - first)]
                torch.bmm(matrix.expand(len(seen), -1, -1), pixels, out=result[:, :, place])
        real, imaginary = (result.view(-1, len(rows) * size // channels, channels) for result in results)
        return real, imaginary


def _transform_rows(pixels: Tensor, starts: range, across: Tensor) -> Tensor:
    """Cut each row of pixels into tiles and transform them. Shapes: (H, W, A, B) -> (H, 2 parts, F, tiles x A x B)."""
    height, width, *inner = pixels.shape
    taps = across.shape[1]
    cut = pixels.new_empty(height, taps, len(starts), *inner)
    for tile, start in enumerate(starts):
        low = min(max(start, 0), width)
        high = min(max(start + taps, low), width)
        cut[:, : low - start, tile] = 0
        cut[:, low - start : high - start, tile] = pixels[:, low:high]
        cut[:, high - start :, tile] = 0
    waves = torch.bmm(across.expand(height, -1, -1), cut.view(height, taps, -1))
    return waves.view(height, 2, across.shape[0] // 2, -1)


def _correlation(images: Tensor, filters: Tensor, corner: Pair, size: Pair) -> Tensor:
    """Correlate. `corner`: zeros above and left of the images, or less than 0 to leave out pixels.

    Shapes: images (N, C, H, W), filters (K, C, R, S) -> (N, K, *size).
    """
    n, c, k = images.shape[0], images.shape[1], filters.shape[0]
    dtype = torch.promote_types(images.dtype, torch.float32)
    tiles = choose_tiles(n, c, k, (filters.shape[2], filters.shape[3]), size)
    output = images.new_empty(n, *size, k)
    for part in _chunks(n, tiles, c + k):
        _correlate(_pixels_first(images[part], dtype), filters.to(dtype), corner, tiles, output[part])
    return laid_out(output.permute(0, 3, 1, 2), layout_of(images))


def _correlate(pixels: Tensor, filters: Tensor, corner: Pair, tiles: Tiles, output: Tensor) -> None:
    """Shapes: pixels (H, W, N, C), filters (K, C, R, S), output (N, H', W', K)."""
    _, _, n, c = pixels.shape
    k = filters.shape[0]
    along_y, along_x = Dft(tiles.side[0], pixels), Dft(tiles.side[1], pixels)
    images = _image_rows(pixels, corner, tiles)
    weights = _Rows(
        _transform_rows(filters.permute(2, 3, 1, 0), range(1), along_x.across(filters.shape[3], conjugate=True)),
        along_y.down(filters.shape[2], conjugate=True),
    )
    groups = list(_tile_rows(tiles, n))
    waves = [pixels.new_empty(along_x.num_halved, 2 * tiles.made[0], len(g) * tiles.number[1] * n * k) for g in groups]
    for band in _bands(tiles, len(groups[0]) * n * max(c, k)):
        spectra = weights.spectra(range(1), band, k)
        for group, wave in zip(groups, waves, strict=True):
            _up(_products(images.spectra(group, band, c), spectra), along_y.up(tiles.made[0]), wave[band])
    for group, wave in zip(groups, waves, strict=True):
        made = _back(wave, tiles.made[0], along_x.back(tiles.made[1]))
        _join(made.view(*tiles.made, len(group), tiles.number[1], n, k), group, output)


def _weight_gradient(pixels: Tensor, grads: Tensor, corner: Pair, tiles: Tiles) -> Tensor:
    """Shapes: pixels (H, W, N, C), grads (H', W', N, K) -> (R, S, C x K)."""
    n, c, k = pixels.shape[2], pixels.shape[3], grads.shape[3]
    along_y, along_x = Dft(tiles.side[0], pixels), Dft(tiles.side[1], pixels)
    r, s = (side - made + 1 for side, made in zip(tiles.side, tiles.made, strict=True))
    images = _image_rows(pixels, corner, tiles)
    starts = range(0, tiles.number[1] * tiles.made[1], tiles.made[1])
    filters = _Rows(
        _transform_rows(grads, starts, along_x.across(tiles.made[1], conjugate=True)),
        along_y.down(tiles.made[0], conjugate=True),
        step=tiles.made[0],
    )
    wave = pixels.new_empty(along_x.num_halved, 2 * r, c * k)
    for band in _bands(tiles, n * max(c, k)):
        total = None
        for group in _tile_rows(tiles, n):
            real, imaginary = images.spectra(group, band, c)
            total = _products((real.mT, imaginary.mT), filters.spectra(group, band, k), total)
        assert total is not None
        _up(total, along_y.up(r), wave[band])
    return _back(wave, r, along_x.back(s))


def _image_rows(pixels: Tensor, corner: Pair, tiles: Tiles) -> _Rows:
    (top, left), (height, width) = corner, tiles.side
    starts = range(-left, tiles.number[1] * tiles.made[1] - left, tiles.made[1])
    values = _transform_rows(pixels, starts, Dft(width, pixels).across(width))
    return _Rows(values, Dft(height, pixels).down(height), -top, tiles.made[0])


def _products(left: Complex, right: Complex, total: Complex | None = None) -> Complex:
    """Complex matrix products, added to `total`. Shapes: (B, X, Y), (B, Y, Z) -> (B, X, Z)."""
    (real, imaginary), (other_real, other_imaginary) = left, right
    if total is None:
        total = torch.bmm(real, other_real), torch.bmm(real, other_imaginary)
    else:
        total[0].baddbmm_(real, other_real), total[1].baddbmm_(real, other_imaginary)
    total[0].baddbmm_(imaginary, other_imaginary, alpha=-1)
    total[1].baddbmm_(imaginary, other_real)
    return total


def _up(spectra: Complex, up: Tensor, wave: Tensor) -> None:
    """Transform back along y. Shapes: spectra (band x L, X, Y), up (2 made, 2 L), wave (band, 2 made, X x Y)."""
    for place, (part, matrix) in enumerate(zip(spectra, up.chunk(2, dim=1), strict=True)):
        wave.baddbmm_(matrix.expand(len(wave), -1, -1), part.view(len(wave), matrix.shape[1], -1), beta=place)


def _back(wave: Tensor, made: int, back: Tensor) -> Tensor:
    """The last transform. Shapes: wave (F, 2 parts x made, M) -> (made, taps, M)."""
    by_row = wave.view(-1, made, wave.shape[2]).transpose(0, 1)
    return torch.bmm(back.expand(made, -1, -1), by_row)


def _join(made: Tensor, group: range, output: Tensor) -> None:
    """Put results where they belong. Shapes: made (y, x, rows of tiles, tiles across, N, K), output (N, H', W', K)."""
    height, width, _, across = made.shape[:4]
    for place, row in enumerate(group):
        for tile in range(across):
            part = output[:, row * height : (row + 1) * height, tile * width : (tile + 1) * width]
            part.copy_(made[: part.shape[1], : part.shape[2], place, tile].permute(2, 0, 1, 3))


def _pixels_first(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Shapes: (N, C, H, W) -> (H, W, N, C), a view if it can be."""
    return laid_out(images.to(dtype), "nhwc").permute(2, 3, 0, 1)


def _chunks(n: int, tiles: Tiles, channels: int) -> Iterator[slice]:
    """Parts of a batch whose transforms are not too large to keep."""
    floats = tiles.number[0] * tiles.number[1] * tiles.side[0] * tiles.side[1] * channels
    step = max(1, _CHUNK // floats)
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _bands(tiles: Tiles, columns: int) -> Iterator[slice]:
    """Parts of the frequencies along x whose transforms along y stay in the caches."""
    step = min(8, max(2, _BAND // (4 * tiles.side[0] * tiles.number[1] * columns)))
    frequencies = tiles.side[1] // 2 + 1
    return (slice(start, min(start + step, frequencies)) for start in range(0, frequencies, step))


def _tile_rows(tiles: Tiles, n: int) -> Iterator[range]:
    """Rows of tiles that together make enough rows for a matrix product."""
    step = min(tiles.number[0], -(-_MIN_ROWS // (tiles.number[1] * max(n, 1))))
    return (range(start, min(start + step, tiles.number[0])) for start in range(0, tiles.number[0], step))
