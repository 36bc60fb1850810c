"""Geometry: against torchvision where it has the same, against a sum written out where it has not.

Torchvision is compared with nothing outside the image (fill None): its `fill` weighs the edge's pixels twice.
"""

import math

import cv2
import numpy as np
import pytest
import torch
from augment_samples import Pixels, apart, draws_for, smooth_image, tensor
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter
from scipy.stats import kstest
from torchvision.transforms.v2 import InterpolationMode, functional

from pipelines.augment.affine import Rotate, Shear, Stretch, Translate
from pipelines.augment.base import nested
from pipelines.augment.elastic import Elastic, Field2d, _taps
from pipelines.augment.geometry import Geometric, Map, Matrix, apply_as_one, resample
from pipelines.augment.lens import LensDistortion
from pipelines.augment.perspective import Perspective
from pipelines.randomness import Draws, mix

ALL = [Translate(), Rotate(), Stretch(), Shear(vertical=5.0), Perspective(), LensDistortion(), Elastic()]
BILINEAR = InterpolationMode.BILINEAR


def centred(size: tuple[int, int]) -> tuple[float, float]:
    return (size[1] - 1) / 2, (size[0] - 1) / 2


def bilinear(image: Pixels, x: NDArray[np.float64], y: NDArray[np.float64], fill: float) -> NDArray[np.float64]:
    """The definition: four neighbours by their weights; outside is `fill`."""
    padded = np.pad(image.astype(np.float64), ((1, 1), (1, 1), (0, 0)), constant_values=fill)
    x, y = np.clip(x + 1, 0, image.shape[1] + 1), np.clip(y + 1, 0, image.shape[0] + 1)
    left, top = np.minimum(x.astype(int), image.shape[1]), np.minimum(y.astype(int), image.shape[0])
    u, v = (x - left)[..., None], (y - top)[..., None]
    return (
        padded[top, left] * (1 - u) * (1 - v)
        + padded[top, left + 1] * u * (1 - v)
        + padded[top + 1, left] * (1 - u) * v
        + padded[top + 1, left + 1] * u * v
    )


@pytest.mark.parametrize("size", [(48, 64), (33, 20)])
@pytest.mark.parametrize("channels", [1, 3])
def test_rotate_and_translate_and_stretch_are_torchvisions_affine(size: tuple[int, int], channels: int) -> None:
    """Tolerance: one grey level, for the two round differently."""
    images = np.stack([smooth_image(*size, channels, seed=i) for i in range(8)])
    draws = draws_for(8)
    turned = Rotate(degrees=60).apply(images, draws)
    shifted = Translate(horizontal=0.3, vertical=0.2).apply(images, draws)
    zoom = Stretch(horizontal=(1.3, 1.3), vertical=(1.3, 1.3)).apply(images, draws)
    for i in range(8):
        angle = -60 + 120 * draws.uniform()[i]
        shift = [size[1] * 0.3 * (2 * draws.uniform(0)[i] - 1), size[0] * 0.2 * (2 * draws.uniform(1)[i] - 1)]

        def affine(i: int, angle: float, translate: list[float], scale: float) -> torch.Tensor:
            return functional.affine(tensor(images[i]), angle, translate, scale, [0.0, 0.0], interpolation=BILINEAR)

        assert apart(turned[i], affine(i, angle, [0, 0], 1.0)) <= 1
        assert apart(shifted[i], affine(i, 0, shift, 1.0)) <= 1
        assert apart(zoom[i], affine(i, 0, [0, 0], 1.3)) <= 1


def test_shear_is_torchvisions_affine() -> None:
    """Torchvision's positive shear leans to the left; with two angles at once it composes them otherwise."""
    images = np.stack([smooth_image(40, 50, seed=i) for i in range(6)])
    draws = draws_for(6)
    for axis, shear in enumerate([Shear(horizontal=20), Shear(horizontal=0, vertical=20)]):
        result = shear.apply(images, draws)
        for i in range(6):
            angle = 20 * (2 * draws.uniform(axis)[i] - 1)
            slants = [-angle, 0.0] if axis == 0 else [0.0, -angle]
            expected = functional.affine(tensor(images[i]), 0, [0, 0], 1.0, slants, interpolation=BILINEAR)
            assert apart(result[i], expected) <= 1


