"""The commands that look at data before training: `convoy pack`, `check-data`, `stats`, `preview`.

Each returns the exit code. Progress goes to the standard error stream, so that results can be piped.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from orchestrator.config.experiment import Experiment
from orchestrator.config.mistake import either
from orchestrator.errors import InputError, RunError
from orchestrator.report.data_page import print_stats, write_data_page
from orchestrator.report.wording import size
from pipelines.augment.trial import try_functions
from pipelines.check import find_bad
from pipelines.pack import DROPPED, Packed, PackOptions, pack
from pipelines.preview import preview
from pipelines.produce import Recipe
from pipelines.shards import verify as verify_shards
from pipelines.sizes import size_in_bytes
from pipelines.sources import Source, open_source
from pipelines.stats import collect

FAILED, INTERRUPTED = 1, 130
MAX_SHOWN = 20
PREVIEW_FORMATS = (".png", ".jpg", ".webp")

Asked = tuple[str, str]  # what the user wrote: source, split


def pack_source(asked: Asked, dest: str, form: dict[str, int], shard_size: str, *, workers: int, verify: bool) -> int:
    """Pack a source into the folder `dest`; `form` is what is stored, as `PackOptions` has it."""
    if "://" in dest:
        raise InputError(f"DEST: got {dest}, must be a folder on this machine. Pack there and copy the shards.")
    options = _pack_options(form, shard_size)
    source, folder = _open(asked), Path(dest).expanduser()
    try:
        with _progress("packing", len(source.listing)) as progress:
            packed = pack(source, folder, options, workers=workers or _num_cpus(), progress=progress)
    except ValueError as error:
        raise InputError(str(error)) from error
    except OSError as error:
        raise RunError(
            f"packing stopped: {error}. Whole shards are kept; repair it and run the command again."
        ) from error
    except BrokenProcessPool as error:
        raise RunError(
            "packing stopped: a worker process died, most often for want of memory. Whole shards are kept; run the "
            "command again with fewer --workers, or in a new folder with a smaller --shard-size."
        ) from error
    except KeyboardInterrupt:
        print("convoy: interrupted; whole shards are kept, the same command goes on")
        return INTERRUPTED
    _print_packed(packed, folder)
    return _verify(folder, packed.num_samples) if verify else 0


def check_source(asked: Asked, *, threads: int, as_json: bool) -> int:
    """Decode every sample and list the bad ones."""
    source = _open(asked)
    with _progress("checking", len(source.listing)) as progress:
        bad = find_bad(source, threads=threads or _num_cpus(), progress=progress)
    if as_json:
        found = {"source": asked[0], "split": asked[1], "samples": len(source.listing), "bad": [asdict(b) for b in bad]}
        print(json.dumps(found, indent=1))
    else:
        for one in bad:
            print(f"{one.sample_id}: {one.reason}")
        print(f"{len(bad):,} of {len(source.listing):,} samples are bad")
    return FAILED if bad else 0


def show_stats(asked: Asked, out: str, image_size: int, colour_samples: int, *, threads: int) -> None:
    """Print the statistics of a source, and write them as a page if `out` names one."""
    if out and not Path(out).absolute().parent.is_dir():
        raise InputError(f"--out: got {out}, which lies in no folder that exists. Name a file in one.")
    source = _open(asked)
    try:
        with _progress("reading", len(source.listing)) as progress:
            stats = collect(
                source,
                image_size=image_size or None,
                max_colour_samples=colour_samples,
                threads=threads or _num_cpus(),
                progress=progress,
            )
    except ValueError as error:
        raise InputError(str(error)) from error
    print_stats(stats, Console())
    if out:
        try:
            print(f"page: {write_data_page(asked[0], stats, Path(out))}")
        except OSError as error:
            raise InputError(f"--out: got {out}, which cannot be written: {error}. Name another file.") from error


def write_preview(experiment: Experiment, out: str, *, samples: int, epochs: int) -> Path:
    """Write an image of samples and their augmentations."""
    path = Path(out).expanduser()
    if path.suffix.lower() not in PREVIEW_FORMATS or not path.absolute().parent.is_dir():
        raise InputError(f"--out: got {out}, must end in {either(PREVIEW_FORMATS)} and lie in a folder that exists.")
    data = experiment.data
    source = _open((data.train, "train"), "data.train")
    try:
        try_functions(data.augment, data.channels, data.image_size)
    except ValueError as error:
        raise InputError(f"data.{error}") from error
    preview(Recipe(source, data, experiment.seed, True, False), samples=samples, epochs=epochs).save(path)
    return path


def _open(asked: Asked, setting: str = "SOURCE") -> Source:
    spec, split = asked
    if split not in ("train", "val"):
        raise InputError(f"--split: got {split}, must be train or val. Choose one.")
    try:
        return open_source(spec, "train" if split == "train" else "val")
    except ValueError as error:
        raise InputError(f"{setting}: {error}") from error


def _pack_options(form: dict[str, int], shard_size: str) -> PackOptions:
    try:
        shard_bytes = size_in_bytes(shard_size)
    except ValueError as error:
        raise InputError(f"--shard-size: {error}") from error
    try:
        return PackOptions(**form, shard_bytes=shard_bytes)
    except ValidationError as error:
        raise InputError("; ".join(str(one["ctx"]["error"]) for one in error.errors())) from error


def _print_packed(packed: Packed, folder: Path) -> None:
    kept = f", {packed.kept_shards} of them from before" if packed.kept_shards else ""
    scaled = f"; {packed.num_scaled:,} images scaled" if packed.num_scaled else ""
    print(
        f"packed {packed.num_samples:,} samples into {packed.num_shards} shards{kept}, {size(packed.num_bytes)}{scaled}"
    )
    for one in packed.dropped[:MAX_SHOWN]:
        print(f"dropped {one['id']}: {one['reason']}")
    if packed.dropped:
        print(f"dropped {len(packed.dropped):,} samples that cannot be decoded; all in {folder / DROPPED}")
    print(f"source: shards:{folder}")


def _verify(folder: Path, num_samples: int) -> int:
    with _progress("verifying", num_samples) as progress:
        damaged = verify_shards(folder, threads=_num_cpus(), progress=progress)
    for sample_id in damaged[:MAX_SHOWN]:
        print(f"damaged {sample_id}")
    if damaged:
        print(f"{len(damaged):,} of {num_samples:,} samples are damaged: delete their shards and pack again")
        return FAILED
    print(f"verified {num_samples:,} samples")
    return 0


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with what is left, where there is a terminal; the block calls what it is given with samples newly done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns,
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda samples: bar.advance(task, samples)


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0))
