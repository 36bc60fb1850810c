"""A user's own function: called as promised, and tried out before anything starts."""

from pathlib import Path

import numpy as np
import pytest
from augment_samples import Pixels, draws_for, random_images
from pydantic import ValidationError

from pipelines.augment.flip import HorizontalFlip
from pipelines.augment.function import Function
from pipelines.augment.random_mix import RandomMix
from pipelines.augment.trial import try_functions
from pipelines.randomness import Draws
from tests.conftest import DIGITS, convoy

# Functions as users write them.


def shifted(images: Pixels, draws: Draws, by: int = 1) -> Pixels:
    return images + (draws.integers(2) * by).astype(np.uint8)[:, None, None, None]


def of_another_form(images: Pixels, draws: Draws) -> Pixels:  # noqa: ARG001
    return images[:, 1:]


def of_another_type(images: Pixels, draws: Draws) -> np.ndarray:  # noqa: ARG001
    return images / 255


def none(images: Pixels, draws: Draws) -> None:
    """Like `shifted`, but forgets to return."""


def in_place(images: Pixels, draws: Draws) -> Pixels:  # noqa: ARG001
    images[:, 0] = 0
    return images.copy()


def broken(images: Pixels, draws: Draws) -> Pixels:  # noqa: ARG001
    raise RuntimeError("no idea")


_RNG = np.random.default_rng(0)


def with_other_draws(images: Pixels, draws: Draws) -> Pixels:  # noqa: ARG001
    return images + _RNG.integers(256, size=len(images)).astype(np.uint8)[:, None, None, None]


def of_the_batch(images: Pixels, draws: Draws) -> Pixels:  # noqa: ARG001
    return images - np.uint8(images.mean())


unchanged = [1, 2, 3]


def test_it_is_called_with_images_draws_and_options() -> None:
    images, draws = random_images((8, 4, 4, 3)), draws_for(8)
    function = Function.model_validate({"target": f"{__name__}:shifted", "options": {"by": 3}})
    assert np.array_equal(function.apply(images, draws), shifted(images, draws, by=3))


@pytest.mark.parametrize("form", [(1, 8), (3, 1), (3, 33)])
def test_one_that_does_what_it_must_passes_the_trial(form: tuple[int, int]) -> None:
    function = Function(target=f"{__name__}:shifted", options={"by": 7})
    try_functions([HorizontalFlip(), function, RandomMix(of=(function,))], *form)


REFUSED = [
    ("no_such_module:f",
     r"which cannot be imported \(ModuleNotFoundError: No module named 'no_such_module'\), must be a function in a "
     r"module that every node can import\. Install it there, or put its folder on PYTHONPATH"),
    ("missing", r"which cannot be imported \(AttributeError: module '.*' has no attribute 'missing'\), must be a func"),
    ("unchanged", "which is of type list, must be a function. Correct it"),
    ("of_another_form",
     r"which returned uint8 \(4, 7, 8, 3\), must return an array of uint8 \(4, 8, 8, 3\), as it was given"),
    ("of_another_type", r"which returned float64 \(4, 8, 8, 3\), must return an array of uint8"),
    ("none", "which returned NoneType, must return an array of uint8"),
    ("in_place", "which wrote to the images that it was given, must leave them alone and return others"),
    ("broken", r"which raised RuntimeError: no idea, must take uint8 images \(4, 8, 8, 3\), draws and `options`"),
    ("with_other_draws", "which made other pixels of an image alone .*, must .* with all randomness from `draws`"),
    ("of_the_batch", "which made other pixels of an image alone than of the same one in a batch"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "message"), REFUSED, ids=[name for name, _ in REFUSED])
def test_one_that_cannot_be_used_is_refused_by_its_place_and_says_why(name: str, message: str) -> None:
    function = Function(target=name if ":" in name else f"{__name__}:{name}")
    with pytest.raises(ValueError, match=rf"^augment\.1\.function\.target: got [\w.]+:\w+, {message}"):
        try_functions([HorizontalFlip(), function], 3, 8)
    with pytest.raises(ValueError, match=rf"^augment\.0\.random_mix\.of\.1\.function\.target: got .*, {message}"):
        try_functions([RandomMix(of=(HorizontalFlip(), function))], 3, 8)


def test_options_that_it_does_not_take_are_refused() -> None:
    with pytest.raises(ValueError, match=r"which raised TypeError: .* unexpected keyword argument 'to', must take"):
        try_functions([Function(target=f"{__name__}:shifted", options={"to": 1})], 3, 8)


def test_a_target_without_a_colon_is_a_mistake_of_the_file() -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        Function(target="no colon")


@pytest.mark.parametrize("command", ["train", "preview"])
def test_commands_refuse_it_before_anything_starts(command: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def half(images, draws):\n    return images[:2]\n")
    options = {"train": ["--explain"], "preview": ["--out", "preview.png"]}[command]
    refused = convoy(command, DIGITS, "data.augment=[{function: {target: 'mine:half'}}]", *options, cwd=tmp_path)
    assert refused.returncode == 2
    assert "data.augment.0.function.target: got mine:half, which returned uint8 (2, 8, 8, 1), must" in refused.stderr
    assert "Traceback" not in refused.stderr
