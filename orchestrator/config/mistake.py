"""One thing wrong with what the user wrote: where, which setting, what it is, what it may be, what to do."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

# Where a setting is: keys and list indexes from the root of the file.
Path = tuple[str | int, ...]

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Mistake:
    """Printed as one line.

    `path`: the setting, in the form an override would name it; empty if the file as a whole is meant.
    `location`: file:line, file:line:column, or `command line`.
    `message`: the value got, what is allowed, what to do.
    """

    path: str
    location: str
    message: str

    def __str__(self) -> str:
        return printable(": ".join(part for part in (self.location, self.path, self.message) if part))


def dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)


def show(value: Any, longest: int = 60) -> str:
    """Write a value as JSON, so that text is told from numbers; long ones are cut."""
    if value is None:
        return "nothing"
    written = json.dumps(value, ensure_ascii=False)
    return written if len(written) <= longest else f"{written[: longest - 3]}..."


def either(options: Iterable[str], last: str = "or") -> str:
    """Join to `a, b or c`."""
    *most, final = options
    return f"{', '.join(most)} {last} {final}" if most else final


def did_you_mean(written: str, names: Iterable[str]) -> str:
    """End a sentence with the nearest name, if one is near: `; did you mean NAME?`, else a full stop."""
    near = get_close_matches(written, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else "."


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
