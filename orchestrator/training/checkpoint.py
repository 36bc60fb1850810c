"""What a checkpoint holds, and how it becomes bytes: safetensors for tensors, JSON for the rest.

Nothing is pickled, so loading a checkpoint can never run code.
"""

import json
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor

FORMAT_VERSION = 1
_TENSOR = "__tensor__"
_INT_KEYS = "__int_keys__"
_TUPLE = "__tuple__"


@dataclass(frozen=True)
class Snapshot:
    """The state of a run after `step` optimizer steps.

    `model`, `ema`: tensors by name. `optimizer`: a torch optimizer's state_dict. `state`: what JSON can say.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    ema: dict[str, Tensor] | None
    state: dict[str, Any]


def to_files(snapshot: Snapshot) -> dict[str, bytes]:
    """The files of a commit by name, without its manifest."""
    optimizer_tensors: dict[str, Tensor] = {}
    optimizer = _take_out(snapshot.optimizer, optimizer_tensors)
    model, tied = _without_tied(snapshot.model)
    state = {"step": snapshot.step, "state": snapshot.state, "optimizer": optimizer, "tied": tied}
    files = {
        "model.safetensors": _tensor_bytes(model),
        "optimizer.safetensors": _tensor_bytes(optimizer_tensors),
        "state.json": json.dumps(state, indent=1).encode(),
    }
    if snapshot.ema is not None:
        ema, ema_tied = _without_tied(snapshot.ema)
        state["ema_tied"] = ema_tied
        files["ema.safetensors"] = _tensor_bytes(ema)
        files["state.json"] = json.dumps(state, indent=1).encode()
    return files


def from_files(files: dict[str, bytes]) -> Snapshot:
    """The snapshot that `to_files` took apart; its tensors are on the CPU, bit for bit the same."""
    state = json.loads(files["state.json"])
    ema = None
    if "ema.safetensors" in files:
        ema = _with_tied(safetensors.torch.load(files["ema.safetensors"]), state["ema_tied"])
    return Snapshot(
        step=state["step"],
        model=_with_tied(safetensors.torch.load(files["model.safetensors"]), state["tied"]),
        optimizer=_put_back(state["optimizer"], safetensors.torch.load(files["optimizer.safetensors"])),
        ema=ema,
        state=state["state"],
    )


def _tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})


def _without_tied(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Keep one name of tensors that are the same memory; the others point to it (safetensors stores no sharing)."""
    first: dict[Any, str] = {}
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in tensors.items():
        address = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() > 0 and address in first:
            tied[name] = first[address]
        else:
            first[address] = name
            kept[name] = tensor
    return kept, tied


def _with_tied(tensors: dict[str, Tensor], tied: dict[str, str]) -> dict[str, Tensor]:
    return tensors | {name: tensors[first] for name, first in tied.items()}


def _take_out(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Replace the tensors of a tree by references, and what JSON would lose by marked forms of it."""
    if isinstance(tree, Tensor):
        name = str(len(tensors))
        tensors[name] = tree
        return {_TENSOR: name}
    if isinstance(tree, dict):
        plain = {str(key): _take_out(value, tensors) for key, value in tree.items()}
        return {_INT_KEYS: plain} if tree and all(isinstance(key, int) for key in tree) else plain
    if isinstance(tree, tuple):
        return {_TUPLE: [_take_out(value, tensors) for value in tree]}
    if isinstance(tree, list):
        return [_take_out(value, tensors) for value in tree]
    return tree


def _put_back(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_put_back(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        return tensors[tree[_TENSOR]]
    if _TUPLE in tree:
        return tuple(_put_back(tree[_TUPLE], tensors))
    if _INT_KEYS in tree:
        return {int(key): _put_back(value, tensors) for key, value in tree[_INT_KEYS].items()}
    return {key: _put_back(value, tensors) for key, value in tree.items()}


