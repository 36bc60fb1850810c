"""What a person sees of a run: plain lines where there is no terminal, and figures that do not jump back."""

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
    plan = make_plan(experiment, Resources(2, 0), DataSize(1437, 360, Target("class", 10)), ModelSize(1, 1))
    ended = threading.Event()
    live._print_lines(Console(), Channel([1, 1, 1, 2, 2, 3, 3], ended), plan, experiment, ended)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines] == [f"step {step}/690" for step in (1, 2, 3)]


SEEN = replace(VIEW, step=STEP | {"step": 40, "epoch": 1}, num_events=3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"step": STEP | {"step": 42}}, (42, 0)),
        ({"step": STEP | {"step": 38}}, (40, 1)),
        ({"step": STEP | {"step": 38}, "attempt": 2}, (38, 0)),
        ({"step": STEP | {"step": 38}, "num_events": 4, "events": ({"event": "commit"},)}, (40, 1)),
        ({"step": STEP | {"step": 30}, "num_events": 4, "events": ({"event": "server"},)}, (30, 0)),
        ({"step": STEP | {"step": 41}, "epoch": {"epoch": 1, "step": 46}}, (46, 1)),
    ],
    ids=["further", "delivered late", "another attempt", "a commit", "a server that began anew", "an epoch's end"],
)
def test_what_workers_of_a_server_deliver_late_does_not_take_a_run_back(
    changes: dict[str, Any], expected: tuple[int, int]
) -> None:
    step = live.in_order(replace(SEEN, **changes), SEEN).step
    assert step is not None
    assert (step["step"], step["epoch"]) == expected


def test_the_time_left_is_that_of_the_steps_left_whoever_noted_them() -> None:
    """10 steps of 64 samples at 64 samples a second, and one evaluation of 3 s."""
    experiment = load_experiment(DIGITS, ["strategy={name: async, workers: 2}"])
    plan = make_plan(experiment, Resources(2, 0), DataSize(1437, 360, Target("class", 10)), ModelSize(1, 1))
    epoch = {"epoch": 28, "step": 667, "evaluation_s": 3.0, "val_accuracy": 0.5}
    view = replace(VIEW, step=STEP | {"step": 680, "epoch": 29}, epoch=epoch, images_per_s=64.0)
    assert live.row(view, plan, experiment)["ETA"] == "0:13"
    assert live.row(replace(view, images_per_s=0.0), plan, experiment)["ETA"] == "-"
