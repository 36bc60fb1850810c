"""YAML text as plain values, each with the line it stands on.

The rules are those of YAML 1.2's core schema (yaml.org/spec/1.2.2, section 10.3.2), where PyYAML alone
follows 1.1: `1e-3` is a number, `no` and `on` are text, `010` is ten, dates are text. Keys are always text.
Anchors, aliases and the merge key `<<` work; tags other than the core ones are mistakes and construct
nothing. Whether a setting exists is not asked here.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from orchestrator.config.mistake import COMMAND_LINE, Mistake, Path, dotted, show

# A few hundred values make a long experiment. The limits stop an alias of aliases before it fills the memory,
# and deep nesting before the interpreter's stack ends.
MAX_VALUES = 10_000
MAX_DEPTH = 40

_CORE = "tag:yaml.org,2002:"
_PLAIN = {
    f"{_CORE}null": re.compile(r"(~|null|Null|NULL|)\Z"),
    f"{_CORE}bool": re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"),
    f"{_CORE}int": re.compile(r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"),
    f"{_CORE}float": re.compile(
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
    ),
    f"{_CORE}merge": re.compile(r"<<\Z"),
}
# PyYAML looks resolvers up by a scalar's first character; None is any.
PLAIN_RESOLVERS: dict[Any, list[tuple[str, re.Pattern[str]]]] = {None: list(_PLAIN.items())}


@dataclass
class Document:
    """What a file says. `lines` maps a path to its line; 0 is the command line."""

    filename: str
    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    mistakes: dict[Path, Mistake] = field(default_factory=dict)

    def locate(self, path: Path) -> str:
        """Say where a setting is; one that is not written is where its section is."""
        for length in range(len(path), -1, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return f"{self.filename}:{line}" if line else COMMAND_LINE
        return self.filename

    def refuse(self, path: Path, message: str, line: int | None = None) -> None:
        location = self.locate(path) if line is None else f"{self.filename}:{line}"
        self.mistakes.setdefault(path, Mistake(dotted(path), location, message))


def read(text: str, filename: str) -> Document:
    """Parse YAML. Mistakes, unreadable text among them, are listed in the document."""
    document = Document(filename)
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is not None:
            document.value = _Reader(document).build(node, (), 0)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"cannot be read as YAML: it holds the character U+{error.character:04X}. Remove it."
        document.mistakes[()] = Mistake("", f"{filename}:{line}", message)
    except yaml.MarkedYAMLError as error:
        document.mistakes[()] = Mistake("", *_explain(error, filename))
    except (ValueError, OverflowError) as error:
        # What chr() and int() say of an escape like "\UFFFFFFFF" or a very long %YAML directive.
        document.mistakes[()] = Mistake("", filename, f"cannot be read as YAML: {error}.")
    return document


def plain(text: str) -> Any:
    """Give the value of an unquoted scalar. Raises: ValueError if it is a number that nothing can hold."""
    return _scalar(next((tag for tag, form in _PLAIN.items() if form.match(text)), f"{_CORE}str"), text)


def _explain(error: yaml.MarkedYAMLError, filename: str) -> tuple[str, str]:
    mark = error.problem_mark or error.context_mark
    problem = str(error.problem or error.context)
    if problem.startswith("but "):
        problem = f"{error.context}, {problem}"
    problem = problem.replace("'<stream end>'", "the end").replace("<block end>", "the end of the section")
    hint = " Indent with spaces, not tabs." if "\\t" in problem else ""
    location = f"{filename}:{mark.line + 1}:{mark.column + 1}" if mark else filename
    return location, f"cannot be read as YAML: {problem}.{hint}"


def _scalar(tag: str, text: str) -> Any:
    """Give the value of a scalar by its tag.

    Raises: ValueError, with what is allowed, if the tag is none of the core ones or the text does not fit it.
    """
    kind = tag.removeprefix(_CORE)
    if kind in ("str", "merge"):
        return _text(text)
    if tag not in _PLAIN or tag == f"{_CORE}merge":
        raise ValueError(_refused_tag(tag))
    if not _PLAIN[tag].match(text):
        raise ValueError(f"got {show(text)}, must be what its tag !!{kind} says. Remove the tag.")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    return _number(kind, text)


def _text(text: str) -> str:
    """Join the halves of a character that JSON writes as two escapes, such as "\\ud83d\\ude00"."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError(f"got {show(text)}, must be text; half of a surrogate pair is no character.") from None


