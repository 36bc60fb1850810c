"""One experiment through all strategies: samples/s, staleness, and accuracy over time and samples.

    python -m benchmarks.strategies                                   # speed, an hour on two cores
    python -m benchmarks.strategies --parts accuracy                  # the digits, 3 seeds, 25 minutes
    python -m benchmarks.strategies --parts restart                   # a killed worker, 5 minutes
    python -m benchmarks.strategies --parts accuracy --cifar FOLDER   # and CIFAR-10, from its train.tar and test.tar

speed      steps that are waits of `--step-ms` stand in for a device, so that two cores suffice; the network is a
           multi-layer perceptron of about 1, 25 or 100 MB. `balanced`: both of two workers wait alike; `straggler`: one
           waits three times as long; `pauses`: both pause for ten steps' time in every twentieth step, at random.
           A round runs every strategy once, in turns; ratios to `sync` are of the same round. What counts are samples
           over the time of all steps, evaluation and commits left out.
accuracy   what the strategies learn, `balanced` and with a `straggler`, whose steps wait twice as long as they take:
           held-out accuracy at the end, mean and spread over seeds; seconds to reach `--accuracy`, sync's over theirs.

restart    one of two workers is killed: how long no step is made, and until it is back, with `sync`, whose workers are
           one group, and `async`, whose workers are groups of their own.

`async-fp16` and so on send gradients as such; `async-blocking` does not overlap. `local` sends nothing for 16 steps,
but waits for the straggler there: it gains by what it does not send. `backup` drops the second of two gradients, and so
trains with half of the global batch a worker: it is as fast as the faster worker alone. `stale` gives steps within its
bound to whoever is free: it is faster than sync as long as the slowest is no further behind than that.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import measure
from orchestrator import launch
from orchestrator.config.load import load_experiment
from orchestrator.ray_here import connected_to_ray

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "experiments" / "digits.yaml"
CIFAR = ROOT / "experiments" / "cifar10.yaml"
WORKERS = 2
STRATEGIES = {
    "sync": "{name: sync, workers: 2}",
    "backup": "{name: backup, workers: 2, backup: 1}",
    "stale": "{name: stale, workers: 2, staleness: 3}",
    "async": "{name: async, workers: 2}",
    "async-blocking": "{name: async, workers: 2, overlap: false}",
    "async-object-store": "{name: async, workers: 2, transport: object_store}",
    "async-fp16": "{name: async, workers: 2, wire: fp16, transport: object_store}",
    "async-bf16": "{name: async, workers: 2, wire: bf16}",
    "async-top-k": "{name: async, workers: 2, wire: top_k, top_k: 0.01}",
    "local": "{name: local, workers: 2, every: 16}",
}
PLAIN = ("sync", "backup", "stale", "async", "local")
# network: hidden layers, samples of a global batch
SIZES: dict[str, tuple[list[int], int]] = {
    "1MB": ([448, 448], 64),
    "25MB": ([2500, 2400], 64),
    "100MB": ([5000, 4900], 32),
}
ARMS = {
    "1MB": {"balanced": PLAIN, "straggler": (*PLAIN, "async-blocking"), "pauses": PLAIN},
    "25MB": {"straggler": ("sync", "async", "async-object-store", "local")},
    "100MB": {"straggler": ("sync", "async", "async-bf16", "async-top-k", "local")},
}
TARGETS = {
    "1MB straggler async/sync": 1.7,
    "1MB balanced async/sync": 0.97,
    "25MB straggler async/sync": 1.5,
    "100MB straggler best of local, async-bf16 and async-top-k/sync": 1.5,
}
SLOWER = 3.0
Figures = dict[str, Any]
Point = tuple[float, int, float, float]  # seconds since the first step, samples, held-out accuracy and loss


def waits(scenario: str, step_ms: float) -> str:
    """The section `faults` of a scenario, for steps that are waits."""
    slow = [(0, step_ms, 1.0), (1, step_ms * (SLOWER if scenario == "straggler" else 1.0), 1.0)]
    if scenario == "pauses":
        slow += [(rank, 10 * step_ms, 0.05) for rank in range(WORKERS)]
    said = ", ".join(f"{{rank: {rank}, extra_ms: {ms}, chance: {chance}}}" for rank, ms, chance in slow)
    return f"faults={{slow: [{said}]}}"


@contextlib.contextmanager
def unseen(*_: Any) -> Iterator[None]:
    yield


def run(experiment: Path, *overrides: str) -> tuple[Figures, list[Figures], list[Figures]]:
    """Train; returns result.json, the records of steps and of epochs."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = load_experiment(str(experiment), [*overrides, f"run.folder={folder}/run"])
        result = launch.run(chosen, resume=False, overwrite=False, watch=unseen)
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
        events = [json.loads(line) for line in (Path(folder) / "run" / "events.jsonl").read_text().splitlines()]
    return result | {"events": events}, *([e for e in lines if e["kind"] == kind] for kind in ("step", "epoch"))


