"""The report's section on how workers agreed: what it shows, and the one sentence that it says or does not say."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from test_report import PHASES, Page, event_line, report, result, step_line, write_lines

from orchestrator.config.load import load_experiment
from orchestrator.config.strategy import AsyncConfig, StrategyConfig, SyncConfig
from orchestrator.report.agreement import LATER, MAX_COLUMNS
from orchestrator.report.figures import pace, phase_seconds, spans
from orchestrator.report.record import read_record
from orchestrator.report.strategy import in_short
from tests.conftest import DIGITS

TITLE = "How the workers agreed"
CHART = "Gradients by staleness, in updates"
NONE_STALE = {"0": 60}
ASYNC: dict[str, Any] = {"name": "async", "workers": 2}
SLOW = event_line("fault", 1, rank=1, step=1) | {"kind": "slow"}


def told(histogram: dict[str, int], **changes: Any) -> dict[str, Any]:
    """What a server's result has more."""
    staleness = {"mean": 0.0, "max": 0, "histogram": histogram}
    return result(**{"updates": 120, "updates_lost": 0, "samples_per_s": 1.0, "staleness": staleness} | changes)


def seconds(communication: float) -> dict[str, Any]:
    """Of a step of 100 ms, of which so much is communication."""
    spent = dict.fromkeys(PHASES, 0.0) | {"forward": 0.1 * (1 - communication), "communication": 0.1 * communication}
    return {"step_s": 0.1, "seconds": spent}


def run_folder(
    folder: Path,
    strategy: Any,
    ended: dict[str, Any] | None,
    communication: float = 0.1,
    events: tuple[dict[str, Any], ...] = (),
) -> Path:
    """A run of 60 steps on 2 workers; its first waited long for the pipeline."""
    experiment = {"run": {"name": "digits", "folder": "auto"}, "train": {"global_batch": 64}, "strategy": strategy}
    (folder / "experiment.yaml").write_text(json.dumps(experiment))
    first = step_line(1, step_s=20.0, seconds=dict.fromkeys(PHASES, 0.0) | {"data_wait": 20.0})
    lines = [step_line(step, **seconds(communication)) for step in range(2, 61)]
    write_lines(folder / "metrics.jsonl", [first, *lines])
    start = event_line("start", 0, step=0, workers=2)
    write_lines(folder / "events.jsonl", [start, *events, event_line("finish", 70)])
    if ended is not None:
        (folder / "result.json").write_text(json.dumps(ended))
    return folder


def said(page: Page) -> str:
    """All that the section says, in one line."""
    start = page.texts.index(TITLE)
    return " ".join(" ".join(page.texts[start : page.texts.index("Events")]).split())


def test_a_server_s_run_shows_updates_staleness_communication_and_speed(tmp_path: Path) -> None:
    page = report(run_folder(tmp_path, ASYNC, told({"0": 20, "1": 60, "3": 40}, updates_lost=3)))
    assert page.after("Updates") == ["120", "3 more were lost and made again"]
    assert page.after("Staleness") == ["1.50", "updates in the mean, 3 at most"]
    assert page.after("Communication") == ["10.0%", "of the step time after the start"]
    assert page.after("Samples per second", 1) == ["640"]
    assert "2 workers, a parameter server, asynchronous, rate divided by 1 + staleness" in page.texts
    assert "Seconds of who completed a step, scaled to the wall time." in " ".join(page.texts)


def test_the_chart_has_a_column_for_each_number_of_updates(tmp_path: Path) -> None:
    page = report(run_folder(tmp_path, ASYNC, told({"0": 20, "1": 60, "3": 40})))
    (chart,) = [svg for svg in page.svgs if CHART in svg]
    expected = [
        "0 updates stale: 20 gradients, 16.7%",
        "1 update stale: 60 gradients, 50.0%",
        "2 updates stale: 0 gradients, 0.0%",
        "3 updates stale: 40 gradients, 33.3%",
        "mean 1.50",
    ]
    assert [text for text in expected if f">{text}<" not in chart] == []


def test_a_wide_range_of_staleness_is_drawn_in_a_few_columns(tmp_path: Path) -> None:
    page = report(run_folder(tmp_path, ASYNC, told({str(updates): 2 for updates in range(1000)})))
    (chart,) = [svg for svg in page.svgs if CHART in svg]
    assert chart.count('class="bar"') == MAX_COLUMNS
    assert ">975 to 999 updates stale: 50 gradients, 2.5%<" in chart


@pytest.mark.parametrize(
    "strategy", [{"workers": 2}, {"name": "local", "workers": 2}, {"name": "backup", "workers": 2}]
)
def test_where_no_gradient_is_stale_there_is_no_chart(tmp_path: Path, strategy: dict[str, Any]) -> None:
    page = report(run_folder(tmp_path, strategy, told(NONE_STALE)))
    assert TITLE in page.texts
    assert not [svg for svg in page.svgs if CHART in svg]


