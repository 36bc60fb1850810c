"""Settings given on the command line, `dotted.path=value`, written over those of the file.

A value that starts with one of [ { " ' ! is YAML; any other is one unquoted scalar, so that `tar:/a/b`,
`a: b` and `x #1` are the text they look like, and 3, 1e-3, true and ~ are what they are in a file.
"""

from collections.abc import Sequence
from typing import Any

from orchestrator.config.document import Document, plain, read
from orchestrator.config.mistake import COMMAND_LINE, Mistake, Path, dotted, show


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Write each over what is there, in their order; mistakes are added to the document's."""
    for override in overrides:
        written, equals, text = override.partition("=")
        names = [name.strip() for name in written.split(".")]
        if not equals or not all(names):
            message = f"got {show(override)}, must be dotted.path=value, such as train.epochs=10."
            # The override itself stands in for a path, so that two of these are two mistakes.
            document.mistakes[("=", override)] = Mistake("", COMMAND_LINE, message)
            continue
        try:
            path = _set(document.value, names, _value(text.strip(), written))
        except ValueError as error:
            document.mistakes[(*names,)] = Mistake(written, COMMAND_LINE, str(error))
            continue
        for known in [p for p in document.lines if p[: len(path)] == path]:
            del document.lines[known]
        for length in range(1, len(path)):
            document.lines.setdefault(path[:length], 0)
        document.lines[path] = 0


def _value(text: str, filename: str) -> Any:
    """Raises: ValueError if it is no YAML, or a number that nothing can hold."""
    if not text.startswith(("[", "{", '"', "'", "!")):
        return plain(text)
    document = read(text, filename)
    for mistake in document.mistakes.values():
        inside = mistake.message.startswith("got ")
        raise ValueError(mistake.message if inside else f"got {show(text)}, which {mistake.message}")
    return document.value


def _set(root: dict[str, Any], names: Sequence[str], value: Any) -> Path:
    """Put the value in its place, making the sections that are missing on the way.

    Raises: ValueError if the way leads through a value that has no parts, or past the end of a list.
    """
    path: Path = ()
    here: Any = root
    for depth, name in enumerate(names):
        if isinstance(here, dict):
            key: str | int = name
        elif isinstance(here, list):
            key = _index(here, name, path)
        else:
            raise ValueError(f"{dotted(path)} is {show(here)} and has no parts. Give {dotted(path)}=VALUE as a whole.")
        path = (*path, key)
        if depth == len(names) - 1:
            here[key] = value
        else:
            if isinstance(here, dict) and here.get(name) is None:
                here[name] = {}
            here = here[key]
    return path


def _index(entries: list[Any], name: str, path: Path) -> int:
    if name.isascii() and name.isdigit() and len(name) < 10 and int(name) < len(entries):
        return int(name)
    if not entries:
        raise ValueError(f"{dotted(path)} has no entries. Give {dotted(path)}=[...] as a whole.")
    raise ValueError(f"no entry of {dotted(path)}, must be a number from 0 to {len(entries) - 1}.")
