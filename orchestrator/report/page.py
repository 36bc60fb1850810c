"""The page of a run, section by section, from top to bottom."""

import math
from typing import Any

from orchestrator.report import curves, tables
from orchestrator.report.agreement import agreement, has_agreed
from orchestrator.report.charts import share_bar
from orchestrator.report.figures import UNFINISHED, WALL_PARTS, Figures, figures, phase_seconds, wall_parts
from orchestrator.report.kernels import convolutions
from orchestrator.report.markup import Html, element, folded, nothing, tiles
from orchestrator.report.record import Record, number
from orchestrator.report.style import style_sheet
from orchestrator.report.tables import figure_of
from orchestrator.report.wording import count, duration, moment, percent, size
from orchestrator.report.wording import number as figure_text
from orchestrator.training.phases import PHASES

# Nothing is loaded and no script runs, whatever the text of a run contains.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
MAX_TEXT = 100_000  # characters of the experiment that are shown


def page(record: Record) -> str:
    """The whole HTML document."""
    key = figures(record)
    name = _name(record)
    body = element(
        "main",
        _header(record, key, name),
        _tiles(record, key),
        _curves(record),
        _where_the_time_went(record, key),
        _step_times(record),
        _section("How the workers agreed", agreement(record)) if has_agreed(record) else "",
        _section("Convolutions", *convolutions(record.tuned)) if record.tuned else "",
        _section("Events", element("div", tables.event_table(record), style="card events")),
        _configuration(record),
        _footer(record),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{element('title', f'{name} · Convoy')}\n<style>{style_sheet()}</style>\n</head>\n"
        f"<body>{body}</body>\n</html>\n"
    )


def _header(record: Record, key: Figures, name: str) -> Html:
    model, data = (_setting(record, *path) for path in (("model", "name"), ("data", "train")))
    workers = record.workers
    about = [f"{model} on {data}" if model and data else model]
    about += ["1 worker" if workers == 1 else f"{workers} workers"] if workers is not None else []
    about += [f"started {moment(record.started)}"] if math.isfinite(record.started) else []
    status = element("span", key.status, style=f"status {key.status}")
    return element(
        "header",
        element("div", "Convoy run report", style="brand"),
        element("h1", name, " ", status),
        element("p", " · ".join(part for part in about if part), style="about"),
        _banner(record, key),
    )


def _banner(record: Record, key: Figures) -> Html:
    """What to know before reading on: why a run failed, or that it has no result yet."""
    if key.status == UNFINISHED:
        sign = f" Last sign of life: {moment(record.last_sign)}." if math.isfinite(record.last_sign) else ""
        text = f"No result yet: the run is still going on, or it was killed.{sign}"
        return element("div", element("p", text), style="banner unfinished")
    error = record.result.get("error")
    if error:
        return element("div", element("p", str(error)[: tables.MAX_TEXT]), style=f"banner {key.status}")
    return Html("")


def _tiles(record: Record, key: Figures) -> Html:
    planned = number(_value(record, "train", "epochs"))
    best = f"epoch {key.best_epoch}" if key.best_epoch is not None else ""
    redone = record.steps.num_redone
    return tiles(
        (f"Validation {key.measure.title}", figure_of(key.measure, key.val), f"loss {figure_text(key.val_loss)}"),
        (f"Best validation {key.measure.title}", figure_of(key.measure, key.best_val), best),
        ("Epochs", count(key.epochs), f"of {count(planned)}" if math.isfinite(planned) else ""),
        ("Steps", count(key.steps), f"{count(key.samples_seen)} samples"),
        ("Images per second", count(key.images_per_s), "of all workers together"),
        ("Data wait", percent(key.data_wait_share), "of the step time"),
        ("Restarts", count(key.restarts), f"{redone:,} steps done again" if redone else ""),
        *_memory(record),
        ("Wall time", duration(key.wall_s), f"{duration(key.evaluation_s)} of it evaluation"),
    )


