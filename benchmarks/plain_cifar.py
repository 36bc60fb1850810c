"""What a user would write instead for CIFAR-10: ImageFolder, torchvision's transforms, DataLoader, DDP.

    python -m benchmarks.plain_cifar FOLDER --workers 2     # FOLDER/train/CLASS/*.jpg, FOLDER/val/CLASS/*.jpg

One process a worker, each with `--loaders` processes that decode and augment. The recipe is read from the experiment
file, so that the two cannot drift apart: network, augmentations in their order, optimizer, schedule, batch, epochs;
what this script has not is refused. A rank evaluates every n-th image, so that each counts once. It reads its loss
every 20 steps, as a user who watches it would, and keeps no checkpoint. Prints a JSON list: an entry an epoch.
"""

import argparse
import json
import math
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from orchestrator.config.experiment import Experiment
from orchestrator.config.load import load_experiment
from orchestrator.models.zoo import build_model

EXPERIMENT = Path(__file__).parent.parent / "experiments" / "cifar10.yaml"
READ_LOSS_EVERY = 20  # steps


class Cutout:
    """A black square around a random pixel (DeVries & Taylor 2017), which v2.RandomErasing does not do."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, image: Tensor) -> Tensor:
        top, left = (int(torch.randint(0, size, ())) - self.side // 2 for size in image.shape[1:])
        image[:, max(top, 0) : top + self.side, max(left, 0) : left + self.side] = 0
        return image


def transform(experiment: Experiment, *, training: bool) -> v2.Compose:
    """The experiment's augmentations as torchvision has them."""
    size = experiment.data.image_size
    steps: list[Any] = [v2.PILToTensor()]
    for entry in experiment.data.augment:
        match entry.name:
            case "random_crop" if training:
                steps.append(v2.RandomCrop(size, padding=entry.padding))
            case "horizontal_flip" if training:
                steps.append(v2.RandomHorizontalFlip(entry.probability))
            case "cutout" if training:
                steps.append(v2.RandomApply([Cutout(entry.side)], p=entry.probability))
            case "normalize":
                steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(entry.mean, entry.std)]
            case "random_crop" | "horizontal_flip" | "cutout":
                pass  # evaluation leaves it out
            case _:
                raise SystemExit(
                    f"data.augment: got {entry.name}, for which this script has no transform of torchvision"
                )
    return v2.Compose(steps)


def check(experiment: Experiment) -> None:
    """Raises: SystemExit for a recipe that this script does not have."""
    config = experiment.train
    done = {
        "train.optimizer.name": config.optimizer.name == "sgd",
        "train.schedule": config.schedule.name == "cosine" and config.schedule.final == 0,
        "train.accumulate": config.accumulate == 1,
        "train.clip_grad_norm": config.clip_grad_norm == 0,
        "train.ema_decay": config.ema_decay == 0,
        "train.compile": not config.compile,
        "precision": experiment.precision.default.name == "fp32",
    }
    if missing := [name for name, is_done in done.items() if not is_done]:
        raise SystemExit(f"{', '.join(missing)}: this script has SGD, a cosine to zero, fp32 and nothing beside.")


