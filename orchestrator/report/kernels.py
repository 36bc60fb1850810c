"""Which algorithm `kernels: auto` chose for each convolution by what was measured, and what that saves."""

from collections.abc import Sequence

from orchestrator.report.charts import Bar, grouped_bars
from orchestrator.report.markup import Html, Row, element, figure, folded, key, table
from orchestrator.report.record import Tuned
from orchestrator.report.style import PASS_COLOURS
from orchestrator.report.wording import duration

MAX_GROUPS = 24  # of the chart; the table has all
MAX_NAME = 22  # characters of a layer's name in the chart


def convolutions(tuned: Sequence[Tuned]) -> tuple[Html, Html]:
    """A chart of ratios beside what they come to, and the table of all."""
    chart = element("div", _chart(tuned), _sums(tuned), style="grid2 top")
    return chart, element("div", _table(tuned), style="card")


def _chart(tuned: Sequence[Tuned]) -> Html:
    groups: dict[tuple[str, ...], list[Tuned]] = {}
    for each in tuned:
        groups.setdefault(each.layers, []).append(each)
    gains = {layers: sum(each.saved_s for each in passes) for layers, passes in groups.items()}
    shown = sorted(groups, key=lambda layers: -gains[layers])[:MAX_GROUPS]
    drawn = [(_name(layers), [_bar(each) for each in groups[layers]]) for layers in groups if layers in shown]
    title = "Times as fast as the vendor's kernel"
    keys = [key(_of(which), f'<rect class="{which}" x="5" width="10" height="10"/>') for which in PASS_COLOURS]
    left_out = f"The {MAX_GROUPS} of {len(groups)} shapes that gain most. " if len(groups) > MAX_GROUPS else ""
    note = f"{left_out}Measured before the run, over the vendor's better layout; 1 where the vendor's stays."
    return figure(title, Html(grouped_bars(title, drawn, base=1.0)), keys, note)


def _bar(each: Tuned) -> Bar:
    name = "" if each.by_vendor else f"{each.algorithm} "
    hover = (
        f"{', '.join(each.layers)[:300]}: {each.shape}\n{_of(each.which)}: {each.algorithm} {duration(each.seconds)}, "
        f"vendor {duration(each.vendor_s)}"
    )
    return Bar(each.ratio, each.which, f"{name}{each.ratio:.2f}", hover)


def _sums(tuned: Sequence[Tuned]) -> Html:
    """What the convolutions of one step of a worker take."""
    rows = [_sum(_of(which), [each for each in tuned if each.which == which]) for which in PASS_COLOURS]
    rows.append(_sum("in all", tuned, "total"))
    columns = [("pass", ""), ("vendor", "num"), ("chosen", "num"), ("ratio", "num")]
    note = element("p", "Of one worker's part of a step, layers of one shape counted each.", style="note")
    return element("div", element("h3", "Convolutions of a step"), table(columns, rows), note, style="card")


def _sum(name: str, tuned: Sequence[Tuned], style: str = "") -> Row:
    vendor_s = sum(len(each.layers) * each.vendor_s for each in tuned)
    seconds = sum(len(each.layers) * each.seconds for each in tuned)
    ratio = f"{vendor_s / seconds:.2f}" if seconds else ""
    return Row((name, duration(vendor_s), duration(seconds), ratio), style)


def _table(tuned: Sequence[Tuned]) -> Html:
    columns = [("layer", ""), ("shape", ""), ("pass", ""), ("chosen", ""), ("time", "num"), ("vendor", "num")]
    rows = [
        Row(
            (
                _name(each.layers),
                each.shape,
                _of(each.which),
                each.algorithm,
                duration(each.seconds),
                duration(each.vendor_s),
                f"{each.ratio:.2f}",
            )
        )
        for each in tuned
    ]
    return folded(f"All {len(rows)} passes", table([*columns, ("ratio", "num")], rows))


def _name(layers: Sequence[str]) -> str:
    first = layers[0] if len(layers[0]) <= MAX_NAME else f"…{layers[0][1 - MAX_NAME :].lstrip('.')}"
    return f"{first} +{len(layers) - 1}" if len(layers) > 1 else first


def _of(which: str) -> str:
    return which.replace("_gradient", "'s gradient")
