"""Many small files against a few packed shards, from the disk and from memory: images/s and MB/s.

    python -m benchmarks.disk FOLDER        # photos, in class folders or not; 2.2 GB of disk, about 15 minutes

The photos are copied until they are `--images` files in ten class folders, and packed by `pipelines.pack` without being
changed: the same bytes twice. One thread reads them, as an actor of the pipeline does:

read       `Source.read` alone, nothing decoded: the disk, the filesystem and the copy into Python
produce    `Recipe.produce`, batches of 128 random resized crops of 224 pixels: what training waits for; of fewer images

in a random order (`files`, `shards`), by name (`files by name`, read only), and windowed (`shards windowed`:
data.window shards mixed at a time). Before a cold reading every file is put out of the page cache (fsync once, then
posix_fadvise DONTNEED), and where the system lets this process write /proc/sys/vm/drop_caches, all that it caches, the
folders' entries too; which of them it was is in the JSON under `cold_by`. `from_disk` is what share of the bytes the
kernel fetched from the device (/proc/self/io; read-ahead counts): near 1 or more if cold was cold, 0 if warm was warm.
A virtual disk may be cached by its host, which nothing here can empty; a second round tells. Refused on tmpfs.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks import measure
from benchmarks.photos import copy_photos
from pipelines.augment.flip import HorizontalFlip
from pipelines.augment.framing import RandomResizedCrop
from pipelines.config import PipelineConfig
from pipelines.pack import PackOptions, pack
from pipelines.produce import Recipe
from pipelines.sizes import size_in_bytes
from pipelines.sources import open_source

BATCH, SIZE = 128, 224
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
LAYOUTS = ("files", "files by name", "shards", "shards windowed")
STATES = ("cold", "warm")


@dataclass
class Disk:
    """The two folders, and what every reading of them was like beside its speed."""

    folder: Path
    args: argparse.Namespace
    notes: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def make(self) -> dict[str, float]:
        """Write both folders, to the disk itself; returns how many files and bytes each has."""
        copy_photos(self.args.folder, self.folder / "files", self.args.images)
        options = PackOptions(shard_bytes=size_in_bytes(self.args.shard_size))
        source = open_source(f"imagefolder:{self.folder}/files", "train")
        pack(source, self.folder / "shards", options, workers=len(os.sched_getaffinity(0)))
        sizes: dict[str, float] = {}
        for name in ("files", "shards"):
            for path in self.all_files(name):
                with path.open("rb") as opened:
                    os.fsync(opened.fileno())
            sizes |= {f"{name}_number": len(list(self.all_files(name)))}
            sizes |= {f"{name}_bytes": sum(path.stat().st_size for path in self.all_files(name))}
        return sizes

    def all_files(self, name: str) -> Iterator[Path]:
        return (path for path in (self.folder / name).rglob("*") if path.is_file())

    def forget(self) -> None:
        """Put both folders out of memory."""
        for name in ("files", "shards"):
            for path in self.all_files(name):
                with path.open("rb") as opened:
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if os.access(DROP_CACHES, os.W_OK):
            DROP_CACHES.write_text("3\n")

    def recipe(self, layout: str) -> Recipe:
        """Opened anew for every reading, so that none finds files open."""
        kind = "shards" if layout.startswith("shards") else "imagefolder"
        name = "shards" if kind == "shards" else "files"
        config = PipelineConfig(
            train="unused",
            val="unused",
            image_size=SIZE,
            augment=(RandomResizedCrop(), HorizontalFlip()),
            window=self.args.window if layout == "shards windowed" else 0,
        )
        source = open_source(f"{kind}:{self.folder}/{name}", "train")
        return Recipe(source, config, seed=0, training=layout != "files by name", checksums=False)

    def arm(self, layout: str, state: str, what: str) -> Callable[[], float]:
        """A reading of one layout: images/s."""

        def run() -> float:
            recipe = self.recipe(layout)
            positions = range(self.args.images if what == "read" else self.args.produced // BATCH * BATCH)
            wanted = recipe.indices(0, positions).tolist()
            num_bytes = sum(map(len, map(recipe.source.read, wanted)))  # opens and warms too
            if state == "cold":
                self.forget()
                recipe = self.recipe(layout)  # with no file open; this reads the index, not the images
                recipe.indices(0, positions)
            fetched, started = fetched_bytes(), time.perf_counter()
            if what == "read":
                for index in wanted:
                    recipe.source.read(index)
            else:
                for first in range(0, len(positions), BATCH):
                    recipe.produce(0, positions[first : first + BATCH])
            elapsed = time.perf_counter() - started
            self.notes.setdefault(f"{what}, {state}: {layout}", []).append(
                {
                    "MB_per_s": num_bytes / elapsed / 1e6,
                    "from_disk": (fetched_bytes() - fetched) / num_bytes,
                }
            )
            return len(positions) / elapsed

        return run


def fetched_bytes() -> int:
    """What this process had the kernel fetch from block devices so far."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def filesystem_of(folder: Path) -> dict[str, Any]:
    """The mount that a folder lies on (the longest mount point above it) and its disk's read-ahead."""
    best = ("", "", "")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, point, kind = line.split()[:3]
        if folder.resolve().is_relative_to(point) and len(point) >= len(best[1]):
            best = (device, point, kind)
    device = Path(best[0]).name
    read_ahead = Path("/sys/class/block", device, "bdi/read_ahead_kb")
    ahead = int(read_ahead.read_text()) if device and read_ahead.exists() else "unknown"
    return {"type": best[2], "device": device, "read_ahead_kib": ahead}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--where", type=Path, default=Path(tempfile.gettempdir()), help="a folder on the disk meant")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--produced", type=int, default=2048, help="images that are decoded in each reading")
    parser.add_argument("--shard-size", default="64MiB")
    parser.add_argument("--window", type=int, default=4, help="shards mixed at a time")
    args = parser.parse_args()
    assert BATCH <= args.produced <= args.images, f"--produced must be from {BATCH} to --images"
    filesystem = filesystem_of(args.where)
    assert filesystem["type"] not in ("tmpfs", "ramfs"), f"--where {args.where} lies in memory; name a folder on a disk"
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(dir=args.where) as name:
        disk = Disk(Path(name), args)
        sizes = disk.make()
        here = measure.machine()
        arms = {
            f"{what}, {state}: {layout}": disk.arm(layout, state, what)
            for what in ("read", "produce")
            for state in STATES
            for layout in LAYOUTS
            if what == "read" or layout != "files by name"
        }
        values = measure.in_turns(arms, args.rounds)
    report(args, here, {"filesystem": filesystem} | sizes, values, disk.notes)


