"""Experiment files in, and out again: the border where YAML becomes frozen models.

    load_experiment("experiments/digits.yaml", ["train.epochs=1"]) -> Experiment

Every mistake is reported at once, each with file, line and path. Whether names of models and sources exist is
asked later, when a run is planned.
"""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.config.document import PLAIN_RESOLVERS, Document, read
from orchestrator.config.experiment import Experiment
from orchestrator.config.explain import explain
from orchestrator.config.mistake import Mistake, either, show
from orchestrator.config.overrides import apply_overrides
from orchestrator.errors import InputError


class ConfigError(InputError):
    """What is wrong with an experiment file and its overrides: all of it, a line each."""

    def __init__(self, mistakes: tuple[Mistake, ...]) -> None:
        super().__init__(mistakes)
        self.mistakes = mistakes

    def __reduce__(self) -> tuple[Any, ...]:
        return ConfigError, (self.mistakes,)

    def __str__(self) -> str:
        return "\n".join(str(mistake) for mistake in self.mistakes)


def load_experiment(path: str, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file, with `dotted.path=value` overrides written over it in their order.

    Raises: ConfigError if the file cannot be read, is no YAML, or is no experiment.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refusal(path, f"byte {error.start} is not UTF-8 text. Save the file as UTF-8.") from error
    except (OSError, ValueError) as error:
        raise _refusal(path, _why_unreadable(path, error)) from error
    return parse_experiment(text, path, overrides)


def parse_experiment(text: str, filename: str, overrides: Sequence[str] = ()) -> Experiment:
    """Do what `load_experiment` does, for the text of a file. Raises: ConfigError as there."""
    document = read(text, filename)
    if not document.mistakes:
        _refuse_other_than_sections(document)
    if isinstance(document.value, dict):
        apply_overrides(document, overrides)
    mistakes = list(document.mistakes.values())
    if isinstance(document.value, dict):
        try:
            experiment = Experiment.model_validate(document.value)
        except ValidationError as error:
            mistakes += explain(error.errors(include_url=False), document)
    if mistakes:
        raise ConfigError(tuple(sorted(mistakes, key=_line)))
    return experiment


def dump_experiment(experiment: Experiment) -> str:
    """Write every field, defaults too, as YAML that loads to an equal experiment."""
    return yaml.dump(
        experiment.model_dump(mode="json"),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=100,
    )


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would not read as text; puts lists of numbers or words on one line."""

    yaml_implicit_resolvers = {**yaml.SafeDumper.yaml_implicit_resolvers, **PLAIN_RESOLVERS}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Without escapes, PyYAML 6.0 folds a line break such as U+0085 into a space.
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        flat = not any(isinstance(entry, dict | list) for entry in sequence)
        return super().represent_sequence(tag, sequence, flow_style=flat if flow_style is None else flow_style)


_Dumper.add_representer(str, _Dumper.represent_str)


def _refusal(path: str, message: str) -> ConfigError:
    return ConfigError((Mistake("", path, message),))


def _why_unreadable(path: str, error: OSError | ValueError) -> str:
    if isinstance(error, IsADirectoryError):
        return "is a folder, must be a YAML file."
    if not isinstance(error, FileNotFoundError):
        return f"cannot be read: {getattr(error, 'strerror', None) or error}."
    folder = Path(path).parent
    others = [str(other) for other in sorted(folder.glob("*.yaml"))] if folder.is_dir() else []
    near = get_close_matches(path, others, n=1)
    return f"no such file; did you mean {near[0]}?" if near else "no such file. Give the path of a YAML file."


def _refuse_other_than_sections(document: Document) -> None:
    if isinstance(document.value, dict):
        return
    got = "is empty" if document.value is None else f"got {show(document.value)}"
    if isinstance(document.value, list):
        got = "is a list"
    needed = [name for name, field in Experiment.model_fields.items() if field.is_required()]
    message = f"{got}, must be sections with at least {either(needed, 'and')}."
    document.mistakes[()] = Mistake("", document.filename, message)


def _line(mistake: Mistake) -> int:
    """Sort by line; what is on the command line comes last."""
    line = mistake.location.rpartition(":")[2]
    return int(line) if line.isdigit() else sys.maxsize
