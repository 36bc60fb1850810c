"""What learns: the model and all that changes with it, as one thing to save and restore."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kernels.swap import replace_convs
from orchestrator.config.experiment import Experiment
from orchestrator.training.checkpoint import Snapshot
from orchestrator.training.offload import offload
from orchestrator.training.optim import build_optimizer
from orchestrator.training.precision import Precision
from orchestrator.training.progress import Progress
from orchestrator.training.recompute import recompute
from orchestrator.training.regularize import WeightAverage
from orchestrator.training.tasks import TASKS
from pipelines.targets import Target

STRATEGY = "strategy"
"""What the optimizer's part of a snapshot holds of the strategy, beside the optimizer's own."""


class Learner:
    """A model on its device with optimizer, precision and, if asked for, the average of its weights.

    `task`, `loss`, `num_counts`: how what it puts out, `width` numbers a sample, is judged.
    """

    def __init__(self, experiment: Experiment, model: nn.Module, device: torch.device, target: Target) -> None:
        memory_format = torch.channels_last if experiment.train.channels_last else torch.contiguous_format
        self.device = device
        replace_convs(model, experiment.kernels)
        self.model = model.to(device=device).to(memory_format=memory_format)
        self.precision = Precision(experiment.precision, device, self.model, experiment.seed)
        weights = experiment.precision.optimizer
        self.optimizer = build_optimizer(self.model, experiment.train.optimizer, weights, experiment.seed)
        if experiment.memory.offload == "optimizer" and device.type != "cpu":
            offload(self.optimizer)
        self.task = TASKS[target.kind]
        self.loss = self.task.loss(experiment.train.loss)
        self.width, self.num_counts = target.width, self.task.num_counts(target.width)
        checkpointed = experiment.memory.checkpoint
        assert checkpointed != "auto", "the plan has chosen (orchestrator/memory/fit.py)"
        recompute(self.model, checkpointed, self.precision.draws)
        decay = experiment.train.ema_decay
        self.average = WeightAverage(self.model, decay) if decay > 0 else None

    def average_weights(self) -> None:
        """Take the weights after a step into their average, if there is one."""
        if self.average is not None:
            self.average.update(self.model)

    def resident(self) -> Iterator[Tensor]:
        """All tensors that stay from step to step, but for gradients."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        yield from self.average.state().values() if self.average else ()
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))

    def snapshot(self, progress: Progress, identity: dict[str, Any], strategy: dict[str, Any]) -> Snapshot:
        """Everything that the run needs to go on from here. `identity`: which run it is."""
        return Snapshot(
            step=progress.steps,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict() | ({STRATEGY: strategy} if strategy else {}),
            ema=self.average.state() if self.average else None,
            state={"progress": progress.to_json(), "precision": self.precision.state(), "identity": identity},
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Become what a snapshot says; bit for bit."""
        self.model.load_state_dict(snapshot.model)
        self.optimizer.load_state_dict({key: part for key, part in snapshot.optimizer.items() if key != STRATEGY})
        self.precision.load(snapshot.state["precision"])
        if self.average is not None and snapshot.ema is not None:
            self.average.load(snapshot.ema)
