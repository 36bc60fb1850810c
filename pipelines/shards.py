"""Packed samples: `shards:PATH`, a folder that `convoy pack` made. Any sample is one read, whatever the order.

    index.json       format version, target, classes, fingerprint of the source, options, rows of each shard
    samples.arrow    a row a sample in the order of their ids: id, label, shard, offset and size of its image in bytes
    shard-00000.arrow, ...

A shard is an Arrow IPC file of one record batch, uncompressed, for any reader of Arrow: id string, label (one class:
int64; several: list of int32; values: fixed_size_list of float32), height and width int32, crc32 uint32 (of the image's
bytes), image large_binary (an encoded file) or fixed_size_binary (raw pixels, height x width x 3 uint8). Since nothing
is compressed an image also lies in the file as it is, at `offset`: that is what is read, mapped into memory on this
machine (raw pixels without a copy), as a range of bytes elsewhere. Samples lie in shards in a random order, so that
reading them one after the other in windows of a few shards (`order.windowed_order` over `storage.sizes`) mixes the
classes.
"""

import json
import posixpath
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.files import Files, locate
from pipelines.listing import Listing, Storage, storage_of
from pipelines.randomness import mix
from pipelines.targets import Labels, Target

FORMAT = 2
INDEX, SAMPLES = "index.json", "samples.arrow"
NOTE = b"convoy"  # in the metadata of a shard's schema: what was dropped, as JSON
_ADVICE = "Give a folder that convoy pack made."

Progress = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Shards:
    """Packed samples. `places` (n, 3): shard, offset and size of each; `raw`: pixels a side, 0 for encoded files."""

    listing: Listing
    files: Files
    places: NDArray[np.int64]
    raw: int

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        shard, offset, size = self.places[index].tolist()
        if not self.raw:
            return self.files.read(shard, offset, size)
        return self.files.view(shard, offset, size).reshape(self.raw, self.raw, 3)

    @property
    def storage(self) -> Storage:
        return storage_of(self.places[:, 0], self.places[:, 1])


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.arrow"


def open_shards(spec: str, path: str) -> Shards:
    """Open a folder of shards; `spec` is what the user wrote.

    Raises: ValueError if it is none, not complete, of another format, or a shard is missing or changed.
    """
    filesystem, folder = locate(spec, path, _ADVICE)
    index = _read_index(spec, filesystem, folder)
    names = [posixpath.join(folder, shard_name(number)) for number in range(len(index["shards"]))]
    infos = filesystem.get_file_info(names)
    for info, shard in zip(infos, index["shards"], strict=True):
        if not info.is_file or info.size != shard["bytes"]:
            found = f"has {info.size} bytes" if info.is_file else "does not exist"
            raise ValueError(
                f"got {spec!r}, but {info.path} {found}, must have the {shard['bytes']} bytes of {INDEX}. "
                "Copy the folder again, or delete the shard and pack again."
            )
    files = Files(filesystem, tuple(names), tuple(info.size for info in infos))
    with filesystem.open_input_file(posixpath.join(folder, SAMPLES)) as stream:
        table = pa.ipc.open_file(stream).read_all()
    ids = table.column("id").combine_chunks()
    keys = np.array([mix("sample", sample_id) for sample_id in ids.to_pylist()], np.uint64)
    labels = _labels_of(table.column("label").combine_chunks(), Target(**index["target"]))
    listing = Listing(tuple(index["classes"]), ids, labels, keys)
    places = np.stack([table.column(name).to_numpy() for name in ("shard", "offset", "size")], axis=1)
    return Shards(listing, files, places, index["options"]["raw"] or 0)


def verify(folder: Path, *, threads: int, progress: Progress = lambda _: None) -> list[str]:
    """Read every image of a pack and compare it with its checksum: the ids of those that differ.

    Raises: ValueError if `folder` holds no whole pack.
    """
    shards = open_shards(f"shards:{folder}", str(folder))
    stored, sizes = shards.storage.samples, np.array(shards.storage.sizes)
    parts = np.split(stored, np.cumsum(sizes)[:-1])

    def differing(samples: NDArray[np.int64]) -> list[str]:
        checksums = _checksums(shards, int(shards.places[samples[0], 0]))
        bad = []
        for row, sample in enumerate(samples.tolist()):
            number, offset, size = shards.places[sample].tolist()
            if zlib.crc32(shards.files.view(number, offset, size).data) != checksums[row]:
                bad.append(shards.listing.ids[sample].as_py())
            progress(1)
        return bad

    with ThreadPoolExecutor(threads) as pool:
        return [name for names in pool.map(differing, parts) for name in names]


