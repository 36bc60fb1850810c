"""Colour: the one matrix an image against torchvision's steps one by one, and against the formulas written out."""

import colorsys

import numpy as np
import pytest
import torch
from augment_samples import draws_for, keys_for, random_images, smooth_image
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.stats import chisquare, kstest
from sklearn.decomposition import PCA
from torchvision.transforms.v2 import functional

from pipelines.augment.base import ColourAugmentation
from pipelines.augment.colour import LUMA, ColourJitter, jitter_matrices
from pipelines.augment.normalize import Normalize
from pipelines.augment.on_device import DeviceProgram, apply_matrices, colour_matrices, mean_pixels
from pipelines.augment.pca import PcaColour, normals
from pipelines.augment.program import compile_program
from pipelines.config import PipelineConfig
from pipelines.randomness import Draws

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def muted(num: int, channels: int = 3) -> NDArray[np.uint8]:
    """Images that no moderate change of colour drives out of [0, 255]."""
    return np.stack([smooth_image(12, 10, channels, seed=i) // 4 + np.uint8(95) for i in range(num)])


def changed(augmentation: ColourAugmentation, images: NDArray[np.uint8], draws: Draws) -> torch.Tensor:
    """By the augmentation alone, in [0, 1], unclipped: (N, C, H, W)."""
    pixels = torch.from_numpy(images)
    channels = images.shape[3]
    matrices = colour_matrices(augmentation.colours(channels, draws), mean_pixels(pixels))
    values = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255
    return apply_matrices(values, matrices[:, :, :channels], matrices[:, :, channels:])


def test_jitter_is_torchvisions_where_nothing_is_clipped() -> None:
    """Tolerance: torchvision's luma weighs red 0.2989 instead of 0.299, 1e-4 of a value, in up to two of the steps."""
    jitter, images, draws = ColourJitter(brightness=0.2, contrast=0.3, saturation=0.4), muted(40), draws_for(40)
    factors, orders = jitter.factors(draws)
    steps = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation]
    result = changed(jitter, images, draws)
    for i in range(40):
        expected = torch.from_numpy(images[i]).permute(2, 0, 1).to(torch.float32) / 255
        for step in orders[i].tolist():
            if step < 3:
                expected = steps[step](expected, float(factors[i, step]))
        assert (result[i] - expected).abs().max().item() <= 2e-4


def test_jitter_of_grey_images_is_torchvisions() -> None:
    jitter, images, draws = ColourJitter(brightness=0.2, contrast=0.3, saturation=0.0), muted(20, 1), draws_for(20)
    factors, orders = jitter.factors(draws)
    steps = [functional.adjust_brightness, functional.adjust_contrast]
    result = changed(jitter, images, draws)
    for i in range(20):
        expected = torch.from_numpy(images[i]).permute(2, 0, 1).to(torch.float32) / 255
        for step in orders[i].tolist():
            if step < 2:
                expected = steps[step](expected, float(factors[i, step]))
        assert (result[i] - expected).abs().max().item() <= 1e-5


def one_by_one(
    pixels: NDArray[np.float64], factors: NDArray[np.float64], order: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The four steps as they are defined, in float64, each with the mean of the pixels that it meets: (H, W, 3)."""
    for step in order.tolist():
        factor = factors[step]
        luma = pixels @ LUMA
        if step == 0:
            pixels = pixels * factor
        elif step == 1:
            pixels = factor * pixels + (1 - factor) * luma.mean()
        elif step == 2:
            pixels = factor * pixels + (1 - factor) * luma[..., None]
        else:
            i = pixels @ [0.5959, -0.2746, -0.3213]
            q = pixels @ [0.2115, -0.5227, 0.3112]
            chroma = (i + 1j * q) * np.exp(-2j * np.pi * factor)
            yiq = np.stack([luma, chroma.real, chroma.imag], axis=-1)
            to_yiq = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
            pixels = np.linalg.solve(to_yiq, yiq[..., None])[..., 0]
    return pixels


@pytest.mark.parametrize("channels_last", [False, True])
def test_all_colours_and_normalisation_fold_into_one_matrix(channels_last: bool) -> None:
    """Two jitters and PCA between, on noise, against step by step. Tolerance: float32, a few roundings."""
    first, pca = ColourJitter(hue=0.3), PcaColour(deviation=0.5)
    second = ColourJitter(brightness=0.1, contrast=0.9, saturation=0.0)
    program = compile_program([first, pca, second, Normalize(mean=MEAN, std=STD)])
    images, keys = random_images((12, 9, 7, 3)), keys_for(12)
    device = DeviceProgram(program, 3, CPU, channels_last=channels_last)
    result, partners, share = device(torch.from_numpy(images.copy()), 5, 2, keys, range(12), training=True)
    assert partners is None
    assert share is None
    assert result.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    draws = [Draws(5, 2, keys, number) for number in range(3)]
    num_clipped = 0
    for i in range(12):
        pixels = images[i] / 255
        pixels = one_by_one(pixels, *(values[i] for values in first.factors(draws[0])))
        pixels = pixels + pca.offsets(draws[1])[i]
        pixels = one_by_one(pixels, *(values[i] for values in second.factors(draws[2])))
        num_clipped += int(pixels.min() < 0.0 or pixels.max() > 1.0)
        expected = (np.clip(pixels, 0, 1) - MEAN) / STD
        assert np.abs(result[i].permute(1, 2, 0).numpy() - expected).max() <= 2e-5
    assert num_clipped > 3


def test_an_image_has_the_same_colours_bit_for_bit_in_any_batch() -> None:
    program = compile_program([ColourJitter(hue=0.2), PcaColour(), Normalize(mean=MEAN, std=STD)])
    device = DeviceProgram(program, 3, CPU, channels_last=True)
    images, keys = random_images((33, 40, 24, 3)), keys_for(33)
    whole, _, _ = device(torch.from_numpy(images.copy()), 0, 0, keys, range(33), training=True)
    for part in (slice(0, 1), slice(5, 14), slice(0, 0)):
        batch = torch.from_numpy(images[part].copy())
        alone, _, _ = device(batch, 0, 0, keys[part], range(33)[part], training=True)
        assert torch.equal(alone, whole[part])


def turned(hue: float, colours: NDArray[np.float64]) -> NDArray[np.float64]:
    linear, offset = jitter_matrices(np.array([[1.0, 1.0, 1.0, hue]]), np.array([[0, 1, 2, 3]]), 3)
    assert np.abs(offset).max() < 1e-12
    return colours @ linear[0].T


def test_hue_turns_colours_as_hsv_does_but_keeps_luma_and_greys() -> None:
    colours = np.random.default_rng(0).uniform(0.4, 0.6, (500, 3))
    for hue in (-0.4, -0.1, 0.05, 0.25):
        result = turned(hue, colours)
        assert np.allclose(result @ LUMA, colours @ LUMA)
        before, after = (np.array([colorsys.rgb_to_hsv(*c)[0] for c in x]) for x in (colours, result))
        apart = (after - before - hue + 0.5) % 1 - 0.5
        assert abs(np.median(apart)) < 0.03
        assert np.abs(apart).max() < 0.15
    assert np.allclose(turned(0.5, colours), 2 * (colours @ LUMA)[:, None] - colours)
    assert np.allclose(turned(0.2, turned(0.3, colours)), turned(0.5, colours))
    assert np.allclose(turned(0.37, np.full((1, 3), 0.3)), 0.3, atol=1e-4)  # NTSC's rows sum to zero to four digits


def test_factors_are_uniform_and_all_orders_equally_likely() -> None:
    draws = draws_for(6000)
    factors, orders = ColourJitter(brightness=0.3, contrast=1.5, saturation=0.0, hue=0.1).factors(draws)
    for column, (low, high) in enumerate([(0.7, 1.3), (0.0, 2.5), (1.0, 1.0), (-0.1, 0.1)]):
        if high > low:
            assert kstest(factors[:, column], "uniform", (low, high - low)).pvalue > 1e-3
        else:
            assert (factors[:, column] == 1.0).all()
    codes = (orders * [64, 16, 4, 1]).sum(axis=1)
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == 24
    assert chisquare(counts).pvalue > 1e-3


def test_pca_colour_adds_normal_amounts_of_each_component() -> None:
    vectors = np.array(PcaColour().eigenvectors)
    assert np.allclose(vectors.T @ vectors, np.eye(3), atol=2e-3)  # published with four digits
    offsets = PcaColour().offsets(draws_for(4000))
    for component, eigenvalue in enumerate(PcaColour().eigenvalues):
        amounts = np.linalg.solve(vectors, offsets.T)[component]
        assert kstest(amounts / (0.1 * eigenvalue), "norm").pvalue > 1e-3


def test_pca_colours_spread_lies_along_the_components_that_scikit_learn_finds() -> None:
    """Given the components of a training set, what is added has these components again."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(5000, 3)) @ rng.normal(size=(3, 3))
    found = PCA().fit(pixels)
    options = {"eigenvalues": found.singular_values_.tolist(), "eigenvectors": found.components_.T.tolist()}
    added = PCA().fit(PcaColour.model_validate(options).offsets(draws_for(5000)))
    assert np.abs(np.diag(added.components_ @ found.components_.T)).min() > 0.999


def test_normal_draws_are_normal_and_independent() -> None:
    drawn = normals(draws_for(5000), 3)
    for column in range(3):
        assert kstest(drawn[:, column], "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.05
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("colour_jitter", r"augment\.0\.colour_jitter\.saturation: got 0\.4, must be 0 for data\.channels=1"),
        ({"colour_jitter": {"saturation": 0, "hue": 0.1}}, r"augment\.0\.colour_jitter\.hue: got 0\.1, must be 0 for"),
        ("pca_colour", r"augment\.0\.pca_colour: got data\.channels=1, must be 3 for it\. Remove it"),
        ("grayscale", r"augment\.0\.grayscale: got data\.channels=1, must be 3 for it"),
        ({"random_mix": {"of": ["invert", "grayscale"]}}, r"augment\.0\.random_mix\.of\.1\.grayscale: got data\.chann"),
    ],
)
def test_colour_on_grey_images_is_a_mistake_of_the_file(augment: object, message: str) -> None:
    pipeline = {"train": "x", "val": "x", "image_size": 8, "augment": [augment]}
    PipelineConfig.model_validate(pipeline)
    with pytest.raises(ValidationError, match=message):
        PipelineConfig.model_validate({**pipeline, "channels": 1})
