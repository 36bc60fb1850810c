"""Losses and figures of each kind of target: against torch's own losses and scikit-learn, and in any partition."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.training.losses import binary_cross_entropy, mean_squared_error, smooth_l1
from orchestrator.training.measures import MEASURES
from orchestrator.training.tasks import TASKS, average_precision, check_loss
from pipelines.device import Targets
from pipelines.targets import Target, TargetKind

N, WIDTH = 60, 5


def drawn(kind: TargetKind, *, num: int = N) -> tuple[Tensor, Tensor]:
    """Outputs and labels, alike enough that no figure is trivial; some outputs equal."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(num, WIDTH, generator=generator).mul(4).round().div(4)
    if kind == "class":
        return noise, torch.randint(0, WIDTH, (num,), generator=generator)
    if kind == "values":
        values = torch.randn(num, WIDTH, generator=generator) * torch.arange(1, WIDTH + 1) + 10
        return values + noise, values
    labels = (torch.rand(num, WIDTH, generator=generator) < 0.3).to(torch.uint8)
    return noise + labels - 0.6, labels


def figures(kind: TargetKind, outputs: Tensor, labels: Tensor) -> dict[str, float | None]:
    task = TASKS[kind]
    counts = task.counts(outputs, labels)
    assert len(counts) == task.num_counts(WIDTH)
    return task.figures(counts.tolist(), len(outputs))


@pytest.mark.parametrize(
    ("loss", "reference", "kind"),
    [
        (binary_cross_entropy, F.binary_cross_entropy_with_logits, "classes"),
        (mean_squared_error, F.mse_loss, "values"),
        (smooth_l1, F.smooth_l1_loss, "values"),
    ],
)
def test_the_mean_loss_is_that_of_torch(loss: Any, reference: Any, kind: TargetKind) -> None:
    outputs, labels = drawn(kind)
    mean = loss(outputs.bfloat16(), Targets(labels)) / N
    torch.testing.assert_close(mean, reference(outputs.bfloat16().float(), labels.float()))


def test_binary_cross_entropy_of_mixed_labels_is_the_mixture_of_two_losses() -> None:
    outputs, labels = drawn("classes")
    share = torch.linspace(0, 1, N)
    mixed = Targets(labels, labels.flip(0), share)
    own, other = (
        F.binary_cross_entropy_with_logits(outputs, each.float(), reduction="none").mean(1)
        for each in (labels, labels.flip(0))
    )
    torch.testing.assert_close(binary_cross_entropy(outputs, mixed), (share * own + (1 - share) * other).sum())


def test_the_squared_error_of_mixed_values_is_that_to_their_mixture() -> None:
    outputs, labels = drawn("values")
    share = torch.linspace(0, 1, N)[:, None]
    expected = F.mse_loss(outputs, share * labels + (1 - share) * labels.flip(0)) * N
    torch.testing.assert_close(mean_squared_error(outputs, Targets(labels, labels.flip(0), share[:, 0])), expected)


def test_accuracy_is_that_of_scikit_learn() -> None:
    outputs, labels = drawn("class")
    assert figures("class", outputs, labels) == {"accuracy": metrics.accuracy_score(labels, outputs.argmax(1))}


def test_figures_of_several_classes_are_those_of_scikit_learn() -> None:
    outputs, labels = drawn("classes")
    found = outputs > 0
    expected = {
        "f1": metrics.f1_score(labels, found, average="micro"),
        "exact_match": metrics.accuracy_score(labels, found),
    }
    assert figures("classes", outputs, labels) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected["exact_match"] < 1


def test_errors_are_those_of_scikit_learn() -> None:
    outputs, labels = drawn("values")
    expected = {
        "rmse": math.sqrt(metrics.mean_squared_error(labels, outputs)),
        "mae": metrics.mean_absolute_error(labels, outputs),
        "r2": metrics.r2_score(labels.double(), outputs.double()),
    }
    assert figures("values", outputs, labels) == pytest.approx(expected, rel=1e-6)


