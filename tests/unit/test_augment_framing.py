"""Framing: boxes like torchvision's and ResNet's, whole and inside."""

import numpy as np
import pytest
import torch
from augment_samples import draws_for, keys_for
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.stats import chisquare, ks_2samp, kstest
from torchvision.transforms import RandomResizedCrop as Reference

from pipelines.augment.framing import CenterCrop, RandomResizedCrop, ScaleJitter
from pipelines.config import PipelineConfig
from pipelines.randomness import Draws


def sizes_of(num: int, height: int, width: int) -> NDArray[np.int64]:
    return np.tile(np.array([height, width]), (num, 1))


def random_sizes(num: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(1, 700, (num, 2))


FRAMINGS = [
    RandomResizedCrop(),
    RandomResizedCrop(scale=(0.9, 1.0), ratio=(3.0, 4.0)),
    ScaleJitter(short_side=(32, 64)),
    CenterCrop(share=0.875),
]


@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
def test_boxes_lie_inside_their_images(framing: RandomResizedCrop | ScaleJitter | CenterCrop) -> None:
    sizes = random_sizes(3000)
    left, top, width, height = framing.boxes(sizes, 32, draws_for(3000)).T
    assert (width > 0).all()
    assert (height > 0).all()
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + width <= sizes[:, 1] + 1e-9).all()
    assert (top + height <= sizes[:, 0] + 1e-9).all()


@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
def test_a_box_is_the_same_in_any_batch(framing: RandomResizedCrop | ScaleJitter | CenterCrop) -> None:
    sizes, keys = random_sizes(9), keys_for(9)
    whole = framing.boxes(sizes, 32, Draws(0, 0, keys, 1))
    for part in (slice(0, 1), slice(3, 7), slice(None, None, -1), slice(0, 0)):
        assert np.array_equal(framing.boxes(sizes[part], 32, Draws(0, 0, keys[part], 1)), whole[part])


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((375, 500), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((500, 200), (0.5, 1.0), (3 / 4, 4 / 3)),  # many a rectangle does not fit
        ((64, 64), (0.2, 0.4), (0.25, 4.0)),
    ],
)
def test_random_resized_crop_draws_what_torchvision_draws(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    num = 4000
    torch.manual_seed(0)
    image = torch.empty(1, *size)
    theirs = np.array([Reference.get_params(image, list(scale), list(ratio)) for _ in range(num)])[:, [1, 0, 3, 2]]
    ours = RandomResizedCrop(scale=scale, ratio=ratio).boxes(sizes_of(num, *size), 224, draws_for(num))
    assert np.array_equal(ours, np.rint(ours))
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column], method="asymp").pvalue > 1e-3
    assert ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3], method="asymp").pvalue > 1e-3
    assert ks_2samp(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3], method="asymp").pvalue > 1e-3


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000), (100, 100), (1, 50)])
def test_where_no_rectangle_fits_the_central_one_is_torchvisions(size: tuple[int, int]) -> None:
    """Shapes that cannot fit ten times in a row: all of the image's area, but far from its shape."""
    ratio = (3.0, 4.0) if size[0] == size[1] else (0.75, 4 / 3)
    theirs = Reference.get_params(torch.empty(1, *size), [0.99, 1.0], list(ratio))
    top, left, height, width = theirs
    ours = RandomResizedCrop(scale=(0.99, 1.0), ratio=ratio).boxes(sizes_of(5, *size), 224, draws_for(5))
    assert np.array_equal(ours, np.tile([left, top, width, height], (5, 1)))


def test_places_of_a_crop_are_equally_likely_up_to_both_edges() -> None:
    num = 6000
    framing = RandomResizedCrop(scale=(0.25, 0.25), ratio=(1.0, 1.0))
    left, top, width, height = framing.boxes(sizes_of(num, 8, 8), 224, draws_for(num)).T
    assert (width == 4).all()
    assert (height == 4).all()
    counts = np.bincount((5 * left + top).astype(int), minlength=25)
    assert chisquare(counts).pvalue > 1e-3


def test_scale_jitter_scales_the_short_side_to_each_length_equally_often() -> None:
    num, image_size = 6000, 24
    left, top, side, other = (
        ScaleJitter(short_side=(25, 30)).boxes(sizes_of(num, 100, 150), image_size, draws_for(num)).T
    )
    assert np.array_equal(side, other)
    lengths = image_size / side * 100
    assert np.allclose(lengths, np.rint(lengths))
    assert chisquare(np.bincount(np.rint(lengths).astype(int) - 25, minlength=6)).pvalue > 1e-3
    assert kstest(left / (150 - side), "uniform").pvalue > 1e-3
    assert kstest(top / (100 - side), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(left / (150 - side), top / (100 - side))[0, 1]) < 0.05


def test_the_central_crop_is_central() -> None:
    boxes = CenterCrop(share=0.5).boxes(np.array([[100, 200], [31, 31]]), 224, draws_for(2))
    assert np.array_equal(boxes, [[75, 25, 50, 50], [7.75, 7.75, 15.5, 15.5]])
    assert not CenterCrop.random


def test_a_patch_that_would_not_fit_is_a_mistake_of_the_file() -> None:
    with pytest.raises(
        ValidationError,
        match=r"augment\.0\.scale_jitter\.short_side: got \[200, 480\], must be >= data\.image_size=224",
    ):
        PipelineConfig.model_validate(
            {"train": "x", "val": "x", "image_size": 224, "augment": [{"scale_jitter": {"short_side": [200, 480]}}]}
        )


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (RandomResizedCrop, {"scale": [0.5, 0.2]}, r"got \[0.5, 0.2\], the first must be <= the second. Swap"),
        (RandomResizedCrop, {"scale": [0.0, 1.0]}, "greater than 0"),
        (RandomResizedCrop, {"scale": [0.5, 1.1]}, "less than or equal to 1"),
        (RandomResizedCrop, {"ratio": [0, 1]}, "greater than 0"),
        (ScaleJitter, {"short_side": [480, 256]}, r"got \[480, 256\], the first must be <= the second"),
        (ScaleJitter, {"short_side": [256.5, 480]}, "valid integer"),
        (CenterCrop, {"share": 0.0}, "greater than 0"),
    ],
)
def test_options_out_of_range_are_refused(kind: type[CenterCrop], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind.model_validate(options)
