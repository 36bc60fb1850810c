"""Operations on grey levels, blur and erasing: against Pillow and torchvision."""

import numpy as np
import pytest
import torch
from augment_samples import Pixels, apart, draws_for, random_images, smooth_image, tensor
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy.stats import chisquare, ks_2samp, kstest
from torchvision.transforms import RandomErasing
from torchvision.transforms.v2 import functional

from pipelines.augment import operations
from pipelines.augment.base import CpuAugmentation, uniforms
from pipelines.augment.blur import GaussianBlur, Sharpness
from pipelines.augment.erase import Cutout, Erasing
from pipelines.augment.flip import VerticalFlip
from pipelines.augment.tone import Autocontrast, Equalize, Grayscale, Invert, Posterize, Solarize


def samples(channels: int) -> list[Pixels]:
    """Noise, smooth, of few levels, of one level, two levels, tiny."""
    few = (smooth_image(32, 40, channels) // 3 + 60).astype(np.uint8)
    two = np.where(smooth_image(16, 16, channels) > 128, 200, 30).astype(np.uint8)
    shapes = [random_images((1, 33, 20, channels))[0], smooth_image(32, 40, channels), few, two]
    return [*shapes, np.full((8, 8, channels), 77, np.uint8), random_images((1, 2, 2, channels))[0]]


def pillow(image: Pixels) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def pixels(image: Image.Image, like: Pixels) -> Pixels:
    return np.asarray(image).reshape(like.shape)


# name -> ours, Pillow's; and by how many grey levels they may differ
OPERATIONS = {
    "invert": (operations.invert, ImageOps.invert, 0),
    "solarize": (lambda i: operations.solarize(i, 100), lambda i: ImageOps.solarize(i, 100), 0),
    "posterize": (lambda i: operations.posterize(i, 3), lambda i: ImageOps.posterize(i, 3), 0),
    "autocontrast": (operations.autocontrast, ImageOps.autocontrast, 0),
    "equalize": (operations.equalize, ImageOps.equalize, 0),
    "darker": (lambda i: operations.brightness(i, 0.37), lambda i: ImageEnhance.Brightness(i).enhance(0.37), 0),
    "brighter": (lambda i: operations.brightness(i, 1.63), lambda i: ImageEnhance.Brightness(i).enhance(1.63), 0),
    "flatter": (lambda i: operations.contrast(i, 0.37), lambda i: ImageEnhance.Contrast(i).enhance(0.37), 1),
    "more contrast": (lambda i: operations.contrast(i, 1.63), lambda i: ImageEnhance.Contrast(i).enhance(1.63), 1),
    "smoother": (lambda i: operations.sharpness(i, 0.25), lambda i: ImageEnhance.Sharpness(i).enhance(0.25), 1),
    "sharper": (lambda i: operations.sharpness(i, 1.75), lambda i: ImageEnhance.Sharpness(i).enhance(1.75), 1),
}
COLOUR_OPERATIONS = {
    "grey": (operations.grey, lambda i: i.convert("L").convert("RGB"), 0),
    "paler": (lambda i: operations.saturation(i, 0.37), lambda i: ImageEnhance.Color(i).enhance(0.37), 1),
    "more colour": (lambda i: operations.saturation(i, 1.63), lambda i: ImageEnhance.Color(i).enhance(1.63), 1),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_operation_is_pillows(name: str, channels: int) -> None:
    ours, theirs, tolerance = OPERATIONS[name]
    for image in samples(channels):
        assert apart(ours(image), pixels(theirs(pillow(image)), image)) <= tolerance


@pytest.mark.parametrize("name", COLOUR_OPERATIONS)
def test_an_operation_on_colours_is_pillows(name: str) -> None:
    ours, theirs, tolerance = COLOUR_OPERATIONS[name]
    for image in samples(3):
        assert apart(ours(image), pixels(theirs(pillow(image)), image)) <= tolerance


@pytest.mark.parametrize("channels", [1, 3])
def test_what_torchvision_has_as_well_is_the_same_there(channels: int) -> None:
    for image in samples(channels):
        there = tensor(image)
        assert apart(operations.solarize(image, 128), functional.solarize(there, 128)) == 0
        assert apart(operations.posterize(image, 4), functional.posterize(there, 4)) == 0
        assert apart(operations.equalize(image), functional.equalize(there)) == 0
        assert apart(operations.autocontrast(image), functional.autocontrast(there)) <= 1
        assert apart(operations.sharpness(image, 1.5), functional.adjust_sharpness(there, 1.5)) <= 1
        if channels == 3:
            assert apart(operations.grey(image), functional.rgb_to_grayscale(there, 3)) <= 1


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.3])
@pytest.mark.parametrize("channels", [1, 3])
def test_blur_is_torchvisions(sigma: float, channels: int) -> None:
    side = 2 * int(np.ceil(4 * sigma)) + 1
    for image in samples(channels):
        if side // 2 < min(image.shape[:2]):
            assert apart(operations.blur(image, sigma), functional.gaussian_blur(tensor(image), side, sigma)) <= 1


def test_blur_is_near_pillows_whose_gaussian_is_made_of_boxes() -> None:
    image = smooth_image(64, 64)
    ours = operations.blur(image, 2.0).astype(float)
    theirs = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(2.0))).astype(float)
    assert np.abs(ours - theirs)[8:-8, 8:-8].mean() < 1.0


