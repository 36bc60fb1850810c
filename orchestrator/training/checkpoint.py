"""What a checkpoint holds, and how it becomes files: safetensors for tensors, JSON for all else.

The readers make tensors, numbers, strings, lists, tuples and dicts and nothing else, and no pickle is
written or read: loading a checkpoint can never run code. A tensor file (huggingface/safetensors, README,
"Format") has the names of the state_dict, so that other tools can read it. What safetensors cannot say is in
its header, as JSON under `convoy`: how the state_dict nests, which names share a tensor, and in which order
of its dimensions a tensor lies in memory.

Does not keep that two tensors overlap in part: each comes back with its values and memory of its own.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from orchestrator.errors import CheckpointError

MODEL, OPTIMIZER, EMA, STATE = "model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"
REQUIRED_FILES = frozenset({MODEL, OPTIMIZER, STATE})
KNOWN_FILES = REQUIRED_FILES | {EMA}

# What parsing can meet in bytes that Convoy did not write.
FOREIGN = (SafetensorError, ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError)


@dataclass(frozen=True)
class Snapshot:
    """The state of a run after `step` optimizer steps.

    `model`, `ema`: tensors by name. `optimizer`: a torch optimizer's state_dict. `state`: what JSON can say;
    it comes back as JSON has it, tuples as lists.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    ema: dict[str, Tensor] | None
    state: dict[str, Any]


def to_files(snapshot: Snapshot) -> Iterator[tuple[str, bytes]]:
    """Each file of a commit but its manifest: name and content, one in memory at a time.

    Raises: CheckpointError if a part of the snapshot is neither a dense tensor nor what JSON can say.
    """
    parts: list[tuple[str, Any]] = [(MODEL, snapshot.model), (OPTIMIZER, snapshot.optimizer)]
    if snapshot.ema is not None:
        parts.append((EMA, snapshot.ema))
    for name, tree in parts:
        yield name, _say(name, _pack, tree)
    yield STATE, _say(STATE, lambda state: (json.dumps(state, indent=1) + "\n").encode(), snapshot.state)


def from_files(path: str, step: int, files: dict[str, bytes]) -> Snapshot:
    """The snapshot that `to_files` took apart; its tensors are on the CPU, bit for bit the same.

    Raises: CheckpointError if Convoy cannot have written a file; `path` is what the message names.
    """
    return Snapshot(
        step=step,
        model=read_file(path, MODEL, files[MODEL]),
        optimizer=read_file(path, OPTIMIZER, files[OPTIMIZER]),
        ema=read_file(path, EMA, files[EMA]) if EMA in files else None,
        state=read_file(path, STATE, files[STATE]),
    )


def read_file(path: str, name: str, content: bytes) -> dict[str, Any]:
    """What one file of a commit says. Raises: CheckpointError if Convoy cannot have written it."""
    try:
        said = json.loads(content) if name == STATE else _unpack(content)
        if not isinstance(said, dict):
            raise TypeError(f"a {type(said).__name__} instead of a dict")
    except FOREIGN as error:
        reason = f"{type(error).__name__}: {error}"
        raise foreign(path, name, reason) from error
    return said


def foreign(path: str, name: str, reason: str) -> CheckpointError:
    """The error for a file that is whole, as its manifest has it, but not of Convoy's making."""
    return CheckpointError(
        f"checkpoint {path}/{name}: is as its manifest says, but is not what Convoy writes ({reason}). "
        f"Nothing of it was used, and nothing of it ran. Delete {path}; --resume then goes on from the "
        "checkpoint before it."
    )


def _say(name: str, write: Callable[[Any], bytes], tree: Any) -> bytes:
    try:
        return write(tree)
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"checkpoint {name}: {error}. A checkpoint holds dense tensors of the types of safetensors, "
            "numbers, strings, booleans and None in dicts, lists and tuples. Take the rest out of the state."
        ) from error


def _pack(tree: Any) -> bytes:
    packer = _Packer()
    said = {"convoy": json.dumps(packer.take("", tree))}
    return safetensors.torch.save(packer.tensors, metadata=said)


