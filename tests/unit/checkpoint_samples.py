"""Snapshots, checks and storage that the tests of checkpoints share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch import Tensor

from orchestrator.training.checkpoint import Snapshot

FILES = ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json", "manifest.json"]


def snapshot(step: int, size: int = 8) -> Snapshot:
    """Every part says which step it is of, so that parts of two commits cannot pass for one."""
    value = torch.full((size,), float(step))
    return Snapshot(
        step=step,
        model={"weight": value, "bias": value + 0.5},
        optimizer={
            "state": {0: {"momentum_buffer": value * 2}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
        ema={"weight": value * 3},
        state={"step": step},
    )


def check_is_of_step(found: Snapshot | None, step: int, size: int = 8) -> None:
    expected = snapshot(step, size)
    assert found is not None
    assert (found.step, found.state) == (step, {"step": step})
    assert found.ema is not None
    check_same(found.model, expected.model)
    check_same(found.optimizer, expected.optimizer)
    check_same(found.ema, expected.ema)


def check_same(got: Any, expected: Any) -> None:
    """Same types, keys and bits, down the tree."""
    if isinstance(expected, Tensor):
        assert (got.dtype, got.shape, got.device.type) == (expected.dtype, expected.shape, "cpu")
        assert got.contiguous().view(-1).view(torch.uint8).equal(expected.contiguous().view(-1).view(torch.uint8))
    elif isinstance(expected, dict):
        assert [(type(key), key) for key in got] == [(type(key), key) for key in expected]
        for key in expected:
            check_same(got[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert (type(got), len(got)) == (type(expected), len(expected))
        for one, other in zip(got, expected, strict=True):
            check_same(one, other)
    else:
        assert type(got) is type(expected)
        assert repr(got) == repr(expected)  # tells NaN from numbers and -0.0 from 0.0


def never(path: str, reason: str) -> None:
    raise AssertionError(f"skipped {path}: {reason}")


def skipped_by(read: Callable[[Callable[[str, str], None]], Any]) -> tuple[Any, list[tuple[str, str]]]:
    skipped: list[tuple[str, str]] = []
    found = read(lambda path, reason: skipped.append((path, reason)))
    return found, skipped


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


class FailingMemory(MemoryFileSystem):  # type: ignore[misc]
    """A store in memory without rename, which fails at its n-th change, as a full disk or a kill would."""

    protocol = "failing"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    changes_left: float = float("inf")
    reads_fail = False

    @classmethod
    def change(cls) -> None:
        cls.changes_left -= 1
        if cls.changes_left < 0:
            raise OSError(28, "No space left on device")

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "rb" and self.reads_fail:
            raise PermissionError(13, "Permission denied", path)
        if mode != "rb":
            self.change()  # before the file is there
        file = super()._open(path, mode, **options)
        if mode != "rb":
            write = file.write

            def torn(content: bytes) -> int:
                write(bytes(content)[: len(content) // 2])
                self.change()  # between its two halves
                return int(write(bytes(content)[len(content) // 2 :]))

            file.write = torn
        return file

    def rm_file(self, path: str) -> None:
        self.change()
        super().rm_file(path)

    def rmdir(self, path: str) -> None:
        self.change()
        super().rmdir(path)

    @classmethod
    def fresh(cls) -> type["FailingMemory"]:
        """Make pyarrow know `fsspec+failing://`, an empty store that does not fail yet."""
        fsspec.register_implementation("failing", cls, clobber=True)
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.changes_left = float("inf")
        cls.reads_fail = False
        return cls
