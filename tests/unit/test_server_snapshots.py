import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from server_samples import RULES, assert_same, go_on, numbers, shard, trained

from orchestrator.errors import CheckpointError
from orchestrator.parameter_server.optimizer import OptimizerRule
from orchestrator.parameter_server.snapshots import prune, read, save, snapshots

all_rules = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


@all_rules
def test_it_goes_on_from_a_saved_snapshot_bit_for_bit(tmp_path: Path, rule: OptimizerRule) -> None:
    target = trained(rule, 7, index=1, count=3)
    path = save(tmp_path / "new", target.copy_for_saving({"order": [[1, 2], None], "lr": 0.1}))
    assert path.name == "shard-1-of-3-v0000000007.safetensors"
    assert list(path.parent.iterdir()) == [path]
    assert snapshots(path.parent, 1, 3) == [7]
    snapshot = read(path.parent, 1, 3, 7)
    assert (snapshot.index, snapshot.count, snapshot.extra) == (1, 3, {"order": [[1, 2], None], "lr": 0.1})
    resumed = shard(rule, ema_decay=0.9)
    resumed.park((1, 1), numbers(1))
    resumed.load(snapshot.state)
    assert resumed.parked == frozenset()
    for each in (target, resumed):
        go_on(each, 12)
    assert_same(target.state(), resumed.state())


@all_rules
def test_a_copy_may_be_saved_in_another_thread_while_updates_go_on(tmp_path: Path, rule: OptimizerRule) -> None:
    target = trained(rule, 3)
    thread = threading.Thread(target=save, args=(tmp_path, target.copy_for_saving()))
    thread.start()
    go_on(target, 20)
    thread.join()
    assert_same(read(tmp_path, 0, 1, 3).state, trained(rule, 3).state())


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    rule = RULES[0]
    others = {
        "weights.*99": trained(rule, 2).state() | {"weights": numbers(0, 99)},
        "average": shard(rule).state(),
        "train.optimizer": shard(RULES[1], ema_decay=0.9).state(),
    }
    for message, state in others.items():
        target = trained(rule, 5)
        with pytest.raises(CheckpointError, match=message):
            target.load(state)
        assert_same(target.state(), trained(rule, 5).state())


def truncate(num_bytes: int) -> Callable[[Path], None]:
    """Negative: as many from the end."""
    return lambda path: (path.write_bytes(path.read_bytes()[:num_bytes]), None)[1]


def say(text: str) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        header = json.dumps({"__metadata__": {"convoy": text}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)

    return rewrite


DAMAGE: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": truncate(0),
    "half a length": truncate(4),
    "half a header": truncate(50),
    "header only": truncate(400),
    "half": truncate(600),
    "last byte": truncate(-1),
    "too long": lambda path: (path.write_bytes(path.read_bytes() + b"x"), None)[1],
    "zeros": lambda path: (path.write_bytes(bytes(path.stat().st_size)), None)[1],
    "no JSON": say("{"),
    "foreign": say("[1]"),
    "of another version": say('{"version": 2}'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_snapshot_that_is_not_whole_is_passed_over(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    target = shard(RULES[0])
    for version in (1, 2, 3):
        go_on(target, version)
        save(tmp_path, target.copy_for_saving())
    damage(tmp_path / "shard-0-of-1-v0000000003.safetensors")
    (tmp_path / ".writing-shard-0-of-1-0123").write_bytes(b"half")
    assert snapshots(tmp_path, 0, 1) == [1, 2]
    with pytest.raises(CheckpointError, match=r"shard-0-of-1-v0000000003\.safetensors: is not .* Go on from another"):
        read(tmp_path, 0, 1, 3)
    prune(tmp_path, 0, 1, keep=2, newest=3)
    assert [path.name[-8:] for path in tmp_path.iterdir()].count("0123") == 0
    assert sorted(path.name[:24] for path in tmp_path.iterdir()) == [f"shard-0-of-1-v000000000{v}" for v in (1, 2)]


def test_pruning_keeps_the_newest_of_this_shard_and_all_of_others(tmp_path: Path) -> None:
    for index, count in ((0, 2), (1, 2), (1, 20), (11, 20)):
        target = shard(index=index, count=count)
        for version in (1, 2, 3, 4):
            go_on(target, version)
            save(tmp_path, target.copy_for_saving())
    (tmp_path / ".writing-shard-1-of-20-0123").touch()
    prune(tmp_path, 1, 2, keep=2, newest=3)
    assert snapshots(tmp_path, 1, 2) == [2, 3], "4 is of a course that was given up"
    assert all(snapshots(tmp_path, index, count) == [1, 2, 3, 4] for index, count in ((0, 2), (1, 20), (11, 20)))
    assert (tmp_path / ".writing-shard-1-of-20-0123").exists()
    assert snapshots(tmp_path / "nowhere", 0, 1) == []


def test_a_snapshot_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    target = trained(RULES[0], 1)
    save(tmp_path, target.copy_for_saving({"a": 1}))
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(tmp_path, target.copy_for_saving({"a": object()}))
    assert read(tmp_path, 0, 1, 1).extra == {"a": 1}
    save(tmp_path, target.copy_for_saving({"a": 2}))
    assert read(tmp_path, 0, 1, 1).extra == {"a": 2}
    assert len(list(tmp_path.iterdir())) == 1