def samples_per_s(steps: list[Figures]) -> float:
    """Over all steps but the first record, which waits for the pipeline, and what was left of commits."""
    counted = steps[1:]
    seconds = sum(step["step_s"] - step["seconds"]["checkpoint"] for step in counted)
    return sum(step["samples"] for step in counted) / seconds


def speed_of(size: str, scenario: str, arm: str, args: argparse.Namespace, found: Figures) -> float:
    hidden, batch = SIZES[size]
    result, steps, _ = run(
        DIGITS, "model.name=mlp", f"model.options={{hidden: {hidden}}}", f"strategy={STRATEGIES[arm]}",
        f"train.global_batch={batch}", f"train.epochs={args.epochs}", "train.optimizer.lr=0.02",
        "train.schedule={name: constant}", waits(scenario, args.step_ms),
    )  # fmt: skip
    found.setdefault(arm, []).append({"staleness": result["staleness"], "phases": result["seconds"]})
    return samples_per_s(steps)


def speed(args: argparse.Namespace) -> Figures:
    """Samples/s of each arm, and its ratio to sync in the same round."""
    found: Figures = {}
    for size in args.sizes:
        for scenario, all_arms in ARMS[size].items():
            arms = [arm for arm in all_arms if arm in args.arms]
            details: Figures = {}
            calls = {arm: partial(speed_of, size, scenario, arm, args, details) for arm in arms}
            values = measure.in_turns(calls, args.rounds)
            ratios = {arm: measure.ratio(values, arm, "sync") for arm in arms if arm != "sync"}
            for arm, ratio in ratios.items():
                print(f"{size} {scenario}: {arm} over sync {ratio['median']:.2f}", flush=True)
            found[f"{size} {scenario}"] = {
                "ratios": ratios,
                "values": measure.summary(values, "samples/s"),
                "staleness": {arm: [each["staleness"] for each in details[arm]] for arm in arms},
                "seconds_by_phase": {arm: details[arm][-1]["phases"] for arm in arms},
            }
    return found


def restart(args: argparse.Namespace) -> Figures:
    """Seconds without a step, and until the worker is back, where one of two is killed; of steps that wait 30 ms."""
    faults = "faults={slow: [{rank: 0, extra_ms: 30}, {rank: 1, extra_ms: 30}], kill: {rank: 1, step: 60}}"
    found: Figures = {"stopped_s": {}, "back_s": {}}
    for arm in ("sync", "async"):
        for where in found.values():
            where[arm] = []
    for number in range(args.rounds):
        for arm in ("sync", "async") if number % 2 == 0 else ("async", "sync"):
            result, steps, _ = run(DIGITS, f"strategy={STRATEGIES[arm]}", faults, "train.epochs=25")
            killed = next(e["time"] for e in result["events"] if e.get("kind") == "kill")
            back = next(e["time"] for e in result["events"] if e["event"] == "restart")
            around = [killed, *(step["time"] for step in steps if step["time"] > killed)]
            found["stopped_s"][arm].append(max(b - a for a, b in pairwise(around)))
            found["back_s"][arm].append(back - killed)
            print(
                f"{arm}: stopped {found['stopped_s'][arm][-1]:.2f} s, back {found['back_s'][arm][-1]:.2f} s", flush=True
            )
    return {name: measure.summary(values, "s") for name, values in found.items()}