def test_positive_angles_lean_right_and_turn_clockwise() -> None:
    """By where a point goes, so that it does not hang on torchvision's signs."""
    size, draws = (41, 41), draws_for(1)
    for shear, moves in [(Shear(horizontal=20), "x"), (Shear(horizontal=0, vertical=20), "y")]:
        angle = math.radians(20 * (2 * draws.uniform(0 if moves == "x" else 1)[0] - 1))
        (matrix,) = shear.maps(size, draws)
        point = np.array([20.0, 10.0, 1.0]) if moves == "x" else np.array([10.0, 20.0, 1.0])
        moved = np.linalg.inv(matrix.values) @ point
        assert moved[0 if moves == "x" else 1] == pytest.approx(20 - 10 * math.tan(angle))
    (turn,) = Rotate(degrees=90).maps(size, draws)
    angle = math.radians(90 * (2 * draws.uniform()[0] - 1))
    moved = np.linalg.inv(turn.values) @ np.array([30.0, 20.0, 1.0])
    assert moved[:2] == pytest.approx([20 + 10 * math.cos(angle), 20 + 10 * math.sin(angle)])


def test_perspective_is_torchvisions() -> None:
    """Torchvision takes corners as if pixel centres were at n + 1/2, so its points are ours plus a half."""
    size = (48, 64)
    images = np.stack([smooth_image(*size, seed=i) for i in range(6)])
    draws = draws_for(6)
    maps = Perspective(distortion=0.5).maps(size, draws)
    result = Perspective(distortion=0.5).apply(images, draws)
    corners = [[0, 0], [64, 0], [64, 48], [0, 48]]
    for i in range(6):
        moved = []
        for k, (x, y) in enumerate(corners):
            share_x, share_y = draws.uniform(2 * k)[i] / 4, draws.uniform(2 * k + 1)[i] / 4
            moved.append([x + 64 * share_x * (1 if x == 0 else -1), y + 48 * share_y * (1 if y == 0 else -1)])
        at = maps[i].values @ np.array([moved[0][0] - 0.5, moved[0][1] - 0.5, 1.0])
        assert at[:2] / at[2] == pytest.approx([-0.5, -0.5], abs=1e-9)
        # Exact corners instead of torchvision's own solution from rounded ones.
        coefficients = _pixel_edge_coefficients(maps[i].values)
        expected = functional.perspective(
            tensor(images[i]), None, None, interpolation=BILINEAR, coefficients=coefficients
        )
        assert apart(result[i], expected) <= 1


def _pixel_edge_coefficients(matrix: NDArray[np.float64]) -> list[float]:
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    edges = half @ matrix @ np.linalg.inv(half)
    return list((edges / edges[2, 2]).ravel()[:8])


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.3])
def test_a_lens_reads_each_pixel_where_the_formula_says(strength: float) -> None:
    """Tolerance: OpenCV rounds places to 1/32 of a pixel in remap; grey levels change by up to 40 a pixel here."""
    size = (40, 60)
    images = np.stack([smooth_image(*size, seed=i, sigma=3) for i in range(4)])
    draws = draws_for(4)
    result = LensDistortion(strength=strength, fill=9).apply(images, draws)
    y, x = np.indices(size).astype(np.float64)
    dx, dy = x - centred(size)[0], y - centred(size)[1]
    for i in range(4):
        k = strength * (2 * draws.uniform()[i] - 1)
        factor = 1 + k * (dx**2 + dy**2) / ((40**2 + 60**2) / 4)
        expected = bilinear(images[i], centred(size)[0] + dx * factor, centred(size)[1] + dy * factor, 9)
        assert np.abs(result[i] - expected).max() <= 2.0


