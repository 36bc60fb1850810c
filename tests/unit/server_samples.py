"""Shards of a parameter server, and updates of them."""

from typing import Any

import numpy as np

from orchestrator.parameter_server.optimizer import FloatArray, OptimizerRule, build
from orchestrator.parameter_server.shard import Key, Part, Shard, Update
from orchestrator.parameter_server.snapshots import ShardState

PLAIN = OptimizerRule("sgd")
RULES = [
    OptimizerRule("sgd", momentum=0.9, weight_decay=0.01),
    OptimizerRule("adagrad", weight_decay=0.01),
    OptimizerRule("adamw", weight_decay=0.01),
]


def numbers(seed: int, size: int = 100) -> FloatArray:
    array = np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
    array.flags.writeable = False
    return array


def shard(rule: OptimizerRule = PLAIN, size: int = 100, **options: Any) -> Shard:
    return Shard(numbers(0, size), build(rule, size, size // 2), **options)


def update(version: int, *parts: Part, lr: float = 0.1, dropped: tuple[Key, ...] = ()) -> Update:
    return Update(version, parts, lr, dropped)


def part(session: int, push: int, weight: float = 1.0, scale: float = 1.0) -> Part:
    return Part((session, push), weight, scale)


def assert_same(first: ShardState, second: ShardState) -> None:
    assert first["version"] == second["version"]
    np.testing.assert_array_equal(first["weights"], second["weights"])
    np.testing.assert_equal(first["optimizer"], second["optimizer"])
    np.testing.assert_equal(first["average"], second["average"])


def trained(rule: OptimizerRule, version: int, **options: Any) -> Shard:
    target = shard(rule, ema_decay=0.9, **options)
    go_on(target, version)
    return target


def go_on(target: Shard, version: int) -> None:
    while target.version < version:
        following = target.version + 1
        target.park((1, following), numbers(following))
        target.advance([update(following, part(1, following))])
