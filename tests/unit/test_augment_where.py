"""Colours on the CPU and on the device: the same pixels, whichever the file says, and what else `where` decides."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from augment_samples import Pixels, keys_for, random_images, smooth_image
from pydantic import ValidationError

from pipelines.augment.base import ColourAugmentation
from pipelines.augment.colour import ColourJitter
from pipelines.augment.flip import HorizontalFlip
from pipelines.augment.normalize import Normalize
from pipelines.augment.on_device import DeviceProgram
from pipelines.augment.pca import PcaColour
from pipelines.augment.program import Entry, compile_program
from pipelines.augment.tone import Invert
from pipelines.config import PipelineConfig
from pipelines.randomness import Draws

CPU = torch.device("cpu")
NORMALIZE = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
STRONG = {"brightness": 0.9, "contrast": 2.0, "saturation": 3.0, "hue": 0.5}
CHAINS: list[tuple[ColourAugmentation, ...]] = [
    (ColourJitter(),),
    (ColourJitter(**STRONG),),
    (PcaColour(),),
    (PcaColour(deviation=3.0),),
    (ColourJitter(hue=0.2), PcaColour()),
    (PcaColour(deviation=1.0), ColourJitter(**STRONG), ColourJitter(contrast=0.9), PcaColour()),
]


def on_cpu(chain: Sequence[ColourAugmentation]) -> list[ColourAugmentation]:
    return [colour.model_copy(update={"where": "cpu"}) for colour in chain]


def made(augment: Sequence[Entry], images: Pixels, normalize: Normalize | None = None) -> np.ndarray:
    """What the network would take, in grey levels that are not rounded: (N, H, W, C)."""
    program, keys = compile_program([*augment, *([normalize] if normalize else [])]), keys_for(len(images))
    pixels = torch.from_numpy(program.apply_cpu(images, 5, 2, keys).copy())
    device = DeviceProgram(program, images.shape[3], CPU, channels_last=True)
    values = device(pixels, 5, 2, keys, range(len(images)), training=True)[0].permute(0, 2, 3, 1).numpy()
    return 255 * (values * normalize.std + normalize.mean if normalize else values)


@pytest.mark.parametrize("chain", CHAINS, ids=repr)
@pytest.mark.parametrize("normalize", [None, NORMALIZE], ids=["no_normalize", "normalize"])
def test_colours_are_the_same_on_the_cpu_and_on_the_device_within_one_grey_level(
    chain: tuple[ColourAugmentation, ...], normalize: Normalize | None
) -> None:
    """Rounding to uint8 is half a level; three factors of 10 bits, of up to 255 levels each, are another 0.37."""
    noise = random_images((40, 9, 7, 3))
    photos = np.stack([smooth_image(24, 31, seed=i) for i in range(40)])
    for images in (noise, photos):
        ours, theirs = made(on_cpu(chain), images, normalize), made(chain, images, normalize)
        assert np.abs(ours - theirs).max() < 0.9
        assert np.abs(theirs - images).max() > 5


def test_grey_images_have_the_same_contrast_on_the_cpu_and_on_the_device() -> None:
    jitter, images = ColourJitter(contrast=1.0, saturation=0.0), random_images((40, 9, 7, 1))
    assert np.abs(made(on_cpu([jitter]), images) - made([jitter], images)).max() < 0.9


@pytest.mark.parametrize("chain", CHAINS, ids=repr)
def test_what_is_looked_at_is_what_the_device_makes_within_one_grey_level(
    chain: tuple[ColourAugmentation, ...],
) -> None:
    images, keys = random_images((6, 8, 8, 3)), keys_for(6)
    looked_at = compile_program([Invert(), *chain, NORMALIZE]).apply_device_colour(images, 5, 2, keys)
    program = compile_program([*on_cpu([ColourJitter()]), *chain])  # the same place in the list
    device = DeviceProgram(program, 3, CPU, channels_last=False)
    values, _, _ = device(torch.from_numpy(images.copy()), 5, 2, keys, range(6), training=True)
    assert np.abs(looked_at - 255 * values.permute(0, 2, 3, 1).numpy()).max() < 0.9
    assert compile_program([]).apply_device_colour(images, 0, 1, keys) is images


def test_colours_between_other_changes_happen_in_the_order_of_the_list_with_the_draws_of_their_place() -> None:
    images, keys = random_images((12, 8, 8, 3)), keys_for(12)
    first, second = on_cpu([ColourJitter(), PcaColour(deviation=1.0)])
    program = compile_program([HorizontalFlip(), first, Invert(probability=0.5), second, ColourJitter(), NORMALIZE])
    expected = HorizontalFlip().apply(images, Draws(5, 2, keys, 0))
    expected = first.colours(3, Draws(5, 2, keys, 1)).apply(expected)
    expected = Invert(probability=0.5).apply(expected, Draws(5, 2, keys, 2))
    expected = second.colours(3, Draws(5, 2, keys, 3)).apply(expected)
    assert np.array_equal(program.apply_cpu(images, 5, 2, keys), expected)


def test_an_image_has_the_same_colours_on_the_cpu_in_any_batch_and_is_left_alone() -> None:
    program = compile_program(on_cpu(CHAINS[-1]))
    images, keys = random_images((9, 8, 8, 3)), keys_for(9)
    before = images.copy()
    whole = program.apply_cpu(images, 0, 0, keys)
    assert np.array_equal(images, before)
    for part in (slice(0, 1), slice(3, 7), slice(None, None, -1), slice(0, 0)):
        assert np.array_equal(program.apply_cpu(images[part], 0, 0, keys[part]), whole[part])


def test_a_program_says_where_colours_are_changed() -> None:
    jitter, pca = on_cpu([ColourJitter(), PcaColour()])
    assert compile_program([jitter, pca, Invert(), jitter, PcaColour(), NORMALIZE]).describe() == [
        "decoder: center_crop",
        "CPU: colour_jitter + pca_colour, as one matrix an image, clipped once",
        "CPU: invert",
        "CPU: colour_jitter, as one matrix an image, clipped once",
        "device: pca_colour + normalize, as one matrix an image, clipped once",
    ]
    assert compile_program([jitter]).describe() == [
        "decoder: center_crop",
        "CPU: colour_jitter, as one matrix an image, clipped once",
        "device: division by 255, as one multiplication and one addition",
    ]


CPU_JITTER = {"colour_jitter": {"where": "cpu"}}


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (["pca_colour", CPU_JITTER],
         r"augment\.1: got colour_jitter after pca_colour, must come before it, because it changes uint8 pixels on the "
         r"CPU, before the device\. Move it up, or set where: cpu of pca_colour\."),
        (["colour_jitter", "rotate"],
         r"augment\.1: got rotate after colour_jitter, .* Move it up, or set where: cpu of colour_jitter\."),
        (["mixup", CPU_JITTER], r"augment\.1: got colour_jitter after mixup, .* Move it up\. "),
        ([CPU_JITTER, "scale_jitter"], r"augment\.1: got scale_jitter after colour_jitter, .* Move it up\. "),
        ([{"colour_jitter": {"where": "gpu"}}], "where\n.*should be 'device' or 'cpu'"),
    ],
)  # fmt: skip
def test_what_is_on_the_cpu_cannot_come_after_the_device(augment: list[object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PipelineConfig.model_validate({"train": "x", "val": "x", "image_size": 32, "augment": augment})


def test_a_list_with_all_colours_on_the_cpu_may_go_on_with_other_changes() -> None:
    PipelineConfig.model_validate(
        {"train": "x", "val": "x", "image_size": 32, "augment": [CPU_JITTER, "rotate", CPU_JITTER, "pca_colour"]}
    )
