"""How well the pipeline hides behind the step: a run's time over the longer of the two, and is the wait told truly.

    python -m benchmarks.overlap FOLDER        # photos, in class folders or not; about 20 minutes

What is measured is what a user sees: Ray Data's actors feed one Ray Train worker, which runs Convoy's own training loop
with its accounting, log, commits and evaluations, over five epochs. Only the network is replaced, by one that sleeps
for t ms, and the work on the device by a copy of the batch: that leaves the CPUs to the pipeline, as a GPU would.

Every round measures first the pipeline alone (t = 0: its time a batch is `data`), then t = 1/4, 1/2, 1, 2, 4 of that,
then the pipeline alone again; `data` is the mean of the two. Of each:

total     time from the first batch's arrival to the end of the last step, over one step and (n - 1) of the longer of
          data and step: what no overlap can beat. Target: <= 1.05. Starting up is not in it; it is told beside.
wait      the steps' `data_wait` in metrics.jsonl over the time that next() blocked, without the first step (which holds
          the start). Target: within 5 %, or where hardly anything waits, within 0.5 % of the total.
edge      the longest time between two batches' arrivals where an epoch ends (with an evaluation of ten images and a
          commit in between) over a step's time: the median of the others, or n-th of the total where batches come in
          bursts, whichever is longer. Target: <= 2.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray
import ray.train.torch
import torch

from benchmarks import measure
from benchmarks.photos import NUM_CLASSES, link_photos
from orchestrator.channel import ActorChannel
from orchestrator.config.load import load_experiment
from orchestrator.prepare import prepare, resources_here
from orchestrator.ray_here import connected_to_ray
from orchestrator.run_folder import RunFolder
from orchestrator.run_log import RunLog
from orchestrator.strategies.sync import OneWorker
from orchestrator.training.checkpoint_store import CheckpointStore
from orchestrator.training.loop import train
from orchestrator.training.training import Training
from orchestrator.worker import GroupSetup, build_learner
from orchestrator.worker_log import WorkerLog
from pipelines.device import Targets, ToDevice
from pipelines.loader import Batch, batches_from_blocks, begun
from pipelines.order import Position
from pipelines.stages import OrderedSplit

ROOT = Path(__file__).parent.parent
SIZE = 224
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
MAX_TOTAL, MAX_WAIT_ERROR, MAX_WAIT_ERROR_OF_TOTAL, MAX_EDGE = 1.05, 0.05, 0.005, 2.0


class Asleep(torch.nn.Module):
    """A network whose step takes time and no CPU. Its logits are the same for all images."""

    def __init__(self, model: torch.nn.Module, step_s: float) -> None:
        super().__init__()
        self._weights = next(model.parameters())
        self._step_s = step_s

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self._step_s)
        return self._weights.sum() * images.new_ones((len(images), NUM_CLASSES), dtype=torch.float32)


class OneSleeper(OneWorker):
    """The only worker; in training it sleeps instead of computing."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    def wrap(self, model: torch.nn.Module, lap: Callable[[str], None]) -> torch.nn.Module:
        del lap
        return Asleep(model, self._step_s)


class Copied(ToDevice):
    """In training a copy is all that the host does, as for a GPU; evaluation needs the pixels' values."""

    def __call__(self, batch: Batch, *, training: bool) -> tuple[torch.Tensor, Targets]:
        if not training:
            return super().__call__(batch, training=False)
        return torch.from_numpy(batch.images.copy()), Targets(torch.from_numpy(batch.labels.copy()))


def timed(batches: Iterator[Batch], asked: list[float], arrived: list[float]) -> Iterator[Batch]:
    """Note when each batch was asked for and when it came."""
    while True:
        before = time.time()
        try:
            batch = next(batches)
        except StopIteration:
            return
        asked.append(before)
        arrived.append(time.time())
        yield batch


