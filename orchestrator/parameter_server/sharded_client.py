"""A worker's side of a server whose weights lie in several shards: a gradient is cut, parked, and decided on.

    push    park each further shard's part, wait until all have it; then send the first to the server, which decides
    answer  the server's weights; from each further shard its own, after the updates that the answer lists

Both run in a thread, so that they overlap what the worker computes. A shard that does not answer, or knows nothing of
this era, is reported to the server; all begin a new one.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from orchestrator.parameter_server.client import Calls, Client, Rejoin, ServerLost
from orchestrator.parameter_server.follower import ShardState
from orchestrator.parameter_server.messages import Floats, Push, Refused, Reply, State, Welcome
from orchestrator.parameter_server.partition import decayed_in, partition
from orchestrator.parameter_server.transport import WorkerEnd


class ShardedClient(Client):
    """`calls`: to the server and to each further shard; `ends`: how numbers travel to each."""

    def __init__(self, calls: Sequence[Calls], rank: int, ends: Sequence[WorkerEnd], num_weights: int) -> None:
        super().__init__(calls[0], rank, ends[0])
        self._parts = partition(num_weights, len(calls))
        self._others = list(zip(calls[1:], ends[1:], self._parts[1:], strict=True))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._whole = np.empty(num_weights, np.float32)
        self._era = 0
        self._pushes = 0
        self._known = 0

    def join(self, state: Callable[[], tuple[State, int]]) -> Welcome:
        self._pushes = self._known = 0
        return super().join(state)

    def _enter(self, welcome: Welcome, state: Callable[[], tuple[State, int]]) -> None:
        """Take part in the era: with the state that it begins with, or with what the shards have."""
        self._era = welcome.era
        if welcome.wants_state:
            whole, num_decayed = state()
            for calls, _, part in self._others:
                begun = ShardState(0, *_cut(whole, part))
                calls.begin("begin", self._era, begun, decayed_in(part, num_decayed)).result()
            weights, optimizer, average = _cut(whole, self._parts[0])
            first = replace(whole, weights=weights, optimizer=optimizer, average=average)
            super()._enter(welcome, lambda: (first, decayed_in(self._parts[0], num_decayed)))
        for calls, end, _ in self._others:
            shared = self._of_shard(calls, "join", welcome.began_at, self._session, end.offer)
            end.agreed(shared=shared)
        self._known = welcome.began_at

    def _of_shard(self, calls: Calls, method: str, *args: Any, **kwargs: Any) -> Any:
        """Ask a further shard. Raises: Rejoin if it has nothing of this era; the server is told."""
        return self._from_shard(self._begin_at_shard(calls, method, *args, **kwargs))

    def _begin_at_shard(self, calls: Calls, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return calls.begin(method, self._era, *args, **kwargs)
        except ServerLost as lost:
            raise self._shard_lost() from lost

    def _from_shard(self, pending: Any) -> Any:
        try:
            answer = pending.result()
        except ServerLost as lost:
            raise self._shard_lost() from lost
        if isinstance(answer, Refused):
            raise self._shard_lost() if answer.what == "era" else Rejoin
        return answer

    def _shard_lost(self) -> Rejoin:
        self._ask("lose_shard", self._era)
        return Rejoin()

    def encode(self, gradient: Floats) -> Any:
        own = super().encode(gradient[self._slice(0)])
        return [own, *(end.encode(gradient[part.start : part.stop]) for _, end, part in self._others)]

    def push(self, push: Push) -> None:
        assert self._under_way is None, "one gradient is under way at most"
        self._pushes += 1
        self._under_way = self._thread.submit(self._send, push, (self._session, self._pushes))

    def _send(self, push: Push, key: tuple[int, int]) -> Reply:
        parts = [None] * len(self._parts) if push.gradient is None else push.gradient
        parked = [
            self._begin_at_shard(calls, "park", key, part, push.base)
            for (calls, _, _), part in zip(self._others, parts[1:], strict=True)
        ]
        for pending in parked:
            self._from_shard(pending)
        return self._followed(self._ask("push", self._session, replace(push, gradient=parts[0], known=self._known)))

    def _result(self, pending: Any) -> Any:
        if isinstance(pending, Future):
            return pending.result()
        return super()._result(pending)

    def next(self) -> Reply:
        return self._noted(self._followed(self._ask("next", self._session, self.version, self._known)))

    def _followed(self, reply: Reply) -> Reply:
        """Have the further shards make what the server has decided, and take their weights."""
        if reply.weights is None:
            return reply
        answers = [
            self._begin_at_shard(calls, "pull", self._session, reply.updates, reply.step)
            for calls, _, _ in self._others
        ]
        self._whole[self._slice(0)] = super().weights(reply)
        versions = []
        for (_, end, part), pending in zip(self._others, answers, strict=True):
            version, answered = self._from_shard(pending)
            self._whole[part.start : part.stop] = end.weights(answered)
            versions.append(version)
        self._known = max(self._known, min(versions))
        return reply

    def weights(self, reply: Reply) -> Floats | None:
        return None if reply.weights is None else self._whole

    def state(self, *, whole: bool) -> State:
        first: State = self._ask("state", self._session, whole=whole, known=self._known)
        others: list[ShardState] = [
            self._of_shard(calls, "state", first.updates, whole=whole) for calls, _, _ in self._others
        ]
        if any(other.version != first.version for other in others):
            raise Rejoin  # training goes on: this is no moment to evaluate or commit
        self._known = first.version
        every: list[Any] = [first, *others]
        optimizer = {
            name: np.concatenate([each.optimizer[name] for each in every]) if isinstance(value, np.ndarray) else value
            for name, value in first.optimizer.items()
        }
        averages = [each.average for each in every if each.average is not None]
        return replace(
            first,
            weights=np.concatenate([each.weights for each in every]),
            optimizer=optimizer,
            average=np.concatenate(averages) if averages else None,
        )

    def _slice(self, shard: int) -> slice:
        return slice(self._parts[shard].start, self._parts[shard].stop)


def _cut(state: State, part: range) -> tuple[Floats, dict[str, Any], Floats | None]:
    """Weights, optimizer's state and average of a part."""
    cut = slice(part.start, part.stop)
    optimizer = {name: v[cut] if isinstance(v, np.ndarray) else v for name, v in state.optimizer.items()}
    return state.weights[cut], optimizer, None if state.average is None else state.average[cut]