@pytest.mark.parametrize(("strategy", "shown"), [({"workers": 1}, False), (ASYNC | {"workers": 0}, True)])
def test_one_worker_agrees_with_nobody_but_a_server(tmp_path: Path, strategy: dict[str, Any], shown: bool) -> None:
    folder = run_folder(tmp_path, strategy, told(NONE_STALE, workers=1))
    assert (TITLE in report(folder).texts) == shown


def test_what_a_server_counts_is_known_when_the_run_ends(tmp_path: Path) -> None:
    page = report(run_folder(tmp_path, ASYNC, None))
    assert page.after("Updates") == page.after("Staleness") == ["–", LATER]  # noqa: RUF001
    assert page.after("Samples per second", 1) == ["640"]


LATE = {"0": 100, "9": 20}


@pytest.mark.parametrize(
    ("strategy", "histogram", "communication", "events", "sentence", "tried"),
    [
        ({"workers": 2}, NONE_STALE, 0.24, (), "", None),
        (
            {"workers": 2},
            NONE_STALE,
            0.26,
            (),
            "was 26% of the step time: async, stale or local may be faster",
            "local",
        ),
        ({"workers": 2}, NONE_STALE, 0.1, (SLOW,), "Rank 1 was slow, and every step waited for it.", "async"),
        (ASYNC, {"1": 9}, 0.04, (), "Communication was 4.0% of the step time: sync, whose gradients are never", "sync"),
        (ASYNC, {"1": 9}, 0.06, (), "", None),
        (ASYNC, NONE_STALE, 0.04, (), "", None),
        (ASYNC, {"1": 9}, 0.04, (SLOW,), "Rank 1 was slow. With sync every step would have waited", None),
        (ASYNC, {"1": 9}, 0.04, (event_line("hang", 9, rank=1),), "Rank 1 was silent. With sync every", None),
        (ASYNC, LATE, 0.04, (), "17% of the gradients were more than 6 updates stale, twice of what equal", None),
        (ASYNC | {"overlap": False}, {"0": 9, "3": 9}, 0.04, (), "50% of the gradients were more than 2 upd", None),
        ({"name": "stale", "workers": 2, "staleness": 9}, LATE, 0.04, (), "sync, whose gradients are never", "sync"),
        ({"name": "backup", "workers": 2}, NONE_STALE, 0.01, (), "", None),
        ({"name": "local", "workers": 2}, NONE_STALE, 0.002, (), "sync would probably do as well", "sync"),
        ({"name": "local", "workers": 2}, NONE_STALE, 0.004, (), "", None),
        ({"name": "local", "workers": 2, "every": 2}, NONE_STALE, 0.02, (), "sync would probably do as well", "sync"),
    ],
)
def test_a_sentence_is_said_where_the_figures_of_the_run_bear_it(
    tmp_path: Path,
    *,
    strategy: dict[str, Any],
    histogram: dict[str, int],
    communication: float,
    events: tuple[dict[str, Any], ...],
    sentence: str,
    tried: str | None,
) -> None:
    text = said(report(run_folder(tmp_path, strategy, told(histogram), communication, events)))
    assert sentence in text
    telling = ("sync would", "sync every", "waited for", "may be faster", "do as well")
    assert bool(sentence) == any(part in text for part in telling)
    assert ("To try: convoy train" in text) == (tried is not None)
    if tried is not None:
        words = shlex.split(text[text.index("convoy train") :])
        experiment = load_experiment(DIGITS, [word for word in words if "=" in word])
        assert (experiment.strategy.name, experiment.strategy.max_workers) == (tried, 2)
        assert experiment.run.name == f"digits-{tried}"


def test_a_run_in_a_folder_of_its_own_is_tried_beside_it(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, {"workers": 2}, told(NONE_STALE), communication=0.5)
    experiment = json.loads((folder / "experiment.yaml").read_text())
    experiment["run"]["folder"] = "/data/my runs/a"
    (folder / "experiment.yaml").write_text(json.dumps(experiment))
    assert said(report(folder)).endswith("'run.folder=/data/my runs/a-local'")


def test_what_happened_to_workers_is_marked_and_told(tmp_path: Path) -> None:
    kinds = ("left", "hang", "server", "updates_lost", "fault", "restart")
    events = tuple(event_line(kind, 5 + 10 * index, rank=1) for index, kind in enumerate(kinds))
    page = report(run_folder(tmp_path, ASYNC, told({"1": 9}), events=events))
    for index, kind in enumerate(kinds):
        assert page.row(f"0:00:{5 + 10 * index:02d}")[2:] == [kind.replace("_", " "), f"A {kind}."]
    plot = next(svg for svg in page.svgs if 'aria-label="Training loss by step"' in svg)
    assert [kind for kind in kinds if f": A {kind}.<" not in plot] == []


