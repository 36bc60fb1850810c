"""What `convoy stats` found, as a page that needs no network and as tables for a terminal."""

import os
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestrator.report.markup import Html, Row, element, folded, join, nothing, table
from orchestrator.report.page import POLICY
from orchestrator.report.style import style_sheet
from orchestrator.report.wording import count, percent, size
from pipelines.stats import Colours, DataStats, Floats, Range

MAX_SHOWN = 20  # classes, duplicates and bad samples in a terminal
MAX_ROWS = 1000  # of a table on the page; what is left out is said


def write_data_page(source: str, stats: DataStats, out: Path) -> Path:
    """Write the page to `out`, which is replaced as a whole.

    Raises: OSError if it cannot be written.
    """
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    unfinished.write_text(_page(source, stats), encoding="utf-8")
    return unfinished.replace(out)


def print_stats(stats: DataStats, console: Console) -> None:
    """Print the same figures; long lists are cut, and said to be."""
    console.print(_terminal_table(("", "value"), _summary(stats)))
    rows = ((name, count(number), percent(number / stats.num_samples, 1)) for name, number in stats.classes)
    if stats.classes:
        console.print(_terminal_table(("class", "samples", "share"), rows))
    for heading, lines in (("duplicates", _duplicate_lines(stats)), ("bad", _bad_lines(stats))):
        for line in lines[:MAX_SHOWN]:
            console.print(f"{heading}: {line}", markup=False, highlight=False, soft_wrap=True)
        if len(lines) > MAX_SHOWN:
            console.print(f"{heading}: {len(lines) - MAX_SHOWN:,} more")
    console.print(f"experiment: {normalize_line(stats.colours)}", markup=False, highlight=False, soft_wrap=True)


def normalize_line(colours: Colours) -> str:
    """The augmentation that an experiment writes for these colours."""
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (colours.mean, colours.std))
    return f"normalize: {{mean: [{mean}], std: [{std}]}}"


def _terminal_table(headings: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for index, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if index else "left", overflow="fold")
    cells = list(rows)
    for row in cells[:MAX_SHOWN]:
        shown.add_row(*row)
    if len(cells) > MAX_SHOWN:
        shown.add_row(f"and {len(cells) - MAX_SHOWN:,} more")
    return shown


def _summary(stats: DataStats) -> Iterator[tuple[str, str]]:
    colours = stats.colours
    yield "samples", count(stats.num_samples)
    yield "bytes", size(stats.num_bytes)
    yield "target", str(stats.target)
    for number, values in enumerate(stats.values):
        yield f"value {number}, least / median / most", _value_range(values)
    for name, values in (("width", stats.widths), ("height", stats.heights)):
        yield f"{name}, least / median / most", _range(values)
    yield f"colours of {count(colours.num_samples)} samples at", f"{colours.image_size} x {colours.image_size}"
    yield "mean (R, G, B)", _numbers(colours.mean)
    yield "standard deviation", _numbers(colours.std)
    yield "PCA eigenvalues", _numbers(colours.eigenvalues)
    for number in range(3):
        yield f"PCA eigenvector {number + 1}", _numbers(colours.eigenvectors[:, number])
    yield "groups of equal files", count(len(stats.duplicates))
    yield "bad samples", count(len(stats.bad))


def _page(source: str, stats: DataStats) -> str:
    body = element(
        "main",
        element(
            "header",
            element("div", "Convoy data statistics", style="brand"),
            element("h1", source),
        ),
        _tiles(stats),
        _section("Classes", _classes(stats)) if stats.classes else _section("Values", _values(stats)),
        _section("Colours", _colours(stats.colours)),
        _section("Equal files", _lines(_duplicate_lines(stats), "No two files are equal.")),
        _section("Bad samples", _lines(_bad_lines(stats), "Every sample can be decoded.")),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{element('title', f'{source} · Convoy')}\n<style>{style_sheet()}</style>\n</head>\n"
        f"<body>{body}</body>\n</html>\n"
    )


