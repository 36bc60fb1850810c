"""Synchronous data parallelism: every step is the step of the whole global batch, on any number of workers."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from orchestrator.strategies.lock_step import Grouped, LockStep


class OneWorker(LockStep):
    """A single worker."""


class Sync(Grouped):
    """All-reduce by DistributedDataParallel over the process group that Ray Train has set up.

    Gradients are added, not averaged: each worker's loss is divided by the size of the global step already,
    so shares of different sizes (in the last step of an epoch) weigh as they should.
    Source: Li et al. 2020, "PyTorch Distributed" (arXiv:2006.15704), section 3.2 for the overlap with backward.
    """

    phase_after_backward = "communication"

    def __init__(self) -> None:
        super().__init__()
        self._parallel: DistributedDataParallel | None = None

    def wrap(self, model: nn.Module, lap: Callable[[str], None]) -> nn.Module:
        device = next(model.parameters()).device
        # Buffers are shared before evaluation and commits; in training each worker keeps its own batch statistics.
        parallel = DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )

        def add_up(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]  # DDP checks this
            if bucket.is_last():
                lap("backward")
            work = dist.all_reduce(bucket.buffer(), async_op=True)
            return work.get_future().then(lambda done: done.value()[0])

        parallel.register_comm_hook(None, add_up)
        self._parallel = parallel
        return parallel

    def part(self, last: bool) -> AbstractContextManager[object]:
        assert self._parallel is not None, "wrap comes before part"
        return nullcontext() if last else self._parallel.no_sync()