def loaders(experiment: Experiment, args: argparse.Namespace, rank: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    options: dict[str, Any] = {
        "batch_size": experiment.train.global_batch // args.workers,
        "num_workers": args.loaders,
        "persistent_workers": args.loaders > 0,
        "pin_memory": torch.cuda.is_available(),
    }
    training = ImageFolder(str(args.folder / "train"), transform(experiment, training=True))
    held_out = ImageFolder(str(args.folder / "val"), transform(experiment, training=False))
    sampler: DistributedSampler[Any] = DistributedSampler(training, args.workers, rank, seed=experiment.seed)
    part = Subset(held_out, range(rank, len(held_out), args.workers))
    return DataLoader(training, sampler=sampler, **options), DataLoader(part, **options)


def rate(experiment: Experiment, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then half a cosine down to zero, as a factor of the peak rate."""
    warm_up = round(experiment.train.schedule.warmup_epochs * steps_per_epoch)
    if step < warm_up:
        return (step + 1) / warm_up
    total = experiment.train.epochs * steps_per_epoch
    return (1 + math.cos(math.pi * (step - warm_up) / (total - warm_up))) / 2


def make_optimizer(model: torch.nn.Module, experiment: Experiment) -> torch.optim.Optimizer:
    config = experiment.train.optimizer
    decayed = [p for p in model.parameters() if p.ndim > 1]
    spared = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def timed(batches: DataLoader[Any], waits: list[float]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches; `waits` gets the seconds that each was waited for."""
    iterator = iter(batches)
    while True:
        asked = time.perf_counter()
        batch = next(iterator, None)
        waits.append(time.perf_counter() - asked)
        if batch is None:
            return
        yield batch


class Run:
    """One rank's training."""

    def __init__(self, experiment: Experiment, args: argparse.Namespace, rank: int) -> None:
        self.experiment, self.workers = experiment, args.workers
        self.train_loader, self.val_loader = loaders(experiment, args, rank)
        self.device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
        self.layout = torch.channels_last if experiment.train.channels_last else torch.contiguous_format
        torch.manual_seed(experiment.seed)
        size = {"channels": experiment.data.channels, "image_size": experiment.data.image_size}
        model = build_model(experiment.model, num_classes=len(self.train_loader.dataset.classes), **size)
        self.model = model.to(self.device).to(memory_format=self.layout)
        self.parallel: torch.nn.Module = self.model
        if args.workers > 1:
            self.parallel = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        self.optimizer = make_optimizer(self.model, experiment)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: rate(experiment, step, len(self.train_loader))
        )

    def epoch(self, number: int) -> dict[str, float]:
        """Train on all images once and evaluate; figures of this rank but for the accuracy, which is everybody's."""
        waits: list[float] = []
        started = time.perf_counter()
        assert isinstance(self.train_loader.sampler, DistributedSampler)
        self.train_loader.sampler.set_epoch(number)
        for step, (images, labels) in enumerate(timed(self.train_loader, waits)):
            logits = self.parallel(self.moved(images))
            smoothing = self.experiment.train.label_smoothing
            loss = F.cross_entropy(logits, labels.to(self.device), label_smoothing=smoothing)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            if step % READ_LOSS_EVERY == 0:
                assert math.isfinite(loss.item())
        train_s = time.perf_counter() - started
        accuracy = self.evaluate()
        return {
            "time": time.time(),
            "val_accuracy": accuracy,
            "train_s": train_s,
            "data_wait_s": sum(waits),
            "evaluation_s": time.perf_counter() - started - train_s,
        }

    def evaluate(self) -> float:
        self.model.eval()
        counts = torch.zeros(2, device=self.device)
        with torch.inference_mode():
            for images, labels in self.val_loader:
                counts[0] += (self.model(self.moved(images)).argmax(1) == labels.to(self.device)).sum()
                counts[1] += len(labels)
        self.model.train()
        if self.workers > 1:
            dist.all_reduce(counts)
        return float(counts[0] / counts[1])

    def moved(self, images: Tensor) -> Tensor:
        return images.to(self.device, non_blocking=True).to(memory_format=self.layout)


def train(rank: int, args: argparse.Namespace, results: str) -> None:
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // args.workers))
    experiment = load_experiment(str(args.experiment), args.override)
    if args.workers > 1:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=args.workers)
    run = Run(experiment, args, rank)
    epochs = [run.epoch(number) for number in range(experiment.train.epochs)]
    if rank == 0:
        Path(results).write_text(json.dumps(epochs))
    if args.workers > 1:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--loaders", type=int, default=1, help="loading processes of each worker")
    parser.add_argument(
        "--experiment", type=Path, default=Path(__file__).parent.parent / "experiments" / "cifar10.yaml"
    )
    parser.add_argument("--override", nargs="*", default=[], help="dotted.path=value, as for `convoy train`")
    args = parser.parse_args()
    check(load_experiment(str(args.experiment), args.override))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    with tempfile.NamedTemporaryFile() as results:
        torch.multiprocessing.spawn(train, (args, results.name), args.workers)
        print(Path(results.name).read_text())


if __name__ == "__main__":
    main()