def test_mean_average_precision_is_that_of_scikit_learn_with_equal_scores_too() -> None:
    outputs, labels = drawn("classes")
    assert len(outputs[:, 0].unique()) < N, "some scores are equal"
    expected = metrics.average_precision_score(labels, outputs, average="macro")
    assert average_precision(outputs, labels) == pytest.approx(expected, abs=1e-12)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    assert average_precision(outputs[order], labels[order]) == pytest.approx(expected, abs=1e-12)


def test_classes_without_a_sample_do_not_count_for_the_mean_average_precision() -> None:
    outputs, labels = drawn("classes")
    none = torch.zeros(N, 1, dtype=torch.uint8)
    more = torch.cat([outputs, outputs[:, :1]], 1), torch.cat([labels, none], 1)
    assert average_precision(*more) == average_precision(outputs, labels)
    assert average_precision(outputs[:, :1], none) is None


@pytest.mark.parametrize("kind", TASKS)
def test_counts_of_parts_add_up_to_those_of_the_whole(kind: TargetKind) -> None:
    outputs, labels = drawn(kind)
    task = TASKS[kind]
    parts = [task.counts(x, y) for x, y in zip(outputs.split(7), labels.split(7), strict=True)]
    torch.testing.assert_close(torch.stack(parts).sum(0), task.counts(outputs, labels), rtol=1e-12, atol=0)


def test_a_figure_that_is_not_defined_is_none() -> None:
    outputs, labels = drawn("values", num=1)
    assert figures("values", outputs, labels)["r2"] is None
    outputs, labels = drawn("values")
    labels[:, 2] = 1e6
    assert figures("values", outputs, labels)["r2"] is None
    nothing = torch.zeros(4, WIDTH, dtype=torch.uint8)
    assert figures("classes", nothing - 1.0, nothing) == {"f1": None, "exact_match": 1.0}


@pytest.mark.parametrize("kind", TASKS)
def test_every_task_names_its_figures_and_one_that_decides(kind: TargetKind) -> None:
    task = TASKS[kind]
    assert set(figures(kind, *drawn(kind))) == set(task.measures)
    assert task.judge == task.all_measures[0]
    assert {measure.name for measure in task.all_measures} == {*task.measures, *task.over_all}


def test_the_better_figure_is_the_lower_one_where_it_is_an_error() -> None:
    assert MEASURES["rmse"].better(0.5, 0.7) == 0.5
    assert MEASURES["accuracy"].better(0.5, 0.7) == 0.7
    assert MEASURES["rmse"].better(None, 0.7) == 0.7
    assert MEASURES["rmse"].better(None, None) is None
    assert (MEASURES["rmse"].text(0.25), MEASURES["accuracy"].text(0.25), MEASURES["r2"].text(None)) == (
        "0.25",
        "25.00%",
        "-",
    )


@pytest.mark.parametrize(
    ("target", "loss", "smoothing", "message"),
    [
        (
            Target("class", 3),
            "smooth_l1",
            0.0,
            "got smooth_l1, must be auto or cross_entropy, since labels are one of 3",
        ),
        (
            Target("values", 1),
            "cross_entropy",
            0.0,
            "must be auto or mean_squared_error or smooth_l1, since .* 1 value a",
        ),
        (Target("classes", 3), "auto", 0.1, "label_smoothing: got 0.1, must be 0, since labels are any of 3 classes"),
        (Target("values", 2), "auto", 0.1, "label_smoothing: got 0.1, must be 0, since labels are 2 values a sample"),
    ],
)
def test_a_loss_that_does_not_fit_the_labels_is_refused(
    target: Target, loss: str, smoothing: float, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_loss(target, loss, smoothing)


def test_losses_that_fit_are_accepted() -> None:
    check_loss(Target("class", 3), "cross_entropy", 0.1)
    check_loss(Target("values", 3), "smooth_l1", 0.0)
    outputs, labels = drawn("values")
    named, usual = (TASKS["values"].loss(name)(outputs, Targets(labels), 0.0) for name in ("smooth_l1", "auto"))
    assert named == smooth_l1(outputs, Targets(labels)) != usual
