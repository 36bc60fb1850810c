"""A parameter server that is killed and started again, in place, over the same folder."""

import threading
from collections import Counter
from pathlib import Path

import pytest
from server_runs import BEGIN, EPOCHS, RULES, SIZE, START, Clock, Place, Puppet, each_share_once, setup, train

from orchestrator.parameter_server import keeper
from orchestrator.parameter_server.client import GIVE_UP_S, PAUSE_S, Client, DirectCalls, ServerGone
from orchestrator.parameter_server.messages import End, Refused, State
from orchestrator.parameter_server.optimizer import OptimizerRule
from orchestrator.parameter_server.rules import Each, Rule
from orchestrator.parameter_server.transport import WorkerEnd

all_rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


@all_rules
@pytest.mark.parametrize("acts", [7, 13, 20, 30])
def test_a_server_that_is_killed_goes_on_from_its_snapshot_and_tells_what_was_lost(
    tmp_path: Path, rule: Rule, acts: int
) -> None:
    place = Place(setup(tmp_path, rule, snapshot_every=2, optimizer=OptimizerRule("adamw")))
    puppets = [Puppet(place, rank) for rank in range(3)]
    for number in range(acts):
        puppets[number % 3].act()
    reached = puppets[0].client.state(whole=True).version
    sessions = [puppet.welcome.session for puppet in puppets]
    place.restart()
    (began,) = [event["version"] for event in place.heard.named("server")]
    assert reached - 2 < began <= reached
    assert all(place.begin("next", session, -1).result() == Refused("session") for session in sessions)
    train(*puppets)
    assert Counter(place.heard.rows) == each_share_once()
    seen = max((event["updates"] for event in place.heard.named("updates_lost")), default=0)
    assert seen <= reached - began
    assert place.commits[-1]["updates_lost"] == seen
    assert place.commits[-1]["updates"] == EPOCHS * (6 if isinstance(rule, Each) else 3)


def test_updates_that_were_lost_are_told_once_as_many_as_the_one_that_knows_most_knew(tmp_path: Path) -> None:
    place = Place(setup(tmp_path, Each(6), snapshot_every=100))
    puppets = [Puppet(place, rank) for rank in range(2)]
    for rank in (0, 0, 1, 1, 1):  # rank 0 then knows of 1 update, rank 1 of 3
        puppets[rank].act()
    place.restart()
    for puppet in puppets:
        puppet.act()
        puppet.act()
    assert [(event["updates"], event["version"]) for event in place.heard.named("updates_lost")] == [(1, 0), (3, 0)]
    train(*puppets)
    assert Counter(place.heard.rows) == each_share_once()
    assert place.commits[-1]["updates_lost"] == 3


def test_a_server_that_is_killed_before_its_first_snapshot_is_given_the_state_again(tmp_path: Path) -> None:
    place = Place(setup(tmp_path))
    puppet = Puppet(place, 0)
    puppet.act()
    puppet.act()
    place.kill()
    for path in tmp_path.iterdir():
        path.unlink()
    place.start()
    assert place.heard.named("server") == []
    puppet.act()
    assert puppet.welcome.wants_state
    train(puppet)
    assert place.commits[-1]["updates_lost"] == 1
    assert Counter(place.heard.rows) == each_share_once()


def test_a_server_that_does_not_come_back_is_given_up_after_a_while(tmp_path: Path) -> None:
    place, clock = Place(setup(tmp_path)), Clock()

    def sleep(seconds: float) -> None:
        clock.now += seconds

    client = Client(place, 0, WorkerEnd("object_store", "fp32", SIZE, top_k=1.0), clock, sleep)
    place.kill()
    with pytest.raises(ServerGone, match=r"could not be reached for 180 s: killed\. The run goes on .* --resume"):
        client.join(lambda: (State(START, {}, None, None, BEGIN), SIZE))
    assert clock.now == pytest.approx(GIVE_UP_S, abs=2 * PAUSE_S)
    client.fail("nobody hears this")


def test_a_server_that_is_killed_after_the_end_says_so_again(tmp_path: Path) -> None:
    place = Place(setup(tmp_path))
    puppet = Puppet(place, 0)
    train(puppet)
    place.restart()
    assert Puppet(place, 1).client.next().turn == End("finished")


def test_a_snapshot_is_of_its_moment_however_long_it_takes_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(setup(tmp_path, snapshot_every=1))
    puppet = Puppet(place, 0)
    puppet.act()
    server, writes, may_write = place.server, keeper.save, threading.Event()
    assert server is not None
    monkeypatch.setattr(keeper, "save", lambda *given: may_write.wait() and writes(*given))
    puppet.client._calls = DirectCalls(server)  # does not wait for what is written
    for _ in range(4):
        puppet.act()
    may_write.set()
    puppet.client._calls = place
    place.begin("next", 0, 0)  # waits
    place.restart()
    assert place.heard.named("server")[-1]["version"] == 1
    train(puppet)
    assert Counter(place.heard.rows) == each_share_once()


def test_a_snapshot_that_cannot_be_written_is_told_of_once_and_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    place = Place(setup(tmp_path / "taken", snapshot_every=1))
    train(Puppet(place, 0))
    assert len(place.heard.named("snapshot_failed")) == 1
    assert Counter(place.heard.rows) == each_share_once()
