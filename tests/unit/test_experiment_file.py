"""Experiment files: what is wrong with one is said at once, in its own words, on the right line.

Bad files are a good one with one text replaced, so that each case shows only what is wrong with it.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.load import ConfigError, load_experiment, parse_experiment

GOOD = """\
run: {name: bad}
seed: 3
data:
  train: digits
  val: digits
  image_size: 8
  channels: 1
  augment:
    - random_crop: {padding: 1}
    - horizontal_flip
    - normalize: {mean: [0.3], std: [0.4]}
model: {name: small_resnet}
train:
  epochs: 3
  global_batch: 64
  optimizer:
    name: sgd
    lr: 0.1
precision: bf16
strategy:
  workers: 2
"""

OPTIMIZERS = "sgd, adamw, adagrad, adamax or shift_adamax"
AUGMENTATIONS = "one of 34 augmentations (docs/augmentation.md)"
FORMS = f"{AUGMENTATIONS}, with options as {{NAME: {{...}}}} or {{name: NAME, ...}}"
TAG = "got the tag {}, must be a plain value. Remove the tag."

# name -> the text replaced, what stands there instead, the mistakes without the file's name
BAD: dict[str, tuple[str, str, list[str]]] = {
    "wrong type": ("  epochs: 3", "  epochs: three", ['14: train.epochs: got "three", must be a whole number >= 1.']),
    "number in quotes": ("seed: 3", "seed: '3'", ['2: seed: got "3", must be a whole number >= 0 and < 2^63.']),
    "float for a whole number": (
        "image_size: 8", "image_size: 8.0", ["6: data.image_size: got 8.0, must be a whole number >= 1 and <= 4096."]
    ),
    "number for text": (
        "train: digits", "train: 7", ['4: data.train: got 7, must be text. In quotes it is text: "7".']
    ),
    "yes is no boolean": (
        "  epochs: 3", "  epochs: 3\n  compile: yes", ['15: train.compile: got "yes", must be true or false.']
    ),
    "out of range": ("lr: 0.1", "lr: 0", ["18: train.optimizer.lr: got 0, must be a number > 0."]),
    "not finite": (
        "lr: 0.1", "lr: .inf", ["18: train.optimizer.lr: got .inf, must be a finite number that fits into 64 bits."]
    ),
    "no choice": ("channels: 1", "channels: 2", ["7: data.channels: got 2, must be 1 or 3."]),
    "pattern": (
        "name: bad", "name: b d",
        ['1: run.name: got "b d", must be text of at most 100 letters, digits, dots, dashes and underscores, '
         "a letter or digit first."],
    ),
    "neither number nor range": (
        "workers: 2", "workers: two", ['21: strategy.workers: got "two", must be a whole number >= 0 or [min, max].']
    ),
    "half a range": (
        "workers: 2", "workers: [2]", ["21: strategy.workers: got [2], must be a whole number >= 0 or [min, max]."]
    ),
    "range from zero": (
        "workers: 2", "workers: [0, 2]", ["21: strategy.workers.0: got 0, must be a whole number >= 1."]
    ),
    "range upside down": (
        "workers: 2", "workers: [4, 1]",
        ["21: strategy.workers: got [4, 1], the first must be <= the second: [min, max]."],
    ),
    "actors that are none": (
        "channels: 1", "channels: 1\n  actors: many",
        ['8: data.actors: got "many", must be auto, a whole number >= 1 or [min, max].'],
    ),
    "actors upside down": (
        "channels: 1", "channels: 1\n  actors: [4, 1]",
        ["8: data.actors: got [4, 1], the first must be <= the second: [min, max]."],
    ),
    "wrong shorthand": (
        "precision: bf16", "precision: bf61",
        [
            '19: precision: got "bf61", must be a section with default, layers, optimizer or guard, fp32, tf32, bf16, '
            "fp16, fp8, binary or shift; did you mean bf16?"
        ],
    ),
    "inside of a shorthand": (
        "precision: bf16", "precision: {fixed: {integer_bits: 4, fraction_bits: 30}}",
        ["19: precision.default.fixed.fraction_bits: got 30, must be a whole number >= 0 and < 24."],
    ),
    "bits that do not fit": (
        "precision: bf16", "precision: {default: {fixed: {integer_bits: 14, fraction_bits: 12}}}",
        [
            "19: precision.default.fixed.fraction_bits: got 12 with integer_bits=14, must be at most 10: fp32, in "
            "which it is computed, holds 24 bits."
        ],
    ),
    "a scale that is no power of two": (
        "precision: bf16", "precision: {fixed: {integer_bits: 4, fraction_bits: 12, gradient_scale: 300}}",
        ["19: precision.default.fixed.gradient_scale: got 300, must be a power of two. Set 256."],
    ),
    "a format that one layer cannot have": (
        "precision: bf16", "precision: {default: bf16, stem.0: fp16}",
        [
            "19: precision.layers: got fp16 for 'stem.0' with default=bf16, must be another there, or default: fp16 "
            "too: the loss is scaled for all layers or none. bf16 needs no scale."
        ],
    ),
    "misspelt": ("  augment:", "  agument:", ["8: data.agument: unknown; did you mean data.augment?"]),
    "of another section": ("seed: 3", "epochs: 3", ["2: epochs: unknown; did you mean train.epochs?"]),
    "of two other sections": (
        "seed: 3", "workers: 3", ["2: workers: unknown; did you mean strategy.workers or failure.workers?"]
    ),
    "near to nothing": ("workers: 2", "zzz: 2", ["21: strategy.zzz: unknown, must be workers."]),
    "dots in a file": (
        "seed: 3", "train.epochs: 3",
        ["2: train.epochs: unknown in one word; write train: {epochs: ...} with a level for each name."],
    ),
    "of another optimizer": (
        "lr: 0.1", "lr: 0.1\n    betas: [0.9, 0.99]",
        ["19: train.optimizer.betas: not a setting of sgd, only of adamw, adamax or shift_adamax. "
         "Remove it, or change the name."],
    ),
    "missing field": (
        "  val: digits\n", "", ["3: data.val: missing; must be text."]
    ),
    "missing section": (
        "model: {name: small_resnet}\n", "", ["1: model: missing; must be a section with at least name."]
    ),
    "empty section": (
        "strategy:\n  workers: 2", "trace:",
        ["20: trace: got nothing, must be a section with samples. Leave it out for the default."],
    ),
    "unknown optimizer": (
        "name: sgd",
        "name: sdg",
        [f'17: train.optimizer.name: got "sdg", must be {OPTIMIZERS}; did you mean sgd?'],
    ),
    "unnamed optimizer": ("    name: sgd\n", "", [f"16: train.optimizer.name: missing; must be {OPTIMIZERS}."]),
    "optimizer without its section": (
        "optimizer:\n    name: sgd\n    lr: 0.1", "optimizer: sgd",
        [f'16: train.optimizer: got "sgd", must be a section with a name, {OPTIMIZERS}, and its settings.'],
    ),
    "short list": (
        "name: sgd\n    lr: 0.1", "{name: adamw, lr: 1, betas: [0.9]}",
        ["17: train.optimizer.betas: got [0.9], must be a list of 2, each a number >= 0 and < 1."],
    ),
    "unknown augmentation": (
        "- horizontal_flip", "- horizontal_flp",
        [f'10: data.augment.1: got "horizontal_flp", must be {FORMS}; did you mean horizontal_flip?'],
    ),
    "unknown augmentation with options": (
        "random_crop:", "random_crp:",
        ["9: data.augment.0.random_crp: unknown, must be one of 34 names; did you mean random_crop?"],
    ),
    "augmentation without its options": (
        "random_crop: {padding: 1}", "random_crop",
        ["9: data.augment.0.random_crop.padding: missing; must be a whole number >= 1 and <= 256."],
    ),
    "options of a wrong form": (
        "random_crop: {padding: 1}", "random_crop: 1",
        [f'9: data.augment.0: got {{"random_crop": 1}}, must be {FORMS}.']
    ),
    "options at the wrong depth": (
        "random_crop: {padding: 1}", "random_crop:\n      padding: 1",
        ["10: data.augment.0.padding: beside random_crop, not inside; "
         "did you mean data.augment.0.random_crop.padding?"],
    ),
    "two augmentations in one entry": (
        "    - horizontal_flip", "      horizontal_flip:",
        ['10: data.augment.0.horizontal_flip: beside random_crop, must be an entry of its own. Write "- " before it.'],
    ),
    "option of an augmentation": (
        "padding: 1", "padding: one",
        ['9: data.augment.0.random_crop.padding: got "one", must be a whole number >= 1 and <= 256.'],
    ),
    "option in the long form": (
        "random_crop: {padding: 1}", "name: random_crop\n      padding: 0",
        ["10: data.augment.0.padding: got 0, must be a whole number >= 1 and <= 256."],
    ),
    "own check of an augmentation": (
        "std: [0.4]", "std: [0.0]", ["11: data.augment.2.normalize.std: got [0.0], every value must be > 0."]
    ),
    "order of augmentations": (
        "- horizontal_flip\n    - normalize: {mean: [0.3], std: [0.4]}",
        "- normalize: {mean: [0.3], std: [0.4]}\n    - horizontal_flip",
        ["10: data.augment.1: got normalize as number 2 of 3, must be the last, because pixels stay uint8 until the "
         "device. Move it to the end of the list."],
    ),
    "two fields of a section that do not fit": (
        "channels: 1", "channels: 3",
        ["11: data.augment.2.normalize.mean: got [0.3], must have one value for each of data.channels=3. "
         "Give as many values as channels."],
    ),
    "two sections that do not fit": (
        "epochs: 3", "epochs: 3\n  schedule: {name: constant, warmup_epochs: 5}",
        ["15: train.schedule.warmup_epochs: got 5, must be <= train.epochs=3. "
         "Warm up for fewer epochs or train for more."],
    ),
    "key given twice": (
        "seed: 3", "seed: 3\nseed: 4", ["3: seed: given twice, first on line 2. Remove one of the two."]
    ),
    "python tag": (
        "train: digits", "train: !!python/object/apply:os.system [false]",
        ["4: data.train: " + TAG.format("!!python/object/apply:os.system")],
    ),
    "tag on a section": ("run: {", "run: !thing {", ["1: run: " + TAG.format("!thing")]),
    "tag that does not fit": ("seed: 3", "seed: !!int three", [
        '2: seed: got "three", must be what its tag !!int says. Remove the tag.']),
    "merge of a number": ("seed: 3", "<<: 3", ["2: <<: must name a section to copy from, such as *base."]),
    "list as a key": ("seed: 3", "? [a]\n: 3", ["2: has a list or a section as a key, must be a name."]),
    "syntax": ("seed: 3", "seed: 3: 4", ["2:8: cannot be read as YAML: mapping values are not allowed here."]),
    "tab": ("  train: digits", "\ttrain: digits", [
        "4:1: cannot be read as YAML: found character '\\t' that cannot start any token. "
        "Indent with spaces, not tabs."]),
    "control character": ("digits", "\x07", ["4: cannot be read as YAML: it holds the character U+0007. Remove it."]),
    "two documents": ("seed: 3", "---\nseed: 3", [
        "2:1: cannot be read as YAML: expected a single document in the stream, but found another document."]),
    "alias of nothing": ("seed: 3", "seed: *x", ["2:7: cannot be read as YAML: found undefined alias 'x'."]),
    "all at once": (
        "epochs: 3\n  global_batch: 64", "epochs: 0\n  batch: 64",
        ["13: train.global_batch: missing; must be a whole number >= 1.",
         "14: train.epochs: got 0, must be a whole number >= 1.",
         "15: train.batch: unknown; did you mean train.global_batch?"],
    ),
}  # fmt: skip


def mistakes_of(text: str, *overrides: str, filename: str = "experiments/bad.yaml") -> list[str]:
    with pytest.raises(ConfigError, match=r"\S") as caught:
        parse_experiment(text, filename, overrides)
    assert str(caught.value).splitlines() == [str(mistake) for mistake in caught.value.mistakes]
    return str(caught.value).splitlines()


@pytest.mark.parametrize(("old", "new", "expected"), BAD.values(), ids=BAD)
def test_a_bad_file_gives_its_mistakes_and_their_lines(old: str, new: str, expected: list[str]) -> None:
    assert GOOD.count(old) >= 1
    mistakes = mistakes_of(GOOD.replace(old, new, 1))
    assert mistakes == [f"experiments/bad.yaml:{mistake}" for mistake in expected]


def test_a_missing_setting_that_no_line_leads_to_is_where_the_file_begins() -> None:
    assert mistakes_of("\n\n# nothing else\nmodel: {name: x}\n", filename="a.yaml") == [
        "a.yaml:4: run: missing; must be a section with at least name.",
        "a.yaml:4: data: missing; must be a section with at least train, val and image_size.",
        "a.yaml:4: train: missing; must be a section with at least epochs, global_batch and optimizer.",
    ]


@pytest.mark.parametrize(
    ("text", "got"),
    [("", "is empty"), ("# only a comment\n", "is empty"), ("- a\n", "is a list"), ("digits", 'got "digits"')],
)
def test_a_file_that_is_no_experiment_at_all_gives_one_mistake(text: str, got: str) -> None:
    assert mistakes_of(text) == [
        f"experiments/bad.yaml: {got}, must be sections with at least run, data, model and train."
    ]


def test_what_would_fill_the_memory_or_the_stack_is_a_mistake() -> None:
    too_deep = "experiments/bad.yaml:1:40: cannot be read as YAML: nested deeper than 40 levels."
    too_much = "more than 10000 values or 40 levels, counting every use of an alias."
    assert mistakes_of("[" * 5000) == [too_deep]
    for bomb in (
        "a: &a [*a, *a]",
        "a: &a {<<: [*a, *a]}",
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "\n".join(f"{x}: &{x} [{', '.join([f'*{y}'] * 10)}]" for x, y in
                                                   [("b", "a"), ("c", "b"), ("d", "c"), ("e", "d")]),
    ):  # fmt: skip
        (mistake,) = mistakes_of(bomb)
        assert mistake.endswith(too_much)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda _: None, "{}: no such file; did you mean {near}?"),
        (lambda path: path.mkdir(), "{}: is a folder, must be a YAML file."),
        (lambda path: path.symlink_to(path), "{}: cannot be read: Too many levels of symbolic links."),
        (lambda path: path.write_bytes(b"seed: \xff"), "{}: byte 6 is not UTF-8 text. Save the file as UTF-8."),
    ],
)
def test_a_file_that_cannot_be_read_gives_one_mistake(tmp_path: Path, make: Any, expected: str) -> None:
    (tmp_path / "cifar10.yaml").write_text("")
    path = tmp_path / "cifar.yaml"
    make(path)
    message = expected.format(path, near=tmp_path / "cifar10.yaml")
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        load_experiment(str(path))


def test_the_error_survives_a_process_border() -> None:
    with pytest.raises(ConfigError, match="is empty") as caught:
        parse_experiment("", "a.yaml")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.mistakes) == (str(caught.value), caught.value.mistakes)
    assert caught.value.exit_code == 2


fragments = st.sampled_from(
    [*re.findall(r"\w+|[^\w ]|\s+", GOOD), "<<: *a", "&a ", "*a", "!!", "? ", "|", "adamw", "betas", "%YAML 1.", '"\\U']
)
broken = st.tuples(st.integers(0, len(GOOD)), st.integers(0, 20), st.lists(fragments, max_size=4)).map(
    lambda cut: GOOD[: cut[0]] + "".join(cut[2]) + GOOD[cut[0] + cut[1] :]
)


@settings(max_examples=300, deadline=None)
@given(st.text() | st.lists(fragments).map("".join) | broken, st.lists(st.text() | fragments, max_size=2))
def test_no_text_raises_anything_but_config_error(text: str, overrides: list[str]) -> None:
    try:
        parse_experiment(text, "any.yaml", overrides)
    except ConfigError as error:
        mistakes, written = error.mistakes, str(error)
    else:
        return
    assert mistakes
    assert len(written.splitlines()) == len(mistakes)
    assert not re.search(r"pydantic|Input should|Value error|Traceback", written)
