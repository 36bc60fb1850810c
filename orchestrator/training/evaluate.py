"""Evaluation over all samples, by all workers, exactly: nothing is padded, dropped or counted twice."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.strategies.base import Strategy
from orchestrator.training.learner import Learner
from orchestrator.training.measures import Figures
from pipelines.device import ToDevice
from pipelines.loader import Batch
from pipelines.order import Epoch


@dataclass(frozen=True)
class Evaluation:
    """What came of it: the mean loss, and each figure of the task."""

    mean_loss: float
    samples: int
    figures: Figures


def evaluate(
    learner: Learner, strategy: Strategy, batches: Iterator[Batch], epoch: Epoch, to_device: ToDevice
) -> Evaluation:
    """Go once over the samples of `epoch` with the averaged weights, if there are any, else the weights.

    The loss is without label smoothing. Every worker gets the figures of all of them.
    """
    model, task = learner.model, learner.task
    totals = torch.zeros(2 + learner.num_counts, dtype=torch.float64, device=learner.device)
    everything = _Everything(epoch.num_samples, learner) if task.over_all else None
    model.eval()
    with learner.average.applied_to(model) if learner.average else nullcontext(), torch.inference_mode():
        strategy.share_buffers(model)
        for _ in range(epoch.num_steps):
            batch = next(batches)
            if len(batch.positions) == 0:
                continue
            images, targets = to_device(batch, training=False)
            with learner.precision.autocast():
                outputs = model(images)
            totals[0] += learner.loss(outputs, targets, 0.0)
            totals[1] += len(targets)
            totals[2:] += task.counts(outputs, targets.labels)
            if everything is not None:
                everything.add(batch.positions, outputs, targets.labels)
    model.train()
    loss, samples, *counts = strategy.sum(totals)().tolist()
    assert int(samples) == epoch.num_samples, f"evaluated {samples} of {epoch.num_samples} samples"
    figures = task.figures(counts, int(samples))
    if everything is not None:
        outputs, labels = everything.of_all(strategy)
        figures = {name: figure(outputs, labels) for name, figure in task.over_all.items()} | figures
    return Evaluation(loss / samples, int(samples), figures)


class _Everything:
    """Outputs and labels of all samples by position, on every worker: those of others are zero until added up."""

    def __init__(self, num_samples: int, learner: Learner) -> None:
        shape, device = (num_samples, learner.width), learner.device
        self._outputs = torch.zeros(shape, device=device)
        self._labels = torch.zeros(shape, dtype=torch.uint8, device=device)

    def add(self, positions: range, outputs: Tensor, labels: Tensor) -> None:
        self._outputs[positions.start : positions.stop] = outputs.float()
        self._labels[positions.start : positions.stop] = labels

    def of_all(self, strategy: Strategy) -> tuple[Tensor, Tensor]:
        return strategy.sum(self._outputs)(), strategy.sum(self._labels)()
