"""A shard on disk: one file a version, whole or not there, in the format of safetensors.

    shard-0-of-2-v0000000120.safetensors   arrays by name (weights, average, optimizer.exp_avg), the rest as JSON
    .writing-shard-0-of-2-ID               being written, or left by a killed writer; `prune` deletes it

A file is written beside its place, synced and renamed. What is missing from one is seen by the sizes in its header;
what has been changed in one is not: there is no checksum. The folder is on a disk or on what all nodes mount, not in an
object store. Each shard has one writer; different shards may be written at once.
"""

import json
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from safetensors import SafetensorError, safe_open

from orchestrator.errors import CheckpointError
from orchestrator.parameter_server.optimizer import FloatArray, OptimizerState

NAME = re.compile(r"shard-(?P<index>[0-9]+)-of-(?P<count>[0-9]+)-v(?P<version>[0-9]{10,18})\.safetensors")
OPTIMIZER = "optimizer."
ADVICE = "Go on from another version, one that all shards have."


class ShardState(TypedDict):
    """What a shard goes on from. Gradients that wait are not in it: their workers are others after a restart."""

    version: int
    weights: FloatArray
    optimizer: OptimizerState
    average: FloatArray | None


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What is saved of shard `index` of `count`. `extra`: anything JSON can say, such as the coordinator's state."""

    index: int
    count: int
    state: ShardState
    extra: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, snapshot: Snapshot) -> Path:
    """Write a snapshot, in place of one of the same version; returns its file once the disk has it.

    Raises: OSError if it cannot be written; what was there stays. TypeError if JSON cannot say `extra`.
    """
    place = folder / _name(snapshot.index, snapshot.count, snapshot.state["version"])
    arrays = _arrays(snapshot.state)
    header = _header(snapshot, arrays)
    folder.mkdir(parents=True, exist_ok=True)
    hidden = folder / f"{_hidden(snapshot.index, snapshot.count)}{uuid.uuid4().hex}"
    try:
        with hidden.open("xb") as file:
            file.write(header)
            for array in arrays.values():
                file.write(array.data)
            file.flush()
            os.fsync(file.fileno())
        hidden.rename(place)
    finally:
        hidden.unlink(missing_ok=True)
    _sync_folder(folder)
    return place


def snapshots(folder: Path, index: int, count: int) -> list[int]:
    """The versions of which a whole snapshot of this shard is there, ascending; the folder may be missing."""
    return sorted(version for version, path in _files(folder, index, count) if _is_whole(path, version))


def read(folder: Path, index: int, count: int, version: int) -> Snapshot:
    """Read a snapshot of this shard. Raises: CheckpointError if it is not there or not whole."""
    path = folder / _name(index, count, version)
    said = _said(path, version)
    with safe_open(path, framework="np") as file:
        arrays: dict[str, FloatArray] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    optimizer: OptimizerState = {
        name.removeprefix(OPTIMIZER): array for name, array in arrays.items() if name.startswith(OPTIMIZER)
    }
    state: ShardState = {
        "version": version,
        "weights": arrays["weights"],
        "optimizer": optimizer | said["optimizer"],
        "average": arrays.get("average"),
    }
    return Snapshot(index, count, state, said["extra"])


def prune(folder: Path, index: int, count: int, *, keep: int, newest: int) -> None:
    """Delete all files of this shard but its `keep` >= 1 newest whole snapshots up to version `newest`.

    `newest` is the version just saved or gone on from: later ones are of a course that was given up, and must not be
    taken for what this one will make. Not while this shard is being saved.
    """
    whole = [version for version in snapshots(folder, index, count) if version <= newest]
    kept = whole[-keep:]
    for version, path in _files(folder, index, count):
        if version not in kept:
            path.unlink(missing_ok=True)
    for path in folder.glob(f"{_hidden(index, count)}*"):
        path.unlink(missing_ok=True)


def _name(index: int, count: int, version: int) -> str:
    return f"shard-{index}-of-{count}-v{version:010d}.safetensors"


def _hidden(index: int, count: int) -> str:
    return f".writing-shard-{index}-of-{count}-"


def _files(folder: Path, index: int, count: int) -> Iterator[tuple[int, Path]]:
    """What should be snapshots of this shard, by version."""
    for path in sorted(folder.glob(f"shard-{index}-of-{count}-v*")):
        if match := NAME.fullmatch(path.name):
            yield int(match["version"]), path


def _is_whole(path: Path, version: int) -> bool:
    try:
        _said(path, version)
    except CheckpointError:
        return False
    return True


def _said(path: Path, version: int) -> dict[str, Any]:
    """What a file says in JSON, once its sizes are checked. Raises: CheckpointError if it is not a whole snapshot."""
    try:
        with safe_open(path, framework="np") as file:
            said = json.loads((file.metadata() or {}).get("convoy", "null"))
    except (FileNotFoundError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"snapshot {path}: is not there or not whole: {error}. {ADVICE}") from error
    if not isinstance(said, dict) or said.get("version") != version:
        raise CheckpointError(f"snapshot {path}: is not a shard's snapshot of version {version}. {ADVICE}")
    return said


def _arrays(state: ShardState) -> dict[str, FloatArray]:
    average = {} if state["average"] is None else {"average": state["average"]}
    optimizer = {
        f"{OPTIMIZER}{name}": value for name, value in state["optimizer"].items() if not isinstance(value, int)
    }
    return {"weights": state["weights"], **average, **optimizer}


def _header(snapshot: Snapshot, arrays: dict[str, FloatArray]) -> bytes:
    """The header of a safetensors file: its length, 8 bytes, then JSON, padded so that the arrays are aligned.

    Written here and not by safetensors, whose `save_file` neither syncs nor is known to release the GIL.
    Source: huggingface/safetensors, README, "Format".
    """
    numbers = {name: value for name, value in snapshot.state["optimizer"].items() if isinstance(value, int)}
    said = {"version": snapshot.state["version"], "optimizer": numbers, "extra": snapshot.extra}
    body: dict[str, Any] = {"__metadata__": {"convoy": json.dumps(said)}}
    at = 0
    for name, array in arrays.items():
        assert array.dtype == np.dtype("<f4"), name
        body[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    content = json.dumps(body).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
