"""What a strategy is: all that happens between `loss.backward()` and the next forward.

The training loop asks for these few things and does not know which strategy answers.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn


class Strategy(Protocol):
    """How the workers of a run agree on one model.

    A worker's loss is already divided by the number of samples of the whole step, so gradients are added.
    """

    rank: int
    world_size: int
    phase_after_backward: str
    """What the time since the last mark was, when backward() returns: `backward` or `communication`."""

    def wrap(self, model: nn.Module, gradients_ready: Callable[[], None]) -> nn.Module:
        """Make the module to call in training; `gradients_ready` is called when the own gradients are done."""

    def part(self, last: bool) -> AbstractContextManager[object]:
        """Surround forward and backward of a part of a step; gradients are exchanged in the last one."""

    def sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Begin to add `values` over all workers, in place; call what comes back to wait for the sum."""

    def share_buffers(self, model: nn.Module) -> None:
        """Give every worker rank 0's buffers (batch statistics), as evaluation and checkpoint need them."""

    def barrier(self) -> None:
        """Wait until every worker is here."""
