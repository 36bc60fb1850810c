"""Policies: their operations against torchvision's, their tables against its tables, their draws by counting."""

import re

import numpy as np
import pytest
import torch
from augment_samples import apart, draws_for, random_images, smooth_image, tensor
from pydantic import ValidationError
from scipy.stats import chisquare
from torchvision.transforms import autoaugment as reference
from torchvision.transforms.v2 import InterpolationMode

from pipelines.augment.affine import Rotate
from pipelines.augment.autoaugment import AutoAugment, sub_policies
from pipelines.augment.base import nested, uniforms
from pipelines.augment.flip import HorizontalFlip, VerticalFlip
from pipelines.augment.policy import OPERATIONS, SIGNED, narrow_space
from pipelines.augment.randaugment import RandAugment
from pipelines.augment.random_mix import RandomMix
from pipelines.augment.tone import Invert, Posterize, Solarize
from pipelines.augment.trivialaugment import TrivialAugment, wide_space


def our_name(theirs: str) -> str:
    return "autocontrast" if theirs == "AutoContrast" else re.sub(r"(?<=[a-z])([XY])$", r"_\1", theirs).lower()


THEIR_NAMES = {our_name(name): name for name in [*reference.AutoAugment()._augmentation_space(10, (1, 1)), "Identity"]}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_operation_is_torchvisions_at_every_magnitude(name: str, channels: int) -> None:
    """Within one grey level; torchvision shears about pixel centres, which is taken into account by its centre."""
    image = smooth_image(30, 40, channels, sigma=2.0)
    spaces = [narrow_space(10, (30, 40)) | {"invert": np.zeros(1)}, wide_space() | {"invert": np.zeros(1)}]
    for magnitude in np.unique(np.concatenate([space[name][::3] for space in spaces])):
        for signed in (magnitude, -magnitude) if name in SIGNED else (magnitude,):
            expected = reference._apply_op(
                tensor(image), THEIR_NAMES[name], float(signed), InterpolationMode.BILINEAR, None
            )
            if name == "color" and channels == 1:
                expected = tensor(image)
            assert apart(OPERATIONS[name](image, float(signed), 0), expected) <= 1, (name, signed)


def test_geometric_operations_fill_what_lies_outside() -> None:
    white = np.full((20, 20, 3), 255, np.uint8)
    for name, magnitude in [
        ("translate_x", 5),
        ("translate_y", -5),
        ("rotate", 30),
        ("shear_x", 0.5),
        ("shear_y", 0.5),
    ]:
        assert (OPERATIONS[name](white, magnitude, 7) == 7).any(), name


def test_magnitudes_are_torchvisions() -> None:
    for num_bins, size in [(10, (30, 40)), (31, (224, 200))]:
        theirs = reference.RandAugment()._augmentation_space(num_bins, size)
        check_space(narrow_space(num_bins, size), theirs)
    check_space(wide_space(), reference.TrivialAugmentWide()._augmentation_space(31))


def check_space(ours: dict[str, np.ndarray], theirs: dict[str, tuple[torch.Tensor, bool]]) -> None:
    assert list(ours) == [our_name(name) for name in theirs]
    for name, (magnitudes, signed) in theirs.items():
        assert (our_name(name) in SIGNED) == signed
        assert np.allclose(ours[our_name(name)], magnitudes.numpy(), atol=1e-4)


@pytest.mark.parametrize("policy", ["imagenet", "cifar10"])
def test_autoaugments_tables_are_torchvisions(policy: str) -> None:
    theirs = reference.AutoAugment()._get_policies(reference.AutoAugmentPolicy(policy))
    assert sub_policies(policy) == [[(our_name(n), p, level or 0) for n, p, level in pair] for pair in theirs]


@pytest.mark.parametrize("kind", [RandAugment(), RandAugment(magnitude=0), TrivialAugment(), AutoAugment()], ids=repr)
def test_a_policy_applies_its_steps_in_order(kind: RandAugment | TrivialAugment | AutoAugment) -> None:
    images, draws = np.stack([smooth_image(16, 16, seed=i) for i in range(10)]), draws_for(10)
    steps = kind.steps(draws) if isinstance(kind, TrivialAugment) else kind.steps((16, 16), draws)
    for image, result, of_image in zip(images, kind.apply(images, draws), steps, strict=True):
        for name, magnitude in of_image:
            image = OPERATIONS[name](image, magnitude, 0)
        assert np.array_equal(result, image)


