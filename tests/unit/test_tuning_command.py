"""`kernels` of an experiment: what is refused, what is measured, what a run keeps."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from kernels import table
from kernels.shapes import ConvShape
from orchestrator import tuning
from orchestrator.config.load import load_experiment
from orchestrator.errors import InputError
from orchestrator.explain import explain_plan
from orchestrator.prepare import prepare, resources_here
from orchestrator.run_folder import RunFolder

DIGITS = str(Path(__file__).parents[2] / "experiments" / "digits.yaml")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def digits(*overrides: str) -> Any:
    return load_experiment(DIGITS, ["strategy.workers=0", *overrides])


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("kernels=winogard", "kernels: algorithm: got 'winogard', must be auto or .*Did you mean 'winograd'"),
        ("kernels={nothing.*: winograd}", "kernels: got 'nothing.*', must be 'default' or match"),
        ("kernels={blocks.1.conv1: winograd}", "kernels: 'blocks.1.conv1', which is .*: winograd: got stride"),
    ],
)
def test_a_mistake_is_found_before_anything_starts(written: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(digits(written), resources_here())


def test_every_layer_is_measured_and_kept_and_goes_into_the_run(tmp_path: Path) -> None:
    experiment = digits("kernels=auto")
    prepared = prepare(experiment, resources_here())
    shapes = tuning.layer_shapes(experiment, prepared.plan)
    assert {shape.n for shape in shapes.values()} == {experiment.train.global_batch}
    ((device, measured),) = tuning.tune_here(experiment, prepared.plan, shapes, seconds=0.001)
    rows = list(measured)
    assert [(row.which, row.shape) for row in rows] == [
        (which, shape) for shape in dict.fromkeys(shapes.values()) for which in tuning.tune.PASSES
    ]
    (kept,) = table.all_stored()
    assert (kept.device, kept.rows) == (device, tuple(rows))
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(tuning.printed(rows, shapes))
    printed = console.export_text()
    assert printed.count("forward") == len(rows) / 3
    assert "in all" in printed
    assert "extra MB" in printed

    folder = RunFolder(str(tmp_path / "run"))
    folder.local.mkdir()
    setup = prepared.setup(folder)
    assert [table.Table.from_json(each) for each in setup.kernel_tables] == [kept]
    layers = json.loads((folder.local / tuning.FILE).read_text())["layers"][str(kept.device)]
    assert [(each["pass"], each["algorithm"], each["seconds"], each["vendor_s"]) for each in layers] == [
        (row.which, row.algorithm, row.seconds[row.algorithm], row.vendor_s) for row in rows
    ]
    assert {name for each in layers for name in each["layers"]} == shapes.keys()
    table.store(table.Table(device=kept.device))
    assert prepared.setup(folder).kernel_tables == setup.kernel_tables, "a run goes on as it began"


def test_the_plan_says_by_what_auto_would_choose() -> None:
    experiment = digits("kernels={default: auto, stem.*: vendor}", "model.options={width: 4}")
    prepared = prepare(experiment, resources_here())
    shapes = tuning.layer_shapes(experiment, prepared.plan)
    passes = 3 * (len(shapes) - 1)
    assert tuning.chosen_by(experiment, prepared.plan) == f"0 measured, 0 by defaults, {passes} the vendor's"
    for _, rows in tuning.tune_here(experiment, prepared.plan, shapes, seconds=0.001):
        list(rows)
    text = explain_plan(experiment, prepared.plan, prepared.model, resources_here(), prepared.forecast)
    assert f"their passes here: {passes} measured, 0 by defaults, 0 the vendor's; measured: " in text


def test_what_chooses_nothing_takes_no_tables(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    assert prepare(digits(), resources_here()).setup(folder).kernel_tables == ()
    assert not (tmp_path / tuning.FILE).exists()


def test_every_algorithm_has_a_line() -> None:
    lines = list(tuning.algorithms_here())
    assert json.dumps(lines).count("Winograd") >= 1
    assert len([line for line in lines if not line.startswith((" ", "tuned", "auto"))]) == len(tuning.ALGORITHMS)
    assert lines[-1] == "auto else: what PyTorch chooses"


def test_what_gpus_compute_by_triton_is_said_and_whether_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def lines() -> list[str]:
        return [line.strip() for line in tuning.algorithms_here() if "Triton" in line]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert lines() == ["on GPUs: Triton, not yet measured; no GPU here"] * 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tuning.triton_kernels, "missing", lambda _: None)
    assert lines() == ["on GPUs: Triton, not yet measured; used here"] * 4
    monkeypatch.setattr(tuning.triton_kernels, "missing", lambda _: "no triton")
    assert lines()[0] == "on GPUs: Triton, not yet measured; here torch, many times slower: no triton"

    shape = ConvShape(n=1, c=3, h=8, w=8, k=4, r=3, s=3)
    row = table.Row(
        which="forward", shape=shape, dtype="float32", layout="nchw", algorithm="vendor",
        seconds={"vendor": 1.0, "winograd": 2.0}, errors={},
    )  # fmt: skip
    table.store(table.Table(device=table.Device(name="H100", threads=2, version="2"), rows=(row,)))
    assert not any("measured on" in line for line in lines()), "a CPU's"
    table.store(table.Table(device=table.Device(name="H100", threads=0, version="2"), rows=(row,)))
    assert [line.split("; ")[0] for line in lines()] == [
        "on GPUs: Triton, not yet measured",
        "on GPUs: Triton, not yet measured",
        "on GPUs: Triton, measured on H100",
        "on GPUs: Triton, not yet measured",
    ]