def _tiles(stats: DataStats) -> Html:
    extra = sum(len(ids) - 1 for ids in stats.duplicates)
    tiles = (
        ("Samples", count(stats.num_samples), size(stats.num_bytes)),
        _target_tile(stats),
        ("Width", count(stats.widths.median), f"median; {count(stats.widths.low)} to {count(stats.widths.high)}"),
        ("Height", count(stats.heights.median), f"median; {count(stats.heights.low)} to {count(stats.heights.high)}"),
        ("Equal files", count(extra), f"that stand beside another, in {count(len(stats.duplicates))} groups"),
        ("Bad samples", count(len(stats.bad)), percent(len(stats.bad) / stats.num_samples)),
    )
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value, style="value"), element("dd", more, style="more"))
            for name, value, more in tiles
        ),
        style="tiles",
    )


def _target_tile(stats: DataStats) -> tuple[str, str, str]:
    if not stats.classes:
        return "Values", count(len(stats.values)), "numbers that each sample has for its label"
    counts = [number for _, number in stats.classes]
    return "Classes", count(len(counts)), f"{count(min(counts))} to {count(max(counts))} samples each"


def _values(stats: DataStats) -> Html:
    numbers = [Row((str(i), *(f"{x:.6g}" for x in (v.low, v.median, v.high)))) for i, v in enumerate(stats.values)]
    return _cut([("value", "num"), ("least", "num"), ("median", "num"), ("most", "num")], numbers)


def _classes(stats: DataStats) -> Html:
    most = max(1, *(number for _, number in stats.classes))
    rows = [
        Row((name, count(number), percent(number / stats.num_samples, 1), _bar(number / most)))
        for name, number in stats.classes
    ]
    return _cut([("class", ""), ("samples", "num"), ("share", "num"), ("", "text")], rows)


def _colours(colours: Colours) -> Html:
    channels = [
        Row((name, f"{colours.mean[i]:.4f}", f"{colours.std[i]:.4f}"))
        for i, name in enumerate(("red", "green", "blue"))
    ]
    components = [
        Row((str(i + 1), f"{colours.eigenvalues[i]:.6f}", *(f"{value:.4f}" for value in colours.eigenvectors[:, i])))
        for i in range(3)
    ]
    note = (
        f"Pixels of {count(colours.num_samples)} samples, the centre square scaled to {colours.image_size} x "
        f"{colours.image_size}, values from 0 to 1. Principal components of RGB over all pixels, as AlexNet's."
    )
    numbers = [(name, "num") for name in ("eigenvalue", "red", "green", "blue")]
    return join(
        [
            table([("channel", ""), ("mean", "num"), ("standard deviation", "num")], channels),
            element("p", Html("&nbsp;")),
            table([("component", ""), *numbers], components),
            element("p", note, style="note"),
            element("pre", normalize_line(colours)),
        ]
    )


def _lines(lines: list[str], none: str) -> Html:
    if not lines:
        return nothing(none)
    return folded(f"{count(len(lines))} of them", _cut([("", "text")], [Row((line,)) for line in lines]))


def _duplicate_lines(stats: DataStats) -> list[str]:
    return [" = ".join(ids) for ids in stats.duplicates]


def _bad_lines(stats: DataStats) -> list[str]:
    return [f"{bad.sample_id}: {bad.reason}" for bad in stats.bad]


def _cut(columns: list[tuple[str, str]], rows: list[Row]) -> Html:
    left_out = f"{len(rows) - MAX_ROWS:,} more rows are left out." if len(rows) > MAX_ROWS else ""
    return join([table(columns, rows[:MAX_ROWS]), element("p", left_out, style="note") if left_out else ""])


def _bar(share: float) -> Html:
    return Html(
        f'<svg width="{200 * share:.1f}" height="10" aria-hidden="true">'
        '<rect class="forward" width="100%" height="100%"/></svg>'
    )


def _section(title: str, *inside: str) -> Html:
    return element("section", element("h2", title), element("div", *inside, style="card"))


def _range(values: Range) -> str:
    return f"{count(values.low)} / {count(values.median)} / {count(values.high)}"


def _value_range(values: Range) -> str:
    return " / ".join(f"{value:.6g}" for value in (values.low, values.median, values.high))


def _numbers(values: Floats) -> str:
    return "  ".join(f"{value:.4f}" for value in values)