SOMETIMES = [
    (VerticalFlip, {}, lambda i: i[::-1]),
    (Invert, {}, operations.invert),
    (Solarize, {"threshold": 90}, lambda i: operations.solarize(i, 90)),
    (Posterize, {"bits": 2}, lambda i: operations.posterize(i, 2)),
    (Equalize, {}, operations.equalize),
    (Autocontrast, {}, operations.autocontrast),
    (Grayscale, {}, operations.grey),
    (GaussianBlur, {"sigma": [1.5, 1.5]}, lambda i: operations.blur(i, 1.5)),
    (Sharpness, {"factor": [0.0, 0.0]}, lambda i: operations.sharpness(i, 0.0)),
]


@pytest.mark.parametrize(("kind", "options", "operation"), SOMETIMES, ids=lambda x: getattr(x, "__name__", ""))
def test_it_is_applied_with_its_probability_and_else_leaves_the_image_alone(
    kind: type[CpuAugmentation], options: dict[str, object], operation: object
) -> None:
    num, probability = 600, 0.3
    image = smooth_image(24, 24)[None] // 2 + np.uint8(40)
    result = kind.model_validate({"probability": probability, **options}).apply(
        np.repeat(image, num, axis=0), draws_for(num)
    )
    changed = operation(image[0])  # type: ignore[operator]
    assert not np.array_equal(changed, image[0])
    is_changed = (result == changed).all(axis=(1, 2, 3))
    assert ((result == image).all(axis=(1, 2, 3)) != is_changed).all()
    count = int(is_changed.sum())
    assert chisquare([count, num - count], [num * probability, num * (1 - probability)]).pvalue > 1e-3


def test_strengths_are_uniform_between_the_two_that_were_given() -> None:
    """One white pixel on black: its blur's peak tells sigma, its sharpening tells the factor."""
    num = 400
    dot = np.zeros((num, 41, 41, 1), np.uint8)
    dot[:, 20, 20] = 250
    blurred = GaussianBlur(sigma=(0.6, 3.0), probability=1.0).apply(dot, draws_for(num))
    sigmas = 0.6 + 2.4 * draws_for(num).uniform(1)
    for i in range(0, num, 40):
        assert apart(blurred[i], functional.gaussian_blur(tensor(dot[i]), 25, float(sigmas[i]))) <= 1
    peak = Sharpness(factor=(0.0, 1.0), probability=1.0).apply(dot, draws_for(num))[:, 20, 20, 0]
    assert kstest((peak - 250 * 5 / 13) / (250 * 8 / 13), "uniform").pvalue > 1e-3


def test_erasing_draws_what_torchvision_draws() -> None:
    """Area and shape from ours, as boxes, against RandomErasing's own draws."""
    num, size = 3000, (40, 30)
    torch.manual_seed(0)
    image = torch.zeros(1, *size)
    theirs = np.array([RandomErasing.get_params(image, (0.02, 0.33), (0.3, 0.9), [1.0])[:4] for _ in range(num)])
    white = np.zeros((num, *size, 1), np.uint8)
    erased = Erasing(probability=1.0, fill=255, ratio=(0.3, 0.9)).apply(white, draws_for(num))[..., 0] == 255
    rows, columns = erased.any(axis=2), erased.any(axis=1)
    height, width = rows.sum(axis=1), columns.sum(axis=1)
    assert np.array_equal(height * width, erased.sum(axis=(1, 2)))  # a full rectangle
    assert ks_2samp(height, theirs[:, 2], method="asymp").pvalue > 1e-3
    assert ks_2samp(width, theirs[:, 3], method="asymp").pvalue > 1e-3
    assert ks_2samp(rows.argmax(axis=1), theirs[:, 0], method="asymp").pvalue > 1e-3
    assert ks_2samp(columns.argmax(axis=1), theirs[:, 1], method="asymp").pvalue > 1e-3


def test_erasing_has_its_probability_and_gives_up_where_nothing_fits() -> None:
    num = 3000
    images = np.full((num, 8, 8, 1), 9, np.uint8)
    touched = int((Erasing(probability=0.2, share=(0.1, 0.3)).apply(images, draws_for(num)) == 0).any((1, 2, 3)).sum())
    assert chisquare([touched, num - touched], [num * 0.2, num * 0.8]).pvalue > 1e-3
    flat = np.full((5, 2, 100, 1), 9, np.uint8)
    assert np.array_equal(Erasing(probability=1.0, share=(0.9, 1.0), ratio=(1, 1)).apply(flat, draws_for(5)), flat)


@pytest.mark.parametrize("side", [1, 2, 3, 40])
def test_cutout_hides_a_square_about_any_pixel_and_cuts_off_what_reaches_outside(side: int) -> None:
    num, size = 200, (9, 7)
    draws = draws_for(num)
    result = Cutout(side=side, fill=255).apply(np.zeros((num, *size, 1), np.uint8), draws)[..., 0] == 255
    middle_y, middle_x = draws.integers(9, 0), draws.integers(7, 1)
    y, x = np.indices(size)
    for i in range(num):
        top, left = middle_y[i] - side // 2, middle_x[i] - side // 2
        expected = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
        assert np.array_equal(result[i], expected)


def test_many_draws_at_once_are_the_draws_one_by_one() -> None:
    draws = draws_for(50, epoch=3)
    for num in (0, 1, 4, 7):
        at_once = uniforms(draws, num)
        assert at_once.shape == (50, num)
        for index in range(num):
            assert np.array_equal(at_once[:, index], draws.uniform(index))
