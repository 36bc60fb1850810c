"""How a worker reaches the run log: by a call in this process, or by a call to an actor.

The rest of a worker does not know which. A remote call has a timeout, so that a dead log ends a worker instead of
holding it.
"""

from typing import Any, Protocol

import ray

from orchestrator.run_log import RunLog

CALL_TIMEOUT_S = 60.0


class Channel(Protocol):
    """Calls methods of the run log by name."""

    def call(self, method: str, *args: Any) -> Any:
        """Call and wait for the answer."""


class DirectChannel:
    """The run log is in this process."""

    def __init__(self, run_log: RunLog) -> None:
        self._run_log = run_log

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self._run_log, method)(*args)


class ActorChannel:
    """The run log is an actor."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def call(self, method: str, *args: Any) -> Any:
        return ray.get(getattr(self.actor, method).remote(*args), timeout=CALL_TIMEOUT_S)