def _memory(record: Record) -> tuple[tuple[str, str, str], ...]:
    """The peak of a worker's memory, as result.json has it."""
    told = record.result.get("memory")
    predicted = told.get("predicted") if isinstance(told, dict) else None
    if not isinstance(told, dict) or not isinstance(predicted, dict):
        return ()
    expected = size(number(predicted.get(str(told.get("measured_of")))))
    return (("Memory of a worker", size(number(told.get("measured"))), f"{expected} predicted"),)


def _curves(record: Record) -> Html:
    charts = (
        curves.loss_by_step,
        curves.loss_by_epoch,
        curves.figure_by_step,
        curves.figure_by_epoch,
        curves.learning_rate,
        curves.throughput,
    )
    listing = element("div", tables.epoch_table(record), style="card") if record.epochs else ""
    return _section("Curves", element("div", *(chart(record) for chart in charts), style="grid2"), listing)


def _where_the_time_went(record: Record, key: Figures) -> Html:
    seconds = phase_seconds(record)
    if not seconds.any():
        return _section("Where the time went", element("div", nothing("Nothing recorded yet."), style="card"))
    total = float(seconds.sum())
    shares = [
        (phase, value / total, f"{phase.replace('_', ' ')}: {duration(value)}, {percent(value / total, 1)}")
        for phase, value in zip(PHASES, seconds.tolist(), strict=True)
    ]
    whose = "Seconds of who completed a step, scaled to the wall time" if record.is_served else "Seconds of rank 0"
    note = element("p", f"{whose}. Steps done again after a failure count once.", style="note")
    bar = element("h3", "Share of step time"), Html(share_bar("Share of step time by phase", shares))
    return _section(
        "Where the time went",
        element(
            "div",
            element("div", *bar, tables.phase_table(record), note, style="card"),
            element("div", curves.phases_over_time(record), _wall_time(record, key), style="stack"),
            style="grid2",
        ),
    )


def _wall_time(record: Record, key: Figures) -> Html:
    parts = wall_parts(record, key)
    total = sum(parts.values())
    shares = [
        (part, seconds / total, f"{WALL_PARTS[part]}: {duration(seconds)}, {percent(seconds / total, 1)}")
        for part, seconds in parts.items()
    ]
    bar = Html(share_bar("Wall time", shares))
    return element("div", element("h3", "The whole run"), bar, tables.wall_keys(parts), style="card")


def _step_times(record: Record) -> Html:
    slowest = element("div", element("h3", "Slowest steps"), tables.slowest_steps(record), style="card")
    return _section("Step times", element("div", curves.step_times(record), slowest, style="grid2"))


def _configuration(record: Record) -> Html:
    text = record.experiment_text
    cut = f"\n# ... cut here; the file has {len(text):,} characters" if len(text) > MAX_TEXT else ""
    yaml = element("pre", text[:MAX_TEXT] + cut) if text else nothing("experiment.yaml is missing.")
    classes = record.result.get("classes")
    listing = (
        folded(f"{len(classes)} classes", element("p", ", ".join(str(name) for name in classes)[:MAX_TEXT]))
        if isinstance(classes, list)
        else ""
    )
    versions = element("div", element("h3", "Versions"), tables.versions_table(record), listing, style="card")
    config = element("div", element("h3", "Experiment, as resolved"), yaml, style="card config")
    return _section("Configuration", element("div", config, versions, style="grid2"))


def _footer(record: Record) -> Html:
    source = f"Drawn from the files in {record.folder} by convoy report. Times are UTC."
    return element("footer", *(element("p", note) for note in (*record.notes, source)))


def _section(title: str, *inside: str) -> Html:
    return element("section", element("h2", title), *inside)


def _name(record: Record) -> str:
    return _setting(record, "run", "name") or record.folder.resolve().name


def _setting(record: Record, *path: str) -> str:
    """A setting of the experiment as text; empty if it is missing."""
    value = _value(record, *path)
    return "" if value is None else str(value)


def _value(record: Record, *path: str) -> Any:
    value: Any = record.experiment
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value
