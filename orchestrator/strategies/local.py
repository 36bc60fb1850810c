"""Local SGD: workers take steps by themselves, and are made alike now and then.

Stich 2018 (arXiv:1805.09767), algorithm 1; `from_epoch` is post-local SGD (Lin et al. 2018, arXiv:1808.07217), `outer`
the outer step of DiLoCo (Douillard et al. 2023, arXiv:2311.08105, algorithm 1).

An average takes in, in one all-reduce of fp32: the weights, the optimizer's tensors, and `train.ema_decay`'s average.
That the momentum is averaged too is Yu et al. 2019 (arXiv:1905.03817), algorithm 1; DiLoCo leaves it where it is. Here
it makes workers alike after every average, so that a run can be committed there, on demand too, and go on bit for bit;
and it makes an average after every step the synchronous step, to rounding, as long as the update is linear in the
gradients: SGD's with momentum and decay is, AdamW's, clipping and fp16's skipped steps are not. Batch statistics are
each worker's own: evaluation and commits take rank 0's.

Workers count by the samples that they had since the last average (FedAvg, McMahan et al. 2017, arXiv:1602.05629,
algorithm 1), which matters in the small last step of an epoch only.

Nothing is sent between averages, so nobody waits there for a slow worker. A wish to stop, a loss that is not finite and
unreadable samples become known at the next average. Averages are also where all must be alike, so the trajectory
depends on `checkpoint.every_steps`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.config.strategy import LocalConfig, OuterConfig
from orchestrator.strategies.base import Known, Learns, Precise, Run, Step, Turn
from orchestrator.strategies.lock_step import Grouped

MOMENTUM = "outer_momentum"
_COUNTER = "step"
"""torch's name for the number of updates in an optimizer's state. The same everywhere, unless fp16 skips some."""


class _Scaled(Precise, Protocol):
    skipped_in_a_row: int

    def scale_state(self) -> dict[str, Any]: ...

    def load_scale(self, state: dict[str, Any]) -> None: ...


class _Learner(Learns, Protocol):
    """What of a learner is averaged beside what every strategy touches."""

    @property
    def precision(self) -> _Scaled: ...


class Local(Grouped):
    """Average weights every `config.every` steps, over the process group if there is one, and where all must be alike.

    Steps count from the start of the run, so a resumed run averages where the uninterrupted one does. A worker's loss
    is the mean over its own share of the step. Before epoch `config.from_epoch` every step is averaged, without the
    outer step. A single worker only takes the outer steps.
    """

    def __init__(self, config: LocalConfig) -> None:
        super().__init__()
        self._config = config
        self._totals: Tensor | None = None
        self._own = self._all = 0  # samples since the last average
        # Plain averages need neither; these are two copies of the weights.
        self._outer = None if (config.outer.lr, config.outer.momentum) == (1.0, 0.0) else config.outer
        self._theta: Tensor | None = None
        self._momentum: Tensor | None = None

    def turns(self, run: Run) -> Iterator[Turn]:
        for turn in super().turns(run):
            yield replace(turn, samples=max(len(turn.batch.positions), 1)) if isinstance(turn, Step) else turn

    def wrap(self, model: nn.Module, lap: Callable[[str], None]) -> nn.Module:
        self._lap = lap
        if self._outer is not None:
            self._theta = _flat(_weights(model))
            momentum = torch.zeros_like(self._theta) if self._momentum is None else self._momentum
            self._momentum = momentum.to(self._theta.device)
        return model

    def step_totals(self, values: Tensor, step: Step) -> Callable[[], Known | None]:
        totals = values if self._totals is None else self._totals + values
        if not self._is_due(step):
            self._totals = totals
            return lambda: None
        self._totals = None
        return super().step_totals(totals, step)

    def update(self, learner: Learns, step: Step, *, lr: float, clip_grad_norm: float) -> None:
        """Take a step with the worker's own gradients, clipped by their own norm; then average, if it is time.

        `train.ema_decay`'s average follows the worker's own weights between averages: the mean of these averages is
        the average of the mean.
        """
        del lr  # the optimizer has it
        learner.precision.step(learner.optimizer, clip_grad_norm)
        self._own += len(step.batch.positions)
        self._all += len(self._run.train_epoch.positions(step.batch.step))
        if self._is_due(step):
            self._average(cast(_Learner, learner), outer=step.batch.epoch >= self._config.from_epoch)
        learner.average_weights()

    def _is_due(self, step: Step) -> bool:
        in_turn = (step.number + 1) % self._config.every == 0
        return step.settle or in_turn or step.batch.epoch < self._config.from_epoch

    def settle(self, learner: Learns) -> None:
        del learner
        assert self._all == 0, "the step before was averaged: it is known to settle, and a stop is known at averages"

    @torch.no_grad()
    def _average(self, learner: _Learner, *, outer: bool) -> None:
        self._lap("optimizer")
        if self._grouped and learner.precision.scale_state():
            self._agree(learner)
        weights = _weights(learner.model)
        tensors = [*weights, *_optimizer_tensors(learner.optimizer, weights), *_averages(learner)]
        mean = _flat(tensors)
        if self._grouped:
            mean.mul_(self._own * self.world_size / self._all)  # by 1 where shares were alike: exact
            dist.all_reduce(mean)
            mean.div_(self.world_size)
        self._own = self._all = 0
        self._lap("communication")
        self._go_on_from(mean[: sum(weight.numel() for weight in weights)], outer=outer)
        pieces = torch.split(mean, [tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [piece.view_as(own) for piece, own in zip(pieces, tensors, strict=True)])

    def _agree(self, learner: _Learner) -> None:
        """Take the lowest scale of the loss, and the longest row of skipped steps, so that all give up together.

        A worker that has skipped every step so far has no momentum yet: then nobody keeps it.
        """
        precision, states = learner.precision, learner.optimizer.state
        said = precision.scale_state()
        counters = [state[_COUNTER] for state in states.values() if _COUNTER in state]
        count = float(max(counters, default=0.0))
        mine = [-said["scale"], -said["_growth_tracker"], precision.skipped_in_a_row, float(not states), count]
        theirs = torch.tensor(mine, dtype=torch.float64, device=next(learner.model.parameters()).device)
        dist.all_reduce(theirs, dist.ReduceOp.MAX)
        scale, tracker, skipped, lacking, count = theirs.tolist()
        precision.load_scale(said | {"scale": -scale, "_growth_tracker": int(-tracker)})
        precision.skipped_in_a_row = int(skipped)
        if lacking:
            states.clear()
        for counter in counters:
            counter.fill_(count)

    def _go_on_from(self, mean: Tensor, *, outer: bool) -> None:
        """Take the outer step, if one is asked for, in place of the mean of the weights."""
        if self._outer is None:
            return
        assert self._theta is not None, "wrap comes before"
        assert self._momentum is not None, "wrap comes before"
        if outer:
            outer_step(self._theta, mean, self._momentum, self._outer)
        self._theta.copy_(mean)

    def state(self) -> dict[str, Tensor]:
        """The outer momentum, as one vector; the weights of the last average are those of the commit itself."""
        return {} if self._momentum is None else {MOMENTUM: self._momentum}

    def load(self, state: dict[str, Tensor]) -> None:
        self._momentum = state.get(MOMENTUM) if self._outer is not None else None


def outer_step(theta: Tensor, mean: Tensor, momentum: Tensor, config: OuterConfig) -> None:
    """Take Nesterov's step from `theta`, in `mean` and `momentum`, which become the new ones.

    delta = theta - mean;  m <- mu m + delta;  theta <- theta - lr (delta + mu m), as torch.optim.SGD has it, written as
    mean + (1 - lr) delta - lr mu m: with lr 1 and mu 0 that is the mean, bit for bit.
    Source: Douillard et al. 2023 (arXiv:2311.08105), algorithm 1, lines 12 and 14.
    """
    delta = theta - mean
    momentum.mul_(config.momentum).add_(delta)
    mean.add_(delta, alpha=1.0 - config.lr).sub_(momentum, alpha=config.lr * config.momentum)


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _weights(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _optimizer_tensors(optimizer: torch.optim.Optimizer, weights: list[Tensor]) -> list[Tensor]:
    """What an optimizer remembers of each weight, in the same order on every worker."""
    states = [optimizer.state.get(weight, {}) for weight in weights]
    return [state[name] for state in states for name in sorted(state) if _is_averaged(name, state[name])]


def _is_averaged(name: str, value: object) -> bool:
    return name != _COUNTER and isinstance(value, Tensor) and value.is_floating_point()


def _averages(learner: _Learner) -> list[Tensor]:
    if learner.average is None:
        return []
    averages = learner.average.state()
    return [averages[name] for name, parameter in learner.model.named_parameters() if parameter.requires_grad]