def curve(steps: list[Figures], epochs: list[Figures]) -> list[Point]:
    """After each epoch. Pipelines have started by the first step."""
    samples, points = 0, []
    for epoch in epochs:
        samples += epoch["samples"]
        points.append((epoch["time"] - steps[0]["time"], samples, epoch["val_accuracy"], epoch["val_loss"]))
    return points


def seconds_to(points: list[Point], accuracy: float) -> float | None:
    return next((seconds for seconds, _, reached, _ in points if reached >= accuracy), None)


def accuracy(args: argparse.Namespace) -> Figures:
    """Of each data set, scenario and strategy: accuracies of the seeds, curves, seconds to a stated accuracy."""
    sets: dict[str, tuple[Path, list[str], float, float]] = {
        "digits": (DIGITS, [f"train.epochs={args.accuracy_epochs}", "model.options={width: 16}"], args.accuracy, 15.0)
    }
    if args.cifar:
        data = [
            f"data.train=tar:{args.cifar}/train.tar?per_class={args.per_class}",
            f"data.val=tar:{args.cifar}/test.tar?per_class=200",
        ]
        small = ["model.options={width: 8}", f"train.epochs={args.cifar_epochs}", "train.optimizer.lr=0.1"]
        batch = ["train.global_batch=64"]  # of 256 there are too few updates in so few epochs
        sets["cifar10"] = (CIFAR, [*data, *small, *batch], args.cifar_accuracy, 33.0)
    found: Figures = {}
    for name, (experiment, overrides, target, step_ms) in sets.items():
        if name not in args.sets:
            continue
        for scenario in args.scenarios:
            faults = [] if scenario == "balanced" else [f"faults={{slow: {{rank: 1, extra_ms: {2 * step_ms}}}}}"]
            runs: Figures = {arm: [] for arm in PLAIN}
            for seed in range(args.seeds):
                for arm in PLAIN if seed % 2 == 0 else reversed(PLAIN):
                    result, steps, epochs = run(
                        experiment, *overrides, *faults, f"strategy={STRATEGIES[arm]}", f"seed={seed}"
                    )
                    points = curve(steps, epochs)
                    runs[arm].append({
                        "accuracy": points[-1][2], "seconds_to": seconds_to(points, target), "curve": points,
                        "staleness": result["staleness"], "samples_per_s": result["samples_per_s"],
                    })  # fmt: skip
                    print(f"{name} {scenario} seed {seed} {arm}: {points[-1][2]:.2%}", flush=True)
            found[f"{name} {scenario}"] = summed_up(runs, target, f"{name}, {scenario}")
    return found


def summed_up(runs: Figures, target: float, where: str) -> Figures:
    """Means and spreads over seeds, and in words how much sooner or later than sync each was there."""
    summary: Figures = {"target": target, "runs": runs, "strategies": {}}
    for arm, of_arm in runs.items():
        accuracies = [each["accuracy"] for each in of_arm]
        sooner = [
            ours["seconds_to"] and theirs["seconds_to"] and theirs["seconds_to"] / ours["seconds_to"]
            for ours, theirs in zip(of_arm, runs["sync"], strict=True)
        ]
        reached = [each for each in sooner if each]
        summary["strategies"][arm] = {
            "mean": statistics.fmean(accuracies),
            "spread": max(accuracies) - min(accuracies),
            "n": len(accuracies),
            "sooner_than_sync": statistics.median(reached) if len(reached) == len(sooner) else None,
        }
        said = summary["strategies"][arm]
        sooner, goal = said["sooner_than_sync"], f"{target:.0%}"
        how = f"reached {goal} {sooner:.2f} times as soon as sync" if sooner else f"did not always reach {goal}"
        print(f"{where}: {arm} {how}; at the end {said['mean']:.2%}, spread {said['spread']:.2%}", flush=True)
    return summary


