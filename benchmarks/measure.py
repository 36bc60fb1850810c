"""Measure things in turns and write down what came out: ratios of medians, the machine, the versions, the date."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "ray",
    "torch",
    "torchvision",
    "numpy",
    "pyarrow",
    "pillow",
    "simplejpeg",
    "opencv-python-headless",
    "triton",
)
INK, GRID = "#1f2933", "#d9dee3"
COLOURS = ("#2f6f9f", "#c8702a", "#4d8f5b", "#8a5a9e", "#7a7a7a")


def in_turns(arms: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run every arm once a round, forwards and backwards by turns, so that a drift of the machine hits all alike."""
    values: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        names = list(arms) if number % 2 == 0 else list(reversed(arms))
        for name in names:
            values[name].append(arms[name]())
            print(f"round {number + 1}/{rounds}  {name}: {values[name][-1]:.6g}", flush=True)
    return values


def seconds_of(call: Callable[[], Any], times: int = 1) -> float:
    """Of one call, the mean of so many."""
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times


def ratio(values: Mapping[str, Sequence[float]], of: str, to: str) -> dict[str, Any]:
    """What `of` is of `to`: the median of the rounds' own ratios, with all of them."""
    rounds = [a / b for a, b in zip(values[of], values[to], strict=True)]
    return {
        "of": of,
        "to": to,
        "median": statistics.median(rounds),
        "lowest": min(rounds),
        "highest": max(rounds),
        "n": len(rounds),
        "rounds": rounds,
    }


def summary(values: Mapping[str, Sequence[float]], unit: str) -> dict[str, Any]:
    return {
        name: {"unit": unit, "median": statistics.median(all_), "n": len(all_), "rounds": list(all_)}
        for name, all_ in values.items()
    }


def machine() -> dict[str, Any]:
    """What the figures were taken on, as far as a reader needs it."""
    return {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def write(name: str, record: dict[str, Any], chart: Callable[[Any], None] | None = None) -> Path:
    """Write results/DATE-NAME.json and, if `chart` draws on a matplotlib axis, the .svg beside it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{record['machine']['date']}-{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    if chart is not None:
        _draw(path.with_suffix(".svg"), record, chart)
    print(f"written: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return path


def bars(axis: Any, ratios: Mapping[str, dict[str, Any]], *, target: float, label: str) -> None:
    """Draw ratios as bars with the range of their rounds, and the line that they have to reach."""
    for place, (name, figure) in enumerate(ratios.items()):
        median = figure["median"]
        spread = [[median - figure["lowest"]], [figure["highest"] - median]]
        axis.barh(place, median, color=COLOURS[place % len(COLOURS)], height=0.6)
        axis.errorbar(median, place, xerr=spread, color=INK, capsize=3, linewidth=1)
        axis.text(0.01, place, f" {name}: {median:.3f} (n={figure['n']})", va="center", color="white", fontsize=9)
    axis.axvline(target, color=INK, linestyle="--", linewidth=1)
    axis.set_yticks([])
    axis.set_xlim(0, None)
    axis.set_xlabel(f"{label}  (dashed: {target:g})", color=INK)


def _draw(path: Path, record: dict[str, Any], chart: Callable[[Any], None]) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = path.stem
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
    chart(axis)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    here = record["machine"]
    where = f"{here['gpu'] or here['cpu']}, {here['cores']} cores, torch {here['versions']['torch']}, {here['date']}"
    axis.set_title(f"{record['title']}\n{where}", loc="left", fontsize=10, color=INK)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=RESULTS.parent, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
