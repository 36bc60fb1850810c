"""Several classes and numbers as labels: from every source that can carry them, through shards, to batches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_files import encoded, pixels_of
from test_webdataset import write_members

from pipelines.check import find_bad
from pipelines.config import PipelineConfig
from pipelines.device import Targets, ToDevice
from pipelines.layout import Layout
from pipelines.listing import check_same_targets
from pipelines.loader import batches_from_blocks, batches_from_threads
from pipelines.order import Epoch, Position
from pipelines.pack import PackOptions, pack
from pipelines.preview import preview
from pipelines.produce import Recipe
from pipelines.shards import verify
from pipelines.sources import Source, open_source
from pipelines.stages import ChunkMaker
from pipelines.stats import Range, collect
from pipelines.targets import Target

NAMES = [f"{i}.png" for i in range(7)]
SEVERAL = [["dog", "cat"], [], ["emu"], ["cat"], ["emu", "cat", "dog"], ["dog"], ["cat", "cat"]]
HOT = [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0]]  # cat, dog, emu
NUMBERS = [[0.5, -1.0], [1.0, 2.0], [2.5, 0.0], [-3.0, 7.0], [0.0, 0.0], [1e-3, 1e3], [4.0, 5.0]]
LABELS: dict[str, Any] = {"classes": SEVERAL, "values": NUMBERS}
EXPECTED = {"classes": np.array(HOT, np.uint8), "values": np.array(NUMBERS, np.float32)}


def parquet(path: Path, label: Any, metadata: dict[str, Any] | None = None) -> Path:
    images = [encoded(pixels_of(name)) for name in NAMES[: len(label)]]
    table = pa.table({"image": images, "y": label, "file_name": NAMES[: len(label)]})
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {"y": metadata}}})})
    pq.write_table(table, path, row_group_size=3)
    return path


def tar(path: Path, labels: list[Any], field: str = "label") -> Path:
    members = {}
    for name, label in zip(NAMES, labels, strict=False):
        members[name] = encoded(pixels_of(name))
        members[name.replace(".png", ".json")] = json.dumps({field: label, "other": 1}).encode()
    return write_members(path, members)


def opened(path: Path, label: Any, options: str = "", metadata: dict[str, Any] | None = None) -> Source:
    return open_source(f"parquet:{parquet(path / 'x.parquet', label, metadata)}?label=y{options}", "train")


@pytest.fixture(params=["classes", "values"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    return opened(tmp_path, LABELS[request.param])


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_parquet_webdataset_and_shards_of_the_same_labels_are_one_source(kind: str, tmp_path: Path) -> None:
    column = opened(tmp_path, LABELS[kind])
    beside = open_source(f"tar:{tar(tmp_path / 'x.tar', LABELS[kind])}", "train")
    pack(column, tmp_path / "shards", PackOptions(shard_bytes=300), workers=1)
    packed = open_source(f"shards:{tmp_path / 'shards'}", "train")
    for one in (column, beside, packed):
        assert one.listing.target == Target(kind, 3 if kind == "classes" else 2)  # type: ignore[arg-type]
        assert one.listing.classes == (("cat", "dog", "emu") if kind == "classes" else ())
        assert one.listing.ids.to_pylist() == NAMES
        assert np.array_equal(one.listing.labels, EXPECTED[kind])
        assert one.listing.labels.dtype == EXPECTED[kind].dtype
        assert one.listing.fingerprint == column.listing.fingerprint
    assert verify(tmp_path / "shards", threads=2) == []


@pytest.mark.parametrize(
    ("column", "options", "kind"),
    [
        (pa.array([3, 1], pa.uint8()), "", "class"),
        (pa.array([3, 1]), "&target=class", "class"),
        (pa.array([3, 1]), "&target=values", "values"),
        (pa.array([0.5, 1.0], pa.float16()), "", "values"),
        (pa.array([[3], [1]], pa.list_(pa.int8())), "", "classes"),
        (pa.array([[3], [1]], pa.large_list(pa.int64())), "", "classes"),
        (pa.array([[3], [1]], pa.list_(pa.int64(), 1)), "&target=values", "values"),
        (pa.array([["a"], ["b"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))), "", "classes"),
        (pa.array([[0.5], [1.0]], pa.list_(pa.float32(), 1)), "", "values"),
        (pa.array([[0.5], [1.0]], pa.list_(pa.float64())), "&target=values", "values"),
    ],
)
def test_the_type_of_a_column_says_what_it_is_unless_the_source_does(
    column: Any, options: str, kind: str, tmp_path: Path
) -> None:
    listing = opened(tmp_path, column, options).listing
    assert listing.target.kind == kind
    if kind == "values":
        assert listing.labels.ravel().tolist() == np.array(column.to_pylist(), np.float32).ravel().tolist()


@pytest.mark.parametrize(
    ("column", "target"),
    [([0.5], "class"), ([0.5], "classes"), ([1], "classes"), ([[1]], "class"), (["a"], "values"), ([[0.5]], "classes")],
)
def test_a_column_that_cannot_be_what_it_is_said_to_be_is_refused(column: Any, target: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"column y is .*, which target={target} does not fit; must be whole numbers"):
        opened(tmp_path, column, f"&target={target}")


@pytest.mark.parametrize(
    "metadata",
    [
        {"_type": "Sequence", "feature": {"_type": "ClassLabel", "names": ["emu", "cat", "ant", "dog"]}},
        {"_type": "List", "feature": {"_type": "ClassLabel", "names": ["emu", "cat", "ant", "dog"]}},
        [{"_type": "ClassLabel", "names": ["emu", "cat", "ant", "dog"]}],
    ],
)
def test_a_list_of_hugging_faces_class_labels_keeps_the_class_list(metadata: Any, tmp_path: Path) -> None:
    listing = opened(tmp_path, [[0, 3], [1]], metadata=metadata).listing
    assert listing.classes == ("emu", "cat", "ant", "dog")
    assert listing.labels.tolist() == [[1, 0, 0, 1], [0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("labels", "options", "kind"),
    [
        ([1, 0.5], "", "values"),
        ([1, 2], "?target=values", "values"),
        ([[1, 2], [2]], "", "classes"),
        ([[1], [0.5]], "", "values"),
        (["a", "b"], "?target=class", "class"),
    ],
)
def test_all_labels_of_the_jsons_together_say_what_they_are(
    labels: list[Any], options: str, kind: str, tmp_path: Path
) -> None:
    assert open_source(f"tar:{tar(tmp_path / 'x.tar', labels)}{options}", "train").listing.target.kind == kind


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([1, 2], "?target=classes", "are class or values, must be classes"),
        ([["a"], "b"], "", "are of no one kind, must be a number or text each"),
        (["a", 0.5], "", "are of no one kind"),
        ([[0.5], [1.5]], "?target=class", "are values, must be class"),
        ([1, 2], "?label=age", '0.json holds .*must be an object with "age"'),
    ],
)
def test_jsons_that_do_not_go_together_are_refused(
    labels: list[Any], options: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(f"tar:{tar(tmp_path / 'x.tar', labels)}{options}", "train")


def test_a_field_of_the_json_counts_before_the_class_beside_it_when_it_is_named(tmp_path: Path) -> None:
    members = {"1.png": encoded(pixels_of("1.png")), "1.cls": b"cat", "1.json": b'{"age": 41.5}'}
    file = write_members(tmp_path / "x.tar", members)
    assert open_source(f"tar:{file}", "train").listing.classes == ("cat",)
    named = open_source(f"tar:{file}?label=age", "train").listing
    assert (named.target, named.labels.tolist()) == (Target("values", 1), [[41.5]])
    more = write_members(tmp_path / "y.tar", members | {"2.png": b"", "2.cls": b"1"})
    with pytest.raises(ValueError, match=r"2\.png has no \.json beside it"):
        open_source(f"tar:{more}?label=age", "train")


def recipe(source: Source, augment: list[Any] | None = None, *, training: bool = True) -> Recipe:
    config = PipelineConfig(train="x", val="x", image_size=6, augment=augment or [])
    return Recipe(source, config, 5, training, False)


def test_chunks_of_any_number_of_workers_and_threads_give_the_same_labels_and_padding_is_zero(source: Source) -> None:
    made, epoch = recipe(source), Epoch(7, 4)
    alone = {b.step: b for b in batches_from_threads(made, epoch, 1, Position(0, 0), threads=2, ahead=2)}
    layout = Layout(epoch, 1, Position(0, 0), 2, 2)
    make = ChunkMaker(made, layout, (6, 6, 3))
    chunks = [{name: values[np.newaxis] for name, values in make(i).items()} for i in range(layout.num_chunks)]
    dealt = [list(batches_from_blocks(chunks[rank::2], layout, rank)) for rank in (0, 1)]
    for step, batch in alone.items():
        parts = [dealt[rank][step].labels for rank in (0, 1)]
        assert np.array_equal(np.concatenate(parts), batch.labels)
        assert np.array_equal(batch.labels, source.listing.labels[made.indices(0, batch.positions)])
    assert chunks[1]["labels"].shape == (1, 2, 2, source.listing.target.width)
    assert not chunks[1]["labels"][0, 1, 1:].any(), "rank 1 has one sample in the last step"


def test_a_batch_without_samples_keeps_the_shape_of_its_labels(source: Source) -> None:
    made = recipe(source).produce(0, range(3, 3))
    assert made.labels.shape == (0, source.listing.target.width)


@pytest.mark.parametrize("augment", [{"mixup": {"alpha": 1.0}}, {"cutmix": {}}])
def test_mixed_samples_have_labels_mixed_in_the_same_proportion(source: Source, augment: Any) -> None:
    made = recipe(source, [augment])
    batch = next(batches_from_threads(made, Epoch(7, 7), 1, Position(0, 0), threads=1, ahead=1))
    to_device = ToDevice(made.config, 5, torch.device("cpu"), channels_last=False)
    _, targets = to_device(batch, training=True)
    assert targets.mixed_in is not None
    assert targets.share is not None
    share = targets.share.numpy()[:, None]
    assert ((share > 0) & (share < 1)).any()
    expected = share * targets.labels.numpy() + (1 - share) * targets.mixed_in.numpy()
    torch.testing.assert_close(targets.blended(), torch.from_numpy(expected.astype(np.float32)))
    assert np.array_equal(targets.labels.numpy(), batch.labels)
    _, plain = to_device(batch, training=False)
    assert torch.equal(plain.blended(), torch.from_numpy(batch.labels).float())


def test_targets_are_cut_in_parts_with_what_is_mixed_in() -> None:
    labels = torch.arange(10.0).reshape(5, 2)
    targets = Targets(labels, labels.flip(0), torch.linspace(0, 1, 5))
    assert torch.equal(torch.cat([part.blended() for part in targets.chunk(2)]), targets.blended())


def test_a_label_off_the_class_list_or_not_finite_costs_its_sample_alone(tmp_path: Path) -> None:
    classes = {"_type": "ClassLabel", "names": ["cat", "dog"]}
    several = {"_type": "List", "feature": classes}
    for number, (labels, metadata, reason, bad) in enumerate(
        [
            ([0, 1, 2, 0], classes, "its label 2 is not one of the 2 of the class list", "?/2.png"),
            ([[0], [1], [0, -1], []], several, "its label -1 is not one of the 2 of the class list", "2.png"),
            ([[0.5], [1.0], [float("inf")], [0.0]], None, r"its values [inf] are not finite in float32", "2.png"),
            ([0.5, 1.0, 1e300, 0.0], None, "its values [1e+300] are not finite in float32", "2.png"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        source = opened(folder, labels, metadata=metadata)
        assert [(one.sample_id, one.reason) for one in find_bad(source, threads=1)] == [(bad, reason)]
        replaced = recipe(source).produce(0, range(4)).replaced
        assert [(one.sample_id, one.reason) for one in replaced] == [(bad, reason)]
        packed = pack(source, folder / "shards", PackOptions(), workers=1)
        assert [(one["id"], one["reason"]) for one in packed.dropped] == [(bad, reason)]
        part = open_source(f"shards:{folder / 'shards'}", "train").listing
        kept = np.array([i for i in range(4) if i not in source.listing.refused])
        assert part.fingerprint == source.listing.take(kept).fingerprint != source.listing.fingerprint


def test_a_part_of_a_source_remembers_whose_label_was_refused(tmp_path: Path) -> None:
    listing = opened(tmp_path, [0.5, float("nan"), 1.0, float("inf")]).listing
    assert listing.refused.keys() == {1, 3}
    assert listing.take(np.array([3, 2])).refused == {0: listing.refused[3]}


def test_a_held_out_part_keeps_all_classes(tmp_path: Path) -> None:
    spec = f"parquet:{parquet(tmp_path / 'x.parquet', SEVERAL)}?label=y&val_fraction=0.4"
    train, val = (open_source(spec, split) for split in ("train", "val"))
    check_same_targets(train.listing, val.listing)
    assert sorted(train.listing.ids.to_pylist() + val.listing.ids.to_pylist()) == NAMES


def test_train_and_val_must_have_the_same_targets(tmp_path: Path) -> None:
    listings = []
    for number, labels in enumerate(([0, 1], [[0], [1]], [0.5, 1.0], [[0.5, 1.0]], [[0], [2]])):
        folder = tmp_path / str(number)
        folder.mkdir()
        listings.append(opened(folder, labels).listing)
    one, several, value, pair, others = listings
    for train, val, message in (
        (one, several, "got any of 2 classes, must be one of 2 classes as in data.train"),
        (several, value, "got 1 value a sample, must be any of 2 classes as in"),
        (value, pair, "got 2 values a sample, must be 1 value a sample as in"),
        (several, others, "2 only in data.val; 1 only in data.train. Give both the same class list"),
    ):
        with pytest.raises(ValueError, match=message):
            check_same_targets(train, val)


def test_a_subset_by_class_needs_one_class_a_sample(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"per_class: got 2, but labels are any of 3 classes\. Take per_class out"):
        opened(tmp_path, SEVERAL, "&per_class=2")


def test_statistics_count_each_class_and_give_the_range_of_each_value(tmp_path: Path) -> None:
    several = collect(opened(tmp_path, SEVERAL), image_size=6, max_colour_samples=9, threads=1)
    assert several.classes == (("cat", 4), ("dog", 3), ("emu", 2))
    assert several.values == ()
    numbers = collect(opened(tmp_path, NUMBERS), image_size=6, max_colour_samples=9, threads=1)
    assert numbers.classes == ()
    columns = EXPECTED["values"].T.astype(float)
    assert numbers.values == tuple(Range(min(c), float(np.median(c)), max(c)) for c in columns.tolist())


def test_labels_are_shown_for_a_person(tmp_path: Path) -> None:
    (tmp_path / "numbers").mkdir()
    several, numbers = opened(tmp_path, SEVERAL), opened(tmp_path / "numbers", NUMBERS)
    assert [several.listing.label_text(i) for i in (0, 1, 2)] == ["cat, dog", "none", "emu"]
    assert numbers.listing.label_text(5) == "0.001, 1000"
    shown = [np.asarray(preview(recipe(source), samples=3, epochs=1)) for source in (several, numbers)]
    assert not np.array_equal(*shown), "the same pictures, other labels below them"
