"""The peak of a worker's memory on its device, predicted: the step itself, by tensors that have sizes and no memory.

The parts of a learner are built as `training/learner.py` does, and take a step with everything that keeps memory:
accumulation, activation checkpointing, autocast, the optimizer. A count of all tensors that are there gives the peak.
What it does not see:

- what operators of the vendor's take for themselves, such as cuDNN's workspaces, and what the allocator rounds up;
- formats on a grid and `binary` are taken for fp32, fp8 for bf16, and algorithms of `kernels` for the vendor's;
- what of autocast differs between CPUs and GPUs; the step is a CPU's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels.passes import VENDOR
from orchestrator.config.experiment import Experiment
from orchestrator.config.precision import Bf16, Binary, Format, Fp8, Fp32, OnGrid
from orchestrator.config.strategy import LocalConfig, ServedConfig
from orchestrator.memory.live import LiveBytes
from orchestrator.models.zoo import outline_of
from orchestrator.plan import Plan
from orchestrator.training.offload import offload
from orchestrator.training.optim import build_optimizer
from orchestrator.training.precision import Precision
from orchestrator.training.recompute import recompute
from orchestrator.training.regularize import WeightAverage
from orchestrator.training.tasks import TASKS
from pipelines.device import Targets

PARTS = 2
"""Of an accumulated step, that are looked at: the first has no gradients yet, all others are alike."""


@dataclass(frozen=True)
class Forecast:
    """Bytes of a worker's device at their peak in training, by parts, and in `evaluation`.

    `weights`: with batch statistics. `state`: of the optimizer, the average of weights and the strategy. `activations`:
    the batch, and what is kept for the backward pass. `rest`: gradients, and what operators work in.
    """

    weights: int
    state: int
    activations: int
    rest: int
    evaluation: int

    @property
    def training(self) -> int:
        return self.weights + self.state + self.activations + self.rest

    @property
    def peak(self) -> int:
        return max(self.training, self.evaluation)


def predict(experiment: Experiment, plan: Plan) -> Forecast:
    """The peak of a worker of the plan, in training or in evaluation. The modules to checkpoint must be named."""
    with simulated(experiment, plan) as step:
        live = step.live
        weights = live.hold([*step.model.parameters(), *step.model.buffers()])
        state = live.hold(step.state(), counted=experiment.memory.offload == "none") + live.hold(step.average())
        with live:
            held = step.hold_for_strategy()
            images = step.images()
            for number, part in enumerate(images.chunk(experiment.train.accumulate)[:PARTS]):
                loss = step.forward(part)
                if number == 0:
                    activations = live.now - weights - state - sum(tensor.nbytes for tensor in held)
                step.precision.backward(loss)
                del loss
            step.update()
            step.agree()
            del part
            training = live.peak
            live.restart_peak()
            step.evaluate(images)
    state += 0 if step.keeps_gradients else sum(tensor.nbytes for tensor in held)
    return Forecast(weights, state, activations, training - weights - state - activations, live.peak)


@contextmanager
def simulated(experiment: Experiment, plan: Plan) -> Iterator["Step"]:
    """What learns, without memory, before a step; all that is done meanwhile has none either."""
    model = outline_of(experiment, plan.target.width)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield Step(_with_known_operators(experiment), plan, model.to_empty(device="cpu"))


class Step:
    """What a worker does between two steps, each thing by itself."""

    def __init__(self, experiment: Experiment, plan: Plan, model: nn.Module) -> None:
        self._experiment, self._plan = experiment, plan
        self.live = LiveBytes()
        self.model = model
        self.precision = Precision(experiment.precision, torch.device("cpu"), model, experiment.seed)
        self._loss = TASKS[plan.target.kind].loss(experiment.train.loss)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        # Weights in bf16 are updated where they are: by native code, which has no step without memory.
        self._updates_in_place = experiment.precision.optimizer.weights == "bf16"
        self._optimizer = build_optimizer(model, experiment.train.optimizer)
        if experiment.memory.offload == "optimizer":
            offload(self._optimizer)
        self._first_update()
        recompute(model, experiment.memory.checkpoint, self.precision.draws)
        decay = experiment.train.ema_decay
        self._average = WeightAverage(model, decay) if decay > 0 else None
        model.train()

    @property
    def keeps_gradients(self) -> bool:
        """DistributedDataParallel keeps them in its buckets, from step to step."""
        return self._plan.workers > 1 and self._experiment.strategy.name == "sync"

    def state(self) -> list[Tensor]:
        return [v for state in self._optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]

    def average(self) -> list[Tensor]:
        return list(self._average.state().values()) if self._average else []

    def images(self) -> Tensor:
        data, layout = self._experiment.data, torch.contiguous_format
        if self._experiment.train.channels_last:
            layout = torch.channels_last
        return torch.empty((self._plan.share, data.channels, data.image_size, data.image_size), memory_format=layout)

    def forward(self, images: Tensor) -> Tensor:
        """The loss."""
        with self.precision.autocast():
            outputs = self.model(images)
        return self._loss(outputs, self._targets(len(images)), self._experiment.train.label_smoothing)

    def update(self) -> None:
        if not self._updates_in_place:
            self._optimizer.step()

    def evaluate(self, images: Tensor) -> None:
        """As evaluation and the next step find it: gradients of the last step are still there."""
        kept = [tensor.clone() for tensor in (*self._trained, *self.model.buffers())] if self.average() else []
        self.model.eval()
        with torch.no_grad():
            self.forward(images)
        del kept

    def hold_for_strategy(self) -> list[Tensor]:
        """What a strategy has on the device throughout."""
        strategy = self._experiment.strategy
        if self.keeps_gradients:
            for parameter in self._trained:
                parameter.grad = torch.zeros_like(parameter)
            return [parameter.grad for parameter in self._trained if parameter.grad is not None]
        if isinstance(strategy, ServedConfig):
            return [self._flat(self._trained)]  # the gradient, as it is sent
        if isinstance(strategy, LocalConfig) and (strategy.outer.lr, strategy.outer.momentum) != (1.0, 0.0):
            return [self._flat(self._trained), self._flat(self._trained)]
        return []

    def agree(self) -> None:
        """What a strategy has on the device for a moment after the update."""
        if isinstance(self._experiment.strategy, LocalConfig):
            together = self._flat([*self._trained, *self.state(), *self.average()])
            change = self._flat(self._trained)
            del together, change

    def _flat(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.empty(sum(tensor.numel() for tensor in tensors))

    def _first_update(self) -> None:
        """After it the optimizer has its state."""
        for parameter in self._trained:
            parameter.grad = torch.zeros_like(parameter)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._experiment.precision.optimizer.state == "fp32":
            for state in self._optimizer.state.values():
                state.update({name: _in_fp32(value) for name, value in state.items()})

    def _targets(self, num: int) -> Targets:
        target = self._plan.target
        if target.kind == "class":
            return Targets(torch.zeros(num, dtype=torch.int64))
        return Targets(torch.zeros(num, target.width))


def _in_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def _with_known_operators(experiment: Experiment) -> Experiment:
    """The experiment without what is computed by native code, which needs numbers."""
    precision = experiment.precision
    plain = precision.model_copy(
        update={
            "default": _known(precision.default),
            "guard": None,
            "layers": {glob: _known(chosen) for glob, chosen in precision.layers.items()},
        }
    )
    return experiment.model_copy(update={"precision": plain, "kernels": {"default": VENDOR}})


def _known(chosen: Format) -> Format:
    if isinstance(chosen, Fp8):
        return Bf16()
    return Fp32() if isinstance(chosen, OnGrid | Binary) else chosen
