"""The program: what is refused, what is fused, and that fusing and batching change no pixel that they should not."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from augment_samples import draws_for, keys_for, random_images, smooth_image
from pydantic import ValidationError

from pipelines.augment.affine import Rotate, Shear
from pipelines.augment.base import ColourAugmentation, CpuAugmentation, Framing, Mixing
from pipelines.augment.colour import ColourJitter
from pipelines.augment.crop import RandomCrop
from pipelines.augment.elastic import Elastic
from pipelines.augment.erase import Cutout
from pipelines.augment.flip import HorizontalFlip
from pipelines.augment.framing import CenterCrop, RandomResizedCrop
from pipelines.augment.geometry import Geometric, apply_as_one
from pipelines.augment.mixing import Mixup, partners_of
from pipelines.augment.normalize import Normalize
from pipelines.augment.on_device import DeviceProgram
from pipelines.augment.on_device import mixed as joined
from pipelines.augment.program import compile_program
from pipelines.augment.tone import Invert
from pipelines.config import Augmentation, PipelineConfig
from pipelines.randomness import Draws

CPU = torch.device("cpu")
NORMALIZE = Normalize(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
WHOLE = (
    RandomResizedCrop(),
    HorizontalFlip(),
    Rotate(),
    Shear(),
    Elastic(sigma=2.0),
    Cutout(side=4),
    ColourJitter(hue=0.1),
    NORMALIZE,
    Mixup(),
)

NORMALIZE_ENTRY = {"normalize": {"mean": [0, 0, 0], "std": [1, 1, 1]}}


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (["horizontal_flip", "random_resized_crop"],
         r"augment\.1: got random_resized_crop after horizontal_flip, must come before it, because it says which part"),
        (["random_resized_crop", "scale_jitter"],
         r"augment\.1: got scale_jitter beside random_resized_crop, must be one of the two. Remove the other"),
        (["colour_jitter", "rotate"],
         r"augment\.1: got rotate after colour_jitter, must come before it, because it changes uint8 pixels"),
        (["mixup", "colour_jitter"],
         r"augment\.1: got colour_jitter after mixup, must come before it, because colours are changed on the device"),
        (["horizontal_flip", "mixup", "cutmix"],
         r"augment\.2: got cutmix beside mixup, must be one of the two. Remove the other"),
        ([NORMALIZE_ENTRY, "horizontal_flip"],
         r"augment\.0: got normalize as number 1 of 2, must be the last, because pixels stay uint8 until the device"),
        ([NORMALIZE_ENTRY, "colour_jitter", "mixup"],
         r"augment\.0: got normalize as number 1 of 3, must be the last but for mixup, because .*, before mixup\."),
        ([NORMALIZE_ENTRY, NORMALIZE_ENTRY], r"augment\.0: got normalize as number 1 of 2, must be the last"),
        (["mixup", NORMALIZE_ENTRY],
         r"augment\.1: got normalize after mixup, must come before it, because what is mixed is normalised"),
        ([{"normalize": {"mean": [0], "std": [1]}}],
         r"augment\.0\.normalize\.mean: got \[0\.0\], must have one value for each of data\.channels=3"),
    ],
)  # fmt: skip
def test_an_order_that_cannot_be_executed_is_a_mistake_of_the_file(augment: list[object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PipelineConfig.model_validate({"train": "x", "val": "x", "image_size": 32, "augment": augment})


def test_a_program_says_what_runs_where_and_what_was_fused() -> None:
    assert compile_program(WHOLE).describe() == [
        "decoder: random_resized_crop",
        "CPU: horizontal_flip",
        "CPU: rotate + shear + elastic, as one resampling",
        "CPU: cutout",
        "device: colour_jitter + normalize, as one matrix an image, clipped once",
        "device: mixup, which mixes labels",
    ]
    assert compile_program(()).describe() == [
        "decoder: center_crop",
        "device: division by 255, as one multiplication and one addition",
    ]


def test_geometry_is_fused_only_where_nothing_else_comes_between_and_borders_are_the_same() -> None:
    between = compile_program([Rotate(), Invert(), Shear()])
    other_fill = compile_program([Rotate(), Shear(fill=9), Rotate(fill=9, border="reflect")])
    for program in (between, other_fill):
        assert [len(step.augmentations) for step in program.cpu] == [1, 1, 1]
    assert [step.first for step in compile_program([HorizontalFlip(), Rotate(), Shear(), Invert()]).cpu] == [0, 1, 3]


def test_every_augmentation_draws_by_its_place_in_the_list() -> None:
    images = np.stack([smooth_image(20, 20, seed=i) for i in range(6)])
    keys = keys_for(6)
    result = compile_program(WHOLE).apply_cpu(images, 3, 4, keys)

    def draws(number: int) -> Draws:
        return Draws(3, 4, keys, number)

    expected = HorizontalFlip().apply(images, draws(1))
    expected = apply_as_one([Rotate(), Shear(), Elastic(sigma=2.0)], expected, [draws(2), draws(3), draws(4)])
    expected = Cutout(side=4).apply(expected, draws(5))
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_an_image_becomes_the_same_in_any_batch_from_uint8_to_floats(channels_last: bool) -> None:
    program = compile_program(WHOLE)
    device = DeviceProgram(program, 3, CPU, channels_last=channels_last)
    images, keys = random_images((32, 16, 16, 3)), keys_for(32)

    def made(part: slice) -> tuple[torch.Tensor, list[int], torch.Tensor]:
        pixels = torch.from_numpy(program.apply_cpu(images[part], 1, 2, keys[part]).copy())
        floats, partners, share = device(pixels, 1, 2, keys[part], range(96, 128)[part], training=True)
        assert partners is not None
        assert share is not None
        return floats, [range(32)[part][i] for i in partners.tolist()], share

    whole, partners, share = made(slice(0, 32))
    for part in (slice(0, 8), slice(8, 32)):
        alone = made(part)
        assert torch.equal(alone[0], whole[part])
        assert alone[1] == partners[part]
        assert torch.equal(alone[2], share[part])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("num", [0, 5])
def test_without_colours_and_in_evaluation_pixels_are_only_normalised(
    channels_last: bool, training: bool, num: int
) -> None:
    augment = (HorizontalFlip(), NORMALIZE) if training else WHOLE
    device = DeviceProgram(compile_program(augment), 3, CPU, channels_last=channels_last)
    images = random_images((num, 6, 7, 3))
    result, partners, share = device(
        torch.from_numpy(images.copy()), 0, 0, keys_for(num), range(num), training=training
    )
    assert partners is None
    assert share is None
    expected = (images / 255 - NORMALIZE.mean) / NORMALIZE.std
    assert result.shape == (num, 3, 6, 7)
    assert np.abs(result.permute(0, 2, 3, 1).numpy() - expected).max(initial=0) < 1e-5
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert num == 0 or result.is_contiguous(memory_format=layout)


def test_without_normalize_pixels_are_divided_by_255() -> None:
    for augment in ((), (ColourJitter(brightness=0, contrast=0, saturation=0),)):
        device = DeviceProgram(compile_program(augment), 3, CPU, channels_last=False)
        images = random_images((3, 4, 4, 3))
        result, _, _ = device(torch.from_numpy(images.copy()), 0, 0, keys_for(3), range(3), training=True)
        assert np.abs(result.permute(0, 2, 3, 1).numpy() - images / 255).max() < 1e-6


def test_what_is_mixed_is_normalised_and_partners_come_from_positions() -> None:
    program = compile_program([NORMALIZE, Mixup(alpha=1.0)])
    assert program.has_mixing
    assert not compile_program([NORMALIZE]).has_mixing
    images, keys = random_images((16, 4, 4, 3)), keys_for(16)
    pixels = torch.from_numpy(images.copy())
    mixed, partners, share = DeviceProgram(program, 3, CPU, channels_last=False)(
        pixels, 5, 1, keys, range(40, 56), training=True
    )
    plain, _, _ = DeviceProgram(compile_program([NORMALIZE]), 3, CPU, channels_last=False)(
        pixels, 5, 1, keys, range(40, 56), training=True
    )
    assert partners is not None
    assert share is not None
    assert partners.tolist() == partners_of(range(40, 56), 5, 1, 1).tolist()
    plan = Mixup(alpha=1.0).plan((4, 4), Draws(5, 1, keys, 1), Draws(0, 0, keys, 0))
    assert torch.equal(mixed, joined(plain, partners, plan))
    assert share.dtype == torch.float32
    assert np.array_equal(share.numpy(), plan.shares.astype(np.float32))


def test_evaluation_sees_the_central_square_unless_training_does_otherwise_without_drawing() -> None:
    assert compile_program(WHOLE).evaluation_framing == CenterCrop()
    assert compile_program([RandomCrop(padding=1)]).framing == CenterCrop()
    assert compile_program([CenterCrop(share=0.875)]).evaluation_framing == CenterCrop(share=0.875)


def test_a_batch_that_nothing_is_done_to_is_not_copied() -> None:
    images = random_images((2, 4, 4, 3))
    assert compile_program([NORMALIZE]).apply_cpu(images, 0, 0, keys_for(2)) is images
    flipped = HorizontalFlip(probability=1.0).apply(images, draws_for(2))
    assert compile_program([HorizontalFlip(probability=1.0)]).apply_cpu(images, 0, 0, keys_for(2)).flags.c_contiguous
    assert not np.array_equal(flipped, images)


PAGE = Path(__file__).parents[2] / "docs" / "augmentation.md"
KINDS = {kind.model_fields["name"].default: kind for kind in get_args(get_args(Augmentation)[0])}


def rows_of(width: int) -> list[list[str]]:
    """The rows of the page's table with `width` columns, without its head."""
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines() if line[:1] == "|"
    ]
    return [row for row in rows if len(row) == width and row[0] not in ("Augmentation", "---")]