def test_elastic_displacements_are_simards() -> None:
    """Their deviation and their correlation at a distance, against uniform noise on every pixel, smoothed by SciPy."""
    alpha, sigma, size = 30.0, 4.0, (64, 64)
    fields = Elastic(alpha=alpha, sigma=sigma).maps(size, draws_for(60))
    ours = np.stack([field.displacements for field in fields]).transpose(0, 3, 1, 2).reshape(-1, *size)
    rng = np.random.default_rng(0)
    theirs = np.stack(
        [alpha * gaussian_filter(rng.uniform(-1, 1, (112, 112)), sigma)[24:88, 24:88] for _ in range(120)]
    )
    expected = alpha / math.sqrt(3) / (2 * math.sqrt(math.pi) * sigma)
    assert theirs.std() == pytest.approx(expected, rel=0.03)
    assert ours.std() == pytest.approx(expected, rel=0.03)
    assert abs(ours.mean()) < 0.1 * expected
    for distance in (2, 4, 8):
        correlation = [(f[:, :, distance:] * f[:, :, :-distance]).mean() / f.var() for f in (ours, theirs)]
        assert correlation[0] == pytest.approx(math.exp(-(distance**2) / (4 * sigma**2)), abs=0.05)
        assert correlation[0] == pytest.approx(correlation[1], abs=0.05)
    corners = ours[:, ::63, ::63].std()
    assert corners == pytest.approx(expected, rel=0.15)  # as much as in the middle: noise goes on beyond the edge


def test_a_pixel_hears_of_all_noise_within_four_sigmas() -> None:
    """The smallest weight is that of a cell four sigmas away, never of one further off."""
    _, weights = _taps(64, 5.0)
    least = weights.min(axis=0) / (math.sqrt(5.0) / (math.sqrt(2 * math.pi) * 5.0))
    assert least.min() == pytest.approx(math.exp(-8), rel=0.01)
    assert least.max() <= math.exp(-(3.5**2) / 2) * 1.01


def test_elastic_moves_pixels_by_its_field() -> None:
    size = (40, 50)
    image = smooth_image(*size, sigma=3)
    (field,) = Elastic().maps(size, draws_for(1))
    y, x = np.indices(size).astype(np.float64)
    dx, dy = field.displacements.transpose(2, 0, 1)
    expected = bilinear(image, x + dx, y + dy, 0)
    assert np.abs(Elastic().apply(image[None], draws_for(1))[0] - expected).max() <= 2.0


def test_elastic_says_when_it_would_need_too_many_draws() -> None:
    with pytest.raises(ValueError, match=r"sigma: got 1.0, needs \d+ random numbers for data.image_size=1024.*Raise"):
        Elastic(sigma=1.0).check(3, 1024)
    Elastic(sigma=4.0).check(3, 224)


