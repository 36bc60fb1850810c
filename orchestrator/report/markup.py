"""Pieces of HTML. What is not `Html` already is escaped, so no text of a run folder can become markup."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


class Html(str):
    """Text that is markup."""

    __slots__ = ()


@dataclass(frozen=True)
class Row:
    """A row of a table; `style` is a CSS class."""

    cells: Sequence[str]
    style: str = ""


def text(value: str) -> Html:
    return value if isinstance(value, Html) else Html(escape(value))


def join(parts: Iterable[str]) -> Html:
    return Html("".join(text(part) for part in parts))


def element(tag: str, *inside: str, style: str = "") -> Html:
    """<tag class=style>inside</tag>"""
    return Html(f"<{tag}{_class(style)}>{join(inside)}</{tag}>")


def tiles(*told: tuple[str, str, str]) -> Html:
    """Figures side by side, four in a row: what it is, the figure, more about it."""
    return element(
        "dl",
        *(
            element(
                "div",
                element("dt", name),
                element("dd", value, style="value"),
                element("dd", more, style="more"),
            )
            for name, value, more in told
        ),
        style="tiles",
    )


def folded(summary: str, *inside: str) -> Html:
    """A part that opens with a click."""
    return element("details", element("summary", summary), *inside)


def table(columns: Sequence[tuple[str, str]], rows: Iterable[Row]) -> Html:
    """A table of `columns` (heading, CSS class of heading and cells)."""
    head = join(Html(f'<th scope="col"{_class(style)}>{text(name)}</th>') for name, style in columns)
    body = join(
        element(
            "tr",
            *(element("td", cell, style=style) for cell, (_, style) in zip(row.cells, columns, strict=True)),
            style=row.style,
        )
        for row in rows
    )
    return element(
        "div", element("table", element("thead", element("tr", head)), element("tbody", body)), style="scroll"
    )


def figure(title: str, drawing: str, keys: Iterable[str] = (), note: str = "") -> Html:
    """A card with a title, the keys of its lines, a drawing and a note below."""
    return element(
        "figure",
        element("figcaption", element("h3", title), element("span", *keys, style="legend")),
        drawing,
        element("p", note, style="note") if note else "",
        style="card",
    )


def key(name: str, sample: str) -> Html:
    """An entry of a legend: `sample` is SVG drawn on 20 x 10."""
    return element("span", Html(f'<svg viewBox="0 0 20 10" aria-hidden="true">{sample}</svg>'), name, style="key")


def nothing(sentence: str) -> Html:
    """What stands where there is nothing to show yet."""
    return element("p", sentence, style="none")


def _class(style: str) -> str:
    return f' class="{escape(style)}"' if style else ""