def report(
    args: argparse.Namespace,
    here: dict[str, Any],
    disk: dict[str, Any],
    values: dict[str, list[float]],
    notes: dict[str, list[dict[str, float]]],
) -> None:
    ratios = {
        f"{case}: {layout} over files": measure.ratio(values, f"{case}: {layout}", f"{case}: files")
        for case in (f"{what}, {state}" for what in ("read", "produce") for state in STATES)
        for layout in ("shards", "shards windowed")
    }
    for name, figure in ratios.items():
        print(f"{name}: {figure['median']:.2f} ({figure['lowest']:.2f} to {figure['highest']:.2f})")
    both = os.access(DROP_CACHES, os.W_OK)
    record = {
        "title": "images/s from shards over images/s from small files, one thread",
        "settings": {name: getattr(args, name) for name in ("rounds", "images", "produced", "shard_size", "window")},
        "machine": here,
        "disk": disk,
        "cold_by": "posix_fadvise DONTNEED of every file" + (", then /proc/sys/vm/drop_caches 3" if both else ""),
        "ratios": ratios,
        "values": measure.summary(values, "images/s"),
        "MB_per_s": {name: [one["MB_per_s"] for one in all_] for name, all_ in notes.items()},
        "from_disk": {name: [one["from_disk"] for one in all_] for name, all_ in notes.items()},
    }
    measure.write("disk", record, lambda axis: measure.bars(axis, ratios, target=1.0, label="times as fast as files"))


if __name__ == "__main__":
    main()