def worker(config: dict[str, Any]) -> dict[str, Any]:
    """Convoy's worker with another network: see `orchestrator.worker.train_in_group`."""
    group: GroupSetup = config["group"]
    setup, start = group.setup, Position(0, 0)

    def batches(purpose: str) -> Iterator[Batch]:
        shard = ray.train.get_dataset_shard(purpose)
        blocks = shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=setup.plan.prefetched)
        return batches_from_blocks(begun(iter(blocks)), group.stream(purpose, start).layout(1), 0)

    asked: list[float] = []
    arrived: list[float] = []
    device = torch.device("cpu")
    log = WorkerLog(ActorChannel(group.run_log), 0, None)
    training = Training(
        experiment=setup.experiment,
        learner=build_learner(setup, device),
        strategy=OneSleeper(config["step_s"]),
        train_epoch=setup.train_epoch,
        val_epoch=setup.val_epoch,
        train_batches=timed(batches("train"), asked, arrived),
        val_batches=batches("val"),
        to_device=Copied(setup.experiment.data, setup.experiment.seed, device, channels_last=True),
        sample_ids=lambda *_: [],
        store=CheckpointStore(setup.checkpoints, keep=setup.experiment.checkpoint.keep),
        log=log,
        identity=setup.identity,
    )
    try:
        train(training)
    finally:
        log.close()
    return {"asked": asked, "arrived": arrived}


