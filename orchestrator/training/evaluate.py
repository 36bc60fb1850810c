"""Evaluation over all samples, by all workers, exactly: nothing is padded, dropped or counted twice."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
    averaged = learner.average.applied_to(model) if learner.average else nullcontext()
    with _in_eval_mode(model), averaged, torch.inference_mode():
        strategy.share_buffers(model)
        for batch in strategy.evaluation_batches(batches, epoch):
            images, targets = to_device(batch, training=False)
            with learner.precision.autocast():
                outputs = model(images)
            totals[0] += learner.loss(outputs, targets, 0.0)
            totals[1] += len(targets)
            totals[2:] += task.counts(outputs, targets.labels)
            if everything is not None:
                everything.add(batch.positions, outputs, targets.labels)
    parts = [totals] if everything is None else [totals, *everything.parts]
    together = strategy.sum(torch.cat([part.double().flatten() for part in parts]))()
    sums = torch.split(together, [part.numel() for part in parts])
    loss, samples, *counts = sums[0].tolist()
    assert int(samples) == epoch.num_samples, f"evaluated {samples} of {epoch.num_samples} samples"
    figures = task.figures(counts, int(samples))
    if everything is not None:
        outputs, labels = everything.of_all(sums[1], sums[2])
        figures = {name: figure(outputs, labels) for name, figure in task.over_all.items()} | figures
    return Evaluation(loss / samples, int(samples), figures)


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Until all is evaluated, or something else is to be done instead."""
    model.eval()
    try:
        yield
    finally:
        model.train()


class _Everything:
    """Outputs and labels of all samples by position, on every worker: those of others are zero until added up."""

    def __init__(self, num_samples: int, learner: Learner) -> None:
        shape, device = (num_samples, learner.width), learner.device
        self._outputs = torch.zeros(shape, device=device)
        self._labels = torch.zeros(shape, dtype=torch.uint8, device=device)

    def add(self, positions: range, outputs: Tensor, labels: Tensor) -> None:
        self._outputs[positions.start : positions.stop] = outputs.float()
        self._labels[positions.start : positions.stop] = labels

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """What is to be added up over all workers."""
        return self._outputs, self._labels

    def of_all(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The sums in the form of the parts."""
        return outputs.view_as(self._outputs).to(self._outputs), labels.view_as(self._labels).to(self._labels)
