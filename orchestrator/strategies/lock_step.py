"""What strategies share whose workers all take the same steps: the order of turns, and a commit by rank 0."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.strategies.base import Books, Commit, EndEpoch, Known, Learns, Run, Step, Stop, Turn
from pipelines.loader import Batch
from pipelines.order import Epoch


class LockStep:
    """Workers that take every step together. As it stands: a single worker, which has nothing to exchange."""

    rank = 0
    world_size = 1
    phase_after_backward = "backward"
    _run: Run

    @property
    def speaks(self) -> bool:
        return self.rank == 0

    def join(self, learner: Learns, progress: dict[str, Any]) -> tuple[bool, bool]:
        del learner, progress
        return self.rank == 0, False

    def turns(self, run: Run) -> Iterator[Turn]:
        self._run = run
        while run.position.epoch < run.num_epochs:
            last = run.position.step + 1 == run.train_epoch.num_steps
            due = run.commit_every > 0 and (run.steps + 1) % run.commit_every == 0
            batch = next(run.train_batches)
            samples = len(run.train_epoch.positions(batch.step))
            yield Step(batch, run.steps, self.rank, samples, settle=last or due)
            stop = run.stopping
            if last:
                yield EndEpoch()
            elif stop or due:
                yield Commit()
            if stop and run.position.epoch < run.num_epochs:
                yield Stop()

    def wrap(self, model: nn.Module, lap: Callable[[str], None]) -> nn.Module:
        del lap
        return model

    def part(self, last: bool) -> AbstractContextManager[object]:
        del last
        return nullcontext()

    def step_totals(self, values: Tensor, step: Step) -> Callable[[], Known | None]:
        waiting = self.sum(values)
        return lambda: self.known(waiting().tolist(), step)

    def known(self, values: list[float], step: Step) -> Known:
        replaced = self._run.epoch_replaced + int(values[3])
        return Known(values, step.batch.epoch, step.number + 1, replaced)

    def update(self, learner: Learns, step: Step, *, lr: float, clip_grad_norm: float) -> None:
        del step, lr  # the optimizer has it
        learner.precision.step(learner.optimizer, clip_grad_norm)
        learner.average_weights()

    def spent(self, seconds: dict[str, float]) -> None:
        pass

    def settle(self, learner: Learns) -> None:
        pass

    def evaluation_batches(self, batches: Iterator[Batch], epoch: Epoch) -> Iterator[Batch]:
        return (batch for batch in islice(batches, epoch.num_steps) if len(batch.positions))

    def sum(self, values: Tensor) -> Callable[[], Tensor]:
        return lambda: values

    def share_buffers(self, model: nn.Module) -> None:
        pass

    def leads(self) -> bool:
        return self.rank == 0

    def notes(self) -> bool:
        return True

    def books(self) -> Books | None:
        return None

    def committed(self, progress: dict[str, Any]) -> None:
        pass

    def abandon(self, error: str) -> None:
        del error  # all know

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        del state

    def barrier(self) -> None:
        pass


class Grouped(LockStep):
    """The workers of a process group, if there is one; else a single worker."""

    def __init__(self) -> None:
        self._grouped = dist.is_initialized()
        if self._grouped:
            self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def sum(self, values: Tensor) -> Callable[[], Tensor]:
        if not self._grouped:
            return super().sum(values)
        work = dist.all_reduce(values, async_op=True)

        def wait() -> Tensor:
            work.wait()
            return values

        return wait

    def share_buffers(self, model: nn.Module) -> None:
        for buffer in model.buffers() if self._grouped else ():
            dist.broadcast(buffer, src=0)

    def barrier(self) -> None:
        if self._grouped:
            dist.barrier()
