"""Where arithmetic or data break down: what ends a run, though nothing of the machines failed."""

from orchestrator.errors import NonFiniteGradients, NonFiniteLoss, too_many_bad_samples
from orchestrator.strategies.base import Known
from orchestrator.training.training import LOSS_AND_FLAGS, Training
from pipelines.loader import Batch

MAX_IDS_IN_MESSAGE = 8
MAX_SKIPPED_STEPS = 40  # fp16 halves its scale at each: from 65,536 to beyond what any loss needs


def check(training: Training, batch: Batch, known: Known) -> None:
    """Look at a step's totals. Raises, on every worker that knows them: NonFiniteLoss, NonFiniteGradients,
    TooManyBadSamples.
    """
    bad_ranks = known.values[LOSS_AND_FLAGS + training.learner.num_counts :]
    if any(bad_ranks):
        since = int(max(bad_ranks)) - 1  # steps after the first bad one, whose totals were added up
        raise _non_finite(training, batch, since, known.step - since, [r for r, bad in enumerate(bad_ranks) if bad])
    if training.learner.precision.skipped_in_a_row > MAX_SKIPPED_STEPS:
        raise _overflowing(training, known.step)
    num_samples, max_bad = training.train_epoch.num_samples, training.experiment.data.max_bad
    if known.values[3] and known.epoch_replaced > max_bad * num_samples:
        training.strategy.barrier()  # all have told the log what they met
        raise too_many_bad_samples(known.epoch_replaced, num_samples, max_bad, training.log.quarantined())


def _non_finite(training: Training, batch: Batch, since: int, step: int, ranks: list[int]) -> NonFiniteLoss:
    mine, world_size = training.strategy.rank, training.strategy.world_size
    epoch = training.train_epoch
    shares = [
        epoch.share(batch.step - since, rank, world_size) if since or rank != mine else batch.positions
        for rank in ranks
    ]
    ids = [name for share in shares for name in training.sample_ids(batch.epoch, share)]
    more = len(ids) - MAX_IDS_IN_MESSAGE
    shown = ", ".join(ids[:MAX_IDS_IN_MESSAGE]) + (f" and {more} more" if more > 0 else "")
    return NonFiniteLoss(
        f"the loss became NaN or infinite in step {step} (epoch {batch.epoch}) on rank "
        f"{', '.join(map(str, ranks))}, whose samples were {shown}. "
        f"The last good checkpoint is {training.store.newest_path() or 'none'}. "
        "Lower train.optimizer.lr, set train.clip_grad_norm, or look at these samples; then --resume.",
        step=step,
        epoch=batch.epoch,
        ranks=ranks,
        sample_ids=ids,
    )


def _overflowing(training: Training, step: int) -> NonFiniteGradients:
    return NonFiniteGradients(
        f"precision: got fp16, whose gradients were infinite or NaN in {MAX_SKIPPED_STEPS + 1} steps in a row up to "
        f"step {step}, at every scale of the loss. The last good checkpoint is "
        f"{training.store.newest_path() or 'none'}. "
        "Lower train.optimizer.lr, set train.clip_grad_norm, or train in bf16 or fp32.",
        step=step,
    )
