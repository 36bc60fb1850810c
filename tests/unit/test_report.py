"""The report of a run: what it shows equals what the files say, whatever state the run folder is in."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.errors import InputError
from orchestrator.report.axes import STEP as STEP_UNITS
from orchestrator.report.axes import exact, logarithmic, loss_axis, outward
from orchestrator.report.build import write_report
from orchestrator.report.charts import Mark, merged
from orchestrator.report.figures import WALL_PARTS, figures, phase_seconds
from orchestrator.report.record import read_record
from orchestrator.report.series import smooth, thin
from orchestrator.report.style import PHASE_COLOURS, WALL_COLOURS
from orchestrator.report.wording import duration, number, size, tick
from orchestrator.training.phases import PHASES

START = 1_795_000_000.0
STEPS_PER_EPOCH = 20


def step_line(step: int, attempt: int = 1, **changes: Any) -> dict[str, Any]:
    seconds = dict.fromkeys(PHASES, 0.001) | {"forward": 0.010, "backward": 0.020, "data_wait": 0.004}
    line = {"kind": "step", "time": START + step, "attempt": attempt, "epoch": (step - 1) // STEPS_PER_EPOCH}
    line |= {"step": step, "samples": 64, "loss": 2.0 / step, "accuracy": 0.5, "lr": 0.1}
    return line | {"step_s": sum(seconds.values()), "seconds": seconds} | changes


def epoch_line(epoch: int, **changes: Any) -> dict[str, Any]:
    line = {
        "kind": "epoch",
        "time": START + 99,
        "attempt": 1,
        "epoch": epoch,
        "step": (epoch + 1) * STEPS_PER_EPOCH,
    }
    line |= {"train_loss": 1.0, "train_accuracy": 0.7, "val_loss": 0.9, "val_accuracy": 0.8 + epoch / 100}
    line |= {"samples": 1280, "images_per_s": 1700.0, "data_wait_share": 0.1, "evaluation_s": 0.5}
    return line | {"seconds": dict.fromkeys(PHASES, 0.1)} | changes


def event_line(kind: str, after_s: float, **fields: Any) -> dict[str, Any]:
    return {"time": START + after_s, "event": kind, "attempt": 1, "message": f"A {kind}."} | fields


def result(**changes: Any) -> dict[str, Any]:
    line: dict[str, Any] = {"status": "finished", "error": None, "val_accuracy": 0.9861, "val_loss": 0.1234}
    line |= {
        "best_val_accuracy": 0.9917,
        "epochs": 3,
        "steps": 60,
        "samples_seen": 3840,
        "images_per_s": 1834.0,
    }
    line |= {"data_wait_share": 0.0312, "restarts": 2, "wall_s": 45.1, "workers": 2, "evaluation_s": 1.5}
    return line | {"versions": {"torch": "2.14.1"}, "classes": ["cat", "dog"]} | changes


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run of three epochs."""
    (tmp_path / "experiment.yaml").write_text("run: {name: digits}\ntrain: {epochs: 5}\n")
    lines = [step_line(step) for step in range(1, 61)]
    write_lines(tmp_path / "metrics.jsonl", [*lines, *(epoch_line(epoch) for epoch in range(3))])
    write_lines(tmp_path / "events.jsonl", [event_line("start", 0, step=0), event_line("finish", 70)])
    (tmp_path / "result.json").write_text(json.dumps(result()))
    return tmp_path


