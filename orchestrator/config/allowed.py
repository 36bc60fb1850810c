"""What the JSON schema allows at a place, in words, and where pydantic's places are in the file.

Only the part of JSON Schema that our models produce is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from orchestrator.config.mistake import Path, either
from orchestrator.config.schema import Schema
from orchestrator.config.strategy import IMPLIED

MISSING: Any = object()

_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_TYPES = {dict: "object", list: "array"}


@dataclass(frozen=True)
class Place:
    """A place in a file.

    `path`: as the user wrote it or would write it. `value`: what is written there, or MISSING.
    `allowed`: the schema there, None if there is no such setting.
    `section`: the schema of the section around it, None around a list's entries.
    `kind`: of that section, where its `name` chooses; `kinds`: all there are, by name.
    """

    path: Path
    value: Any
    allowed: Schema | None
    section: Schema | None = None
    kind: str = ""
    kinds: dict[str, Schema] | None = None


class Allowed:
    """A schema to ask."""

    def __init__(self, schema: Schema) -> None:
        self.root = schema
        self.definitions: dict[str, Schema] = schema["$defs"]

    def find(self, loc: Path, value: Any) -> Place:
        """Turn a pydantic `loc`, where kinds of unions stand between keys and indexes, into a place."""
        place = Place((), value, self.root)
        for part in loc:
            place = self._step(place, part)
        return place

    def _step(self, place: Place, part: str | int) -> Place:
        allowed, value = self._resolve(place.allowed or {}), place.value
        if kinds := self.kinds(allowed):
            named = value.get("name", MISSING) if isinstance(value, dict) else MISSING
            if part not in kinds and isinstance(named, str) and named in kinds:
                return self._step(self._step(place, named), part)  # our own validators name no kind
            if part not in kinds:
                return Place((*place.path, part), _get(value, part), None)
            shorthand = named is MISSING and part != IMPLIED
            path, value = ((*place.path, part), _get(value, part)) if shorthand else (place.path, value)
            return Place(path, value, {**kinds[part], "kind": part, "kinds": kinds})
        if members := allowed.get("anyOf", allowed.get("oneOf")):
            kind = next((name for form, name in _TYPES.items() if isinstance(value, form)), "scalar")
            fitting = [m for m in map(self._resolve, members) if m.get("type") == kind]
            if not fitting or (kind == "array" and isinstance(part, str)):
                return place  # the part is the tag of a member, or a field that a shorthand stands for
            allowed = fitting[0]
        return Place(
            (*place.path, part),
            _get(value, part),
            self._inner(allowed, part),
            section=allowed if "properties" in allowed else None,
            kind=allowed.get("kind", ""),
            kinds=allowed.get("kinds"),
        )

    def _inner(self, allowed: Schema, part: str | int) -> Schema | None:
        if isinstance(part, str):
            inner = allowed.get("properties", {}).get(part)
            return inner if inner is not None else (allowed.get("additionalProperties") or None)
        fixed = allowed.get("prefixItems", [])
        return fixed[part] if part < len(fixed) else allowed.get("items")

    def _resolve(self, allowed: Schema) -> Schema:
        if "$ref" not in allowed:
            return allowed
        target = self.definitions[allowed["$ref"].removeprefix("#/$defs/")]
        return {
            **self._resolve(target),
            **{k: v for k, v in allowed.items() if k not in ("$ref", "required")},
        }

    def kinds(self, allowed: Schema) -> dict[str, Schema]:
        """Give the sections that a union chooses from by `name`; empty if it is no such union."""
        mapping = self._resolve(allowed).get("discriminator", {}).get("mapping", {})
        return {name: self._resolve({"$ref": ref}) for name, ref in mapping.items()}

    def words(self, allowed: Schema) -> str:
        """Say what may be written, to follow `must be`."""
        allowed = self._resolve(allowed)
        if "title" in allowed:
            return str(allowed["title"])
        if kinds := self.kinds(allowed):
            return f"a section with a name, {either(kinds)}, and its settings"
        if members := allowed.get("anyOf", allowed.get("oneOf")):
            inner = [list(map(str, choices(member))) or [self.words(member)] for member in members]
            return either(word for words in inner for word in words)
        if names := choices(allowed):
            return either(str(name) for name in names)
        return self._words_of_type(allowed)

    def _words_of_type(self, allowed: Schema) -> str:
        match allowed.get("type"):
            case "integer":
                return f"a whole number{_bounds(allowed)}"
            case "number":
                return f"a number{_bounds(allowed)}"
            case "boolean":
                return "true or false"
            case "string":
                return f"text that matches {allowed['pattern']}" if "pattern" in allowed else "text"
            case "array":
                return self._words_of_list(allowed)
            case "object" if "properties" in allowed:
                needed = allowed.get("required", [])
                names = either(needed or allowed["properties"], "and" if needed else "or")
                return f"a section with {'at least ' if needed else ''}{names}"
            case "object":
                return "a section of names and values"
        return "any value"

    def _words_of_list(self, allowed: Schema) -> str:
        least, most = allowed.get("minItems", 0), allowed.get("maxItems")
        size = f" of {least}" if least == most else f" of {least} to {most}" if most else ""
        size = size or (f" of at least {least}" if least else "")
        entry = allowed["prefixItems"][0] if "prefixItems" in allowed else allowed["items"]
        return f"a list{size}, each {self.words(entry)}"

    def settings(self) -> Iterator[Path]:
        """List every setting that has a path of its own, sections included; entries of lists have none."""
        yield from self._settings(self.root, ())

    def _settings(self, allowed: Schema, path: Path) -> Iterator[Path]:
        allowed = self._resolve(allowed)
        for section in [
            allowed,
            *self.kinds(allowed).values(),
            *map(self._resolve, allowed.get("anyOf", [])),
        ]:
            for name, inner in section.get("properties", {}).items():
                yield (*path, name)
                yield from self._settings(inner, (*path, name))

    def nearest(self, path: Path, names: list[str]) -> list[Path]:
        """Give the settings that a path may have meant, best first and equal ones together.

        `names` are those of the section that the path leads into. A name of the same section is preferred to
        a slightly more similar one elsewhere, then the one the fewest steps away.
        """
        written, section = str(path[-1]).lower(), path[:-1]
        here = [(*section, name) for name in names]
        scored = []
        for setting in dict.fromkeys([*here, *self.settings()]):
            similarity = _similarity(written, str(setting[-1]).lower())
            if similarity >= 0.7:
                score = similarity + (0.15 if setting in here else 0.0)
                scored.append((-score, _steps(section, setting), setting))
        scored.sort(key=lambda entry: entry[:2])
        return [setting for *rank, setting in scored if rank == list(scored[0][:2])]


def choices(allowed: Schema) -> list[Any]:
    return list(allowed.get("enum", [allowed["const"]] if "const" in allowed else []))


def _bounds(allowed: Schema) -> str:
    limits = [(sign, allowed[key]) for key, sign in _BOUNDS.items() if key in allowed]
    bounds = [f"{sign} {_short(limit)}" for sign, limit in limits]
    return f" {either(bounds, 'and')}" if bounds else ""


def _short(limit: float) -> str:
    if limit != int(limit):
        return str(limit)
    power = int(limit).bit_length() - 1
    return f"2^{power}" if power > 31 and limit == 2**power else str(int(limit))


def _get(value: Any, part: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(part, MISSING)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return value[part]
    return MISSING


def _similarity(one: str, other: str) -> float:
    """Give 1 for the same name; sharing a word, as `batch_size` and `global_batch` do, is worth 0.75."""
    ratio = SequenceMatcher(None, one, other).ratio()
    return max(ratio, 0.75) if set(one.split("_")) & set(other.split("_")) else ratio


def _steps(section: Path, setting: Path) -> int:
    shared = 0
    while shared < min(len(section), len(setting)) and section[shared] == setting[shared]:
        shared += 1
    return len(section) - shared + len(setting) - shared
