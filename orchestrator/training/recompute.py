"""Activation checkpointing: modules of whose activations only the input is kept until the backward pass, which computes
the others again.

A network of n equal blocks, each a module of its own, keeps n inputs and one block's activations instead of n blocks',
for one more forward pass (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174,
section 4). The recomputing is PyTorch's (torch.utils.checkpoint, not reentrant), which also brings dropout's random
numbers and autocast back. Two things that it leaves are done here, so that the second pass is the first, bit for bit:

- Buffers. What a forward pass changes (the running statistics of batch norms) is changed once: the second pass works on
  copies of what was there before the first.
- Rounding by chance (`formats.py`), which draws in the second pass what it drew in the first.

Parameters, their names and those of a state_dict stay as they are.
"""

import difflib
import fnmatch
import functools
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Replays(Protocol):
    """Random numbers that a forward pass draws by counting: `formats.Draws`."""

    def mark(self) -> Any:
        """What comes next."""

    def again(self, mark: Any) -> AbstractContextManager[object]:
        """Draw what came after `mark`, and go on afterwards as if it had not been drawn again."""


def modules_of(model: nn.Module, globs: Iterable[str]) -> tuple[str, ...]:
    """The modules that globs name, the outermost of each branch, in the model's order.

    Lists of modules, which are not called themselves, stand for what is in them.
    Raises: ValueError for a glob that matches no module.
    """
    names = [name for name, _ in model.named_modules() if name]
    for glob in globs:
        if not fnmatch.filter(names, glob):
            near = difflib.get_close_matches(glob, names, n=1) or names[:1]
            hint = f"Did you mean {near[0]!r}?" if near else "Leave it out: the model has no modules."
            raise ValueError(f"got {glob!r}, must match the name of a module. {hint}")
    found: list[str] = []
    for name, module in model.named_modules():
        is_called = type(module).forward is not nn.Module.forward
        matches = name and any(fnmatch.fnmatchcase(name, glob) for glob in globs)
        if matches and is_called and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return tuple(found)


def recompute(model: nn.Module, globs: Iterable[str], draws: Replays) -> tuple[str, ...]:
    """Have the modules that globs name compute their activations again in the backward pass, in place.

    To be called last of all that changes modules. Returns: their names. Raises: ValueError as `modules_of`.
    """
    names = modules_of(model, globs)
    for name in names:
        module: Any = model.get_submodule(name)
        kind: Any = type(module)
        module.__class__ = _recomputing(kind)
        module.replayed_draws = draws
    return names


@functools.cache
def _recomputing(kind: Any) -> Any:
    """The class of a module of that kind that keeps its input only."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        compute = functools.partial(kind.forward, self)
        if not torch.is_grad_enabled():
            return compute(*args, **kwargs)
        contexts = functools.partial(_contexts, self)
        return checkpoint(compute, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _contexts(module: Any) -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """Around the first pass, and around the second."""
    return nullcontext(), _AsBefore(module, module.replayed_draws)


class _AsBefore(AbstractContextManager[None]):
    """Puts what a forward pass reads and changes, beside weights and input, to how it is now; and back at the end."""

    def __init__(self, module: nn.Module, draws: Replays) -> None:
        owners = [(part, name) for part in module.modules() for name, _ in part.named_buffers(recurse=False)]
        self._before = [(part, name, getattr(part, name).clone()) for part, name in owners]
        self._draws, self._mark = draws, draws.mark()

    def __enter__(self) -> None:
        self._stack = ExitStack()
        for part, name, value in self._before:
            now: Tensor = getattr(part, name)
            setattr(part, name, value)
            self._stack.callback(setattr, part, name, now)
        self._stack.enter_context(self._draws.again(self._mark))

    def __exit__(self, *error: Any) -> None:
        self._stack.close()
