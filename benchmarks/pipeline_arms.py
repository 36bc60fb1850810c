"""The arms of `benchmarks.pipeline` that need nothing but Convoy and what it stands on.

An arm takes a `Work`, makes batches of it with two processes as fast as it can, and gives images/s and CPU-ms an image.
"""

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from pipelines.augment.crop import RandomCrop
from pipelines.augment.flip import HorizontalFlip
from pipelines.augment.framing import RandomResizedCrop
from pipelines.config import PipelineConfig
from pipelines.order import Epoch, Position
from pipelines.produce import Recipe
from pipelines.sources import open_source

WORKERS = 2
WARM_UP_BATCHES = 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Task:
    """What is made of the images: pixels a side, images a batch, and Convoy's augmentations."""

    size: int
    batch: int
    augment: tuple[Any, ...]


TASKS = {
    "photos": Task(224, 128, (RandomResizedCrop(), HorizontalFlip())),
    "cifar10": Task(32, 512, (RandomCrop(padding=4), HorizontalFlip())),
}


@dataclass(frozen=True)
class Work:
    """What an arm has to do: `num_batches` of the task `data`, from the class folders in `folder`/images."""

    data: str
    folder: Path
    num_batches: int

    @property
    def task(self) -> Task:
        return TASKS[self.data]

    @property
    def images(self) -> str:
        return str(self.folder / "images")

    @property
    def tars(self) -> list[str]:
        """The same files as `write_tars` puts them into tars."""
        return sorted(str(path) for path in (self.folder / "tars").iterdir())


def config_of(task: Task) -> PipelineConfig:
    return PipelineConfig(train="unused", val="unused", image_size=task.size, augment=task.augment)


def recipe(work: Work) -> Recipe:
    source = open_source(f"imagefolder:{work.images}", "train")
    return Recipe(source, config_of(work.task), seed=0, training=True, checksums=False)


def cpu_s() -> float:
    """CPU time of this process and all that descend from it, those that ended included."""
    parents, times = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
            times[int(entry.name)] = sum(map(int, fields[11:15]))
    total, wanted = 0, [os.getpid()]
    while wanted:
        pid = wanted.pop()
        total += times.get(pid, 0)
        wanted += [child for child, parent in parents.items() if parent == pid]
    return total / os.sysconf("SC_CLK_TCK")


def consume(batches: Iterator[Any], num_batches: int) -> dict[str, float]:
    """Take batches as fast as they come; images/s and CPU-ms an image after the first ones."""
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    started, cpu = time.perf_counter(), cpu_s()
    images = sum(len(next(batches)) for _ in range(num_batches))
    return rates(images, time.perf_counter() - started, cpu_s() - cpu)


def rates(images: int, wall_s: float, cpu: float) -> dict[str, float]:
    return {"images_per_s": images / wall_s, "cpu_ms": 1000 * cpu / images}


def _produce_steps(work: Work, numbers: range, barrier: Any) -> None:
    one_thread()
    made = recipe(work)
    made.produce(0, range(work.task.batch))
    barrier.wait()
    for number in numbers:
        made.produce(*place(number, len(made.source.listing), work.task.batch))
    barrier.wait()


