"""The input pipeline against its limit and against what a user would take instead: images/s and CPU-ms an image.

    python -m benchmarks.pipeline FOLDER                     # photos, in class folders or not; about 40 minutes
    python -m benchmarks.pipeline FOLDER --data cifar10      # FOLDER holds CIFAR-10 as class folders in train.tar

Every contender gives batches to one consumer that does nothing else, from the same JPEG files in the page cache, with
two processes (or threads) to make them: of photos 128 random resized crops of 224 pixels, of CIFAR-10 512 random crops
of 32 pixels after padding by 4, flipped by chance. Each arm is a process tree of its own, in turns; rates and CPU time
(the operating system's, of the whole tree) are taken after the first batches.

bare          Convoy's own function (`Recipe.produce`) in two processes, results thrown away: the limit
convoy        the same through Ray Data into a Ray Train worker: what training gets
loader        torch DataLoader, two workers, the same function on whole batches
loader_pil    torch DataLoader, two workers, Pillow and torchvision v2: what tutorials show
ray_images    Ray Data as documented: read_images, map_batches with torchvision v2, iter_torch_batches

and those of `benchmarks.pipeline_peers`, where their packages are installed; which are not is printed and written down.
bare, convoy and loader make uint8 pixels and leave colour and normalisation to the device, which is the point of them;
loader_pil, ray_images and webdataset normalise in their workers, photos with light colour jitter, because that is where
their users put it.
Targets: convoy >= 0.85 of bare, >= 1.0 of loader, >= 2.2 of loader_pil, >= 4 of ray_images, >= 0.9 of the peers.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import measure
from benchmarks.photos import link_photos, unpack, write_tars
from benchmarks.pipeline_arms import TASKS, Work, bare, convoy, loader, loader_pil, ray_images
from benchmarks.pipeline_peers import PEERS, missing

ROOT = Path(__file__).parent.parent
PER_TAR = 256
ARMS: dict[str, Callable[[Work], dict[str, float]]] = {
    "bare": bare,
    "convoy": convoy,
    "loader": loader,
    "loader_pil": loader_pil,
    "ray_images": ray_images,
} | PEERS
SLOW = ("loader_pil", "ray_images", "webdataset")  # a quarter of the batches is enough
TARGETS = {"bare": 0.85, "loader": 1.0, "loader_pil": 2.2, "ray_images": 4.0} | dict.fromkeys(PEERS, 0.9)
NUM_IMAGES = {"photos": 3000, "cifar10": 20_000}


def lay_out(args: argparse.Namespace, into: Path) -> None:
    """The images as class folders and as tars, as `Work` expects them."""
    images, number = into / "images", args.images or NUM_IMAGES[args.data]
    images.mkdir()
    if args.data == "cifar10":
        unpack(args.folder / "train.tar", images, number)
    else:
        link_photos(args.folder, images, number)
    write_tars(images, into / "tars", PER_TAR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", choices=TASKS, default="photos")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, help="3,000 photos, 20,000 of CIFAR-10")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--only", choices=ARMS, nargs="+", default=list(ARMS))
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(ARMS[args.arm](Work(args.data, args.folder, args.batches))))
        return
    absent = {name: reason for name in args.only if (reason := missing(name))}
    for name, reason in absent.items():
        print(f"{name}: {reason}")
    names = [name for name in args.only if name not in absent]
    cpu: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        lay_out(args, Path(folder))

        def run(name: str) -> float:
            batches = max(1, args.batches // 4) if name in SLOW else args.batches
            command = [sys.executable, "-m", "benchmarks.pipeline", folder, f"--arm={name}", f"--batches={batches}"]
            done = subprocess.run([*command, f"--data={args.data}"], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-4000:]
            figures = json.loads(done.stdout.splitlines()[-1])
            cpu[name].append(figures["cpu_ms"])
            return float(figures["images_per_s"])

        here = measure.machine()
        values = measure.in_turns({name: lambda name=name: run(name) for name in names}, args.rounds)
    report(args, here, values, cpu, absent)


def report(
    args: argparse.Namespace,
    here: dict[str, object],
    values: dict[str, list[float]],
    cpu: dict[str, list[float]],
    absent: dict[str, str],
) -> None:
    others = [name for name in TARGETS if name in values and "convoy" in values]
    ratios = {name: measure.ratio(values, "convoy", name) | {"target": TARGETS[name]} for name in others}
    for name, figure in ratios.items():
        print(f"over {name}: {figure['median']:.2f} ({figure['lowest']:.2f} to {figure['highest']:.2f})")
    settings = {name: getattr(args, name) for name in ("data", "rounds", "batches")}
    record = {
        "title": f"images/s of Convoy's pipeline into a Ray Train worker, over other ways ({args.data})",
        "settings": settings | {"images": args.images or NUM_IMAGES[args.data], "batch": TASKS[args.data].batch},
        "machine": here,
        "not_measured": absent,
        "ratios": ratios,
        "values": measure.summary(values, "images/s"),
        "cpu_ms_an_image": measure.summary(cpu, "ms"),
    }
    name = "pipeline" if args.data == "photos" else f"pipeline-{args.data}"
    measure.write(name, record, lambda axis: measure.bars(axis, ratios, target=1.0, label="times as fast"))


if __name__ == "__main__":
    main()
