"""Overrides are written over the file, YAML is read by its 1.2 rules, and what is dumped loads to the same."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.document import read
from orchestrator.config.experiment import Experiment
from orchestrator.config.load import ConfigError, dump_experiment, load_experiment, parse_experiment

SHIPPED = sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml"))

GOOD = """\
run: {name: good}
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
train: {epochs: 3, global_batch: 64, optimizer: {name: sgd, lr: 0.1}}
precision: bf16
"""


def mistakes_of(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError, match=r"\S") as caught:
        parse_experiment(text, "good.yaml", overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("override", "read_back"),
    [
        ("strategy.workers=[1,4]", lambda e: e.strategy.workers == (1, 4)),
        ("train.ema_decay=0.99", lambda e: e.train.ema_decay == 0.99),
        ("train.optimizer.lr=1e-3", lambda e: e.train.optimizer.lr == 1e-3),
        ("train.compile=true", lambda e: e.train.compile is True),
        ("data.train=tar:/some/path=x", lambda e: e.data.train == "tar:/some/path=x"),
        ("data.train=imagefolder:x y: z #1", lambda e: e.data.train == "imagefolder:x y: z #1"),
        ("model.name=no", lambda e: e.model.name == "no"),
        (r'run.folder="\ud83d\ude00"', lambda e: e.run.folder == "\N{GRINNING FACE}"),
        ('run.name="7"', lambda e: e.run.name == "7"),
        ("trace.samples=true", lambda e: e.trace.samples),
        ("data.augment.0.random_crop.padding=2", lambda e: e.data.augment[0].padding == 2),
        ("data.augment.1=random_crop", None),
        ("data.augment.1={random_crop: {padding: 3}}", lambda e: e.data.augment[1].padding == 3),
        ("data.augment=[]", lambda e: e.data.augment == ()),
        ("model.options.width=16", lambda e: e.model.options == {"width": 16}),
        ("precision=fp32", lambda e: e.precision.default.name == "fp32"),
    ],
)
def test_an_override_replaces_what_the_file_says(override: str, read_back: Any) -> None:
    if read_back is None:
        (mistake,) = mistakes_of(GOOD, override)
        assert mistake.startswith("command line: data.augment.1.random_crop.padding: missing")
    else:
        assert read_back(parse_experiment(GOOD, "good.yaml", [override]))


def test_of_two_overrides_of_one_setting_the_last_holds() -> None:
    assert parse_experiment(GOOD, "good.yaml", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("strategy.workers=two", 'strategy.workers: got "two", must be a whole number >= 0 or [min, max].'),
        ("train.epoch=3", "train.epoch: unknown; did you mean train.epochs?"),
        ("train", 'got "train", must be dotted.path=value, such as train.epochs=10.'),
        ("=3", 'got "=3", must be dotted.path=value, such as train.epochs=10.'),
        ("train..epochs=3", 'got "train..epochs=3", must be dotted.path=value, such as train.epochs=10.'),
        ("run.folder=[1",
         "run.folder: got \"[1\", which cannot be read as YAML: expected ',' or ']', but got the end."),
        ("model.name=!!python/name:os.system x",
         "model.name: got the tag !!python/name:os.system, must be a plain value. Remove the tag."),
        (r'run.folder="\ud83d"',
         r'run.folder: got "\ud83d", must be text; half of a surrogate pair is no character.'),
        ("seed=1e999", "seed: got 1e999, must be a finite number that fits into 64 bits."),
        ("data.augment.7=random_crop", "data.augment.7: no entry of data.augment, must be a number from 0 to 2."),
        ("seed.x=1", "seed.x: seed is 3 and has no parts. Give seed=VALUE as a whole."),
        ("data.augment.0.padding=2", "data.augment.0.padding: beside random_crop, not inside; "
         "did you mean data.augment.0.random_crop.padding?"),
    ],
)  # fmt: skip
def test_a_mistake_of_an_override_is_on_the_command_line(override: str, expected: str) -> None:
    assert mistakes_of(GOOD, override) == [f"command line: {expected}"]


def test_mistakes_of_file_and_overrides_are_reported_together() -> None:
    assert mistakes_of(GOOD.replace("lr: 0.1", "lr: -1"), "seed=x", "foo") == [
        "good.yaml:13: train.optimizer.lr: got -1, must be a number > 0.",
        'command line: got "foo", must be dotted.path=value, such as train.epochs=10.',
        'command line: seed: got "x", must be a whole number >= 0 and < 2^63.',
    ]


def test_scalars_follow_yaml_1_2_and_merge_keys_work() -> None:
    document = read(
        "a: [1e-3, 010, 0x1F, 0o17, no, on, 2026-01-02, 1_000, ~, True]\n"
        "b: &b {on: 1, 2: 3}\nc: {<<: *b, on: 2}\nd: *b\n",
        "x.yaml",
    )
    assert document.mistakes == {}
    assert document.value["a"] == [1e-3, 10, 31, 15, "no", "on", "2026-01-02", "1_000", None, True]
    assert document.value["c"] == {"on": 2, "2": 3}
    assert document.value["d"] == {"on": 1, "2": 3}
    assert document.locate(("d", "on")) == "x.yaml:2"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_dumped_experiment_loads_to_an_equal_one(path: Path) -> None:
    experiment = load_experiment(str(path), ["strategy.workers=[1, 4]"])
    dumped = dump_experiment(experiment)
    assert parse_experiment(dumped, "dumped.yaml") == experiment
    assert list(read(dumped, "dumped.yaml").value) == list(Experiment.model_fields)


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
words = st.sampled_from(["no", "1e-3", "010", "0x1", "<<", "=", "~", "2026-01-02", "a: b", "- a", "#", ".inf", "!x"])
json_values = st.recursive(
    scalars | words | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(words | st.text(), json_values, max_size=3), words | st.text())
def test_any_option_and_any_text_survive_dumping(options: dict[str, Any], folder: str) -> None:
    good = parse_experiment(GOOD, "good.yaml")
    model = good.model.model_copy(update={"options": options})
    experiment = good.model_copy(update={"model": model, "run": good.run.model_copy(update={"folder": folder})})
    assert parse_experiment(dump_experiment(experiment), "dumped.yaml") == experiment