def test_an_event_is_not_before_the_one_above_it_though_lines_come_out_of_turn(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, ASYNC, told({"1": 9}))
    write_lines(folder / "metrics.jsonl", [step_line(step, time=step_line(2)["time"]) for step in (1, 3, 4, 2)])
    commit = event_line("commit", 10, step=4)
    again = [event_line("start", 30, step=3, attempt=2), event_line("left", 31, attempt=2)]
    write_lines(folder / "events.jsonl", [event_line("left", 9), commit, event_line("left", 20), *again])
    assert [event.step for event in read_record(folder).events] == [2, 4, 4, 3, 3]


def test_a_line_of_several_steps_counts_as_them(tmp_path: Path) -> None:
    """Local SGD: two lines of 16 steps, and one of seven of which the last is small."""
    folder = run_folder(tmp_path, {"name": "local", "workers": 2}, told({"0": 39}, steps=39))
    lines = [(16, 1024, 20.0), (32, 1024, 1.6), (39, 413, 1.4)]
    told_lines = [step_line(step, samples=samples, step_s=s, seconds={"forward": s}) for step, samples, s in lines]
    write_lines(folder / "metrics.jsonl", told_lines)
    record = read_record(folder)
    assert spans(record).tolist() == [16.0, 16.0, 7.0]
    assert pace(record).samples_per_s == pytest.approx((1024 + 413) / 3.0)
    page = report(folder)
    assert page.row("all steps")[2] == f"{1000 * phase_seconds(record).sum() / 39:.1f} ms"
    assert page.after("Averages") == ["3", "of 2 workers"]
    assert ["39", "1", "200.0 ms", "forward 100%"] in page.rows
    assert any("to" in svg and ": 7 steps<" in svg for svg in page.svgs), "the histogram counts steps, not lines"


@pytest.mark.parametrize("staleness", [None, 7, {"histogram": 7}, {"histogram": {"x": 1, "2": "many", "-1": 3}}])
def test_staleness_that_cannot_be_read_is_left_out(tmp_path: Path, staleness: Any) -> None:
    page = report(run_folder(tmp_path, ASYNC, told({}, staleness=staleness)))
    assert page.after("Staleness", 2)[1] == LATER


@pytest.mark.parametrize("strategy", ["sync", {"name": "gossip", "workers": 2}, {"workers": "two"}])
def test_a_strategy_of_another_version_is_not_put_into_words(tmp_path: Path, strategy: Any) -> None:
    page = report(run_folder(tmp_path, strategy, told(NONE_STALE), communication=0.9))
    assert said(page).endswith("2 workers")


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, {"workers": 2}, told(NONE_STALE), communication=0.9)
    experiment = json.loads((folder / "experiment.yaml").read_text())
    experiment["run"]["name"] = "</pre><script>x</script>"
    (folder / "experiment.yaml").write_text(json.dumps(experiment))
    assert not report(folder).named("script")


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ({"workers": 4}, "all-reduce"),
        ({"workers": 1}, ""),
        ({"name": "local", "workers": 4, "every": 1}, "weights averaged every step"),
        (
            {"name": "local", "workers": 4, "from_epoch": 2, "outer": {"lr": 0.7, "momentum": 0.9}},
            "weights averaged every 16 steps, before epoch 2 every step, outer step of rate 0.7, momentum 0.9",
        ),
        ({"name": "local", "workers": 1}, ""),
        ({"name": "local", "workers": 1, "outer": {"lr": 0.7}}, "an outer step every 16 steps: rate 0.7, momentum 0"),
        ({"name": "backup", "workers": 10, "backup": 2}, "a parameter server of 2 shards, the first 8 gradients of a "),
        ({"name": "stale", "workers": 4, "staleness": 1}, "a parameter server of 2 shards, at most 1 update stale"),
        ({"name": "stale", "workers": 4, "staleness": 0}, "a parameter server of 2 shards, never stale"),
        (
            {"name": "async", "workers": 4, "scale_lr": False, "compensate": 0.04, "overlap": False, "wire": "top_k"},
            "asynchronous, delay compensated by 0.04, without overlap, gradients sent as the largest 1 %",
        ),
        ({"name": "async", "workers": 4, "wire": "bf16"}, "1 + staleness, gradients sent as bf16"),
    ],
)
def test_a_strategy_in_short(strategy: dict[str, Any], expected: str) -> None:
    made: StrategyConfig = TypeAdapter(StrategyConfig).validate_python(strategy)
    text = in_short(made, num_shards=2)
    assert expected in text
    assert bool(expected) == bool(text)


def test_the_strategy_of_a_record_is_that_of_its_experiment(tmp_path: Path) -> None:
    record = read_record(run_folder(tmp_path, ASYNC, None))
    assert isinstance(record.strategy, AsyncConfig)
    (tmp_path / "experiment.yaml").write_text("run: {name: a}")
    assert isinstance(read_record(tmp_path).strategy, SyncConfig)
    (tmp_path / "experiment.yaml").unlink()
    assert read_record(tmp_path).strategy is None
