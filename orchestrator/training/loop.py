"""The training loop: plain torch, the same for every strategy, in a test, on a laptop and on a cluster."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
from torch import Tensor, nn

from orchestrator.strategies.base import Commit, EndEpoch, Known, Note, Overtaken, Step, Stop
from orchestrator.training.accounting import Seconds, StepClock, data_wait_share, no_seconds, step_clock
from orchestrator.training.breakdown import check
from orchestrator.training.evaluate import Evaluation, evaluate
from orchestrator.training.measures import prefixed
from orchestrator.training.schedule import rate
from orchestrator.training.training import LOSS_AND_FLAGS, Log, Training
from pipelines.device import Targets
from pipelines.loader import Batch
from pipelines.order import Position
from pipelines.randomness import mix


def train(training: Training) -> str:
    """Train from where `training.progress` stands to the end of the experiment, or until asked to stop.

    Returns: `finished` or `stopped`; either way the last step is committed.
    Raises, on every worker: NonFiniteLoss, if any worker's loss was NaN or infinite; NonFiniteGradients, if fp16 found
    no scale of the loss with which gradients stay finite; TooManyBadSamples, if more could not be read than allowed.
    """
    clock = step_clock(training.learner.device)
    model = training.learner.model
    compiled: nn.Module = torch.compile(model) if training.experiment.train.compile else model  # type: ignore[assignment]
    wrapped = training.strategy.wrap(compiled, clock.lap)
    model.train()
    for turn in training.strategy.turns(training):
        match turn:
            case Step():
                with training.meter.step(training.learner.resident()):
                    _step(training, wrapped, clock, turn)
            case Note():
                _noting_step(training, turn.known, time.time(), training.lr)(no_seconds())
            case EndEpoch():
                clock.flush()
                with suppress(Overtaken):
                    _end_epoch(training, clock)
            case Commit():
                clock.flush()
                with suppress(Overtaken):
                    _commit(training, evaluation=None)
                clock.lap("checkpoint")
            case Stop():
                return "stopped"
    return "finished"


def _step(training: Training, wrapped: nn.Module, clock: StepClock, step: Step) -> None:
    """Take one step, or a share of one that others take too."""
    strategy, learner, batch = training.strategy, training.learner, step.batch
    started = time.time()
    training.log.quarantine(batch.replaced)
    clock.lap("data_wait")
    images, targets = training.to_device(batch, training=True)
    clock.lap("transfer")
    training.faults.before_step(step.number)  # what waits there counts as forward, as on a slow device
    # Dropout draws from (seed, step, share): a resumed run draws what the uninterrupted one would have.
    torch.manual_seed(mix("step", training.experiment.seed, step.number, step.part))
    lr = training.lr = _set_rate(training, step.number)
    learner.optimizer.zero_grad(set_to_none=True)
    totals = _forward_backward(training, wrapped, clock, step, images, targets)
    strategy.update(learner, step, lr=lr, clip_grad_norm=training.experiment.train.clip_grad_norm)
    for widened in learner.precision.widened():
        if strategy.leads():
            training.log.event("precision", f"precision: {widened}", step=step.number + 1)
    known = totals()
    clock.lap("optimizer")
    if known is not None:
        check(training, batch, known)
    training.log.trace(batch, step.number + 1, strategy.rank)
    _advance(training, known)
    clock.end_step(_noting_step(training, known, started, lr))


def _advance(training: Training, known: Known | None) -> None:
    progress = training.progress
    progress.steps += 1
    if progress.updates is not None:  # a parameter server has led the run before
        progress.updates += 1
    progress.position = Position(progress.position.epoch, progress.position.step + 1)
    if known is not None:
        loss, samples, stop, _, *rest = known.values
        progress.epoch_sums.add(loss, int(samples), rest[: training.learner.num_counts])
        progress.samples += int(samples)
        progress.epoch_replaced = known.epoch_replaced
        training.stopping = stop > 0


def _noting_step(training: Training, known: Known | None, started: float, lr: float) -> Callable[[Seconds], None]:
    """What to do with the seconds of a step, once they are known: note it, with those before of which nothing was."""

    def note(seconds: Seconds) -> None:
        training.strategy.spent(seconds)
        training.progress.add_seconds(seconds)
        training.unnoted_since = min(training.unnoted_since, started)
        for phase, value in seconds.items():
            training.unnoted[phase] += value
        if known is None:
            return
        loss, samples, _, _, *rest = known.values
        spent, training.unnoted = training.unnoted, no_seconds()
        begun, training.unnoted_since = training.unnoted_since, math.inf
        total = sum(spent.values())
        if known.wall_s is not None and total > 0:
            spent = {phase: value * known.wall_s / total for phase, value in spent.items()}
        figures = training.learner.task.figures(rest[: training.learner.num_counts], int(samples))
        training.log.record(
            {
                "kind": "step",
                "time": begun,
                "epoch": known.epoch,
                "step": known.step,
                "samples": int(samples),
                "loss": loss / samples,
                **figures,
                "lr": lr,
                "step_s": sum(spent.values()),
                "seconds": spent,
            }
        )

    return note


def _forward_backward(
    training: Training, wrapped: nn.Module, clock: StepClock, step: Step, images: Tensor, targets: Targets
) -> Callable[[], Known | None]:
    """Compute the gradients of the step's mean loss, in `train.accumulate` parts.

    Returns what waits for the step's totals over all workers: loss, samples, stop, replaced samples, the task's counts,
    a flag for each rank.
    """
    learner, strategy, config = training.learner, training.strategy, training.experiment.train
    weight = 1.0
    if len(targets) == 0:  # a worker without samples in a small last step still takes part in the exchange
        no_label = targets.labels.new_zeros((1, *targets.labels.shape[1:]))
        images, targets, weight = _stand_in(training, images), Targets(no_label), 0.0
    flags = LOSS_AND_FLAGS + learner.num_counts
    totals = torch.zeros(flags + strategy.world_size, dtype=torch.float64, device=learner.device)
    totals[2] = float(training.log.stop_requested())
    totals[3] = len(step.batch.replaced)
    parts = list(zip(images.chunk(config.accumulate), targets.chunk(config.accumulate), strict=True))
    waiting: Callable[[], Known | None] | None = None
    for number, (part_images, part) in enumerate(parts, start=1):
        last = number == len(parts)
        with strategy.part(last):
            with learner.precision.autocast():
                outputs = wrapped(part_images)
            loss = weight * learner.loss(outputs, part, config.label_smoothing)
            with torch.no_grad():
                totals[0] += loss
                totals[1] += weight * len(part)
                totals[LOSS_AND_FLAGS:flags] += weight * learner.task.counts(outputs, part.labels)
            if last:
                totals[flags + strategy.rank] = (~totals[0].isfinite()).double()
                waiting = strategy.step_totals(totals, step)  # hidden behind the backward pass
            clock.lap("forward")
            learner.precision.backward(loss / step.samples)
            clock.lap(strategy.phase_after_backward if last else "backward")
    assert waiting is not None
    return waiting


def _stand_in(training: Training, images: Tensor) -> Tensor:
    return images.new_zeros((1, *images.shape[1:])).to(training.learner.device)


def _set_rate(training: Training, step: int) -> float:
    config = training.experiment.train
    lr = rate(
        config.schedule,
        base_lr=config.optimizer.lr,
        step=step,
        steps_per_epoch=training.train_epoch.num_steps,
        epochs=config.epochs,
    )
    for group in training.learner.optimizer.param_groups:
        group["lr"] = lr
    return lr


def _end_epoch(training: Training, clock: StepClock) -> None:
    """Evaluate, note the epoch, turn to the next, commit."""
    strategy = training.strategy
    strategy.settle(training.learner)
    started = time.perf_counter()
    batches = _noting(training.val_batches, training.log)
    found = evaluate(training.learner, strategy, batches, training.val_epoch, training.to_device)
    evaluation = found, time.perf_counter() - started
    clock.pause()
    _commit(training, evaluation=evaluation)
    clock.lap("checkpoint")


def _note_epoch(training: Training, found: Evaluation, evaluation_s: float) -> None:
    progress, task = training.progress, training.learner.task
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


def _commit(training: Training, *, evaluation: tuple[Evaluation, float] | None) -> None:
    """Commit the state of the run, at the end of an epoch with what was found in evaluation, and its seconds.

    The trace first, so that what is committed is traced.
    """
    strategy, learner = training.strategy, training.learner
    if evaluation is None:
        strategy.settle(learner)
    strategy.share_buffers(learner.model)
    if (books := strategy.books()) is not None:
        training.progress.take(books)
    if evaluation is not None and strategy.notes():
        _note_epoch(training, *evaluation)
    training.log.commit_trace(training.progress.steps)
    strategy.barrier()
    if not strategy.leads():
        return
    progress, task = training.progress, learner.task
    figure = progress.val[task.best] if evaluation is not None else None
    score = None if figure is None else task.judge.merit(figure)
    commit = training.store.commit(learner.snapshot(progress, training.identity, strategy.state()), score=score)
    strategy.committed(progress.to_json())
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