class Page(HTMLParser):
    """A report taken apart: tags with attributes, texts, and what each tile and table row says."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.svgs = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.in_cell:
            self.rows[-1][-1] += data

    def after(self, text: str, count: int = 2) -> list[str]:
        """The texts that follow `text`."""
        at = self.texts.index(text)
        return self.texts[at + 1 : at + 1 + count]

    def row(self, name: str) -> list[str]:
        """The cells after the first in the row that begins with `name`."""
        return next(cells[1:] for cells in self.rows if cells and cells[0] == name)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report(folder: Path) -> Page:
    text = write_report(folder).read_text(encoding="utf-8")
    page = Page(text)
    for svg in page.svgs:
        ET.fromstring(svg)  # well-formed
        assert not re.search(r"\b(nan|inf)\b", svg.lower().replace("nan or", ""))
    return page


def test_tiles_show_the_figures_of_the_result(folder: Path) -> None:
    page = report(folder)
    assert page.after("Validation accuracy") == ["98.61%", "loss 0.1234"]
    assert page.after("Best validation accuracy") == ["99.17%", "epoch 2"]
    assert page.after("Epochs") == ["3", "of 5"]
    assert page.after("Steps") == ["60", "3,840 samples"]
    assert page.after("Images per second", 1) == ["1,834"]
    assert page.after("Data wait", 1) == ["3.12%"]
    assert page.after("Restarts", 1) == ["2"]
    assert page.after("Wall time") == ["45.1 s", "1.50 s of it evaluation"]
    assert "finished" in page.texts


def test_tiles_of_a_run_without_result_come_from_its_lines(folder: Path) -> None:
    (folder / "result.json").unlink()
    page = report(folder)
    assert page.after("Validation accuracy") == ["82.00%", "loss 0.9000"]
    assert page.after("Steps") == ["60", "3,840 samples"]
    # 64 samples in 4 + 10 + 20 + 5 * 1 = 39 ms, 4 of them waiting.
    assert page.after("Images per second", 1) == ["1,641"]
    assert page.after("Data wait", 1) == ["10.26%"]
    assert page.after("Wall time", 1) == ["70.0 s"]
    assert any("still going on, or it was killed" in text for text in page.texts)


def test_phase_table_shows_seconds_and_share_of_each_phase(folder: Path) -> None:
    page = report(folder)
    assert page.row("backward") == ["1.20 s", "51.3%", "20.0 ms"]
    assert page.row("data wait") == ["240.0 ms", "10.3%", "4.00 ms"]
    assert page.row("all steps") == ["2.34 s", "100.0%", "39.0 ms"]


def test_phases_come_from_the_result_where_the_steps_are_missing(folder: Path) -> None:
    (folder / "metrics.jsonl").unlink()
    (folder / "result.json").write_text(json.dumps(result(seconds={"forward": 3.0, "backward": 1.0})))
    assert dict(zip(PHASES, phase_seconds(read_record(folder)), strict=True))["forward"] == 3.0
    assert report(folder).row("forward")[:2] == ["3.00 s", "75.0%"]


def test_last_attempt_of_a_step_wins_and_the_first_is_counted_as_done_again(folder: Path) -> None:
    first = [step_line(step) for step in range(1, 11)]
    again = [step_line(step, attempt=2, loss=7.0) for step in range(6, 13)]
    write_lines(folder / "metrics.jsonl", [*first, *again])
    steps = read_record(folder).steps
    assert steps.column("step").tolist() == list(range(1, 13))
    assert steps.column("attempt").tolist() == [1] * 5 + [2] * 7
    assert steps.column("loss")[5:].tolist() == [7.0] * 7
    assert steps.num_redone == 5
    assert steps.redone_s == pytest.approx(5 * 0.039)
    assert report(folder).after("Restarts") == ["2", "5 steps done again"]


def test_last_line_of_an_epoch_wins(folder: Path) -> None:
    write_lines(folder / "metrics.jsonl", [epoch_line(0), epoch_line(1), epoch_line(0, val_accuracy=0.99)])
    assert [epoch.val["accuracy"] for epoch in read_record(folder).epochs] == [0.99, 0.81]


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
@pytest.mark.parametrize("cut", [1, 10, 37])
def test_torn_last_line_is_left_out_and_noted(folder: Path, name: str, cut: int) -> None:
    whole = read_record(folder)
    lines = (folder / name).read_bytes().rstrip(b"\n")
    (folder / name).write_bytes(lines[:-cut])
    record = read_record(folder)
    assert record.notes == (f"{name}: 1 line is cut off and left out.",)
    lost = len(whole.epochs) - len(record.epochs) + len(whole.events) - len(record.events)
    assert lost == 1
    assert record.notes[0] in report(folder).texts


def test_torn_result_and_broken_experiment_are_left_out_and_noted(folder: Path) -> None:
    (folder / "result.json").write_text('{"status": "fin')
    (folder / "experiment.yaml").write_text("run: {name: [")
    page = report(folder)
    assert "unfinished" in page.texts
    assert "result.json is cut off and was left out." in page.texts
    assert "experiment.yaml is not a YAML mapping; it is shown as it is." in page.texts


def test_result_of_an_earlier_attempt_does_not_count(folder: Path) -> None:
    write_lines(
        folder / "events.jsonl",
        [event_line("start", 0), event_line("finish", 5, status="stopped"), event_line("start", 9, step=3)],
    )
    assert figures(read_record(folder)).status == "unfinished"


@pytest.mark.parametrize("missing", ["experiment.yaml", "metrics.jsonl", "events.jsonl", "result.json", "*"])
def test_missing_files_still_give_a_page(folder: Path, missing: str) -> None:
    for path in folder.glob(missing):
        path.unlink()
    page = report(folder)
    assert page.texts.count("Events") == 1
    name = folder.name if missing in ("*", "experiment.yaml") else "digits"
    assert f"{name} · Convoy" in page.texts


def test_no_folder_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"report: got '.*nowhere', must be the folder of a run"):
        write_report(tmp_path / "nowhere")


def test_report_goes_where_it_is_asked_to_and_leaves_nothing_else(folder: Path, tmp_path: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    assert write_report(folder) == folder / "report.html"
    assert {path.name for path in folder.iterdir()} == before | {"report.html"}
    assert write_report(folder, tmp_path / "other.html").read_text().startswith("<!doctype html>")


def test_nothing_is_loaded_and_no_script_can_run(folder: Path) -> None:
    page = report(folder)
    allowed = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "header",
        "section",
        "footer",
        "div",
        "span",
    }
    allowed |= {"p", "h1", "h2", "h3", "dl", "dt", "dd", "ul", "li", "pre", "figure", "figcaption", "details"}
    allowed |= {
        "summary",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "svg",
        "g",
        "path",
        "rect",
        "line",
        "circle",
        "text",
    }
    assert {tag for tag, _ in page.tags} <= allowed
    attributes = {name for _, attributes in page.tags for name in attributes}
    assert not attributes & {"src", "href", "xlink:href", "style", "srcset", "data"}
    assert not any(name.startswith("on") for name in attributes)
    text = (folder / "report.html").read_text()
    assert not re.search(r"https?://|url\(|@import", text)
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in page.named("meta"))


def test_text_of_a_run_cannot_become_markup(folder: Path) -> None:
    bad = '</pre></title><script>alert(1)</script><img src=x onerror="a" \'&'
    (folder / "experiment.yaml").write_text(
        json.dumps({"run": {"name": bad}, "model": {"name": bad}, "data": {"train": bad}})
    )
    failure = event_line("failure", 30, message=bad, cause=bad, ranks=[bad], nodes=[bad], error=bad)
    write_lines(folder / "events.jsonl", [failure, event_line(bad, 31), event_line("commit", 32, path=bad)])
    write_lines(folder / "metrics.jsonl", [step_line(step, loss=bad) for step in (1, 2)])
    told = result(status=bad, error=bad, versions={bad: bad}, classes=[bad])
    (folder / "result.json").write_text(json.dumps(told))
    page = report(folder)
    assert not page.named("script")
    assert not page.named("img")
    assert page.texts.count(bad) >= 5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e300, None, "text", True])
def test_figures_that_are_no_numbers_leave_a_gap(folder: Path, value: Any) -> None:
    names = ("loss", "accuracy", "lr", "step_s", "samples")
    odd = step_line(7, **dict.fromkeys(names, value), seconds=dict.fromkeys(PHASES, value))
    lines = [step_line(step) for step in range(1, 30) if step != 7]
    epochs = [epoch_line(0, val_loss=value, val_accuracy=value, seconds=None), epoch_line(1)]
    write_lines(folder / "metrics.jsonl", [*lines, odd, *epochs])
    (folder / "result.json").unlink()
    page = report(folder)
    assert "1 of 29 values are missing, NaN or infinite and leave a gap." in page.texts
    assert page.after("Validation accuracy", 1) == ["81.00%"]


def test_run_of_only_such_figures_has_no_curves_but_a_page(folder: Path) -> None:
    nothing: dict[str, Any] = dict.fromkeys(("loss", "accuracy", "lr", "step_s", "samples"))
    write_lines(folder / "metrics.jsonl", [step_line(step, seconds={}, **nothing) for step in (1, 2, 3)])
    assert report(folder).texts.count("Nothing recorded yet.") >= 4


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_run_of_a_few_steps_gives_a_page(folder: Path, num_steps: int) -> None:
    write_lines(folder / "metrics.jsonl", [step_line(step) for step in range(1, num_steps + 1)])
    assert report(folder).row("all steps")[0] == duration(0.039 * num_steps)


def test_events_stand_in_the_table_and_in_the_charts(folder: Path) -> None:
    failure = event_line("failure", 30.5, cause="workers", ranks=[1, 3], nodes=["a"], error="Traceback ...")
    skipped = event_line("skipped_checkpoint", 50.5, path="step-00000040", reason="no manifest")
    write_lines(folder / "events.jsonl", [event_line("start", 0, step=0), failure, skipped])
    page = report(folder)
    assert page.row("0:00:30")[:3] == ["30", "1", "failure"]
    assert page.row("0:00:30")[3] == "A failure.cause workers; ranks 1, 3; nodes aErrorTraceback ..."
    assert [event.step for event in read_record(folder).events] == [0, 30, 50]
    plots = [svg for svg in page.svgs if 'aria-label="Training loss by step"' in svg]
    assert "step 30: A failure." in plots[0]
    assert "step 50: A skipped_checkpoint." in plots[0]


def test_commits_in_a_row_are_one_line_of_the_table(folder: Path) -> None:
    commits = [event_line("commit", step, step=step, seconds=0.5, bytes=1_000_000) for step in range(1, 31)]
    write_lines(folder / "events.jsonl", [event_line("start", 0), *commits, event_line("finish", 40)])
    page = report(folder)
    assert page.texts.count("commit") == 1
    assert "30 commits from step 1 on: 15.0 s, 30.0 MB in all. The last: A commit." in "".join(page.texts)


def test_long_run_stays_below_two_megabytes_and_keeps_its_spike(folder: Path) -> None:
    lines = [step_line(step, loss=1.0 + step % 7 / 100, time=START + step) for step in range(1, 100_001)]
    lines[54_321]["loss"] = 9.0
    write_lines(folder / "metrics.jsonl", [*lines, *(epoch_line(epoch) for epoch in range(1000))])
    events = [event_line(kind, step, error="e" * 9000) for step in range(2000) for kind in ("failure", "restart")]
    write_lines(folder / "events.jsonl", events)
    page = report(folder)
    assert (folder / "report.html").stat().st_size < 2_000_000
    plot = next(svg for svg in page.svgs if 'aria-label="Training loss by step"' in svg)
    assert "to 9.000)" in plot
    heights = [float(at) for at in re.findall(r"[ML][\d.]+ ([\d.]+)", plot)]
    assert min(heights) < 40 < 150 < sorted(heights)[5]


def test_thinning_keeps_every_extreme_of_its_bucket_and_gaps() -> None:
    y = np.sin(np.arange(10_000) / 50)
    y[1234], y[7777], y[5000:5400] = 50.0, -60.0, np.nan
    x, thinned = thin(np.arange(10_000.0), y, 100)
    assert len(x) <= 200
    assert x[np.nanargmax(thinned)] == 1234
    assert x[np.nanargmin(thinned)] == 7777
    assert np.isnan(thinned).any()
    assert (np.diff(x) > 0).all()


def test_smoothing_is_the_mean_of_the_values_in_the_window() -> None:
    np.testing.assert_allclose(smooth(np.array([1.0, 2.0, 6.0, np.nan, 4.0]), 3), [1.5, 3.0, 4.0, 5.0, 4.0])
    assert np.isnan(smooth(np.array([np.nan]), 1)).all()


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0, 1.0, ["0", "0.25", "0.50", "0.75", "1.00"]),
        (0.13, 2.3, ["0", "1", "2", "3"]),
        (3.0, 3.0, ["2.6", "2.8", "3.0", "3.2", "3.4"]),
        (0.0, 83_000.0, ["0", "25k", "50k", "75k", "100k"]),
    ],
)
def test_axis_ends_at_round_ticks_around_its_values(low: float, high: float, labels: list[str]) -> None:
    axis = outward(np.array([low, high, np.nan]))
    assert list(axis.labels) == labels
    assert axis.low <= low <= high <= axis.high


def test_axis_of_steps_has_whole_numbers_only() -> None:
    assert exact(1.0, 4.0, STEP_UNITS, least=1.0).labels == ("1", "2", "3", "4")
    assert exact(5.0, 5.0, STEP_UNITS, least=1.0).labels == ("5",)


def test_loss_axis_is_logarithmic_only_where_a_spike_would_flatten_the_curve() -> None:
    calm, spiked = np.array([2.0, 1.0, 0.5, 0.4]), np.array([2.0, 1.0, 0.5, 900.0])
    assert loss_axis(calm) == outward(calm)
    assert loss_axis(spiked) == logarithmic(spiked)
    assert logarithmic(spiked).place(1.0, 0.0, 4.0) == pytest.approx(1.0)


def test_marks_that_would_touch_become_the_worst_of_them() -> None:
    marks = [
        Mark(10.0, "move", 3, "restart", "b"),
        Mark(9.9, "bad", 0, "failure", "a"),
        Mark(50.0, "calm", 4, "stop", "c"),
    ]
    drawn = merged(marks, exact(0.0, 100.0, STEP_UNITS))
    assert [(mark.name, mark.text) for mark in drawn] == [("failure", "a\nb"), ("stop", "c")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (duration(0.0000312), "0.0312 ms"),
        (duration(0.0301), "30.1 ms"),
        (duration(45.14), "45.1 s"),
        (duration(750), "12 min 30 s"),
        (duration(273_600), "3 d 4 h"),
        (duration(float("nan")), "–"),  # noqa: RUF001
        (number(1834.4), "1,834"),
        (number(0.52134), "0.5213"),
        (number(0), "0"),
        (size(44_700_000), "44.7 MB"),
        (tick(40_000, 20_000), "40k"),
        (tick(0.075, 0.025), "0.075"),
    ],
)
def test_numbers_are_worded(text: str, expected: str) -> None:
    assert text == expected


def test_every_phase_and_every_part_of_the_wall_time_has_a_colour() -> None:
    assert tuple(PHASE_COLOURS) == PHASES
    assert WALL_COLOURS.keys() == WALL_PARTS.keys()
