"""A parameter server whose weights lie in several shards, against one that has them all."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_runs import RULES, SIZE, Heard, Place, Puppet, Remote, each_share_once, setup, train

from orchestrator.parameter_server.follower import Follower
from orchestrator.parameter_server.messages import State
from orchestrator.parameter_server.optimizer import OptimizerRule
from orchestrator.parameter_server.rules import Each, Rule
from orchestrator.parameter_server.setup import ServerSetup

NUM_SHARDS = 3
all_rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


class FurtherShard(Remote):
    def __init__(self, what: ServerSetup, index: int) -> None:
        self.setup, self.index = what, index
        self.start()

    def start(self) -> None:
        self.server = Follower(self.setup, self.index, Heard())


def several(folder: Path, rule: Rule, num_shards: int = NUM_SHARDS, **options: Any) -> tuple[Place, list[FurtherShard]]:
    what = setup(folder, rule, num_shards=num_shards, optimizer=OptimizerRule("adamw"), ema_decay=0.5, **options)
    return Place(what), [FurtherShard(what, index) for index in range(1, num_shards)]


def trained(place: Place, shards: list[FurtherShard], transport: str = "object_store") -> State:
    puppets = [Puppet(place, rank, shards=shards, transport=transport) for rank in range(2)]
    train(*puppets)
    return puppets[0].client.state(whole=True)


@all_rules
@pytest.mark.parametrize("transport", ["object_store", "shared_memory"])
def test_several_shards_train_as_one_bit_for_bit(tmp_path: Path, rule: Rule, transport: str) -> None:
    options = {"compensate": 0.5} if isinstance(rule, Each) else {}
    one = trained(*several(tmp_path / "one", rule, 1, **options))
    ours = trained(*several(tmp_path / "several", rule, **options), transport)
    assert ours.version == one.version > 0
    assert np.array_equal(ours.weights, one.weights)
    assert ours.average is not None
    assert one.average is not None
    assert np.array_equal(ours.average, one.average)
    np.testing.assert_equal(ours.optimizer, one.optimizer)
    assert ours.weights.shape == (SIZE,)


@all_rules
@pytest.mark.parametrize("acts", [5, 9, 14, 23])
@pytest.mark.parametrize("lost", ["the server", "another shard"])
def test_when_a_shard_is_killed_all_go_back_to_what_all_have(tmp_path: Path, rule: Rule, acts: int, lost: str) -> None:
    place, shards = several(tmp_path / "killed", rule, snapshot_every=2)
    puppets = [Puppet(place, rank, shards=shards) for rank in range(2)]
    for number in range(acts):
        puppets[number % 2].act()
    killed = place if lost == "the server" else shards[1]
    killed.kill()
    killed.start()
    train(*puppets)
    assert len(place.heard.named("server")) == 1
    assert Counter(place.heard.rows) == each_share_once()
    ours, whole = puppets[0].client.state(whole=True), trained(*several(tmp_path / "whole", rule, snapshot_every=2))
    assert ours.version == whole.version
    if rule == RULES["stale 0"]:
        assert np.array_equal(ours.weights, whole.weights), "nothing depends on who computes what"