def test_randaugment_draws_each_operation_and_sign_equally_often() -> None:
    steps = RandAugment(operations=3, magnitude=15).steps((32, 32), draws_for(3000))
    names = list(narrow_space(31, (32, 32)))
    assert all(len(of_image) == 3 for of_image in steps)
    for place in range(3):
        counts = np.bincount([names.index(of_image[place][0]) for of_image in steps], minlength=14)
        assert chisquare(counts).pvalue > 1e-3
    signs = [magnitude > 0 for of_image in steps for name, magnitude in of_image if name in SIGNED]
    assert chisquare(np.bincount(signs)).pvalue > 1e-3
    assert {magnitude for of_image in steps for name, magnitude in of_image if name == "rotate"} == {15.0, -15.0}


def test_trivialaugment_draws_each_operation_and_magnitude_equally_often() -> None:
    steps = TrivialAugment().steps(draws_for(6000))
    names, rotations = list(wide_space()), wide_space()["rotate"]
    assert all(len(of_image) == 1 for of_image in steps)
    assert chisquare(np.bincount([names.index(of_image[0][0]) for of_image in steps], minlength=14)).pvalue > 1e-3
    turned = [abs(magnitude) for ((name, magnitude),) in steps if name == "rotate"]
    assert chisquare(np.bincount(np.searchsorted(rotations, turned), minlength=31)).pvalue > 1e-3


def test_autoaugment_draws_each_pair_equally_often_and_its_parts_with_their_probabilities() -> None:
    """Within 4.5 deviations of a Poisson count. One pair is translate_y 0.9 and translate_y 0.7."""
    num = 20000
    steps = AutoAugment(policy="cifar10").steps((32, 32), draws_for(num))
    expected: dict[str, float] = {}
    for pair in sub_policies("cifar10"):
        for name, probability, _ in pair:
            expected[name] = expected.get(name, 0.0) + num * probability / 25
    counts = {name: sum(step[0] == name for of_image in steps for step in of_image) for name in expected}
    for name, wanted in expected.items():
        assert abs(counts[name] - wanted) < 4.5 * np.sqrt(max(wanted, 1.0)), name
    both_down = sum(len(s) == 2 and {name for name, _ in s} == {"translate_y"} for s in steps)
    assert abs(both_down - num / 25 * 0.9 * 0.7) < 4.5 * np.sqrt(num / 25 * 0.63)


def test_random_mix_draws_each_choice_in_each_order_equally_often() -> None:
    """Operations that do not commute, on an image that tells every sequence of two of them from every other."""
    num = 3000
    image = random_images((1, 6, 6, 1))
    parts = {
        "flip": HorizontalFlip(probability=1.0),
        "turn": VerticalFlip(probability=1.0),
        "solarize": Solarize(probability=1.0, threshold=100),
        "posterize": Posterize(probability=1.0, bits=3),
    }
    mixed = RandomMix(choose=2, of=tuple(parts.values())).apply(np.repeat(image, num, axis=0), draws_for(num))
    counts: dict[bytes, int] = {}
    for result in mixed:
        counts[result.tobytes()] = counts.get(result.tobytes(), 0) + 1
    expected: dict[bytes, int] = {}
    for first in parts.values():
        for second in parts.values():
            if first is not second:
                both = second.apply(first.apply(image, draws_for(1)), draws_for(1)).tobytes()
                expected[both] = expected.get(both, 0) + 1
    assert counts.keys() == expected.keys()
    wanted = [num * expected[key] / 12 for key in counts]
    assert chisquare(list(counts.values()), wanted).pvalue > 1e-3


def test_random_mix_draws_anew_for_each_of_its_parts() -> None:
    """The same augmentation twice in a list is not the same draw twice."""
    images, draws = np.stack([smooth_image(16, 16)] * 4), draws_for(4)
    result = RandomMix(choose=2, of=(Rotate(degrees=90), Rotate(degrees=90))).apply(images, draws)
    parts = [nested(draws, index) for index in range(2)]
    assert len({*parts[0].uniform(), *parts[1].uniform(), *draws.uniform()}) == 12
    for i, first in enumerate(np.argsort(uniforms(draws, 2), axis=1)[:, 0].tolist()):
        expected = images
        for index in (first, 1 - first):
            expected = Rotate(degrees=90).apply(expected, parts[index])
        assert np.array_equal(result[i], expected[i])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (RandAugment, {"magnitude": 31}, "magnitude: got 31, must be < bins=31. Lower it or raise bins"),
        (RandAugment, {"operations": 0}, "greater than or equal to 1"),
        (AutoAugment, {"policy": "svhn"}, "'imagenet' or 'cifar10'"),
        (RandomMix, {"choose": 3, "of": ["invert", "equalize"]}, "choose: got 3, must be <= 2, as many as `of` lists"),
        (RandomMix, {"of": []}, "at least 1 item"),
        (RandomMix, {"of": ["mixup"]}, "'mixup' found using 'name' does not match"),
    ],
)
def test_options_out_of_range_are_refused(kind: type[Invert], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind.model_validate(options)
