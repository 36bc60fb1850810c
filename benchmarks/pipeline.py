"""The input pipeline against its limit and against what a user would take instead: images/s and CPU-ms an image.

    python -m benchmarks.pipeline FOLDER        # photos, in class folders or not; about 25 minutes

Every contender gives batches of 128 random resized crops of 224 pixels, flipped by chance, to one consumer that does
nothing else, from the same JPEG files in the page cache, with two processes to make them. Each arm is a process tree of
its own, in turns; rates and CPU time (the operating system's, of the whole tree) are taken after the first batches.

bare          Convoy's own function (`Recipe.produce`) in two processes, results thrown away: the limit
convoy        the same through Ray Data into a Ray Train worker: what training gets
loader        torch DataLoader, two workers, the same function on whole batches
loader_pil    torch DataLoader, two workers, Pillow and torchvision v2: what tutorials show
ray_images    Ray Data as documented: read_images, map_batches with torchvision v2, iter_torch_batches

The first three make uint8 pixels and leave colour and normalisation to the device, which is the point of them; the last
two have light colour jitter and normalisation in their workers, because that is where their users put it.
Targets: convoy >= 0.85 of bare, >= 1.0 of loader, >= 2.2 of loader_pil, >= 4 of ray_images.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import measure
from pipelines.augment.flip import HorizontalFlip
from pipelines.augment.framing import RandomResizedCrop
from pipelines.config import PipelineConfig
from pipelines.order import Epoch, Position
from pipelines.produce import Recipe
from pipelines.sources import open_source

ROOT = Path(__file__).parent.parent
BATCH, SIZE, WORKERS = 128, 224, 2
WARM_UP_BATCHES = 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TARGETS = {"bare": 0.85, "loader": 1.0, "loader_pil": 2.2, "ray_images": 4.0}


def link_images(folder: Path, into: Path, num_images: int) -> None:
    """Class folders of links to the photos in `folder`, repeated up to `num_images`."""
    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    assert photos, f"{folder} holds no JPEG file"
    for number in range(num_images):
        photo = photos[number % len(photos)]
        target = into / f"class{number % 10}" / f"{number:06d}.jpg"
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(photo.resolve())


def recipe(images: str) -> Recipe:
    config = PipelineConfig(
        train="unused", val="unused", image_size=SIZE, augment=(RandomResizedCrop(), HorizontalFlip())
    )
    return Recipe(open_source(f"imagefolder:{images}", "train"), config, seed=0, training=True, checksums=False)


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


def _produce_steps(images: str, numbers: range, barrier: Any) -> None:
    torch.set_num_threads(1)
    made = recipe(images)
    made.produce(0, range(BATCH))
    barrier.wait()
    for number in numbers:
        made.produce(*place(number, len(made.source.listing)))
    barrier.wait()


def place(number: int, num_samples: int) -> tuple[int, range]:
    """Epoch and positions of a batch; what does not fill one at an epoch's end is left out."""
    epoch, step = divmod(number, num_samples // BATCH)
    return epoch, range(step * BATCH, (step + 1) * BATCH)


def bare(images: str, num_batches: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(WORKERS + 1)
    parts = [range(rank, num_batches, WORKERS) for rank in range(WORKERS)]
    processes = [context.Process(target=_produce_steps, args=(images, part, barrier)) for part in parts]
    for process in processes:
        process.start()
    barrier.wait()
    started, cpu = time.perf_counter(), cpu_s()
    barrier.wait()
    measured = rates(num_batches * BATCH, time.perf_counter() - started, cpu_s() - cpu)
    for process in processes:
        process.join()
    return measured


class Batches(torch.utils.data.Dataset[torch.Tensor]):
    """Whole batches by number, made by Convoy's function."""

    def __init__(self, images: str, num_batches: int) -> None:
        self._recipe = recipe(images)
        self._num_batches = num_batches

    def __len__(self) -> int:
        return self._num_batches

    def __getitem__(self, number: int) -> torch.Tensor:
        epoch, positions = place(number, len(self._recipe.source.listing))
        return torch.from_numpy(self._recipe.produce(epoch, positions).images)


def loader(images: str, num_batches: int) -> dict[str, float]:
    data = Batches(images, num_batches + WARM_UP_BATCHES)
    loaded = torch.utils.data.DataLoader(data, batch_size=None, num_workers=WORKERS, prefetch_factor=4)
    return consume(iter(loaded), num_batches)


def tutorial_transform() -> Any:
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.2, 0.2, 0.2),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def loader_pil(images: str, num_batches: int) -> dict[str, float]:
    from torchvision.datasets import ImageFolder

    data = ImageFolder(images, tutorial_transform())
    loaded = torch.utils.data.DataLoader(
        data, BATCH, shuffle=True, num_workers=WORKERS, prefetch_factor=4, drop_last=True, persistent_workers=True
    )

    def batches() -> Iterator[torch.Tensor]:
        while True:
            for pixels, _ in loaded:
                yield pixels

    return consume(batches(), num_batches)


def ray_images(images: str, num_batches: int) -> dict[str, float]:
    import ray

    from orchestrator.launch import connected_to_ray

    transform = tutorial_transform()

    def augment(batch: dict[str, Any]) -> dict[str, Any]:
        from PIL import Image

        return {"image": np.stack([transform(Image.fromarray(image)).numpy() for image in batch["image"]])}

    with connected_to_ray():
        passes = -(-(num_batches + WARM_UP_BATCHES) * BATCH // len(list(Path(images).rglob("*.jpg"))))

        def batches() -> Iterator[torch.Tensor]:
            for _ in range(passes + 1):
                data = ray.data.read_images(images, mode="RGB").map_batches(augment, batch_size=BATCH)
                for batch in data.iter_torch_batches(batch_size=BATCH, drop_last=True, prefetch_batches=4):
                    yield batch["image"]

        return consume(batches(), num_batches)


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


def convoy(images: str, num_batches: int) -> dict[str, float]:
    import threading

    import ray
    import ray.train.torch

    from orchestrator.launch import connected_to_ray
    from pipelines.stages import OrderedSplit, Pool, Stream

    with tempfile.TemporaryDirectory() as folder, connected_to_ray():
        made = recipe(images)
        num_samples = len(made.source.listing) // BATCH * BATCH
        epochs = -(-(num_batches + WARM_UP_BATCHES) * BATCH // num_samples) + 1
        stream = Stream(
            recipe=ray.put(made),
            epoch=Epoch(num_samples, BATCH),
            num_epochs=epochs,
            start=Position(0, 0),
            sample_shape=(SIZE, SIZE, 3),
            pool=Pool(WORKERS, WORKERS, 0.25),
        )
        clock = _Clock(folder)
        trainer = ray.train.torch.TorchTrainer(
            _train_worker,
            train_loop_config={"stream": stream, "clock": clock, "num_batches": num_batches},
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


ARMS: dict[str, Callable[[str, int], dict[str, float]]] = {
    "bare": bare,
    "convoy": convoy,
    "loader": loader,
    "loader_pil": loader_pil,
    "ray_images": ray_images,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--only", choices=ARMS, nargs="+", default=list(ARMS))
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(ARMS[args.arm](str(args.folder), args.batches)))
        return
    cpu: dict[str, list[float]] = {name: [] for name in args.only}
    with tempfile.TemporaryDirectory() as linked:
        link_images(args.folder, Path(linked), args.images)

        def run(name: str) -> float:
            slow = name in ("loader_pil", "ray_images")
            batches = args.batches // 4 if slow else args.batches
            command = [sys.executable, "-m", "benchmarks.pipeline", linked, f"--arm={name}", f"--batches={batches}"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-4000:]
            figures = json.loads(done.stdout.splitlines()[-1])
            cpu[name].append(figures["cpu_ms"])
            return float(figures["images_per_s"])

        here = measure.machine()
        values = measure.in_turns({name: lambda name=name: run(name) for name in args.only}, args.rounds)
    others = [name for name in TARGETS if name in args.only]
    ratios = {name: measure.ratio(values, "convoy", name) | {"target": TARGETS[name]} for name in others}
    for name, figure in ratios.items():
        print(f"over {name}: {figure['median']:.2f} ({figure['lowest']:.2f} to {figure['highest']:.2f})")
    record = {
        "title": "images/s of Convoy's pipeline into a Ray Train worker, over other ways",
        "settings": {"rounds": args.rounds, "images": args.images, "batches": args.batches},
        "machine": here,
        "ratios": ratios,
        "values": measure.summary(values, "images/s"),
        "cpu_ms_an_image": measure.summary(cpu, "ms"),
    }
    measure.write("pipeline", record, lambda axis: measure.bars(axis, ratios, target=1.0, label="times as fast"))


if __name__ == "__main__":
    main()