@dataclass(frozen=True)
class StoredImage:
    """An image as a shard holds it; `height` and `width` as in its header, before EXIF turns it."""

    content: bytes
    height: int
    width: int
    scaled: bool


def record_batch(rows: Sequence[tuple[str, Labels, StoredImage]], raw: int, target: Target) -> Any:
    """The batch that a shard is made of, from id, label and image of each row; `raw`: pixels a side, 0 for files."""
    images = [image for _, _, image in rows]
    contents = [image.content for image in images]
    kind = pa.binary(raw * raw * 3) if raw else pa.large_binary()
    return pa.record_batch(
        {
            "id": pa.array([sample_id for sample_id, _, _ in rows], pa.string()),
            "label": _label_column([label for _, label, _ in rows], target),
            "height": pa.array([image.height for image in images], pa.int32()),
            "width": pa.array([image.width for image in images], pa.int32()),
            "crc32": pa.array([zlib.crc32(content) for content in contents], pa.uint32()),
            "image": pa.array(contents, kind),
        }
    )


def _label_column(labels: Sequence[Labels], target: Target) -> Any:
    if target.kind == "class":
        return pa.array([int(label) for label in labels], pa.int64())
    if target.kind == "classes":
        return pa.array([np.flatnonzero(label) for label in labels], pa.list_(pa.int32()))
    flat = np.concatenate([*labels, np.empty(0, np.float32)])
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), target.width)


def _labels_of(column: Any, target: Target) -> Labels:
    if target.kind == "class":
        return column.to_numpy().copy()
    labels = target.zeros((len(column),))
    if target.kind == "values":
        labels[...] = column.flatten().to_numpy().reshape(labels.shape)
    else:
        rows = np.repeat(np.arange(len(column)), column.value_lengths().to_numpy())
        labels[rows, column.flatten().to_numpy()] = 1
    return labels


def places_in(path: Path, number: int) -> tuple[Any, dict[str, Any]]:
    """Where in its file each image of a shard lies, and the shard's note."""
    with pa.memory_map(str(path)) as mapped:
        whole = mapped.read_buffer()
    reader = pa.ipc.open_file(pa.BufferReader(whole))
    batch = reader.get_batch(0)
    images = batch.column("image")
    start = images.buffers()[-1].address - whole.address
    if pa.types.is_fixed_size_binary(images.type):
        ends = np.arange(len(images) + 1, dtype=np.int64) * images.type.byte_width
    else:
        ends = np.frombuffer(images.buffers()[1], np.int64, len(images) + 1)
    table = pa.table(
        {
            "id": batch.column("id"),
            "label": batch.column("label"),
            "shard": pa.array(np.full(len(images), number)),
            "offset": pa.array(start + ends[:-1]),
            "size": pa.array(np.diff(ends)),
        }
    )
    return table, json.loads(reader.schema.metadata[NOTE])


def _read_index(spec: str, filesystem: Any, folder: str) -> dict[str, Any]:
    try:
        with filesystem.open_input_file(posixpath.join(folder, INDEX)) as stream:
            index: dict[str, Any] = json.loads(stream.read())
    except OSError as error:
        raise ValueError(
            f"got {spec!r}, but {folder} holds no {INDEX}: it is no folder of shards, or packing has not finished. "
            "Give a folder that convoy pack made, or run convoy pack again, which goes on where it stopped."
        ) from error
    except ValueError as error:
        raise ValueError(f"got {spec!r}, but {INDEX} in {folder} is damaged: {error}. Pack again.") from error
    if index.get("format") != FORMAT:
        raise ValueError(
            f"got {spec!r}, but {folder} has format {index.get('format')}, must be {FORMAT}. "
            "Pack again with this version."
        )
    return index


def _checksums(shards: Shards, shard: int) -> list[int]:
    with pa.memory_map(shards.files.paths[shard]) as mapped:
        checksums: list[int] = pa.ipc.open_file(mapped).get_batch(0).column("crc32").to_pylist()
    return checksums