def psnr(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(10 * np.log10(255**2 / ((one - other) ** 2).mean()))


def test_one_composed_resampling_is_nearer_to_the_truth_than_a_sequence_of_single_ones() -> None:
    """The truth: the same maps on the same picture at 8 times the resolution, in floats, cubic.

    Measured with these seeds: 25 to 27 dB one by one, 35.5 dB as one.
    """
    size, times = (64, 64), 8
    large = smooth_image(64 * times, 64 * times, sigma=1.2 * times).astype(np.float32)
    # The middle of each small pixel: place p of the small image is at times * p + (times - 1) / 2 of the large one.
    y, x = np.indices(size, np.float32)
    offset = (times - 1) / 2

    def large_at(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(cv2.remap(large, times * x + offset, times * y + offset, cv2.INTER_CUBIC), np.float32)

    small = np.clip(np.rint(large_at(x, y)), 0, 255).astype(np.uint8)
    sequence: list[Geometric] = [Rotate(), Stretch(), Shear(), LensDistortion(), Elastic(alpha=20)]
    inner = np.s_[16:-16, 16:-16]
    for seed in range(4):
        draws = [Draws(seed, 0, np.array([mix("sample", 0)], np.uint64), i) for i in range(len(sequence))]
        truth_x, truth_y = x, y
        for geometric, drawn in zip(reversed(sequence), reversed(draws), strict=True):
            truth_x, truth_y = geometric.maps(size, drawn)[0](truth_x, truth_y)
        truth = large_at(truth_x, truth_y)[inner]
        single = small[None]
        for geometric, drawn in zip(sequence, draws, strict=True):
            single = geometric.apply(single, drawn)
        as_one = apply_as_one(sequence, small[None], draws)[0]
        assert psnr(as_one[inner], truth) > 34
        assert psnr(as_one[inner], truth) > psnr(single[0][inner], truth) + 6


def test_matrices_compose_in_the_order_in_which_they_are_applied() -> None:
    """Whole-pixel moves and quarter turns, which lose nothing: as one they are what they are one by one."""
    image = smooth_image(31, 31)[None]
    shift = Matrix(np.array([[1.0, 0, -3], [0, 1, 2], [0, 0, 1]]))
    turn = Matrix(np.array([[0.0, 1, 0], [-1, 0, 30], [0, 0, 1]]))
    one_by_one = resample(resample(image[0], [shift]), [turn])
    assert np.array_equal(resample(image[0], [shift, turn]), one_by_one)
    assert not np.array_equal(resample(image[0], [turn, shift]), one_by_one)
    expected = np.zeros_like(image[0])
    expected[:29, 3:] = image[0][2:, :28]
    assert np.array_equal(resample(image[0], [shift]), expected)


@pytest.mark.parametrize("border", ["fill", "reflect"])
def test_outside_the_image_is_the_border_that_was_asked_for(border: str) -> None:
    image = smooth_image(20, 20)
    move: list[Map] = [Matrix(np.array([[1.0, 0, -4], [0, 1, 0], [0, 0, 1]]))]
    field: list[Map] = [Field2d(np.tile(np.array([-4, 0], np.float32), (20, 20, 1)))]
    for maps in (move, field):
        left = resample(image, maps, border, 77)[:, :4]  # type: ignore[arg-type]
        expected = np.full_like(left, 77) if border == "fill" else image[:, 4:0:-1]
        assert np.array_equal(left, expected)


@pytest.mark.parametrize("geometric", ALL, ids=lambda g: g.name)
def test_an_image_that_probability_spares_is_not_resampled(geometric: Geometric) -> None:
    images = np.stack([smooth_image(16, 16, seed=i) for i in range(40)])
    draws = draws_for(40)
    always = geometric.apply(images, draws)
    half = geometric.model_copy(update={"probability": 0.5}).apply(images, draws)
    spared = np.array([np.array_equal(a, b) for a, b in zip(half, images, strict=True)])
    assert 8 <= spared.sum() <= 32
    assert np.array_equal(half[~spared], always[~spared])
    never = geometric.model_copy(update={"probability": 0.0}).apply(images, draws)
    assert np.array_equal(never, images)


def test_angles_and_shifts_are_uniform_and_stretches_in_their_logarithm() -> None:
    draws, size = draws_for(4000), (10, 20)
    turns = np.array([m.values for m in Rotate(degrees=40).maps(size, draws)])
    angles = np.degrees(np.arctan2(turns[:, 0, 1], turns[:, 0, 0]))
    assert kstest(angles, "uniform", (-40, 80)).pvalue > 1e-3
    shifts = np.array([m.values for m in Translate(horizontal=0.5, vertical=0.1).maps(size, draws)])
    assert kstest(shifts[:, 0, 2], "uniform", (-10, 20)).pvalue > 1e-3
    assert kstest(shifts[:, 1, 2], "uniform", (-1, 2)).pvalue > 1e-3
    stretches = np.array([m.values for m in Stretch(horizontal=(0.5, 2.0)).maps(size, draws)])
    assert kstest(np.log2(1 / stretches[:, 0, 0]), "uniform", (-1, 2)).pvalue > 1e-3
    lenses = [radial.k1 for radial in LensDistortion(strength=0.3).maps(size, draws)]
    assert kstest(lenses, "uniform", (-0.3, 0.6)).pvalue > 1e-3
    assert kstest(nested(draws, 1).uniform(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Stretch, {"horizontal": (2.0, 1.0)}, r"got \[2.0, 1.0\], the first must be <= the second"),
        (Stretch, {"horizontal": (0.0, 1.0)}, "greater than 0"),
        (Shear, {"horizontal": 45.0}, "less than or equal to 44"),
        (LensDistortion, {"strength": 0.5}, "less than or equal to 0.33"),
        (Perspective, {"distortion": 1.0}, "less than 1"),
        (Rotate, {"border": "wrap"}, "'fill' or 'reflect'"),
    ],
)
def test_options_out_of_range_are_refused(kind: type[Geometric], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind.model_validate(options)