def test_the_page_names_every_augmentation_and_where_it_runs() -> None:
    table = {row[0]: row for row in rows_of(5)}
    assert table.keys() == KINDS.keys()
    for name, kind in KINDS.items():
        where = "CPU, fused" if issubclass(kind, Geometric) else "CPU" if issubclass(kind, CpuAugmentation) else None
        where = "decoder" if issubclass(kind, Framing) else "device" if issubclass(kind, Mixing) else where
        where = "device or CPU, one matrix" if issubclass(kind, ColourAugmentation) else where
        assert table[name][1] == (where or "device, one matrix"), name
        assert (table[name][2] == "mixed") == issubclass(kind, Mixing), name


def test_the_page_names_every_option_with_its_default() -> None:
    written: dict[tuple[str, str], str] = {}
    fused = [name for name, kind in KINDS.items() if issubclass(kind, Geometric)]
    for names, option, default, _ in rows_of(4):
        for name in fused if names == "every fused one" else names.split(", "):
            written[name, option.strip("`")] = default
    options = {(n, o): f for n, kind in KINDS.items() for o, f in kind.model_fields.items() if o != "name"}
    assert written.keys() == options.keys()
    for key, field in options.items():
        if field.is_required() or "eigen" in key[1]:
            assert written[key] == ("required" if field.is_required() else "ImageNet's")
        elif isinstance(field.default, tuple):
            assert [float(x) for x in written[key].strip("[]").split(",")] == pytest.approx(field.default, abs=1e-4), (
                key
            )
        else:
            assert written[key] == str(field.default).removesuffix(".0"), key
