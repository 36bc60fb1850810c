"""How a worker reaches the run log: by a call in this process, or by a call to an actor.

The rest of a worker does not know which. A remote call has a timeout, so that a dead log ends a worker instead of
holding it.
"""

from typing import Any, Protocol

import ray

from orchestrator.parameter_server.client import ServerLost
from orchestrator.run_log import RunLog

CALL_TIMEOUT_S = 60.0


class Channel(Protocol):
    """Calls methods of the run log by name."""

    def call(self, method: str, *args: Any) -> Any:
        """Call and wait for the answer."""

    def tell(self, method: str, *args: Any) -> None:
        """Call, and do not wait."""


class DirectChannel:
    """The run log is in this process."""

    def __init__(self, run_log: RunLog) -> None:
        self._run_log = run_log

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self._run_log, method)(*args)

    def tell(self, method: str, *args: Any) -> None:
        self.call(method, *args)


class ActorChannel:
    """The run log is an actor."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def call(self, method: str, *args: Any) -> Any:
        return ray.get(getattr(self.actor, method).remote(*args), timeout=CALL_TIMEOUT_S)

    def tell(self, method: str, *args: Any) -> None:
        getattr(self.actor, method).remote(*args)


class ActorCalls:
    """The parameter server is an actor: `parameter_server/client.py`'s calls to it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def begin(self, method: str, *args: Any, **kwargs: Any) -> "ActorAnswer":
        try:
            return ActorAnswer(getattr(self._actor, method).remote(*args, **kwargs))
        except ray.exceptions.RayActorError as error:
            raise ServerLost(str(error)) from error


class ActorAnswer:
    """The answer of an actor, on its way."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def result(self) -> Any:
        try:
            return ray.get(self._reference, timeout=CALL_TIMEOUT_S)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError, ray.exceptions.ObjectLostError) as error:
            raise ServerLost(str(error)) from error
