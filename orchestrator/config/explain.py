"""What pydantic reports, as mistakes in the words of the file.

Pydantic says where and of which type an error is; what is allowed there comes from the JSON schema, so a new
field or section needs nothing here.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

from pydantic_core import ErrorDetails

from orchestrator.config.allowed import MISSING, Allowed, Place, choices
from orchestrator.config.document import Document
from orchestrator.config.mistake import Mistake, Path, did_you_mean, dotted, either, show
from orchestrator.config.schema import experiment_schema

# "setting.inside: what is wrong with it", the form of our own validators' messages.
MOST_LISTED = 8  # names in a message that has a nearest one as well
_NAMED = re.compile(r"(?P<setting>[a-z_]\w*(?:\.\w+)*): (?P<message>.+)", re.DOTALL)


def explain(errors: Iterable[ErrorDetails], document: Document) -> list[Mistake]:
    """Translate all errors, but for those at or inside of what the document already calls a mistake."""
    allowed = _allowed()
    mistakes: dict[Path, Mistake] = {}
    for error in errors:
        path, message = _explain(error, document, allowed)
        known = any(path[:length] in document.mistakes for length in range(len(path) + 1))
        if not known and path not in mistakes:
            mistakes[path] = Mistake(dotted(path), document.locate(path), message)
    return list(mistakes.values())


@cache
def _allowed() -> Allowed:
    return Allowed(experiment_schema())


def _explain(error: ErrorDetails, document: Document, allowed: Allowed) -> tuple[Path, str]:
    loc, kind = error["loc"], error["type"]
    if kind in ("value_error", "assertion_error"):
        return _of_validator(loc, str(error["ctx"]["error"]), document, allowed)
    if kind == "missing" and isinstance(loc[-1], int):
        loc, kind = loc[:-1], "too_short"
    place = allowed.find(loc, document.value)
    if place.value is MISSING:  # inside of a shorthand
        place = replace(place, value=error.get("input", MISSING))
    match kind:
        case "missing":
            return place.path, f"missing; must be {allowed.words(place.allowed or {})}."
        case "extra_forbidden":
            return place.path, _unknown(place, allowed)
        case "union_tag_invalid" | "union_tag_not_found":
            return _without_kind(place, allowed)
    return place.path, _wrong(place, allowed)


def _of_validator(loc: Path, text: str, document: Document, allowed: Allowed) -> tuple[Path, str]:
    """Move the setting that a message of ours begins with from the message to the path."""
    if match := _NAMED.fullmatch(text):
        inside = [int(part) if part.isdigit() else part for part in match["setting"].split(".")]
        place = allowed.find((*loc, *inside), document.value)
        if place.allowed is not None:
            return place.path, match["message"]
    return allowed.find(loc, document.value).path, text


def _wrong(place: Place, allowed: Allowed) -> str:
    wanted = place.allowed or {}
    message = f"got {show(place.value)}, must be {allowed.words(wanted)}"
    if place.value is None and "default" in wanted:
        return f"{message}. Leave it out for the default."
    if wanted.get("type") == "string" and isinstance(place.value, bool | int | float):
        return f'{message}. In quotes it is text: "{show(place.value)}".'
    if not isinstance(place.value, str):
        return f"{message}."
    names = [*allowed.kinds(wanted), *(name for member in _members(wanted) for name in choices(member))]
    # The right name in the wrong form, such as `optimizer: sgd`, is not a misspelt one.
    return message + did_you_mean(place.value, [n for n in names if isinstance(n, str) and n != place.value])


def _members(wanted: dict[str, Any]) -> list[dict[str, Any]]:
    return [wanted, *wanted.get("anyOf", [])]


def _unknown(place: Place, allowed: Allowed) -> str:
    key, section = str(place.path[-1]), place.section or {}
    others = [kind for kind, other in (place.kinds or {}).items() if key in other["properties"]]
    if others:
        return f"not a setting of {place.kind}, only of {either(others)}. Remove it, or change the name."
    nested = (*place.path[:-1], *key.split("."))
    if "." in key and nested in allowed.settings():
        return f"unknown in one word; write {_nest(key.split('.'))} with a level for each name."
    names = [name for name in section.get("properties", {}) if not (place.kind and name == "name")]
    if near := allowed.nearest(place.path, names):
        return f"unknown; did you mean {either(map(dotted, near[:3]))}?"
    return f"unknown, must be {either(names)}."


def _nest(names: list[str]) -> str:
    first, *rest = names
    return f"{first}: {{{_nest(rest)}}}" if rest else f"{first}: ..."


def _without_kind(place: Place, allowed: Allowed) -> tuple[Path, str]:
    """Explain a section whose `name` is missing or unknown."""
    kinds, value = allowed.kinds(place.allowed or {}), place.value
    if not isinstance(value, dict):
        return place.path, _wrong(place, allowed)
    if "name" in value:
        name = value["name"]
        near = did_you_mean(name, kinds) if isinstance(name, str) else "."
        return (*place.path, "name"), f"got {show(name)}, must be {either(kinds)}{near}"
    if "anyOf" in (place.allowed or {}):
        return _wrong_shorthand(place, list(kinds), allowed)
    return (*place.path, "name"), f"missing; must be {either(kinds)}."


def _wrong_shorthand(place: Place, kinds: list[str], allowed: Allowed) -> tuple[Path, str]:
    """Explain an entry that should be `{NAME: {options}}`, found with another name or with several."""
    names = list(place.value)
    if len(names) == 1 and names[0] not in kinds:
        near = did_you_mean(names[0], kinds)
        listed = either(kinds) if len(kinds) <= MOST_LISTED or near == "." else f"one of {len(kinds)} names"
        return (*place.path, names[0]), f"unknown, must be {listed}{near}"
    if len(names) > 1 and names[0] in kinds:
        first, extra = names[:2]
        message = f"beside {first}, not inside; did you mean {dotted((*place.path, first, extra))}?"
        if extra in kinds:
            message = f'beside {first}, must be an entry of its own. Write "- " before it.'
        return (*place.path, extra), message
    return place.path, _wrong(place, allowed)
