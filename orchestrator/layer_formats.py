"""Formats of numbers of an experiment: its `precision` checked against the layers of its model."""

from orchestrator.config.experiment import Experiment
from orchestrator.config.precision import Format
from orchestrator.errors import InputError
from orchestrator.models.zoo import outline_of
from orchestrator.training.formats import formats_of


def check_formats(experiment: Experiment, width: int) -> dict[str, Format]:
    """The format of every layer of the model, which puts out `width` numbers.

    Raises: InputError for a rule that matches no layer.
    """
    try:
        return formats_of(outline_of(experiment, width), experiment.precision)
    except ValueError as error:
        raise InputError(f"precision: {error}") from error
