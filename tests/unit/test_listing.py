import numpy as np
import pytest

from pipelines.listing import labelled_listing, listing_of, storage_of
from pipelines.randomness import mix


def test_the_listing_of_some_samples_keeps_classes_and_keys() -> None:
    listing = listing_of(["a/1", "a/2", "b/1", "c/1"])
    part = listing.take(np.array([3, 1]))
    assert part.classes == ("a", "b", "c")
    assert part.ids.to_pylist() == ["c/1", "a/2"]
    assert part.labels.tolist() == [2, 0]
    assert part.keys.tolist() == [mix("sample", "c/1"), mix("sample", "a/2")]
    assert part.fingerprint != listing.fingerprint


def test_written_labels_give_the_listing_that_class_folders_give() -> None:
    ids = ["a/1", "a/2", "b/1", "b/Z", "c/é"]
    shuffled = [3, 0, 4, 2, 1]
    listing, chosen = labelled_listing("x", "x", [ids[i][0] for i in shuffled], [ids[i][2:] for i in shuffled])
    assert listing.fingerprint == listing_of(ids).fingerprint
    assert listing.keys.tolist() == listing_of(ids).keys.tolist()
    assert [shuffled[i] for i in chosen] == [0, 1, 2, 3, 4]


def test_a_class_list_names_numbers_and_orders_texts() -> None:
    by_number, _ = labelled_listing("x", "x", [1, 0], ["p", "q"], ["dog", "cat"])
    by_text, _ = labelled_listing("x", "x", ["cat", "dog"], ["p", "q"], ["dog", "cat"])
    assert by_number.classes == by_text.classes == ("dog", "cat")
    assert by_number.ids.to_pylist() == by_text.ids.to_pylist() == ["cat/p", "dog/q"]
    assert by_number.labels.tolist() == by_text.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        ([], None, "x holds no sample. Give one that does"),
        (["a", ""], None, "a label is an empty text"),
        (["emu"], ["cat", "dog"], "a label is 'emu', must be one of the 2 of its class list"),
        ([2], ["cat", "dog"], "a label is 2, must be one of the 2 of its class list"),
        ([0], ["cat", ""], "a name that is empty or stands twice"),
    ],
)
def test_labels_that_cannot_be_are_refused(values: list[int | str], classes: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labelled_listing("x", "x", values, [str(i) for i in range(len(values))], classes)


def test_storage_lists_samples_part_by_part_in_the_order_of_their_places() -> None:
    storage = storage_of(np.array([2, 0, 2, 0, 0]), np.array([9, 5, 1, 7, 3]))
    assert storage.sizes == (3, 2)
    assert storage.samples.tolist() == [4, 1, 3, 2, 0]
