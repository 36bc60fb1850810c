"""A worker's side of the server: calls, one gradient under way at most, and what to do when the server is gone."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import RunError
from orchestrator.parameter_server.messages import Floats, Push, Refused, Reply, State, Welcome
from orchestrator.parameter_server.transport import WorkerEnd

GIVE_UP_S = 180.0  # a server that is started anew takes seconds, its node may take minutes
PAUSE_S = 0.2


class ServerLost(Exception):
    """The server does not answer: it has been killed, or its node is gone."""


class ServerGone(RunError):
    """The server did not come back."""


class Rejoin(Exception):
    """The server knows this worker no more: join again; what was under way is lost or given to others."""


class Pending(Protocol):
    def result(self) -> Any:
        """Wait for the answer. Raises: ServerLost."""


class Calls(Protocol):
    """How the server is reached: by a call in this process, or to an actor (`channel.py`)."""

    def begin(self, method: str, *args: Any, **kwargs: Any) -> Pending: ...


class Answered:
    """An answer that is here."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def result(self) -> Any:
        return self._answer


class DirectCalls:
    """The server is in this process; a call is done when it returns."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def begin(self, method: str, *args: Any, **kwargs: Any) -> Pending:
        return Answered(getattr(self._server, method)(*args, **kwargs))


class Client:
    """Of one worker. `end`: how numbers travel."""

    def __init__(
        self,
        calls: Calls,
        rank: int,
        end: WorkerEnd,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._calls, self._rank, self._end = calls, rank, end
        self._clock, self._sleep = clock, sleep
        self._session = 0
        self._under_way: Pending | None = None
        self.version = 0
        self._seen: tuple[str, int] | None = None

    def join(self, state: Callable[[], tuple[State, int]]) -> Welcome:
        """Join, again if need be; `state` is asked for if the server has none to begin with.

        Raises: ServerGone if it cannot be reached for GIVE_UP_S seconds.
        """
        self._under_way = None
        deadline = self._clock() + GIVE_UP_S
        while True:
            try:
                welcome: Welcome = self._calls.begin("join", self._rank, self._end.offer, self._seen).result()
                self._session = welcome.session
                self._end.agreed(shared=welcome.shared)
                self._enter(welcome, state)
                self._seen = welcome.incarnation, welcome.version
                self.version = -1
                return welcome
            except (ServerLost, Rejoin) as lost:
                if self._clock() > deadline:
                    raise ServerGone(
                        f"strategy: the parameter server could not be reached for {GIVE_UP_S:g} s: {lost}. The run "
                        "goes on from its newest checkpoint by --resume."
                    ) from lost
                self._sleep(PAUSE_S)

    def _enter(self, welcome: Welcome, state: Callable[[], tuple[State, int]]) -> None:
        if welcome.wants_state:
            self._calls.begin("offer", self._session, *state()).result()

    def next(self) -> Reply:
        """What to do next. Raises: Rejoin."""
        return self._noted(self._ask("next", self._session, self.version))

    @property
    def pushing(self) -> bool:
        return self._under_way is not None

    def push(self, push: Push) -> None:
        """Send a gradient; its answer is for `answer`. Raises: Rejoin."""
        assert self._under_way is None, "one gradient is under way at most"
        self._under_way = self._begin("push", self._session, push)

    def answer(self) -> Reply:
        """Wait for the answer to what is under way. Raises: Rejoin."""
        assert self._under_way is not None
        pending, self._under_way = self._under_way, None
        return self._noted(self._result(pending))

    def encode(self, gradient: Floats) -> Any:
        return self._end.encode(gradient)

    def weights(self, reply: Reply) -> Floats | None:
        """Those that came with an answer, None if there were none."""
        return None if reply.weights is None else self._end.weights(reply.weights)

    def evaluate_next(self, number: int) -> int | Refused | None:
        """The next share to evaluate. Raises: Rejoin."""
        share: int | Refused | None = self._ask("evaluate_next", self._session, number)
        return share

    def evaluated(self, number: int, values: NDArray[np.float64]) -> NDArray[np.float64] | Refused:
        """Say what was found, and wait for the sums over all. Raises: Rejoin."""
        said: NDArray[np.float64] | None = values
        while True:
            sums: Any = self._ask("evaluated", self._session, number, said)
            if sums is not None:
                answer: NDArray[np.float64] | Refused = sums
                return answer
            said = None

    def state(self, *, whole: bool) -> State:
        """All that is trained. Raises: Rejoin."""
        state: State = self._ask("state", self._session, whole=whole)
        return state

    def books(self) -> dict[str, Any] | None:
        """What was trained since the last commit, for who leads the next. Raises: Rejoin."""
        books: dict[str, Any] | None = self._ask("books", self._session)
        return books

    def committed(self, progress: dict[str, Any]) -> bool:
        """Raises: Rejoin."""
        return bool(self._ask("committed", self._session, progress))

    def fail(self, error: str) -> None:
        """Tell all others that the run is over, if the server can be told."""
        with suppress(ServerLost):
            self._calls.begin("fail", error)

    def _noted(self, reply: Any) -> Reply:
        noted: Reply = reply
        assert self._seen is not None
        self._seen = self._seen[0], max(self._seen[1], noted.version)
        return noted

    def _begin(self, method: str, *args: Any, **kwargs: Any) -> Pending:
        try:
            return self._calls.begin(method, *args, **kwargs)
        except ServerLost as lost:
            raise Rejoin from lost

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._result(self._begin(method, *args, **kwargs))

    def _result(self, pending: Pending) -> Any:
        try:
            answer = pending.result()
        except ServerLost as lost:
            raise Rejoin from lost
        if isinstance(answer, Refused) and answer.what == "session":
            raise Rejoin
        return answer
