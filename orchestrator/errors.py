"""The family of failures that a user sees as one message, each picklable.

Mistakes in the user's input are `ValueError`s and end with exit code 2; a run that fails ends with exit code 1.
Messages have four parts: which setting, the value got, what is allowed, what to do.
"""

from typing import Any


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


class CheckpointError(RunError):
    """A checkpoint cannot be read or does not fit the run."""


class RunGaveUp(RunError):
    """A run used up a failure budget."""
