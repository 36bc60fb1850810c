"""What a person sees of a run where there is no terminal: plain lines."""

import threading
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from orchestrator import live
from orchestrator.config.load import load_experiment
from orchestrator.plan import DataSize, ModelSize, Resources, make_plan
from orchestrator.run_log import View
from pipelines.targets import Target
from tests.conftest import DIGITS

STEP = {"epoch": 0, "step": 1, "loss": 2.0, "accuracy": 0.5}
VIEW = View(1, 1, STEP, None, 100.0, 0.1, 0, False, (), 0, 0)


class Channel:
    """A run that stands at each of some steps in turn whenever it is looked at, and has ended at the last."""

    def __init__(self, steps: list[int], ended: threading.Event) -> None:
        self._steps, self._ended = steps, ended

    def call(self, name: str, *_: Any) -> Any:
        assert name == "view"
        step = self._steps.pop(0)
        if len(self._steps) == 1:
            self._ended.set()
        return replace(VIEW, step=STEP | {"step": step})


def test_a_step_that_takes_long_is_printed_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "LINE_EVERY_S", -1.0)
    monkeypatch.setattr(live, "REFRESH_S", 0.0)
    experiment = load_experiment(DIGITS, [])
    plan = make_plan(experiment, Resources(2, 0), DataSize(1437, 360, Target("class", 10)), ModelSize(1, 1, 1))
    ended = threading.Event()
    live._print_lines(Console(), Channel([1, 1, 1, 2, 2, 3, 3], ended), plan, experiment, ended)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines] == [f"step {step}/690" for step in (1, 2, 3)]
