"""What `convoy preview` draws is what training gets."""

from pathlib import Path

import numpy as np
from PIL import Image

from orchestrator.config.load import load_experiment
from pipelines.preview import GAP, LABEL_HEIGHT, SMALLEST_TILE, preview
from pipelines.produce import Recipe
from pipelines.sources import open_source
from tests.conftest import DIGITS, convoy

TILE = SMALLEST_TILE


def tile(page: Image.Image, row: int, column: int, side: int) -> np.ndarray:
    left, top = GAP + column * (TILE + GAP), LABEL_HEIGHT + GAP + row * (TILE + LABEL_HEIGHT + GAP)
    drawn = np.asarray(page)[top : top + TILE, left : left + TILE, 0]
    return drawn[TILE // side // 2 :: TILE // side, TILE // side // 2 :: TILE // side]


def test_the_pixels_are_those_of_training_at_that_epoch_and_position() -> None:
    data = load_experiment(DIGITS, []).data
    recipe = Recipe(open_source("digits", "train"), data, 3, training=True, checksums=False)
    page = preview(recipe, samples=2, epochs=3)
    num = len(recipe.source.listing)
    for row, sample_id in enumerate(recipe.sample_ids(0, range(2))):
        index = recipe.source.listing.ids.to_pylist().index(sample_id)
        assert np.array_equal(tile(page, row, 0, 8), recipe.source.read(index)[..., 0])
        for epoch in range(3):
            position = recipe.sample_ids(epoch, range(num)).index(sample_id)
            trained = recipe.produce(epoch, range(position, position + 1)).images[0, ..., 0]
            assert np.array_equal(tile(page, row, 1 + epoch, 8), trained)


def test_the_command_writes_an_image_and_refuses_a_name_that_is_none(tmp_path: Path) -> None:
    done = convoy("preview", DIGITS, "--out", "digits.png", "--samples", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "digits.png") as page:
        assert page.size == (GAP + 6 * (TILE + GAP), LABEL_HEIGHT + GAP + 3 * (TILE + LABEL_HEIGHT + GAP))
    wrong = convoy("preview", DIGITS, "--out", "digits.txt", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "--out: got digits.txt, must end in .png, .jpg or .webp" in wrong.stderr
