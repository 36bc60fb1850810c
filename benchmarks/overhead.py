"""What the orchestration costs: images/s of the strategy `sync` over a plain torch DDP script, 1 and 2 workers.

    python -m benchmarks.overhead        # about 15 minutes

Both train the same network from the same batches in memory. Convoy's side is all that a run has but its data
pipeline: Ray, Train's worker group, the training loop with its accounting, log, commit and evaluation machinery,
the strategy; its rate is taken from the steps' own stamps after the warm-up, first start to last end, so time between
steps counts. The plain script runs without Ray. Each arm is a process of its own, in turns.

Target: >= 0.95 with 1 and with 2 workers.

Found (2 cores, Ray 2.60, November 2026): 1.01 and 0.87 (0.78 to 1.04), n=5. With two workers every core has a rank;
the processes of Ray and Train, about 11 % of a core while nothing happens, take their time from one rank while the
other waits. Forward and backward themselves are slower in the slow rounds, which is not explained. A Ray with its
defaults idles at 16 % of a core: ray_here.OWN_RAY is what was turned off, beside fewer polls, deliveries and reports.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks import measure
from benchmarks.plain_ddp import CHANNELS, CLASSES, DISTINCT_BATCHES, IMAGE_SIZE, WARM_UP_STEPS, batch
from orchestrator.channel import ActorChannel
from orchestrator.config.load import load_experiment
from orchestrator.models.size import measure as size_of_model
from orchestrator.plan import DataSize, make_plan
from orchestrator.prepare import resources_here
from orchestrator.ray_here import connected_to_ray
from orchestrator.run_folder import RunFolder
from orchestrator.run_log import RunLog
from orchestrator.strategies.sync import OneWorker, Sync
from orchestrator.worker import Setup, train_with
from pipelines.loader import Batch
from pipelines.order import Epoch, Position
from pipelines.targets import Target

ROOT = Path(__file__).parent.parent
TARGET = 0.95


def batches_in_memory(epoch: Epoch, rank: int, world_size: int) -> Iterator[Batch]:
    share = epoch.largest_share(world_size)
    made = [batch(number, share, rank) for number in range(DISTINCT_BATCHES)]
    for step in range(epoch.num_steps):
        images, labels = made[step % len(made)]
        yield Batch(0, step, epoch.share(step, rank, world_size), images, labels, np.zeros(share, np.uint64))


def worker(config: dict[str, Any]) -> None:
    """Convoy's worker, fed from memory."""
    setup: Setup = config["setup"]
    strategy = Sync() if ray.train.get_context().get_world_size() > 1 else OneWorker()

    def batches(purpose: str, start: Position) -> Iterator[Batch]:
        assert start == Position(0, 0)
        epoch = setup.train_epoch if purpose == "train" else setup.val_epoch
        return batches_in_memory(epoch, strategy.rank, strategy.world_size)

    train_with(setup, strategy, ActorChannel(config["run_log"]), batches, lambda *_: [])


def make_setup(folder: Path, args: argparse.Namespace) -> Setup:
    """One epoch of as many steps as are measured, and a validation of one step at its end."""
    steps = WARM_UP_STEPS + args.steps
    overrides = [
        "train.epochs=1", f"train.global_batch={args.batch}", f"model.options={{width: {args.width}}}",
        "train.optimizer.lr=0.01", "train.schedule.warmup_epochs=0", "train.label_smoothing=0",
        f"strategy.workers={args.convoy}", f"run.folder={folder}",
    ]  # fmt: skip
    experiment = load_experiment(str(ROOT / "experiments" / "cifar10.yaml"), overrides)
    size = size_of_model(experiment.model, num_classes=CLASSES, channels=CHANNELS, image_size=IMAGE_SIZE)
    plan = make_plan(
        experiment, resources_here(), DataSize(steps * args.batch, args.batch, Target("class", CLASSES)), size
    )
    return Setup(
        experiment=experiment,
        plan=plan,
        checkpoints=str(folder / "checkpoints"),
        classes=tuple(map(str, range(CLASSES))),
        train_epoch=Epoch(steps * args.batch, args.batch),
        val_epoch=Epoch(args.batch, args.batch),
        identity={},
        kernel_tables=(),
    )


def run_convoy(args: argparse.Namespace) -> None:
    """One run of Convoy; prints images/s."""
    with tempfile.TemporaryDirectory() as name, connected_to_ray():
        folder = RunFolder(name)
        setup = make_setup(Path(name), args)
        trainer = ray.train.torch.TorchTrainer(
            worker,
            train_loop_config={"setup": setup, "run_log": ray.remote(RunLog).options(num_cpus=0).remote(folder, {})},
            scaling_config=ray.train.ScalingConfig(
                num_workers=args.convoy,
                use_gpu=setup.plan.device == "cuda",
                resources_per_worker={"CPU": setup.plan.cpus_per_worker},
            ),
            run_config=ray.train.RunConfig(name=f"overhead-{time.time_ns()}", storage_path=f"{name}/.ray"),
        )
        trainer.fit()
        steps = [line for line in folder.read_lines("metrics.jsonl") if line["kind"] == "step"][WARM_UP_STEPS:]
        assert len(steps) == args.steps
        elapsed = steps[-1]["time"] + steps[-1]["step_s"] - steps[0]["time"]
        print(json.dumps({"images_per_s": args.steps * args.batch / elapsed, "seconds": _medians(steps)}))


def _medians(steps: list[dict[str, Any]]) -> dict[str, float]:
    return {phase: statistics.median(step["seconds"][phase] for step in steps) for phase in steps[0]["seconds"]}


def _output(module: str, args: argparse.Namespace, *options: str) -> str:
    shared = [f"--{name}={getattr(args, name)}" for name in ("steps", "batch", "width")]
    command = [sys.executable, "-m", f"benchmarks.{module}", *shared, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=128, help="the global batch")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--convoy", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.convoy:
        run_convoy(args)
        return
    phases: dict[str, Any] = {}

    def plain(workers: int) -> float:
        return float(_output("plain_ddp", args, f"--workers={workers}"))

    def convoy(workers: int) -> float:
        figures = json.loads(_output("overhead", args, f"--convoy={workers}"))
        phases[f"{workers} workers"] = figures["seconds"]
        return float(figures["images_per_s"])

    here = measure.machine()
    values = measure.in_turns(
        {
            "plain DDP, 1 worker": lambda: plain(1),
            "Convoy, 1 worker": lambda: convoy(1),
            "plain DDP, 2 workers": lambda: plain(2),
            "Convoy, 2 workers": lambda: convoy(2),
        },
        args.rounds,
    )
    ratios = {
        name: measure.ratio(values, f"Convoy, {name}", f"plain DDP, {name}") for name in ("1 worker", "2 workers")
    }
    for name, figure in ratios.items():
        print(f"{name}: {figure['median']:.3f} of plain DDP ({figure['lowest']:.3f} to {figure['highest']:.3f})")
    record = {
        "title": "images/s of Convoy's sync over a plain DDP script, batches in memory",
        "target": TARGET,
        "settings": {name: getattr(args, name) for name in ("rounds", "steps", "batch", "width")},
        "machine": here,
        "ratios": ratios,
        "values": measure.summary(values, "images/s"),
        "last_round_median_seconds_of_a_step_by_phase": phases,
    }
    measure.write(
        "overhead", record, lambda axis: measure.bars(axis, ratios, target=TARGET, label="of the plain script")
    )


if __name__ == "__main__":
    main()