def place(number: int, num_samples: int, batch: int) -> tuple[int, range]:
    """Epoch and positions of a batch; what does not fill one at an epoch's end is left out."""
    epoch, step = divmod(number, num_samples // batch)
    return epoch, range(step * batch, (step + 1) * batch)


def bare(work: Work) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(WORKERS + 1)
    parts = [range(rank, work.num_batches, WORKERS) for rank in range(WORKERS)]
    processes = [context.Process(target=_produce_steps, args=(work, part, barrier)) for part in parts]
    for process in processes:
        process.start()
    barrier.wait()
    started, cpu = time.perf_counter(), cpu_s()
    barrier.wait()
    measured = rates(work.num_batches * work.task.batch, time.perf_counter() - started, cpu_s() - cpu)
    for process in processes:
        process.join()
    return measured


class Batches(torch.utils.data.Dataset[torch.Tensor]):
    """Whole batches by number, made by Convoy's function."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._recipe = recipe(work)

    def __len__(self) -> int:
        return self._work.num_batches + WARM_UP_BATCHES

    def __getitem__(self, number: int) -> torch.Tensor:
        epoch, positions = place(number, len(self._recipe.source.listing), self._work.task.batch)
        return torch.from_numpy(self._recipe.produce(epoch, positions).images)


def loader(work: Work) -> dict[str, float]:
    loaded = torch.utils.data.DataLoader(
        Batches(work), batch_size=None, num_workers=WORKERS, prefetch_factor=4, worker_init_fn=one_thread
    )
    return consume(iter(loaded), work.num_batches)


def one_thread(_: int = 0) -> None:
    """For a process that has a core to itself; OpenCV would take them all."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def tutorial_transform(work: Work) -> Any:
    """What tutorials do to a PIL image of such a data set."""
    from torchvision.transforms import v2

    size, flip = work.task.size, v2.RandomHorizontalFlip()
    changes = {
        "photos": [v2.RandomResizedCrop(size, antialias=True), flip, v2.ColorJitter(0.2, 0.2, 0.2)],
        "cifar10": [v2.RandomCrop(size, padding=4), flip],
    }[work.data]
    return v2.Compose([*changes, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def loader_pil(work: Work) -> dict[str, float]:
    from torchvision.datasets import ImageFolder

    loaded = torch.utils.data.DataLoader(
        ImageFolder(work.images, tutorial_transform(work)),
        work.task.batch,
        shuffle=True,
        num_workers=WORKERS,
        prefetch_factor=4,
        drop_last=True,
        persistent_workers=True,
    )

    def batches() -> Iterator[torch.Tensor]:
        while True:
            for pixels, _ in loaded:
                yield pixels

    return consume(batches(), work.num_batches)


def ray_images(work: Work) -> dict[str, float]:
    import ray

    from orchestrator.ray_here import connected_to_ray

    transform, size = tutorial_transform(work), work.task.batch

    def augment(batch: dict[str, Any]) -> dict[str, Any]:
        from PIL import Image

        return {"image": np.stack([transform(Image.fromarray(image)).numpy() for image in batch["image"]])}

    with connected_to_ray():

        def batches() -> Iterator[torch.Tensor]:
            while True:
                data = ray.data.read_images(work.images, mode="RGB").map_batches(augment, batch_size=size)
                for batch in data.iter_torch_batches(batch_size=size, drop_last=True, prefetch_batches=4):
                    yield batch["image"]

        return consume(batches(), work.num_batches)


def _train_worker(config: dict[str, Any]) -> None:
    import ray.train

    from pipelines.loader import batches_from_blocks, begun

    shard = ray.train.get_dataset_shard("train")
    blocks = shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=4)
    batches = batches_from_blocks(begun(iter(blocks)), config["stream"].layout(1), 0)
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    config["clock"].start()
    count = 0
    for _ in range(config["num_batches"]):
        count += len(next(batches).images.copy())  # the copy that goes to the device
    config["clock"].stop(count)


class _Clock:
    """Told by the worker, over a file, when to look: CPU time is that of the driver's whole tree."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def start(self) -> None:
        (self._folder / "start").write_text("")

    def stop(self, images: int) -> None:
        (self._folder / "stop.tmp").write_text(str(images))
        (self._folder / "stop.tmp").rename(self._folder / "stop")

    def measure(self) -> dict[str, float]:
        started, cpu = _when(self._folder / "start"), cpu_s()
        stopped = _when(self._folder / "stop")
        return rates(int((self._folder / "stop").read_text()), stopped - started, cpu_s() - cpu)


def _when(path: Path) -> float:
    while not path.exists():
        time.sleep(0.005)
    return time.perf_counter()


def convoy(work: Work) -> dict[str, float]:
    import ray
    import ray.train.torch

    from orchestrator.ray_here import connected_to_ray
    from pipelines.stages import OrderedSplit, Pool, Stream

    size, batch = work.task.size, work.task.batch
    with tempfile.TemporaryDirectory() as folder, connected_to_ray():
        made = recipe(work)
        num_samples = len(made.source.listing) // batch * batch
        stream = Stream(
            recipe=ray.put(made),
            epoch=Epoch(num_samples, batch),
            num_epochs=-(-(work.num_batches + WARM_UP_BATCHES) * batch // num_samples) + 1,
            start=Position(0, 0),
            sample_shape=(size, size, 3),
            pool=Pool(WORKERS, WORKERS, 0.25),
        )
        clock = _Clock(folder)
        trainer = ray.train.torch.TorchTrainer(
            _train_worker,
            train_loop_config={"stream": stream, "clock": clock, "num_batches": work.num_batches},
            scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
            run_config=ray.train.RunConfig(name=f"pipeline-{time.time_ns()}", storage_path=folder),
            datasets={"train": lambda: stream},
            dataset_config=OrderedSplit(),
        )
        fit = threading.Thread(target=trainer.fit, daemon=True)
        fit.start()
        measured = clock.measure()
        fit.join()
        return measured
