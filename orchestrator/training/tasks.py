"""How each kind of target (`pipelines/targets.py`) is learned and judged: the one table of losses and figures.

Figures are made of counts that are added up over samples, batches and workers, so they are exact, whatever the sizes
of shares. Only mean average precision needs all outputs at once; it is computed in evaluation, not in training.
A sample that was mixed counts in training's figures by its own label.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.training import losses
from orchestrator.training.measures import MEASURES, Figures, Measure
from pipelines.device import Targets
from pipelines.targets import Target, TargetKind

Loss = Callable[[Tensor, Targets, float], Tensor]  # outputs, targets, label smoothing -> the sum over the batch


@dataclass(frozen=True)
class Task:
    """`losses`: by the name in an experiment, the usual one first. `best`: the name of the figure that says which
    commit is best.

    `counts`: numbers that can be added up, of outputs (N, width) and labels: so many `fixed_counts`, and for each of
    width `counts_per_output`. `figures` makes the figures `measures` of such sums and a number of samples; those of
    `over_all` need outputs and labels of all samples, (n, width) each.
    """

    losses: Mapping[str, Loss]
    best: str
    fixed_counts: int
    counts_per_output: int
    counts: Callable[[Tensor, Tensor], Tensor]
    figures: Callable[[Sequence[float], int], Figures]
    measures: tuple[str, ...]
    over_all: Mapping[str, Callable[[Tensor, Tensor], float | None]]

    @property
    def judge(self) -> Measure:
        return MEASURES[self.best]

    @property
    def all_measures(self) -> tuple[Measure, ...]:
        """Those of evaluation; those of training are `measures`."""
        return tuple(measure for name, measure in MEASURES.items() if name in (*self.measures, *self.over_all))

    def num_counts(self, width: int) -> int:
        return self.fixed_counts + self.counts_per_output * width

    def loss(self, name: str) -> Loss:
        """The loss of that name, or the usual one for `auto`."""
        return next(iter(self.losses.values())) if name == "auto" else self.losses[name]


def check_loss(target: Target, loss: str, label_smoothing: float) -> None:
    """Raises: InputError if the experiment's loss or label smoothing does not fit what the labels are."""
    task = TASKS[target.kind]
    if loss not in ("auto", *task.losses):
        raise InputError(
            f"train.loss: got {loss}, must be auto or {' or '.join(task.losses)}, since labels are {target}. "
            "Leave it out, or change the source's target."
        )
    if label_smoothing and target.kind != "class":
        raise InputError(
            f"train.label_smoothing: got {label_smoothing:g}, must be 0, since labels are {target}: smoothing takes a "
            "share of the one class and gives it to the others. Leave it out."
        )


def average_precision(scores: Tensor, labels: Tensor) -> float | None:
    """Mean over classes of the area under precision by recall, as a sum of steps; classes without a sample not counted.

    AP = sum_t (R_t - R_{t-1}) P_t over the distinct scores t, so that equal scores count together in whatever order.
    Shapes: (n, num_classes) each, labels 0 or 1. None if no class has a sample.
    Source: Zhu 2004, "Recall, precision and average precision"; as scikit-learn's `average_precision_score`.
    """
    places = torch.arange(1, len(scores) + 1, dtype=torch.float64, device=scores.device)
    found = []
    for score, label in zip(scores.T, labels.T, strict=True):
        if not label.any():
            continue
        in_order, order = score.sort(descending=True)
        hits = label[order].to(torch.float64).cumsum(0)
        last = torch.cat([in_order[1:] != in_order[:-1], in_order.new_ones(1, dtype=torch.bool)])
        precision, recall = (hits / places)[last], hits[last] / hits[-1]
        found.append((precision * recall.diff(prepend=recall.new_zeros(1))).sum())
    return float(torch.stack(found).mean()) if found else None


def _plain(loss: Callable[[Tensor, Targets], Tensor]) -> Loss:
    """A loss that knows no label smoothing; `check_loss` refuses any."""
    return lambda outputs, targets, _: loss(outputs, targets)


def _count_hits(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs.argmax(1) == labels).sum().double()[None]


def _accuracy(counts: Sequence[float], samples: int) -> Figures:
    return {"accuracy": counts[0] / max(samples, 1)}


def _count_classes(outputs: Tensor, labels: Tensor) -> Tensor:
    """Classes rightly found, wrongly found, missed; samples with no mistake. Found: more likely than not."""
    found, there = outputs > 0, labels > 0
    counts = (found & there, found & ~there, ~found & there, (found == there).all(1))
    return torch.stack([count.sum() for count in counts]).double()


def _class_figures(counts: Sequence[float], samples: int) -> Figures:
    """F1 over all samples and classes together (micro)."""
    right, wrong, missed, exact = counts
    of = 2 * right + wrong + missed
    return {"f1": 2 * right / of if of else None, "exact_match": exact / max(samples, 1)}


def _count_errors(outputs: Tensor, labels: Tensor) -> Tensor:
    """For each value, one after the other: sums of |error|, error^2, value, value^2."""
    values = labels.double()
    errors = outputs.double() - values
    return torch.stack([errors.abs(), errors.square(), values, values.square()]).sum(1).flatten()


def _error_figures(counts: Sequence[float], samples: int) -> Figures:
    """Means over samples and values; R^2 = 1 - sum error^2 / sum (value - mean)^2, the mean over values."""
    width, num = len(counts) // 4, max(samples, 1)
    absolute, squared, sums, squares = (counts[i * width : (i + 1) * width] for i in range(4))
    spreads = [square - total**2 / num for total, square in zip(sums, squares, strict=True)]
    # A value that is always the same explains nothing; the difference of its sums is rounding.
    varied = all(spread > 1e-12 * square for spread, square in zip(spreads, squares, strict=True))
    return {
        "rmse": math.sqrt(sum(squared) / (num * width)),
        "mae": sum(absolute) / (num * width),
        "r2": 1 - sum(s / spread for s, spread in zip(squared, spreads, strict=True)) / width if varied else None,
    }


TASKS: dict[TargetKind, Task] = {
    "class": Task(
        losses={"cross_entropy": losses.cross_entropy},
        best="accuracy",
        fixed_counts=1,
        counts_per_output=0,
        counts=_count_hits,
        figures=_accuracy,
        measures=("accuracy",),
        over_all={},
    ),
    "classes": Task(
        losses={"binary_cross_entropy": _plain(losses.binary_cross_entropy)},
        best="mean_average_precision",
        fixed_counts=4,
        counts_per_output=0,
        counts=_count_classes,
        figures=_class_figures,
        measures=("f1", "exact_match"),
        over_all={"mean_average_precision": average_precision},
    ),
    "values": Task(
        losses={
            "mean_squared_error": _plain(losses.mean_squared_error),
            "smooth_l1": _plain(losses.smooth_l1),
        },
        best="rmse",
        fixed_counts=0,
        counts_per_output=4,
        counts=_count_errors,
        figures=_error_figures,
        measures=("rmse", "mae", "r2"),
        over_all={},
    ),
}