def _unpack(content: bytes) -> Any:
    tensors = safetensors.torch.load(content)  # has checked the header's length and form
    header_bytes = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_bytes])
    return _Unpacker(tensors).put(json.loads(header["__metadata__"]["convoy"]))


class _Packer:
    """Takes a tree apart into what JSON can say and, in `tensors`, what safetensors can."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[Any, str] = {}
        self._memories: set[int] = set()

    def take(self, path: str, tree: Any) -> Any:
        if tree is None or isinstance(tree, bool | int | float | str):
            return tree
        if isinstance(tree, Tensor):
            return self._take_tensor(path, tree)
        if isinstance(tree, dict):
            return self._take_dict(path, tree)
        if isinstance(tree, list | tuple):
            items = [self.take(_join(path, index), item) for index, item in enumerate(tree)]
            return {"tuple" if isinstance(tree, tuple) else "list": items}
        raise TypeError(f"{path} is a {type(tree).__name__}")

    def _take_dict(self, path: str, tree: dict[Any, Any]) -> dict[str, Any]:
        for key in tree:
            if type(key) not in (str, int):
                raise TypeError(f"{path} has the key {key!r}, which is neither a string nor an integer")
        node: dict[str, Any] = {"dict": [[key, self.take(_join(path, key), value)] for key, value in tree.items()]}
        # A module's state_dict carries the versions of its parts; torchvision's MNASNet needs them to load.
        versions = getattr(tree, "_metadata", None)
        return node if versions is None else node | {"versions": self.take(f"{path} versions", versions)}

    def _take_tensor(self, path: str, tensor: Tensor) -> dict[str, Any]:
        if tensor.layout != torch.strided:
            raise TypeError(f"{path} is a tensor of layout {tensor.layout}")
        tensor = tensor.detach()
        # The order in memory, which `empty_like` keeps, if it is another than that of the dimensions.
        stride = torch.empty_like(tensor, device="meta").stride()
        usual = torch.empty(tensor.shape, device="meta").stride()
        name = self._name(path, tensor)
        if stride == usual or tensor.numel() == 0:
            return {"tensor": name}
        return {"tensor": name, "stride": list(stride)}

    def _name(self, path: str, tensor: Tensor) -> str:
        """Store a tensor, or find under which name the very same is stored already."""
        place = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
        same = (tensor.device, tensor.dtype, tensor.shape, tensor.stride(), *place)
        if same in self._names:
            return self._names[same]
        while path in self.tensors:  # a key with a dot in it can look like a nested one
            path += "'"
        stored = tensor.cpu().contiguous()
        memory = stored.untyped_storage().data_ptr()
        self.tensors[path] = stored.clone() if memory in self._memories else stored
        self._memories.add(memory)
        self._names[same] = path
        return path


class _Unpacker:
    """Puts together what a _Packer took apart."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self._laid_out: dict[str, Tensor] = {}

    def put(self, node: Any) -> Any:
        match node:
            case None | bool() | int() | float() | str():
                return node
            case {"tensor": str(name), **rest}:
                return self._put_tensor(name, rest.get("stride"))
            case {"list": list(items)}:
                return [self.put(item) for item in items]
            case {"tuple": list(items)}:
                return tuple(self.put(item) for item in items)
            case {"dict": list(pairs), "versions": versions}:
                state_dict = OrderedDict((key, self.put(value)) for key, value in pairs)
                state_dict._metadata = self.put(versions)  # type: ignore[attr-defined]
                return state_dict
            case {"dict": list(pairs)}:
                return {key: self.put(value) for key, value in pairs}
        raise ValueError(f"unknown node {str(node)[:80]}")

    def _put_tensor(self, name: str, stride: Any) -> Tensor:
        if name not in self._laid_out:
            self._laid_out[name] = _lay_out(self._tensors[name], stride)
        return self._laid_out[name]


def _lay_out(tensor: Tensor, stride: Any) -> Tensor:
    if stride is None:
        return tensor
    extent = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, stride, strict=True))
    if extent != tensor.numel():
        raise ValueError(f"stride {stride} does not fit shape {list(tensor.shape)}")
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
