"""What of a parameter server runs in actors of its own. No torch here: importing it takes each of them 2.5 s of CPU."""

import os
import signal
from functools import partial
from typing import Any

import ray

from orchestrator.channel import ActorChannel, Channel
from orchestrator.config.strategy import FaultsConfig
from orchestrator.parameter_server.follower import Follower
from orchestrator.parameter_server.server import ParameterServer
from orchestrator.parameter_server.setup import ServerSetup
from orchestrator.training.faults import due_shards
from pipelines.feed import Feed
from pipelines.stages import Stream, references


class Ears:
    """Tells the run log what happens in the server, and carries out its faults."""

    def __init__(self, channel: Channel, faults: FaultsConfig, shard: int) -> None:
        self._channel, self._faults, self._shard = channel, faults, shard
        self._told: set[str] = set()

    def event(self, name: str, message: str, **fields: Any) -> None:
        self._channel.tell("add", [("event", {"name": name, "message": message} | fields)])

    def trace(self, step: int, rows: dict[str, list[Any]]) -> None:
        # As one rank's, so that what is trained again after the server was killed replaces it, whoever does it then.
        self._channel.call("trace", 0, step, rows)

    def step_taken(self, step: int) -> None:
        due = [key for key in due_shards(self._faults, self._shard, step) if key not in self._told]
        self._told.update(due)
        for key in due:
            message = f"shard {self._shard} of the parameter server is killed after step {step}, as faults says"
            if self._channel.call("fire", key, message, {"kind": "kill", "shard": self._shard, "step": step}):
                os.kill(os.getpid(), signal.SIGKILL)


class ServerActor(ParameterServer):
    """The server as an actor of its own."""

    def __init__(self, setup: ServerSetup, run_log: str, faults: FaultsConfig) -> None:
        super().__init__(setup, Ears(ActorChannel(ray.get_actor(run_log)), faults, 0))


class FollowerActor(Follower):
    """A further shard as an actor of its own."""

    def __init__(self, setup: ServerSetup, index: int, run_log: str, faults: FaultsConfig) -> None:
        super().__init__(setup, index, Ears(ActorChannel(ray.get_actor(run_log)), faults, index))


class FeedActor(Feed):
    """The chunks of a stream of Ray Data, for whoever asks."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(partial(references, stream))
