"""The family of failures that a user sees as one message, each picklable.

Mistakes in the user's input are `ValueError`s and end with exit code 2; a run that fails ends with exit code 1.
Messages have four parts: which setting, the value got, what is allowed, what to do.
"""

from typing import Any

SHOWN_SAMPLES = 20


class InputError(ValueError):
    """Something the user wrote cannot work; nothing was started."""

    exit_code = 2


class RunError(RuntimeError):
    """A run failed. `details` go to events.jsonl."""

    exit_code = 1

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.details)


def _rebuild(kind: type[RunError], message: str, details: dict[str, Any]) -> RunError:
    return kind(message, **details)


class NonFiniteLoss(RunError):
    """The loss became NaN or infinite: starting again would only repeat it."""


class NonFiniteGradients(RunError):
    """In fp16, no scale of the loss kept the gradients finite any more."""


class OutOfMemory(RunError):
    """A worker's device had too little memory for a step: starting again would only repeat it."""


class TooManyBadSamples(RunError):
    """More samples could not be read than the experiment allows."""


def too_many_bad_samples(num: int, num_samples: int, max_bad: float, names: list[str]) -> TooManyBadSamples:
    """The error for `num` unreadable samples in an epoch of `num_samples`; `names`: which, and why."""
    shown = "".join(f"\n    {name}" for name in names[:SHOWN_SAMPLES])
    more = f"\n    and {len(names) - SHOWN_SAMPLES} more" if len(names) > SHOWN_SAMPLES else ""
    return TooManyBadSamples(
        f"data.max_bad: {num} of the epoch's {num_samples} samples could not be read, and {max_bad:.4%} are allowed. "
        f"Repair them or take them out, or allow more. All are in quarantine.jsonl:{shown}{more}",
        num=num,
    )


class CheckpointError(RunError):
    """A checkpoint cannot be read or does not fit the run."""


class RunGaveUp(RunError):
    """A run used up a failure budget."""
