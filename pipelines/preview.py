"""Look at what training will see: samples of a step and what augmentation makes of them in the first epochs.

The pixels are those of training at that epoch and position, colours included. Mixing, which joins samples of a
batch, is not shown.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipelines.augment.program import compile_program
from pipelines.produce import Recipe

GAP = 6
LABEL_HEIGHT = 14
SMALLEST_TILE = 96  # smaller images are enlarged by whole factors
INK, PAPER = (31, 41, 51), (255, 255, 255)


def preview(recipe: Recipe, *, samples: int, epochs: int) -> Image.Image:
    """A row for each of the first samples of epoch 0: as it is, then as training sees it in epochs 0, 1, ..."""
    count = min(samples, len(recipe.source.listing))
    positions = range(count)
    ids = recipe.sample_ids(0, positions)
    indices = recipe.indices(0, positions)
    untouched = Recipe(recipe.source, recipe.config, recipe.seed, training=False, checksums=False)
    columns = [("as it is", _at(untouched, indices))]
    for epoch in range(epochs):
        where = np.argsort(recipe.indices(epoch, range(len(recipe.source.listing))))[indices]
        columns.append((f"epoch {epoch}", [_trained(recipe, epoch, int(position)) for position in where]))
    return _grid(columns, [_name(recipe, sample_id, int(index)) for sample_id, index in zip(ids, indices, strict=True)])


def _name(recipe: Recipe, sample_id: str, index: int) -> str:
    """The id, which begins with the class; where a sample has no one class, the id and the label."""
    listing = recipe.source.listing
    return sample_id if listing.target.kind == "class" else f"{sample_id}: {listing.label_text(index)}"


def _at(recipe: Recipe, indices: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    return [recipe.produce(0, range(int(index), int(index) + 1)).images[0] for index in indices]


def _trained(recipe: Recipe, epoch: int, position: int) -> NDArray[np.uint8]:
    made = recipe.produce(epoch, range(position, position + 1))
    program = compile_program(recipe.config.augment)
    coloured: NDArray[np.uint8] = program.apply_device_colour(made.images, recipe.seed, epoch, made.keys)[0]
    return coloured


def _grid(columns: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]], names: Sequence[str]) -> Image.Image:
    side = columns[0][1][0].shape[0]
    scale = max(1, SMALLEST_TILE // side)
    tile = side * scale
    cell_width, cell_height = tile + GAP, tile + LABEL_HEIGHT + GAP
    page = Image.new("RGB", (GAP + cell_width * len(columns), LABEL_HEIGHT + GAP + cell_height * len(names)), PAPER)
    draw = ImageDraw.Draw(page)
    for column, (title, images) in enumerate(columns):
        left = GAP + column * cell_width
        draw.text((left, 2), title, INK)
        for row, pixels in enumerate(images):
            top = LABEL_HEIGHT + GAP + row * cell_height
            image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
            page.paste(image.resize((tile, tile), Image.Resampling.NEAREST), (left, top))
            if column == 0:
                draw.text((left, top + tile + 1), names[row], INK)
    return page
