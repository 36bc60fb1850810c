from typing import get_args

import numpy as np
import pytest
import torch
from augment_samples import draws_for, random_images, tensor
from pydantic import ValidationError
from scipy.stats import chisquare
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from pipelines.augment.affine import Rotate, Shear, Stretch, Translate
from pipelines.augment.autoaugment import AutoAugment
from pipelines.augment.base import CpuAugmentation
from pipelines.augment.blur import GaussianBlur, Sharpness
from pipelines.augment.crop import RandomCrop
from pipelines.augment.elastic import Elastic
from pipelines.augment.erase import Cutout, Erasing
from pipelines.augment.flip import HorizontalFlip, VerticalFlip
from pipelines.augment.lens import LensDistortion
from pipelines.augment.normalize import Normalize
from pipelines.augment.perspective import Perspective
from pipelines.augment.randaugment import RandAugment
from pipelines.augment.random_mix import RandomMix
from pipelines.augment.table import Operation
from pipelines.augment.tone import Autocontrast, Equalize, Grayscale, Invert, Posterize, Solarize
from pipelines.augment.trivialaugment import TrivialAugment
from pipelines.randomness import Draws

SHAPES = [(0, 4, 4, 3), (1, 1, 1, 1), (7, 8, 8, 1), (5, 32, 32, 3), (4, 5, 9, 3)]
AUGMENTATIONS = [
    RandomCrop(padding=1),
    RandomCrop(padding=12, fill=7),
    HorizontalFlip(),
    HorizontalFlip(probability=1.0),
    VerticalFlip(),
    Translate(),
    Rotate(degrees=180, fill=3),
    Stretch(border="reflect"),
    Shear(vertical=5.0),
    Perspective(probability=0.5),
    LensDistortion(),
    Elastic(sigma=1.5),
    GaussianBlur(),
    Sharpness(),
    Grayscale(probability=0.5),
    Solarize(),
    Posterize(),
    Equalize(probability=1.0),
    Autocontrast(),
    Invert(),
    Erasing(),
    Cutout(side=3),
    RandAugment(),
    TrivialAugment(),
    AutoAugment(),
    AutoAugment(policy="cifar10"),
    RandomMix(choose=2, of=(Rotate(), Invert(), Equalize(), HorizontalFlip())),
]


def test_every_augmentation_on_the_cpu_is_among_those_tested() -> None:
    """But for `function`, which is a user's."""
    names = {kind.model_fields["name"].default for kind in (*get_args(Operation), RandomMix)}
    assert names - {"function"} == {augmentation.name for augmentation in AUGMENTATIONS}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_a_flip_is_torchvisions(shape: tuple[int, int, int, int], probability: float) -> None:
    images, draws = random_images(shape), draws_for(shape[0])
    result = HorizontalFlip(probability=probability).apply(images, draws)
    flipped = draws.uniform() < probability
    for i in range(shape[0]):
        expected = functional.horizontal_flip(tensor(images[i])) if flipped[i] else tensor(images[i])
        assert torch.equal(tensor(result[i]), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("padding", "fill"), [(1, 0), (4, 0), (3, 128), (40, 255)])
def test_a_crop_is_torchvisions(shape: tuple[int, int, int, int], padding: int, fill: int) -> None:
    images, draws = random_images(shape), draws_for(shape[0])
    result = RandomCrop(padding=padding, fill=fill).apply(images, draws)
    tops, lefts = draws.integers(2 * padding + 1, 0), draws.integers(2 * padding + 1, 1)
    for i in range(shape[0]):
        padded = functional.pad(tensor(images[i]), [padding] * 4, fill=fill)
        expected = functional.crop(padded, int(tops[i]), int(lefts[i]), *shape[1:3])
        assert torch.equal(tensor(result[i]), expected)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=repr)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_result_has_the_form_of_its_input_which_is_left_alone(
    augmentation: CpuAugmentation, shape: tuple[int, int, int, int]
) -> None:
    images = random_images(shape)
    before = images.copy()
    result = augmentation.apply(images, draws_for(shape[0]))
    assert np.array_equal(images, before)
    assert result.shape == images.shape
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=repr)
def test_an_image_becomes_the_same_in_any_batch(augmentation: CpuAugmentation) -> None:
    images, draws = random_images((9, 8, 8, 3)), draws_for(9)
    whole = augmentation.apply(images, draws)
    for part in (slice(0, 1), slice(3, 7), slice(None, None, -1)):
        alone = augmentation.apply(images[part], Draws(0, 0, draws.sample_keys[part], 1))
        assert np.array_equal(alone, whole[part])


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_flips_have_their_probability(probability: float) -> None:
    num = 10_000
    images = np.tile(np.array([0, 1], np.uint8).reshape(1, 1, 2, 1), (num, 1, 1, 1))
    flips = int(HorizontalFlip(probability=probability).apply(images, draws_for(num))[:, 0, 0, 0].sum())
    assert chisquare([flips, num - flips], [num * probability, num * (1 - probability)]).pvalue > 1e-3


def test_all_places_of_a_crop_are_equally_likely() -> None:
    num, padding = 10_000, 2
    image = np.arange(1, 26, dtype=np.uint8).reshape(1, 5, 5, 1)  # the pixel in the centre tells the place
    cropped = RandomCrop(padding=padding).apply(np.repeat(image, num, axis=0), draws_for(num))
    counts = np.bincount(cropped[:, 2, 2, 0] - 1, minlength=25)
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)), ((0.305,), (0.376,)), ((0.0,) * 3, (1.0,) * 3)],
)
def test_normalize_is_torchvisions(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Tolerance: four roundings of 2^-24 on terms no larger than (1 + mean) / std."""
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, len(mean), 16, 16)
    scale, shift = (torch.from_numpy(x)[:, None, None] for x in Normalize(mean=mean, std=std).scale_and_shift())
    result = values.to(torch.float32) * scale + shift
    expected = v2.Normalize(mean, std)(functional.to_dtype(values, torch.float64, scale=True))
    largest = max((1 + m) / s for m, s in zip(mean, std, strict=True))
    assert (result - expected).abs().max().item() <= 4 * 2**-24 * largest


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5, 0.5, 0.5], [0.5], "mean has 3 values and std 1: give one of each"),
        ([0.5], [0.0], r"std: got \[0.0\], every value must be > 0"),
        ([0.5, 0.5], [0.5, -1.0], r"std: got \[0.5, -1.0\], every value must be > 0"),
        ([], [], "at least 1 item"),
    ],
)
def test_normalize_refuses_what_cannot_scale(mean: list[float], std: list[float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Normalize.model_validate({"mean": mean, "std": std})


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (RandomCrop, {}, "padding\n +Field required"),
        (RandomCrop, {"padding": 0}, "greater than or equal to 1"),
        (RandomCrop, {"padding": 1, "fill": 256}, "less than or equal to 255"),
        (HorizontalFlip, {"probability": 1.5}, "less than or equal to 1"),
        (HorizontalFlip, {"p": 0.5}, "Extra inputs are not permitted"),
    ],
)
def test_options_out_of_range_are_refused(kind: type[CpuAugmentation], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind.model_validate(options)
