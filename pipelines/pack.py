"""Many small files -> few large shards (`pipelines/shards.py`), by several processes; what was stopped is gone on with.

Which sample goes into which shard is arithmetic on the number of samples and of rows a shard, so a shard depends on
nothing but the source and the options: each is written under another name and renamed when it is whole, and whoever
packs again keeps the whole ones. Every sample is decoded once; what cannot be decoded, or has no valid label, is left
out and listed in dropped.jsonl. A file that cannot be *read* stops the packing instead: that is the disk's fault, not
the sample's.

Encoded files stay as they are, byte for byte, but for `short_side`: larger images become JPEGs of that short side
(bicubic, antialiased; EXIF orientation stays, all other metadata and colour profiles go), unless they hold what
a JPEG cannot (transparency, 16 bits) or would not get smaller. `raw` keeps the pixels of the centre square.
Memory: about twice `shard_bytes` for each process.
"""

import io
import json
import os
import signal
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import ExifTags, Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.decode import UndecodableImage, check_whole, decode
from pipelines.order import order
from pipelines.shards import FORMAT, INDEX, NOTE, SAMPLES, Progress, StoredImage, places_in, record_batch, shard_name
from pipelines.sources import Source
from pipelines.targets import Labels

PLAN, DROPPED = "plan.json", "dropped.jsonl"
NUM_MEASURED = 64  # samples whose stored size decides how many rows a shard has
_POLL_S = 0.2
_ORIENTATION = ExifTags.Base.Orientation
_AS_JPEG = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}  # what JPEG can hold


