"""Evaluation over all samples, by all workers, exactly: nothing is padded, dropped or counted twice."""

from collections.abc import Iterator
from contextlib import nullcontext

import torch

from orchestrator.strategies.base import Strategy
from orchestrator.training.learner import Learner
from orchestrator.training.progress import Sums
from orchestrator.training.regularize import summed_loss
from pipelines.device import ToDevice
from pipelines.loader import Batch
from pipelines.order import Epoch


def evaluate(learner: Learner, strategy: Strategy, batches: Iterator[Batch], epoch: Epoch, to_device: ToDevice) -> Sums:
    """Go once over the samples of `epoch` with the averaged weights, if there are any, else the weights.

    The loss is cross entropy without label smoothing. Every worker gets the sums over all of them.
    """
    model = learner.model
    totals = torch.zeros(3, dtype=torch.float64, device=learner.device)
    model.eval()
    with learner.average.applied_to(model) if learner.average else nullcontext(), torch.inference_mode():
        strategy.share_buffers(model)
        for _ in range(epoch.num_steps):
            batch = next(batches)
            if len(batch.positions) == 0:
                continue
            images, targets = to_device(batch, training=False)
            with learner.precision.autocast():
                logits = model(images)
            totals[0] += summed_loss(logits, targets, 0.0)
            totals[1] += (logits.argmax(1) == targets.labels).sum()
            totals[2] += len(targets)
    model.train()
    loss, correct, samples = strategy.sum(totals)().tolist()
    assert int(samples) == epoch.num_samples, f"evaluated {samples} of {epoch.num_samples} samples"
    return Sums(loss, correct, int(samples))
