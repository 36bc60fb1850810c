import dataclasses
import io
import pickle
import random
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import NAMES, SORTED, write_folder, write_tar
from numpy.typing import NDArray
from PIL import Image

from pipelines.augment.crop import RandomCrop
from pipelines.augment.flip import HorizontalFlip
from pipelines.augment.normalize import Normalize
from pipelines.config import PipelineConfig
from pipelines.decode import UndecodableImage
from pipelines.order import order
from pipelines.produce import Recipe, Samples
from pipelines.randomness import mix, philox, words
from pipelines.sources import open_source

NUM = len(NAMES)
CONFIG = PipelineConfig(
    train="unused",
    val="unused",
    image_size=6,
    augment=(RandomCrop(padding=2), HorizontalFlip(), Normalize(mean=(0.5,) * 3, std=(0.2,) * 3)),
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    root = write_folder(tmp_path_factory.mktemp("images"))
    return Recipe(open_source(f"imagefolder:{root}", "train"), CONFIG, seed=3, training=True, checksums=True)


def same(one: Samples, other: Samples) -> bool:
    assert one.crc32 is not None
    assert other.crc32 is not None
    return (
        np.array_equal(one.images, other.images)
        and np.array_equal(one.labels, other.labels)
        and np.array_equal(one.crc32, other.crc32)
    )


def joined(parts: list[Samples]) -> Samples:
    checksums = [part.crc32 for part in parts if part.crc32 is not None]
    return Samples(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.keys for part in parts]),
        np.concatenate(checksums),
    )


def draw(seed: int, epoch: int, sample_id: str, augmentation: int, index: int) -> int:
    """One 32-bit draw, written out from its address."""
    low, high = words(mix("sample", sample_id))
    counter = np.array([low, high, epoch, augmentation << 16], np.uint64)
    return int(philox(counter, words(mix("augment", seed)))[index])


def by_hand(root: Path, sample_id: str, seed: int, epoch: int) -> NDArray[np.uint8]:
    """A sample of CONFIG, by Pillow, one step after the other."""
    image = Image.open(io.BytesIO((root / sample_id).read_bytes())).convert("RGB")
    padded = Image.new("RGB", (10, 10))
    padded.paste(image, (2, 2))
    top, left = (draw(seed, epoch, sample_id, 0, index) * 5 >> 32 for index in (0, 1))
    image = padded.crop((left, top, left + 6, top + 6))
    if draw(seed, epoch, sample_id, 1, 0) < 2**31:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_samples_are_what_their_addresses_say(tmp_path: Path, epoch: int) -> None:
    source = open_source(f"imagefolder:{write_folder(tmp_path)}", "train")
    samples = Recipe(source, CONFIG, seed=3, training=True, checksums=True).produce(epoch, range(NUM))
    chosen = [SORTED[index] for index in order(3, epoch, NUM)]
    expected = [by_hand(tmp_path, sample_id, 3, epoch) for sample_id in chosen]
    assert np.array_equal(samples.images, np.stack(expected))
    assert [("cat", "cat-big", "dog")[label] for label in samples.labels] == [name.split("/")[0] for name in chosen]
    assert samples.crc32 is not None
    assert samples.crc32.dtype == np.uint32
    assert samples.crc32.tolist() == [zlib.crc32(image.tobytes()) for image in expected]


@given(st.lists(st.integers(0, NUM), max_size=4), st.integers(0, 3), st.randoms())
@settings(deadline=None, max_examples=30)
def test_pixels_do_not_depend_on_how_positions_are_split_or_when_they_are_asked_for(
    recipe: Recipe, cuts: list[int], epoch: int, shuffler: random.Random
) -> None:
    bounds = [0, *sorted(cuts), NUM]
    parts = [range(start, stop) for start, stop in pairwise(bounds)]
    visits = list(range(len(parts)))
    shuffler.shuffle(visits)
    made = {i: recipe.produce(epoch, parts[i]) for i in visits}
    assert same(joined([made[i] for i in range(len(parts))]), recipe.produce(epoch, range(NUM)))


def test_threads_make_the_same_pixels(recipe: Recipe) -> None:
    addresses = [(epoch, range(i, i + 2)) for epoch in range(8) for i in range(NUM - 1)]
    expected = [recipe.produce(*address) for address in addresses]
    order.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda address: recipe.produce(*address), addresses))
    assert all(same(one, other) for one, other in zip(made, expected, strict=True))


def test_a_recipe_that_was_sent_makes_the_same_pixels(recipe: Recipe) -> None:
    sent = pickle.dumps(recipe)
    assert len(sent) < 4096
    assert same(pickle.loads(sent).produce(2, range(NUM)), recipe.produce(2, range(NUM)))


def test_a_tar_makes_the_pixels_of_the_folder(recipe: Recipe, tmp_path: Path) -> None:
    source = open_source(f"tar:{write_tar(tmp_path / 'x.tar', prefix='train/')}", "train")
    tar = dataclasses.replace(recipe, source=source)
    assert same(tar.produce(1, range(NUM)), recipe.produce(1, range(NUM)))


def test_a_sample_keeps_its_draws_when_others_join_the_data(recipe: Recipe, tmp_path: Path) -> None:
    root = write_folder(tmp_path, [*NAMES, "ant/1.png", "cat/0.png"])
    more = dataclasses.replace(recipe, source=open_source(f"imagefolder:{root}", "train"))
    made = [
        dict(zip(which.sample_ids(0, positions), which.produce(0, positions).images, strict=True))
        for which, positions in ((recipe, range(NUM)), (more, range(NUM + 2)))
    ]
    assert all(np.array_equal(made[1][sample_id], image) for sample_id, image in made[0].items())


