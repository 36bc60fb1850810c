"""The report's section on convolutions: what `kernels: auto` chose by, from the run folder's own files."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_report import event_line, report, result, step_line, write_lines

from orchestrator.report.kernels import MAX_GROUPS
from orchestrator.report.record import read_record

DEVICE = "CPU X, 2 threads, torch 2.14.1"


def measured(layers: list[str], which: str, algorithm: str, seconds: float, vendor_s: float) -> dict[str, Any]:
    sizes = {"seconds": seconds, "vendor_s": vendor_s}
    return {"layers": layers, "shape": "8x64x56x56 to 64, 3x3", "pass": which, "algorithm": algorithm} | sizes


LAYERS = [
    measured(["conv1"], "forward", "vendor_nhwc", 0.010, 0.0098),
    measured(["conv1"], "input_gradient", "vendor", 0.010, 0.010),
    measured(["layer1.0.conv1", "layer1.0.conv2"], "forward", "winograd", 0.004, 0.010),
    measured(["layer1.0.conv1", "layer1.0.conv2"], "weight_gradient", "winograd", 0.005, 0.010),
]


def write(folder: Path, layers: Any, *devices: str) -> Path:
    write_lines(folder / "metrics.jsonl", [step_line(step) for step in range(1, 5)])
    events = [event_line("kernels", 0, device=device) for device in devices or (DEVICE,)]
    write_lines(folder / "events.jsonl", [*events, event_line("start", 0, step=0), event_line("finish", 9)])
    (folder / "result.json").write_text(json.dumps(result()))
    (folder / "kernels.json").write_text(json.dumps({"tables": [], "layers": layers}))
    return folder


def chart_of(page: Any) -> str:
    return next(svg for svg in page.svgs if "Times as fast" in svg)


def test_a_bar_for_each_pass_says_what_was_chosen_and_how_much_faster_it_is(tmp_path: Path) -> None:
    page = report(write(tmp_path, {DEVICE: LAYERS}))
    chart = chart_of(page)
    assert chart.count("<rect") == 4
    assert [
        text for text in ("conv1", "layer1.0.conv1 +1", "winograd 2.50", "winograd 2.00") if text not in chart
    ] == []
    assert chart.count(">1.00<") == 2, "where the vendor's stays, whatever the noise says"
    assert "layer1.0.conv1, layer1.0.conv2: 8x64x56x56 to 64, 3x3\nforward: winograd 4.00 ms, vendor 10.0 ms" in chart


def test_layers_of_one_shape_count_each_in_what_a_step_takes(tmp_path: Path) -> None:
    page = report(write(tmp_path, {DEVICE: LAYERS}))
    assert ["forward", "29.8 ms", "18.0 ms", "1.66"] in page.rows
    assert ["in all", "59.8 ms", "38.0 ms", "1.57"] in page.rows
    assert page.row("conv1") == ["8x64x56x56 to 64, 3x3", "forward", "vendor_nhwc", "10.0 ms", "9.80 ms", "1.00"]


def test_of_many_shapes_those_that_gain_most_are_drawn_in_the_order_of_the_network(tmp_path: Path) -> None:
    layers = [measured([f"conv{n}"], "forward", "winograd", 0.001, 0.001 * (n + 2)) for n in range(MAX_GROUPS + 9)]
    page = report(write(tmp_path, {DEVICE: layers}))
    chart = chart_of(page)
    assert [f">conv{n}<" in chart for n in range(MAX_GROUPS + 9)] == [False] * 9 + [True] * MAX_GROUPS
    assert chart.index(">conv9<") < chart.index(">conv10<")
    assert any(f"The {MAX_GROUPS} of {MAX_GROUPS + 9} shapes that gain most" in text for text in page.texts)


def test_the_device_is_that_of_the_workers(tmp_path: Path) -> None:
    other = [measured(["conv9"], "forward", "fft", 0.001, 0.003)]
    folder = write(tmp_path, {"another": other, DEVICE: LAYERS}, "one without measurements", DEVICE)
    assert [each.layers[0] for each in read_record(folder).tuned][:1] == ["conv1"]


@pytest.mark.parametrize("layers", [{}, {"another device": LAYERS}, {DEVICE: []}])
def test_what_was_not_measured_is_not_in_the_report(tmp_path: Path, layers: Any) -> None:
    assert "Convolutions" not in report(write(tmp_path, layers)).texts


@pytest.mark.parametrize("layers", [7, {DEVICE: 7}, {DEVICE: [{}]}, {DEVICE: [LAYERS[0] | {"seconds": "fast"}]}])
def test_a_file_that_cannot_be_read_is_left_out_and_noted(tmp_path: Path, layers: Any) -> None:
    page = report(write(tmp_path, layers))
    assert "kernels.json is cut off and was left out." in page.texts
    assert "Convolutions" not in page.texts


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    bad = "<script>x</script>"
    layers = [measured([bad], "forward", bad, 0.001, 0.003) | {"shape": bad}]
    assert not report(write(tmp_path, {DEVICE: layers})).named("script")