class PackOptions(BaseModel):
    """What is stored of each image.

    `short_side`: pixels; larger images are scaled down to it and stored as JPEG of `quality`; 0 keeps all as they are.
    `raw`: pixels a side of the centre square that is stored as RGB values; 0 stores encoded files.
    `shard_bytes`: about how large a shard becomes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    short_side: int = Field(default=0, ge=0, le=65535)
    quality: int = Field(default=90, ge=1, le=100)
    raw: int = Field(default=0, ge=0, le=4096)
    shard_bytes: int = Field(default=256 * 2**20, ge=1)

    @model_validator(mode="after")
    def _check_one_form(self) -> "PackOptions":
        if self.raw and self.short_side:
            raise ValueError(
                f"short_side, raw: got {self.short_side} and {self.raw}, must be one of them. "
                "Choose smaller files or raw pixels."
            )
        return self


@dataclass(frozen=True)
class Packed:
    """What came of packing. `dropped`: id, label and reason of each sample left out; `kept_shards`: whole before."""

    num_samples: int
    num_shards: int
    num_bytes: int
    num_scaled: int
    kept_shards: int
    dropped: tuple[dict[str, str], ...]


def pack(
    source: Source, folder: Path, options: PackOptions, *, workers: int, progress: Progress = lambda _: None
) -> Packed:
    """Write the samples of `source` as shards into `folder`; go on where an earlier call stopped.

    One worker is this process itself. `progress` is told how many more samples are done.
    Raises: ValueError if `folder` holds anything but this pack, or no sample can be decoded; OSError if a sample cannot
        be read or a shard not be written.
    """
    rows_per_shard = _rows_per_shard(source, folder, options)
    plan = plan_shards(len(source.listing), rows_per_shard)
    whole = [number for number in range(len(plan)) if (folder / shard_name(number)).exists()]
    progress(sum(len(plan[number]) for number in whole))
    missing = [number for number in range(len(plan)) if number not in set(whole)]
    if missing:
        _write_all(_Packer(source, folder, options, plan), missing, workers, progress)
    notes = _finish(source, folder, options, rows_per_shard, len(plan))
    shards = [folder / shard_name(number) for number in range(len(plan))]
    dropped = tuple(one for note in notes for one in note["dropped"])
    return Packed(
        num_samples=len(source.listing) - len(dropped),
        num_shards=len(plan),
        num_bytes=sum(shard.stat().st_size for shard in shards),
        num_scaled=sum(note["scaled"] for note in notes),
        kept_shards=len(whole),
        dropped=dropped,
    )


def plan_shards(num_samples: int, rows_per_shard: int) -> list[NDArray[np.int64]]:
    """Which samples go into which shard, in a random order that is always the same, so that shards mix the classes."""
    shuffled = order(0, 0, num_samples)
    num_shards = -(-num_samples // rows_per_shard)
    return np.array_split(shuffled, num_shards)


def stored_form(content: bytes | NDArray[np.uint8], options: PackOptions) -> StoredImage:
    """What is stored of an image.

    Raises: UndecodableImage if it is none.
    """
    if options.raw:
        return StoredImage(decode(content, options.raw, 3).tobytes(), options.raw, options.raw, scaled=False)
    if isinstance(content, np.ndarray):
        stream = io.BytesIO()
        Image.fromarray(content[..., 0] if content.shape[-1] == 1 else content).save(stream, "PNG")
        content = stream.getvalue()
    check_whole(content)
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            larger = options.short_side and min(width, height) > options.short_side
            smaller = _scaled(image, options) if larger else None
    except Exception as error:  # of many kinds; above all no OSError, which would stop the packing
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error
    if smaller is not None and len(smaller.content) < len(content):
        return smaller
    return StoredImage(content, height, width, scaled=False)


def _scaled(image: Image.Image, options: PackOptions) -> StoredImage | None:
    """The image as a smaller JPEG; None if JPEG cannot hold it."""
    if image.mode not in _AS_JPEG or image.has_transparency_data:
        return None
    mode = _AS_JPEG[image.mode]
    factor = options.short_side / min(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    image.draft(None, (3 * width, 3 * height))
    exif = Image.Exif()
    try:
        exif[_ORIENTATION] = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # of many kinds; decode takes an image with broken EXIF as upright too
        exif[_ORIENTATION] = 1
    smaller = image.convert(mode).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3)
    stream = io.BytesIO()
    smaller.save(stream, "JPEG", quality=options.quality, exif=exif.tobytes())
    return StoredImage(stream.getvalue(), height, width, scaled=True)


@dataclass(frozen=True, eq=False)
class _Packer:
    """Writes shards; sent to every process once."""

    source: Source
    folder: Path
    options: PackOptions
    plan: Sequence[NDArray[np.int64]]

    def write(self, number: int, progress: Progress) -> None:
        listing = self.source.listing
        rows: list[tuple[str, Labels, StoredImage]] = []
        dropped = []
        for index in self.plan[number].tolist():
            sample_id = listing.ids[index].as_py()
            try:
                if index in listing.refused:
                    raise UndecodableImage(listing.refused[index])
                rows.append((sample_id, listing.labels[index], stored_form(self.source.read(index), self.options)))
            except UndecodableImage as error:
                dropped.append({"id": sample_id, "label": listing.label_text(index), "reason": str(error)})
            progress(1)
        note = {"dropped": dropped, "scaled": sum(image.scaled for _, _, image in rows)}
        batch = record_batch(rows, self.options.raw, listing.target)
        batch = batch.replace_schema_metadata({NOTE: json.dumps(note)})
        path = self.folder / shard_name(number)
        unfinished = path.with_suffix(".tmp")
        with pa.OSFile(str(unfinished), "wb") as stream, pa.ipc.new_file(stream, batch.schema) as writer:
            writer.write_batch(batch)
        unfinished.rename(path)


class _Process:
    """What a process of the pool was started with: set by its initializer, once."""

    packer: _Packer
    counter: Any
    stop: Any


def _start(packer: _Packer, counter: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and sets `stop`
    cv2.setNumThreads(1)  # processes times threads would be more than there are CPUs
    os.environ["OMP_NUM_THREADS"] = "1"  # torch's, if resize.py has to import it
    _Process.packer, _Process.counter, _Process.stop = packer, counter, stop


def _write(number: int) -> None:
    def count(samples: int) -> None:
        if _Process.stop.is_set():
            raise InterruptedError("packing was stopped")
        with _Process.counter.get_lock():
            _Process.counter.value += samples

    _Process.packer.write(number, count)


def _write_all(packer: _Packer, numbers: Sequence[int], workers: int, progress: Progress) -> None:
    if workers == 1:
        for number in numbers:
            packer.write(number, progress)
        return
    context = get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    told = 0
    pool = ProcessPoolExecutor(min(workers, len(numbers)), context, _start, (packer, counter, stop))
    try:
        pending: set[Future[None]] = {pool.submit(_write, number) for number in numbers}
        while pending:
            done, pending = wait(pending, _POLL_S, FIRST_COMPLETED)
            for future in done:
                future.result()
            now = counter.value
            progress(now - told)
            told = now
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _rows_per_shard(source: Source, folder: Path, options: PackOptions) -> int:
    """As the pack that is in the folder has it; else measured, and written down for whoever goes on."""
    wanted = {"format": FORMAT, "fingerprint": source.listing.fingerprint, "options": options.model_dump()}
    begun = next((folder / name for name in (INDEX, PLAN) if (folder / name).exists()), None)
    if begun is not None:
        found = json.loads(begun.read_text())
        differing = [name for name, value in wanted.items() if found.get(name) != value]
        if differing:
            what = {"format": "another format", "fingerprint": "other samples", "options": "other options"}
            raise ValueError(
                f"DEST: got {folder}, which holds a pack of {' and '.join(what[name] for name in differing)}, must be "
                "new or the same pack. Name another folder, or delete this one."
            )
        rows: int = found["rows_per_shard"]
        return rows
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"DEST: got {folder}, which holds other files, must be new, empty or a pack. Name another folder."
        )
    rows = max(1, options.shard_bytes // _mean_bytes(source, options))
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / PLAN, json.dumps(wanted | {"rows_per_shard": rows}))
    return rows


def _mean_bytes(source: Source, options: PackOptions) -> int:
    """Of what is stored of a few samples, spread evenly."""
    if options.raw:
        return options.raw * options.raw * 3
    sizes = []
    for index in np.unique(np.linspace(0, len(source.listing) - 1, NUM_MEASURED).astype(int)).tolist():
        try:
            sizes.append(len(stored_form(source.read(index), options).content))
        except UndecodableImage:
            continue  # counted and listed when its shard is written
    return max(1, round(float(np.mean(sizes)))) if sizes else 1


def _finish(
    source: Source, folder: Path, options: PackOptions, rows_per_shard: int, num_shards: int
) -> list[dict[str, Any]]:
    """Write what is known of all shards; index.json last, since it says that all is there. Returns their notes."""
    tables, notes, shards = [], [], []
    for number in range(num_shards):
        path = folder / shard_name(number)
        table, note = places_in(path, number)
        tables.append(table)
        notes.append(note)
        shards.append({"rows": table.num_rows, "bytes": path.stat().st_size})
    samples = pa.concat_tables(tables)
    if not samples.num_rows:
        raise ValueError(f"SOURCE: none of {len(source.listing)} samples can be decoded. See convoy check-data.")
    ids = samples.column("id").to_pylist()
    samples = samples.take(pa.array(sorted(range(len(ids)), key=ids.__getitem__))).combine_chunks()
    with pa.OSFile(str(folder / SAMPLES), "wb") as stream, pa.ipc.new_file(stream, samples.schema) as writer:
        writer.write_table(samples)
    _replace(folder / DROPPED, "".join(json.dumps(one) + "\n" for note in notes for one in note["dropped"]))
    index = {
        "format": FORMAT,
        "fingerprint": source.listing.fingerprint,
        "options": options.model_dump(),
        "rows_per_shard": rows_per_shard,
        "target": asdict(source.listing.target),
        "classes": source.listing.classes,
        "shards": shards,
    }
    _replace(folder / INDEX, json.dumps(index, indent=1))
    (folder / PLAN).unlink(missing_ok=True)
    return notes


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
