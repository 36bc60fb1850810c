"""`convoy arch` as a user meets it: what it prints and what it refuses."""

import sys
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.config.load import load_experiment
from orchestrator.plan import Resources
from orchestrator.prepare import prepare

DIGITS = str(Path(__file__).parents[2] / "experiments" / "digits.yaml")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Command":
    return Command(monkeypatch, capsys)


class Command:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[object, str]:
        self._monkeypatch.setattr(sys, "argv", ["convoy", "arch", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = self._capsys.readouterr()
        return ended.value.code, captured.out + captured.err


def cells(text: str, first: str) -> list[str]:
    """The words of the line that begins with this one."""
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [first])


def test_a_name_gives_layers_totals_and_savings(said: Command) -> None:
    code, text = said("vgg16")
    assert code == 0
    assert text.startswith("vgg16, 3x224x224 -> 1000\n")
    assert cells(text, "features.2") == [
        *("features.2", "conv", "3x3", "64x224x224", "36,928", "1,849.69", "25.8", "MB", "5", "/", "1", "143.2")
    ]
    assert cells(text, "parameters") == ["parameters", "138,357,544,", "553.4", "MB"]
    assert "multiply-adds  15.470 G an image, forward" in text
    # all thirteen are 3 x 3, the first has 3 channels
    assert cells(text, "factorize")[1] == "13"
    assert cells(text, "stack3x3")[1:4] == ["0", "138,357,544", "100.0%"]
    assert "got stack3x3 where '*', but none of 13 convolutions is taken" in text


def test_input_classes_and_overrides_choose_the_network(said: Command) -> None:
    code, text = said("small_resnet", "model.options.width=16", "--input", "1x8x8", "--classes", "10")
    assert code == 0
    assert text.startswith("small_resnet, 1x8x8 -> 10\n")
    assert cells(text, "stem.0")[:5] == ["stem.0", "conv", "3x3", "16x8x8", "144"]
    assert cells(text, "classifier")[3] == "330"


def test_a_rewrite_is_shown_in_the_layers(said: Command) -> None:
    code, text = said("alexnet", "--rewrite", "stack3x3", "--where", "features.3")
    assert code == 0
    assert text.startswith("alexnet, 3x224x224 -> 1000, stack3x3 where features.3\n")
    assert cells(text, "features.3.0")[2:4] == ["3x3", "192x27x27"]
    assert cells(text, "features.3.2")[8:10] == ["51", "/"]
    assert cells(text, "none")[2] == "61,100,840"
    assert cells(text, "stack3x3")[1:3] == [
        "1",
        str(f"{61_100_840 - 64 * 192 * 25 + 64 * 192 * 9 + 192 * 192 * 9 + 192:,}"),
    ]


def test_an_experiment_says_its_images_and_its_data_the_classes(said: Command) -> None:
    code, text = said(DIGITS)
    assert code == 0
    assert text.startswith("small_resnet, 1x8x8 -> 10\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet51",), 'model.name: got "resnet51", must be small_resnet,'),
        (("resnet500",), "did you mean resnet50?"),
        (("experiments/none.yaml",), "experiments/none.yaml: no such file"),
        (("resnet18", "--input", "3x224"), "--input: got 3x224, must be CxHxW with H = W, such as 3x224x224"),
        (("resnet18", "--input", "3x224x220"), "--input: got 3x224x220, must be CxHxW with H = W"),
        (("alexnet", "--input", "3x32x32"), "model.name: got alexnet, which does not work with"),
        (("resnet18", "--rewrite", "factorise"), 'command line: model.rewrite.name: got "factorise"'),
        (("resnet18", "--rewrite", "factorise"), "did you mean factorize?"),
        (("resnet18", "--rewrite", "stack3x3", "--where", "layer1*"), "model.rewrite: rewrite: got stack3x3"),
        (("resnet18", "model.options.widht=3"), "model.options.widht: got 3, but resnet18 takes"),
        ((DIGITS, "data.train=tar:none.tar"), "--classes says how many classes there are without the data"),
    ],
)
def test_what_cannot_be_ends_with_one_message(arguments: tuple[str, ...], message: str, said: Command) -> None:
    code, text = said(*arguments)
    assert code == 2
    assert message in text


def test_a_rewrite_belongs_to_the_identity_of_a_run() -> None:
    plain, restacked = (
        prepare(load_experiment(DIGITS, [f"model.rewrite.name={name}"]), Resources(2, 0))
        for name in ("none", "factorize")
    )
    assert plain.identity["model"] != restacked.identity["model"]
    assert plain.model.num_parameters > restacked.model.num_parameters