def test_seeds_and_epochs_change_order_and_pixels(recipe: Recipe) -> None:
    other_seed = dataclasses.replace(recipe, seed=4)
    made = [recipe.produce(0, range(NUM)), recipe.produce(1, range(NUM)), other_seed.produce(0, range(NUM))]
    assert len({samples.images.tobytes() for samples in made}) == 3
    assert (
        len({tuple(which.sample_ids(e, range(NUM))) for which, e in ((recipe, 0), (recipe, 1), (other_seed, 0))}) == 3
    )


def test_evaluation_draws_nothing_and_keeps_the_order_of_the_source(recipe: Recipe) -> None:
    evaluation = dataclasses.replace(recipe, training=False)
    plain = dataclasses.replace(evaluation, config=CONFIG.model_copy(update={"augment": ()}))
    assert evaluation.sample_ids(5, range(NUM)) == SORTED
    assert same(evaluation.produce(5, range(NUM)), plain.produce(0, range(NUM)))


def test_sample_ids_are_those_of_the_samples(recipe: Recipe) -> None:
    assert recipe.sample_ids(2, range(3, 6)) == [SORTED[i] for i in order(3, 2, NUM)[3:6]]
    assert recipe.sample_ids(2, range(0, NUM, 3)) == [SORTED[i] for i in order(3, 2, NUM)[::3]]


def test_without_checksums_there_are_none(recipe: Recipe) -> None:
    assert dataclasses.replace(recipe, checksums=False).produce(0, range(2)).crc32 is None


@pytest.mark.parametrize("training", [True, False])
def test_no_positions_make_empty_arrays_of_the_right_shape(recipe: Recipe, training: bool) -> None:
    recipe = dataclasses.replace(recipe, training=training)
    samples = recipe.produce(0, range(4, 4))
    assert samples.images.shape == (0, 6, 6, 3)
    assert samples.images.dtype == np.uint8
    assert samples.labels.shape == (0,)
    assert samples.labels.dtype == np.int64
    assert samples.crc32 is not None
    assert samples.crc32.shape == (0,)
    assert samples.crc32.dtype == np.uint32
    assert recipe.sample_ids(0, range(4, 4)) == []


@pytest.mark.parametrize("training", [True, False])
def test_positions_beyond_the_data_are_an_error_and_no_smaller_batch(recipe: Recipe, training: bool) -> None:
    with pytest.raises(IndexError, match="out of bounds"):
        dataclasses.replace(recipe, training=training).produce(0, range(NUM - 1, NUM + 1))


def test_every_array_is_fresh_so_that_a_caller_may_keep_or_change_it() -> None:
    config = PipelineConfig(train="digits", val="digits", image_size=8, channels=1)
    recipe = Recipe(open_source("digits", "val"), config, seed=0, training=False, checksums=True)
    first = recipe.produce(0, range(4))
    before = Samples(first.images.copy(), first.labels.copy(), first.keys, first.crc32)
    first.images[:] = 0
    first.labels[:] = 0
    assert same(recipe.produce(0, range(4)), before)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.write_bytes(b"no image"), "no known image format; it begins with b'no image'"),
        (lambda file: file.write_bytes(file.read_bytes()[:60]), "OSError: "),
        (lambda file: file.write_bytes(b""), "the file is empty"),
        (lambda file: file.unlink(), "No such file or directory"),
    ],
    ids=["text", "cut", "empty", "gone"],
)
def test_a_sample_that_cannot_be_read_is_replaced_and_named(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    recipe = Recipe(
        open_source(f"imagefolder:{write_folder(tmp_path)}", "train"), CONFIG, seed=3, training=True, checksums=True
    )
    undamaged = recipe.produce(4, range(NUM))
    position = recipe.sample_ids(4, range(NUM)).index("cat/2.png")
    damage(tmp_path / "cat" / "2.png")
    samples = recipe.produce(4, range(NUM))
    (replaced,) = samples.replaced
    assert (replaced.epoch, replaced.position, replaced.sample_id) == (4, position, "cat/2.png")
    assert reason in replaced.reason
    stands_in = recipe.sample_ids(4, range(NUM)).index(replaced.by)
    assert samples.labels[position] == samples.labels[stands_in]
    assert np.array_equal(samples.images[position], samples.images[stands_in])
    others = np.arange(NUM) != position
    assert np.array_equal(samples.images[others], undamaged.images[others])
    assert np.array_equal(samples.labels[others], undamaged.labels[others])
    alone = recipe.produce(4, range(position, position + 1))
    assert alone.replaced == samples.replaced
    assert np.array_equal(alone.images[0], samples.images[position])


def test_where_nothing_can_be_read_the_error_says_so(tmp_path: Path) -> None:
    recipe = Recipe(
        open_source(f"imagefolder:{write_folder(tmp_path)}", "train"), CONFIG, seed=3, training=True, checksums=False
    )
    for name in NAMES:
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(
        UndecodableImage, match=r"at position \d of epoch 4 cannot be read, nor can 20 others"
    ) as caught:
        recipe.produce(4, range(NUM))
    arrived = pickle.loads(pickle.dumps(caught.value))
    assert (type(arrived), str(arrived)) == (UndecodableImage, str(caught.value))