def run(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One run; what it took."""
    overrides = [
        f"data.train=imagefolder:{args.folder}/train", f"data.val=imagefolder:{args.folder}/val",
        f"data.image_size={SIZE}", "data.augment=[random_resized_crop, horizontal_flip]",
        f"train.epochs={args.epochs}", f"train.global_batch={args.batch}", "train.schedule.warmup_epochs=0",
        "train.optimizer.lr=1e-6", "model.options={width: 4}", "strategy.workers=1", f"run.folder={folder}",
    ]  # fmt: skip
    with connected_to_ray():
        prepared = prepare(load_experiment(str(ROOT / "experiments" / "cifar10.yaml"), overrides), resources_here())
        run_folder = RunFolder(str(folder))
        group = GroupSetup(
            setup=prepared.setup(run_folder),
            run_log=ray.remote(RunLog).options(num_cpus=0).remote(run_folder, {}),
            train_recipe=ray.put(prepared.recipe(True)),
            val_recipe=ray.put(prepared.recipe(False)),
        )
        trainer = ray.train.torch.TorchTrainer(
            worker,
            train_loop_config={"group": group, "step_s": args.step_ms / 1000},
            scaling_config=ray.train.ScalingConfig(
                num_workers=1, resources_per_worker={"CPU": prepared.plan.cpus_per_worker}
            ),
            run_config=ray.train.RunConfig(name=f"overlap-{time.time_ns()}", storage_path=str(folder / ".ray")),
            datasets={name: lambda name=name: group.stream(name, Position(0, 0)) for name in ("train", "val")},
            dataset_config=OrderedSplit(),
        )
        started = time.time()
        seen = trainer.fit().return_value
        return figures(seen, run_folder.read_lines("metrics.jsonl"), started, args.step_ms / 1000)


def figures(seen: dict[str, Any], lines: list[dict[str, Any]], started: float, step_s: float) -> dict[str, Any]:
    """What the worker saw, and what the run says of itself in metrics.jsonl."""
    steps = [line for line in lines if line["kind"] == "step"]
    asked, arrived = seen["asked"], seen["arrived"]
    assert len(steps) == len(arrived), f"{len(steps)} steps were written down, {len(arrived)} batches came"
    gaps = [after - before for before, after in pairwise(arrived)]
    at_edge = {number for number in range(1, len(steps)) if steps[number]["epoch"] != steps[number - 1]["epoch"]}
    total_s = steps[-1]["time"] + steps[-1]["step_s"] - arrived[0]
    within = [gap for number, gap in enumerate(gaps, start=1) if number not in at_edge]
    return {
        "step_s": step_s,
        "steps": len(steps),
        "start_up_s": arrived[0] - started,
        "total_s": total_s,
        "batch_s": (arrived[-1] - arrived[0]) / len(gaps),
        "wait_reported_s": sum(step["seconds"]["data_wait"] for step in steps[1:]),
        "wait_true_s": sum(came - asked for asked, came in zip(asked[1:], arrived[1:], strict=True)),
        "gaps_at_epoch_edges_s": [gaps[number - 1] for number in sorted(at_edge)],
        "median_gap_s": statistics.median(within),
        "longest_gap_within_s": max(within),
        "evaluations_s": [line["evaluation_s"] for line in lines if line["kind"] == "epoch"],
        "commits_s": [steps[number]["seconds"]["checkpoint"] for number in sorted(at_edge)],
    }


def judged(one: dict[str, Any], data_s: float) -> dict[str, Any]:
    """The three ratios, beside what they are made of."""
    longer = max(data_s, one["step_s"])
    wait_error_s = abs(one["wait_reported_s"] - one["wait_true_s"])
    step = max(one["median_gap_s"], one["total_s"] / one["steps"])
    return one | {
        "data_s": data_s,
        "total": one["total_s"] / (one["step_s"] + (one["steps"] - 1) * longer),
        "wait_error": wait_error_s / one["wait_true_s"],
        "wait_error_of_total": wait_error_s / one["total_s"],
        "edge": max(one["gaps_at_epoch_edges_s"]) / step,
        "edge_over_median": max(one["gaps_at_epoch_edges_s"]) / one["median_gap_s"],
    }


def measure_round(args: argparse.Namespace, images: Path, number: int) -> dict[str, dict[str, Any]]:
    """The pipeline alone, every t, the pipeline alone again."""

    def once(step_s: float) -> dict[str, Any]:
        shared = [f"--{name}={getattr(args, name)}" for name in ("batch", "epochs")]
        command = [sys.executable, "-m", "benchmarks.overlap", str(images), f"--step-ms={1000 * step_s}", *shared]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        print(f"round {number + 1}/{args.rounds}  t = {1000 * step_s:.0f} ms: {found['total_s']:.2f} s", flush=True)
        return found

    alone = once(0.0)
    order = FACTORS if number % 2 == 0 else FACTORS[::-1]
    slept = {factor: once(factor * alone["batch_s"]) for factor in order}
    data_s = statistics.mean((alone["batch_s"], once(0.0)["batch_s"]))
    return {f"t = {factor:g} x data": judged(slept[factor], data_s) for factor in FACTORS}


def verdicts(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Medians over the rounds and whether each reaches its target; the longest gap of all rounds counts."""
    found = {}
    for name in rounds[0]:
        ones = [one[name] for one in rounds]
        medians = {key: statistics.median(one[key] for one in ones) for key in ("total", "wait_error", "start_up_s")}
        of_total = statistics.median(one["wait_error_of_total"] for one in ones)
        edge = max(one["edge"] for one in ones)
        found[name] = medians | {
            "wait_error_of_total": of_total,
            "edge": edge,
            "reached": {
                "total": medians["total"] <= MAX_TOTAL,
                "wait": medians["wait_error"] <= MAX_WAIT_ERROR or of_total <= MAX_WAIT_ERROR_OF_TOTAL,
                "edge": edge <= MAX_EDGE,
            },
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=24, help="an epoch")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--step-ms", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if args.step_ms is not None:
            print(json.dumps(run(Path(name), args)))
            return
        link_photos(args.folder, Path(name, "train"), args.steps * args.batch)
        link_photos(args.folder, Path(name, "val"), NUM_CLASSES)
        here = measure.machine()
        rounds = [measure_round(args, Path(name), number) for number in range(args.rounds)]
    found = verdicts(rounds)
    for case, one in found.items():
        print(
            f"{case}: total {one['total']:.3f}, wait wrong by {one['wait_error']:.1%} ({one['wait_error_of_total']:.2%}"
            f" of the total), edge {one['edge']:.2f} steps, start {one['start_up_s']:.1f} s; reached: {one['reached']}"
        )
    ratios = {
        case: {
            "median": found[case]["total"],
            "lowest": min(one[case]["total"] for one in rounds),
            "highest": max(one[case]["total"] for one in rounds),
            "n": len(rounds),
        }
        for case in found
    }
    record = {
        "title": "a run's time over the longer of pipeline and step",
        "targets": {"total": MAX_TOTAL, "wait_error": MAX_WAIT_ERROR, "edge": MAX_EDGE},
        "settings": {name: getattr(args, name) for name in ("rounds", "epochs", "steps", "batch")},
        "machine": here,
        "cases": found,
        "rounds": rounds,
    }
    measure.write("overlap", record, lambda axis: measure.bars(axis, ratios, target=MAX_TOTAL, label="of the longer"))


if __name__ == "__main__":
    main()