def _refused_tag(tag: str) -> str:
    return f"got the tag {tag.replace(_CORE, '!!')}, must be a plain value. Remove the tag."


def _number(kind: str, text: str) -> int | float:
    value: int | float
    if kind == "int":
        value = int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)) if len(text) <= 100 else math.inf
    else:
        value = float(text.replace(".", "") if text[-1] in "fFnN" else text)
    if not math.isfinite(value) or (kind == "int" and abs(value) >= 2**64):
        raise ValueError(f"got {show(text)[1:-1]}, must be a finite number that fits into 64 bits.")
    return value


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the rules of YAML 1.2, and a limit on nesting."""

    yaml_implicit_resolvers = PLAIN_RESOLVERS
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            problem = f"nested deeper than {MAX_DEPTH} levels"
            raise yaml.composer.ComposerError(None, None, problem, parent.start_mark if parent else None)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Reader:
    """Turns nodes into values, and notes lines and mistakes on the way."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.num_values = 0

    def build(self, node: yaml.Node, path: Path, depth: int) -> Any:
        self._count(node, depth)
        # A key's line, noted before its value is built, is the better one: the value may be an alias.
        line = node.start_mark.line + 1
        self.document.lines.setdefault(path, line)
        try:
            if isinstance(node, yaml.ScalarNode):
                return _scalar(node.tag, node.value)
            if node.tag not in (f"{_CORE}map", f"{_CORE}seq") or isinstance(node.value, str):
                raise ValueError(_refused_tag(node.tag))
        except ValueError as error:
            self.document.refuse(path, str(error), line)
            return None
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*path, i), depth + 1) for i, child in enumerate(node.value)]
        values: dict[str, Any] = {}
        self._fill(values, node, path, depth)
        return values

    def _fill(self, values: dict[str, Any], node: yaml.Node, path: Path, depth: int) -> None:
        """Add the entries of a mapping, then what it merges in with `<<`; the first to name a key has it."""
        self._count(node, depth)
        first: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == f"{_CORE}merge":
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            key = self._key(key_node, path)
            if key in first:
                message = f"given twice, first on line {first[key]}. Remove one of the two."
                self.document.refuse((*path, key), message, line)
            if key is None or key in first:
                continue
            first[key] = line
            if key not in values:
                self.document.lines[(*path, key)] = line
                values[key] = self.build(value_node, (*path, key), depth + 1)
        for source in merged:
            if isinstance(source, yaml.MappingNode):
                self._fill(values, source, path, depth + 1)
            else:
                self.document.refuse(
                    (*path, "<<"),
                    "must name a section to copy from, such as *base.",
                    source.start_mark.line + 1,
                )

    def _key(self, node: yaml.Node, path: Path) -> str | None:
        try:
            if not isinstance(node, yaml.ScalarNode):
                raise ValueError("has a list or a section as a key, must be a name.")
            _scalar(node.tag, node.value)
            return _text(node.value)
        except ValueError as error:
            self.document.refuse(path, str(error), node.start_mark.line + 1)
            return None

    def _count(self, node: yaml.Node, depth: int) -> None:
        self.num_values += 1
        if self.num_values > MAX_VALUES or depth > MAX_DEPTH:
            problem = f"more than {MAX_VALUES} values or {MAX_DEPTH} levels, counting every use of an alias"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
