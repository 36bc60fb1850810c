"""The training loop: plain torch, the same for every strategy, in a test, on a laptop and on a cluster."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from orchestrator.config.experiment import Experiment
from orchestrator.errors import NonFiniteGradients, NonFiniteLoss, too_many_bad_samples
from orchestrator.strategies.base import Strategy
from orchestrator.training.accounting import Seconds, StepClock, data_wait_share, step_clock
from orchestrator.training.checkpoint_store import CheckpointStore
from orchestrator.training.evaluate import evaluate
from orchestrator.training.learner import Learner
from orchestrator.training.measures import prefixed
from orchestrator.training.progress import Progress
from orchestrator.training.schedule import rate
from pipelines.device import Targets, ToDevice
from pipelines.loader import Batch
from pipelines.order import Epoch, Position
from pipelines.quarantine import Replaced
from pipelines.randomness import mix

MAX_IDS_IN_MESSAGE = 8
MAX_SKIPPED_STEPS = 40  # fp16 halves its scale at each: from 65,536 to beyond what any loss needs


class Log(Protocol):
    """Where a worker says what happens."""

    def record(self, record: dict[str, Any]) -> None:
        """Note a step or an epoch (docs/run-folder.md); cheap, never waits."""

    def event(self, name: str, message: str, **fields: Any) -> None:
        """Note an event, in order with the records."""

    def trace(self, batch: Batch, step: int, rank: int) -> None:
        """Note which samples a step consumed; written down by `commit_trace`."""

    def commit_trace(self, step: int) -> None:
        """Write down the trace up to a step that is about to be committed."""

    def quarantine(self, replaced: Sequence[Replaced]) -> None:
        """Note samples that could not be read."""

    def quarantined(self) -> list[str]:
        """All samples of the run that could not be read, and why."""

    def stop_requested(self) -> bool:
        """Whether the run should commit and end at the next step boundary."""


@dataclass
class Training:
    """What one worker trains with. `identity` is stored in commits to tell whether a run may go on from them."""

    experiment: Experiment
    learner: Learner
    strategy: Strategy
    train_epoch: Epoch
    val_epoch: Epoch
    train_batches: Iterator[Batch]
    val_batches: Iterator[Batch]
    to_device: ToDevice
    sample_ids: Callable[[int, range], list[str]]
    store: CheckpointStore
    log: Log
    identity: dict[str, Any]
    progress: Progress = field(default_factory=Progress)


def train(training: Training) -> str:
    """Train from where `training.progress` stands to the end of the experiment, or until asked to stop.

    Returns: `finished` or `stopped`; either way the last step is committed.
    Raises, on every worker: NonFiniteLoss, if any worker's loss was NaN or infinite; NonFiniteGradients, if fp16 found
    no scale of the loss with which gradients stay finite; TooManyBadSamples, if more could not be read than allowed.
    """
    progress, experiment = training.progress, training.experiment
    clock = step_clock(training.learner.device)
    model = training.learner.model
    compiled: nn.Module = torch.compile(model) if experiment.train.compile else model  # type: ignore[assignment]
    wrapped = training.strategy.wrap(compiled, lambda: clock.lap("backward"))
    model.train()
    while progress.position.epoch < experiment.train.epochs:
        stop = _step(training, wrapped, clock)
        every = experiment.checkpoint.every_steps
        if progress.position.step == training.train_epoch.num_steps:
            clock.flush()
            _end_epoch(training)
            clock.pause()
            _commit(training, evaluated=True)
            clock.lap("checkpoint")
        elif stop or (every and progress.steps % every == 0):
            clock.flush()
            _commit(training, evaluated=False)
            clock.lap("checkpoint")
        if stop and progress.position.epoch < experiment.train.epochs:
            return "stopped"
    return "finished"


def _step(training: Training, wrapped: nn.Module, clock: StepClock) -> bool:
    """Take one optimizer step; returns whether all workers agree to stop after it."""
    progress, strategy, learner = training.progress, training.strategy, training.learner
    config = training.experiment.train
    started = time.time()
    batch = next(training.train_batches)
    training.log.quarantine(batch.replaced)
    clock.lap("data_wait")
    images, targets = training.to_device(batch, training=True)
    clock.lap("transfer")
    # Dropout draws from (seed, step, rank): a resumed run draws what the uninterrupted one would have.
    torch.manual_seed(mix("step", training.experiment.seed, progress.steps, strategy.rank))
    lr = _set_rate(training)
    learner.optimizer.zero_grad(set_to_none=True)
    totals = _forward_backward(training, wrapped, clock, batch, images, targets)
    learner.precision.step(learner.optimizer, config.clip_grad_norm)
    if learner.average is not None:
        learner.average.update(learner.model)
    loss, samples, stop, replaced, *rest = totals().tolist()
    counts, bad_ranks = rest[: learner.num_counts], rest[learner.num_counts :]
    clock.lap("optimizer")
    if any(bad_ranks):
        raise _non_finite(training, batch, [rank for rank, bad in enumerate(bad_ranks) if bad])
    if learner.precision.skipped_in_a_row > MAX_SKIPPED_STEPS:
        raise _overflowing(training)
    training.log.trace(batch, progress.steps + 1, strategy.rank)
    _advance(training, loss, int(samples), counts)
    if replaced:
        _count_replaced(training, int(replaced))
    record = {
        "kind": "step",
        "time": started,
        "epoch": batch.epoch,
        "step": progress.steps,
        "samples": int(samples),
        "loss": loss / samples,
        **learner.task.figures(counts, int(samples)),
        "lr": lr,
    }
    clock.end_step(lambda seconds: _account(training, record, seconds))
    return stop > 0


def _forward_backward(
    training: Training, wrapped: nn.Module, clock: StepClock, batch: Batch, images: Tensor, targets: Targets
) -> Callable[[], Tensor]:
    """Compute the gradients of the step's mean loss, in `train.accumulate` parts.

    Returns what waits for the step's totals over all workers: loss, samples, stop, replaced samples, the task's counts,
    a flag for each rank.
    """
    learner, strategy, config = training.learner, training.strategy, training.experiment.train
    step_size = len(training.train_epoch.positions(batch.step))
    weight = 1.0
    if len(targets) == 0:  # a worker without samples in a small last step still takes part in the exchange
        no_label = targets.labels.new_zeros((1, *targets.labels.shape[1:]))
        images, targets, weight = _stand_in(training, images), Targets(no_label), 0.0
    flags = 4 + learner.num_counts
    totals = torch.zeros(flags + strategy.world_size, dtype=torch.float64, device=learner.device)
    totals[2] = float(training.log.stop_requested())
    totals[3] = len(batch.replaced)
    parts = list(zip(images.chunk(config.accumulate), targets.chunk(config.accumulate), strict=True))
    waiting: Callable[[], Tensor] | None = None
    for number, (part_images, part) in enumerate(parts, start=1):
        last = number == len(parts)
        with strategy.part(last):
            with learner.precision.autocast():
                outputs = wrapped(part_images)
            loss = weight * learner.loss(outputs, part, config.label_smoothing)
            with torch.no_grad():
                totals[0] += loss
                totals[1] += weight * len(part)
                totals[4:flags] += weight * learner.task.counts(outputs, part.labels)
            if last:
                totals[flags + strategy.rank] = (~totals[0].isfinite()).double()
                waiting = strategy.sum(totals)  # hidden behind the backward pass
            clock.lap("forward")
            learner.precision.backward(loss / step_size)
            clock.lap(strategy.phase_after_backward if last else "backward")
    assert waiting is not None
    return waiting


def _stand_in(training: Training, images: Tensor) -> Tensor:
    return images.new_zeros((1, *images.shape[1:])).to(training.learner.device)


def _set_rate(training: Training) -> float:
    config = training.experiment.train
    lr = rate(
        config.schedule,
        base_lr=config.optimizer.lr,
        step=training.progress.steps,
        steps_per_epoch=training.train_epoch.num_steps,
        epochs=config.epochs,
    )
    for group in training.learner.optimizer.param_groups:
        group["lr"] = lr
    return lr


def _advance(training: Training, loss: float, samples: int, counts: list[float]) -> None:
    progress = training.progress
    progress.epoch_sums.add(loss, samples, counts)
    progress.steps += 1
    progress.samples += samples
    progress.position = Position(progress.position.epoch, progress.position.step + 1)


def _count_replaced(training: Training, num: int) -> None:
    """Add to the unreadable samples of the epoch. Raises: TooManyBadSamples on every worker, if they are too many."""
    progress, config = training.progress, training.experiment.data
    progress.epoch_replaced += num
    num_samples = training.train_epoch.num_samples
    if progress.epoch_replaced > config.max_bad * num_samples:
        training.strategy.barrier()  # all have told the log what they met
        raise too_many_bad_samples(progress.epoch_replaced, num_samples, config.max_bad, training.log.quarantined())


def _account(training: Training, record: dict[str, Any], seconds: Seconds) -> None:
    training.progress.add_seconds(seconds)
    training.log.record(record | {"step_s": sum(seconds.values()), "seconds": seconds})


def _end_epoch(training: Training) -> None:
    """Evaluate, note the epoch, and turn to the next."""
    progress, task = training.progress, training.learner.task
    started = time.perf_counter()
    batches = _noting(training.val_batches, training.log)
    found = evaluate(training.learner, training.strategy, batches, training.val_epoch, training.to_device)
    evaluation_s = time.perf_counter() - started
    progress.evaluation_s += evaluation_s
    progress.val_loss, progress.val = found.mean_loss, found.figures
    progress.best_val = task.judge.better(progress.best_val, found.figures[task.best])
    trained = progress.epoch_sums
    training.log.record(
        {
            "kind": "epoch",
            "time": time.time(),
            "epoch": progress.position.epoch,
            "step": progress.steps,
            "train_loss": trained.mean_loss,
            **prefixed("train_", task.figures(trained.counts, trained.samples)),
            "val_loss": found.mean_loss,
            **prefixed("val_", found.figures),
            "samples": trained.samples,
            "images_per_s": trained.samples / max(sum(progress.epoch_seconds.values()), 1e-9),
            "data_wait_share": data_wait_share(progress.epoch_seconds),
            "evaluation_s": evaluation_s,
            "seconds": progress.epoch_seconds,
        }
    )
    progress.position = Position(progress.position.epoch + 1, 0)
    progress.begin_epoch()


def _noting(batches: Iterator[Batch], log: Log) -> Iterator[Batch]:
    for batch in batches:
        log.quarantine(batch.replaced)
        yield batch


def _commit(training: Training, *, evaluated: bool) -> None:
    """Commit the state of the run; the trace first, so that what is committed is traced."""
    progress, strategy, task = training.progress, training.strategy, training.learner.task
    figure = progress.val[task.best] if evaluated else None
    score = None if figure is None else task.judge.merit(figure)
    strategy.share_buffers(training.learner.model)
    training.log.commit_trace(progress.steps)
    strategy.barrier()
    if strategy.rank == 0:
        commit = training.store.commit(training.learner.snapshot(progress, training.identity), score=score)
        training.log.event(
            "commit",
            f"committed step {progress.steps} in {commit.seconds:.2f} s",
            epoch=progress.position.epoch,
            step=progress.steps,
            path=commit.path,
            seconds=commit.seconds,
            bytes=commit.bytes,
            **{f"val_{task.best}": figure},
        )


def _non_finite(training: Training, batch: Batch, ranks: list[int]) -> NonFiniteLoss:
    strategy, progress = training.strategy, training.progress
    ids = [
        name
        for rank in ranks
        for name in training.sample_ids(batch.epoch, training.train_epoch.share(batch.step, rank, strategy.world_size))
    ]
    more = len(ids) - MAX_IDS_IN_MESSAGE
    shown = ", ".join(ids[:MAX_IDS_IN_MESSAGE]) + (f" and {more} more" if more > 0 else "")
    return NonFiniteLoss(
        f"the loss became NaN or infinite in step {progress.steps + 1} (epoch {batch.epoch}) on rank "
        f"{', '.join(map(str, ranks))}, whose samples were {shown}. "
        f"The last good checkpoint is {training.store.newest_path() or 'none'}. "
        "Lower train.optimizer.lr, set train.clip_grad_norm, or look at these samples; then --resume.",
        step=progress.steps + 1,
        epoch=batch.epoch,
        ranks=ranks,
        sample_ids=ids,
    )


def _overflowing(training: Training) -> NonFiniteGradients:
    step = training.progress.steps + 1
    return NonFiniteGradients(
        f"precision: got fp16, whose gradients were infinite or NaN in {MAX_SKIPPED_STEPS + 1} steps in a row up to "
        f"step {step}, at every scale of the loss. The last good checkpoint is "
        f"{training.store.newest_path() or 'none'}. "
        "Lower train.optimizer.lr, set train.clip_grad_norm, or train in bf16 or fp32.",
        step=step,
    )
