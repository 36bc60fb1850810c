"""`convoy arch`: what a network costs, layer by layer, and what each rewrite of its convolutions would change."""

import copy
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from kernels import cost, rewrite
from kernels.cost import Field, LayerCost
from orchestrator.config.experiment import Experiment, ModelConfig
from orchestrator.config.load import parse_experiment
from orchestrator.errors import InputError
from orchestrator.models.zoo import outline
from orchestrator.report.wording import MISSING, count, number, percent, size
from pipelines.sources import open_source

# A network that is given by its name stands in this experiment, whose data are never opened.
OF_NAME = "{{run: {{name: arch}}, data: {{train: none, val: none, image_size: 224}}, model: {{name: {}}}, \
train: {{epochs: 1, global_batch: 1, optimizer: {{name: sgd, lr: 1}}}}}}"
CLASSES_OF_NAME = 1000


def is_name(model: str) -> bool:
    """Whether MODEL is the name of a network; else it is an experiment or a run."""
    return not ("/" in model or model.endswith((".yaml", ".yml")) or Path(model).exists())


def experiment_of_name(name: str, overrides: Sequence[str]) -> Experiment:
    """An experiment with that network. Raises: ConfigError for overrides that cannot be."""
    return parse_experiment(OF_NAME.format(json.dumps(name)), name, overrides)


def size_overrides(written: str) -> list[str]:
    """What --input says, as overrides. Raises: InputError if it is no size of square images."""
    sides = re.fullmatch(r"(\d+)x(\d+)x(\d+)", written)
    if written == "auto":
        return []
    if not sides or sides[2] != sides[3]:
        raise InputError(f"--input: got {written}, must be CxHxW with H = W, such as 3x224x224. Correct it.")
    return [f"data.channels={sides[1]}", f"data.image_size={sides[2]}"]


def num_classes_of(experiment: Experiment) -> int:
    """How many values the network gives, which is for the training data to say. Raises: InputError if it cannot."""
    try:
        return open_source(experiment.data.train, "train").listing.target.width
    except ValueError as error:
        raise InputError(f"data.train: {error} --classes says how many classes there are without the data.") from error


def architecture(experiment: Experiment, num_classes: int) -> str:
    """The layers, their totals and the rewrites' effects, as text.

    Raises: InputError if there is no such network, or it does not suit its options or images of this size.
    """
    data, config = experiment.data, experiment.model
    images = (data.channels, data.image_size, data.image_size)
    sizes = {"num_classes": num_classes, "channels": data.channels, "image_size": data.image_size}
    rows = cost.of_model(outline(config, **sizes), images)
    plain = outline(ModelConfig(name=config.name, options=config.options), **sizes)
    title = f"{config.name}, {'x'.join(map(str, images))} -> {num_classes}"
    if config.rewrite.name != "none":
        title += f", {config.rewrite.name} where {config.rewrite.where}"
    changes = _changes(plain, images, config.rewrite.where)
    return "\n".join([title, "", *_layers(rows), "", *_totals(rows), "", *_rewrites(changes)])


@dataclass(frozen=True)
class _Change:
    """A rewrite with the costs of the network then; `refusal`: why it takes no convolution."""

    name: str
    num_rewritten: int
    total: LayerCost
    refusal: str = ""


def _changes(model: nn.Module, images: tuple[int, int, int], where: str) -> list[_Change]:
    before = cost.total(cost.of_model(model, images))
    changes = [_Change("none", 0, before)]
    for name in rewrite.REWRITES:
        restacked = copy.deepcopy(model)
        try:
            paths = rewrite.apply(restacked, name, where)
        except ValueError as refusal:
            changes.append(_Change(name, 0, before, str(refusal)))
        else:
            changes.append(_Change(name, len(paths), cost.total(cost.of_model(restacked, images))))
    return changes


def _layers(rows: Sequence[LayerCost]) -> Iterator[str]:
    headings = ("layer", "what", "output", "parameters", "MMACs", "bytes", "field / jump", "FLOP / byte")
    cells = [
        (
            row.name or "(model)",
            f"{row.kind} {row.detail}".rstrip(),
            "x".join(map(str, row.output_size)),
            count(row.parameters),
            f"{row.multiply_adds / 1e6:,.2f}",
            size(row.parameter_bytes + row.input_bytes + row.output_bytes),
            _field(row.field),
            f"{row.intensity:.1f}",
        )
        for row in rows
    ]
    return _table(headings, cells, num_words=2)


def _totals(rows: Sequence[LayerCost]) -> Iterator[str]:
    total = cost.total(rows)
    yield f"parameters     {count(total.parameters)}, {size(total.parameter_bytes)}"
    yield f"multiply-adds  {total.multiply_adds / 1e9:,.3f} G an image, forward"
    yield f"activations    {size(total.output_bytes)} an image: all outputs"
    yield f"FLOP / byte    {number(total.intensity)} at batch 1, if every layer reads and writes memory"


def _rewrites(changes: Sequence[_Change]) -> Iterator[str]:
    before = changes[0].total
    headings = ("rewrite", "convolutions", "parameters", "of now", "MMACs", "of now", "activations")
    cells = [
        (
            change.name,
            count(change.num_rewritten),
            count(change.total.parameters),
            _share(change.total.parameters, before.parameters),
            f"{change.total.multiply_adds / 1e6:,.1f}",
            _share(change.total.multiply_adds, before.multiply_adds),
            size(change.total.output_bytes),
        )
        for change in changes
    ]
    yield from _table(headings, cells, num_words=1)
    yield from (change.refusal for change in changes if change.refusal)


def _table(headings: Sequence[str], cells: Sequence[Sequence[str]], *, num_words: int) -> Iterator[str]:
    """Lines of columns; all but the first `num_words` are numbers, which end together."""
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    for row in (headings, *cells):
        aligned = [
            f"{cell:{'<' if index < num_words else '>'}{width}}"
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(aligned).rstrip()


def _field(field: Field | None) -> str:
    return f"{_sides(field.size)} / {_sides(field.jump)}" if field else MISSING


def _sides(sides: tuple[int, int]) -> str:
    return str(sides[0]) if sides[0] == sides[1] else f"{sides[0]}x{sides[1]}"


def _share(after: int, before: int) -> str:
    return percent(after / before, 1) if before else MISSING