def chart(axis: Any, found: Figures) -> None:
    """Ratios to sync, a bar for each arm of each scenario."""
    bars = {f"{where}: {arm}": ratio for where, each in found.items() for arm, ratio in each["ratios"].items()}
    for place, (name, ratio) in enumerate(reversed(bars.items())):
        axis.barh(place, ratio["median"], color=measure.COLOURS["straggler" in name], height=0.7)
        axis.errorbar(
            ratio["median"], place, capsize=2, linewidth=0.8, color=measure.INK,
            xerr=[[ratio["median"] - ratio["lowest"]], [ratio["highest"] - ratio["median"]]],
        )  # fmt: skip
        axis.text(0.02, place, f"{name}: {ratio['median']:.2f}", va="center", color="white", fontsize=6.5)
    axis.axvline(1, color=measure.INK, linestyle="--", linewidth=1)
    axis.set_yticks([])
    axis.set_xlabel("samples/s over sync in the same round", color=measure.INK)
    axis.figure.set_size_inches(7.5, 0.6 + 0.24 * len(bars))


def chart_of_accuracy(axis: Any, found: Figures) -> None:
    """Held-out accuracy over time, of the first seed."""
    for (where, each), style in zip(found.items(), ("-", "--", "-.", ":"), strict=False):
        for colour, (arm, of_arm) in zip(measure.COLOURS, each["runs"].items(), strict=True):
            seconds, _, reached, _ = zip(*of_arm[0]["curve"], strict=True)
            axis.plot(seconds, reached, style, color=colour, linewidth=1.2, label=f"{arm}, {where}")
    axis.legend(fontsize=6, ncols=2)
    axis.set_xlabel("seconds since the first step; accuracy on held-out samples", color=measure.INK)


PARTS: dict[str, tuple[Callable[[argparse.Namespace], Figures], Callable[..., None] | None]] = {
    "speed": (speed, chart),
    "accuracy": (accuracy, chart_of_accuracy),
    "restart": (restart, None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["speed"])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--arms", nargs="+", choices=STRATEGIES, default=list(STRATEGIES), help="of the part speed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6, help="of the part speed")
    parser.add_argument("--step-ms", type=float, default=30.0, help="of the part speed")
    parser.add_argument("--scenarios", nargs="+", choices=("balanced", "straggler"), default=["balanced", "straggler"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", choices=("digits", "cifar10"), default=["digits", "cifar10"])
    parser.add_argument("--accuracy", type=float, default=0.9, help="of the digits")
    parser.add_argument("--accuracy-epochs", type=int, default=15)
    parser.add_argument("--cifar", help="the folder of train.tar and test.tar")
    parser.add_argument("--cifar-accuracy", type=float, default=0.4)
    parser.add_argument("--cifar-epochs", type=int, default=6)
    parser.add_argument("--per-class", type=int, default=1000)
    args = parser.parse_args()
    here = measure.machine()
    with connected_to_ray():
        found = {part: PARTS[part][0](args) for part in args.parts}
    for part, figures in found.items():
        record = {
            "title": f"Strategies: {part}",
            "targets": TARGETS if part == "speed" else None,
            "settings": vars(args) | {"cifar": bool(args.cifar)},
            "machine": here,
            part: figures,
        }
        draw = PARTS[part][1]
        chosen, all_ = (args.sizes, list(SIZES)) if part == "speed" else (args.sets, ["digits", "cifar10"])
        of = "" if chosen == all_ or part == "restart" else "-" + "-".join(chosen)
        measure.write(f"strategies-{part}{of}", record, draw and partial(draw, found=figures))


if __name__ == "__main__":
    main()
