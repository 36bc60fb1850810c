"""What a person sees while a run goes on: a table that is drawn anew, or plain lines where there is no terminal."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.channel import Channel
from orchestrator.config.experiment import Experiment
from orchestrator.plan import Plan
from orchestrator.run_log import View
from orchestrator.training.measures import MEASURES
from orchestrator.training.tasks import TASKS

REFRESH_S = 0.5
LINE_EVERY_S = 10.0
QUIET_EVENTS = ("commit", "start")


@contextlib.contextmanager
def watching(channel: Channel, plan: Plan, experiment: Experiment) -> Iterator[None]:
    """Show the run until the block ends; from a thread of its own, which reads and never writes."""
    console = Console()
    show = _show_table if console.is_terminal else _print_lines
    ended = threading.Event()
    thread = threading.Thread(target=show, args=(console, channel, plan, experiment, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _show_table(console: Console, channel: Channel, plan: Plan, experiment: Experiment, ended: threading.Event) -> None:
    started = time.time()
    shown = 0
    before: View | None = None
    with Live(console=console, refresh_per_second=4, transient=False) as live:
        while True:
            last = ended.is_set()
            view = before = in_order(channel.call("view"), before)
            for event in _new_events(view, shown):
                if event["event"] not in QUIET_EVENTS:
                    live.console.print(Text(f"{event['event']}: {event['message']}", style="yellow"))
            shown = view.num_events
            live.update(_table(view, plan, experiment, time.time() - started), refresh=True)
            if last:
                return
            ended.wait(REFRESH_S)


def _table(view: View, plan: Plan, experiment: Experiment, elapsed_s: float) -> Any:
    table = Table(box=None, pad_edge=False, header_style="bold")
    cells = row(view, plan, experiment)
    for heading in cells:
        table.add_column(heading, justify="right", min_width=8)
    table.add_row(*cells.values())
    done = view.step["step"] if view.step else 0
    state = f"starting, {elapsed_s:.0f} s" if view.step is None else "stopping after this step" if view.stopping else ""
    bar = ProgressBar(total=plan.total_steps, completed=done, width=72)
    restarts = f"{view.restarts} restarts  " if view.restarts else ""
    unreadable = f"{view.quarantined} unreadable samples replaced  " if view.quarantined else ""
    below = Table.grid()  # a bar ends no line: a row of its own does
    below.add_row(bar)
    return Group(table, below, Text(f"{restarts}{unreadable}{state}", style="dim"))


def _print_lines(
    console: Console, channel: Channel, plan: Plan, experiment: Experiment, ended: threading.Event
) -> None:
    shown, epoch, printed_step, printed_at = 0, None, 0, time.time()
    before: View | None = None
    while True:
        last = ended.is_set()
        view = before = in_order(channel.call("view"), before)
        for event in _new_events(view, shown):
            if event["event"] != "commit":
                console.print(f"{event['event']}: {event['message']}", soft_wrap=True, highlight=False, markup=False)
        shown = view.num_events
        new_epoch = view.epoch["epoch"] if view.epoch else None
        step = view.step["step"] if view.step else 0
        if new_epoch != epoch or (step != printed_step and time.time() - printed_at > LINE_EVERY_S):
            epoch, printed_step, printed_at = new_epoch, step, time.time()
            print("  ".join(f"{name} {cell}" for name, cell in row(view, plan, experiment).items()), flush=True)
        if last:
            return
        ended.wait(REFRESH_S)


def in_order(view: View, before: View | None) -> View:
    """The view at the furthest step that it or the one before it knows of, unless training went back since.

    The workers of a parameter server each deliver what they noted, now and then: the newest record may be of an older
    step than the last one, or than the end of the epoch.
    """
    if before is None or view.step is None or view.attempt != before.attempt:
        return view
    steps = [view.step]
    if before.step is not None and all(event["event"] != "server" for event in _new_events(view, before.num_events)):
        steps.append(before.step)
    if view.epoch is not None and view.epoch != before.epoch:
        steps.append(view.step | {"epoch": view.epoch["epoch"], "step": view.epoch["step"]})
    return replace(view, step=max(steps, key=lambda step: int(step["step"])))


def row(view: View, plan: Plan, experiment: Experiment) -> dict[str, str]:
    """The figures of the table as text, by heading."""
    step, epoch, task = view.step, view.epoch, TASKS[plan.target.kind]
    running = MEASURES[task.measures[0]]
    steps_done = step["step"] if step else 0
    return {
        "epoch": f"{step['epoch'] + 1 if step else 0}/{experiment.train.epochs}",
        "step": f"{steps_done}/{plan.total_steps}",
        "loss": f"{step['loss']:.4f}" if step else "-",
        running.title: running.text(step[running.name]) if step else "-",
        f"val {task.judge.title}": task.judge.text(epoch[f"val_{task.best}"]) if epoch else "-",
        "images/s": f"{view.images_per_s:,.0f}" if step else "-",
        "data wait": f"{view.data_wait_share:.0%}" if step else "-",
        "ETA": _eta(view, plan, experiment) if step else "-",
    }


def _eta(view: View, plan: Plan, experiment: Experiment) -> str:
    """Steps left at the recent speed, and evaluations left at the time of the last."""
    assert view.step is not None
    if not view.images_per_s:
        return "-"
    left = plan.total_steps - view.step["step"]
    seconds = left * experiment.train.global_batch / view.images_per_s
    if view.epoch is not None:
        seconds += (experiment.train.epochs - 1 - view.epoch["epoch"]) * view.epoch["evaluation_s"]
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _new_events(view: View, shown: int) -> tuple[dict[str, Any], ...]:
    new = view.num_events - shown
    return view.events[-new:] if new > 0 else ()
