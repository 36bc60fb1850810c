"""Runs of binary networks in this process: evaluated and exported as bits, with the figures that they had."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from kernels.binary import BinaryConv2d, BinaryLinear
from kernels.binary_packed import pack_for_evaluation
from kernels.shift_norm import ShiftBatchNorm1d, ShiftBatchNorm2d
from orchestrator import launch
from orchestrator.cli import app
from orchestrator.config.load import ConfigError, load_experiment
from orchestrator.evaluation import pack, restore_run
from orchestrator.live import watching
from orchestrator.plan import Resources
from orchestrator.run_folder import RunFolder

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "binarynet.yaml"
SMALL = ("strategy.workers=0", "train.epochs=1", "model.options={width: 8}", "train.schedule={name: constant}")
CASES = {
    "binary": (),
    "shifts and an average": (
        "train.ema_decay=0.9",
        "train.optimizer={name: shift_adamax, lr: 0.01}",
        'precision={default: binary, "*norm": shift}',
    ),
}


@pytest.fixture(scope="module", params=CASES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("binary") / "run"
    chosen = load_experiment(str(EXPERIMENT), [*SMALL, *CASES[request.param], f"run.folder={folder}"])
    launch.run(chosen, resume=False, overwrite=False, watch=watching)
    return folder


def restored(folder: Path) -> Any:
    chosen = load_experiment(str(folder / "experiment.yaml"), [])
    return restore_run(RunFolder(str(folder)), chosen, Resources(2, 0), newest=False)


def test_evaluation_of_bits_gives_the_figures_of_the_run(run: Path) -> None:
    lines = [
        CliRunner().invoke(app, ["evaluate", str(run), *options]).output.splitlines() for options in ([], ["--packed"])
    ]
    (plain,), (about, packed) = lines
    assert plain == packed
    assert about.startswith("3 binary layers packed, 2 with norms folded into thresholds: ")


def test_an_exported_file_is_small_and_loads_into_a_packed_network(run: Path, tmp_path: Path) -> None:
    sizes = []
    for number, options in enumerate(([], ["--packed"])):
        file = tmp_path / "exports" / f"{number}.safetensors"
        done = CliRunner().invoke(app, ["export", str(run), str(file), *options])
        assert done.exit_code == 0, done.output
        assert f"written: {file}, {file.stat().st_size:,} bytes, checkpoint of step 23" in done.output
        sizes.append(file.stat().st_size)
    assert sizes[1] < sizes[0] / 5
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"run": "binarynet", "step": "23", "form": "packed"}
    images = torch.randn(20, 1, 8, 8)
    plain, fresh = restored(run).take_average(), restored(run).learner.model.eval()
    for parameter in fresh.parameters():
        parameter.data.normal_()
    pack_for_evaluation(fresh)
    fresh.load_state_dict(load_file(file))
    with torch.no_grad():
        assert torch.equal(fresh(images), plain(images))


def test_first_and_last_are_real_and_norms_are_what_the_rule_says(run: Path) -> None:
    model = restored(run).learner.model
    kinds = {name: type(module).__mro__[1] for name, module in model.named_modules() if hasattr(module, "layer_format")}
    binary = [name for name, kind in kinds.items() if kind in (BinaryConv2d, BinaryLinear)]
    assert binary == ["features.1.conv", "classifier.1.linear", "classifier.2.linear"]
    shifted = [name for name, kind in kinds.items() if kind in (ShiftBatchNorm1d, ShiftBatchNorm2d)]
    by_rule = "shift" in (run / "experiment.yaml").read_text()
    assert len(shifted) == (4 if by_rule else 0)


def test_packing_says_what_became_smaller(run: Path) -> None:
    size = pack(restored(run))
    assert size.packing.folded == {"features.1.conv": "features.1.norm", "classifier.1.linear": "classifier.1.norm"}
    assert size.ratio > 5


def test_a_run_without_binary_layers_has_nothing_to_pack(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    chosen = load_experiment(str(EXPERIMENT), [*SMALL, "precision=fp32", f"run.folder={folder}"])
    launch.run(chosen, resume=False, overwrite=False, watch=watching)
    done = CliRunner().invoke(app, ["export", str(folder), str(tmp_path / "x.safetensors"), "--packed"])
    assert "--packed: got a run with precision.default=fp32, which has no binary layers" in str(done.exception)
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["strategy={name: async, workers: 2}", "precision=fp32"],
            r"train\.optimizer\.name: got adamax with strategy\.name=async, must be sgd, adagrad or adamw, which a",
        ),
        (
            ["precision={default: bf16, optimizer: {weights: bf16}}"],
            r"precision\.optimizer\.weights: got bf16 with adamax, must be fp32\. Take sgd or adamw",
        ),
        (
            ["train.compile=true", "precision=shift"],
            r"train\.compile: got true with a precision of fixed, dynamic_fixed, binary",
        ),
    ],
)
def test_what_does_not_go_together_is_said(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(str(EXPERIMENT), overrides)
