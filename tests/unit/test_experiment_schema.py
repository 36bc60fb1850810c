"""The JSON schema of experiment files says what the loader does, and the manual names every field."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from orchestrator.config.document import read
from orchestrator.config.load import ConfigError, dump_experiment, load_experiment, parse_experiment
from orchestrator.config.schema import describe_fields, experiment_schema

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(ROOT.glob("experiments/*.yaml"))
MANUAL = [Path(__file__).parents[2] / "docs" / name for name in ("experiment-file.md", "augmentation.md")]

GOOD = """\
run: {name: good}
data: {train: digits, val: digits, image_size: 8, channels: 1}
model: {name: small_resnet}
train: {epochs: 3, global_batch: 64, optimizer: {name: sgd, lr: 0.1}}
"""


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = experiment_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_experiments_validate_as_written_and_as_dumped(validator: Any, path: Path) -> None:
    validator.validate(read(path.read_text(), path.name).value)
    validator.validate(read(dump_experiment(load_experiment(str(path))), "dumped").value)


# A line added to GOOD, or put in place of its line of the same section.
ACCEPTED = [
    "precision: bf16",
    "precision: {default: fp16}",
    *(f"memory: {it}" for it in ("{checkpoint: a.*}", "{checkpoint: [a, b]}", "{checkpoint: auto, budget: 8GB}")),
    "memory: {budget: 1000, offload: optimizer}",
    "strategy: {name: sync, workers: 0}",
    "strategy: {workers: [1, 4]}",
    *(f"data: {{train: digits, val: digits, image_size: 8, actors: {it}}}" for it in ("auto", "3", "[2, 8]")),
    "data: {train: tar:x, val: tar:y, image_size: 8, augment: [horizontal_flip, horizontal_flip: , "
    "random_crop: {padding: 4}, {name: random_crop, padding: 4}, "
    "normalize: {mean: [0, 0, 0], std: [1, 1, 1]}]}",
    "train: {epochs: 3, global_batch: 64, optimizer: {name: adamw, lr: 1, betas: [0.9, 0.99]}, "
    "schedule: {name: steps, epochs: [1, 2]}}",
]
REFUSED = [
    "precision: fp6",
    "precision: {default: fp6}",
    "memory: {checkpoint: 3}",
    "memory: {budget: -1}",
    "seed: -1",
    "seed: three",
    "epochs: 3",
    "run: {name: a b}",
    "run: {}",
    "strategy: {workers: two}",
    "strategy: {workers: [1]}",
    "strategy: {workers: [0, 2]}",
    *(f"data: {{train: digits, val: digits, image_size: 8, actors: {it}}}" for it in ("many", "0", "[2]", "[0, 2]")),
    "trace: ",
    "train: {epochs: 3, global_batch: 64, optimizer: {lr: 0.1}}",
    "train: {epochs: 3, global_batch: 64, optimizer: {name: sgdd, lr: 0.1}}",
    "train: {epochs: 3, global_batch: 64, optimizer: {name: sgd, lr: 0.1, betas: [0.9, 0.99]}}",
    "data: {train: digits, val: digits, image_size: 8, augment: horizontal_flip}",
    "data: {train: digits, val: digits, image_size: 8, augment: [horizontal_flp]}",
    "data: {train: digits, val: digits, image_size: 8, augment: [random_crop]}",
    "data: {train: digits, val: digits, image_size: 8, augment: [random_crop: {padding: 0}]}",
    "data: {train: digits, val: digits, image_size: 8, augment: [random_crop: {name: random_crop, padding: 1}]}",
    "data: {train: digits, val: digits, image_size: 8, augment: [{random_crop: {padding: 1}, normalize: {}}]}",
]


def with_line(line: str) -> str:
    section = line.partition(":")[0]
    return "\n".join([line, *(other for other in GOOD.splitlines() if not other.startswith(f"{section}:"))])


@pytest.mark.parametrize("line", ACCEPTED)
def test_schema_and_loader_accept(validator: Any, line: str) -> None:
    validator.validate(read(with_line(line), "x").value)
    parse_experiment(with_line(line), "x")


@pytest.mark.parametrize("line", REFUSED)
def test_schema_and_loader_refuse(validator: Any, line: str) -> None:
    assert not validator.is_valid(read(with_line(line), "x").value)
    with pytest.raises(ConfigError, match=r"^x:1: "):
        parse_experiment(with_line(line), "x")


def test_docstring_lines_become_descriptions() -> None:
    train = experiment_schema()["$defs"]["TrainConfig"]["properties"]
    assert train["epochs"]["description"] == "passes over the training samples."
    assert describe_fields("What.\n\n`a`, `b`: one\n    and on. `c`: two.\n\nNot `d`.") == {
        "a": "one and on.",
        "b": "one and on.",
        "c": "two.",
    }


def test_the_manual_names_every_field_with_its_default() -> None:
    tables = [[cell.strip() for cell in line.split("|")] for page in MANUAL for line in page.read_text().splitlines()]
    # The cell after a field's name is its default.
    documented = {
        (cell.strip("`"), row[index + 1]) for row in tables for index, cell in enumerate(row[:-1]) if cell[:1] == "`"
    }
    schema = experiment_schema()
    for section, definition in {"Experiment": schema, **schema["$defs"]}.items():
        for name, field in definition.get("properties", {}).items():
            defaults = [default for documented_name, default in documented if documented_name == name]
            assert defaults, f"{section}.{name} is in no page of the manual"
            if isinstance(field.get("default"), bool | int | float | str) and name != "name":
                default = json.dumps(field["default"]).strip('"').removesuffix(".0").replace("e-0", "e-")
                assert any(default in written.replace(",", "").split() for written in defaults), f"{section}.{name}"
