"""A parameter server as workers see it: by calls, in one thread, but where threads are the matter."""

import gc
import threading
import weakref
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from server_runs import (
    BEGIN,
    EPOCHS,
    GOAL,
    HANG_S,
    RATE,
    RULES,
    SIZE,
    START,
    VAL_SHARES,
    Clock,
    Heard,
    Place,
    Puppet,
    each_share_once,
    of_share,
    setup,
    train,
)

from orchestrator.parameter_server.messages import End, Evaluation, Refused, Share, State
from orchestrator.parameter_server.rules import Each, Rule, WithinBound
from orchestrator.parameter_server.server import ParameterServer
from orchestrator.parameter_server.transport import CopiedLine, Line, Offer

all_rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
FIRST_LOSS = VAL_SHARES * float((GOAL**2).sum())


@all_rules
@pytest.mark.parametrize("options", [{}, {"compensate": 0.5}, {"ema_decay": 0.5}, {"clip_grad_norm": 1.0}], ids=str)
def test_losses_go_down_and_every_share_is_used_once(tmp_path: Path, rule: Rule, options: dict[str, float]) -> None:
    place = Place(setup(tmp_path, rule, **options))
    puppets = [Puppet(place, rank) for rank in range(3)]
    train(*puppets)
    assert len(place.losses) == EPOCHS
    assert all(after < before for before, after in pairwise([FIRST_LOSS, *place.losses]))
    assert Counter(place.heard.rows) == each_share_once()
    assert [puppet.end for puppet in puppets] == [End("finished")] * 3
    steps = place.setup.course.num_steps
    assert [commit["steps"] for commit in place.commits] == [steps, 2 * steps, 3 * steps]
    assert set(place.heard.steps) == set(range(1, 3 * steps + 1))


@all_rules
def test_workers_in_threads_train_together_to_the_end(tmp_path: Path, rule: Rule) -> None:
    place = Place(setup(tmp_path, rule, patience_s=60.0, in_store=1, snapshot_every=5))
    puppets = [Puppet(place, rank) for rank in range(4)]
    threads = [threading.Thread(target=train, args=(puppet,)) for puppet in puppets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [puppet.end for puppet in puppets] == [End("finished")] * 4
    assert Counter(place.heard.rows) == each_share_once()
    assert len(place.commits) == EPOCHS


def test_the_weights_are_what_the_gradients_of_all_shares_make_of_them(tmp_path: Path) -> None:
    place = Place(setup(tmp_path, WithinBound(3, 2)))
    puppets = [Puppet(place, rank, of_share) for rank in range(2)]
    train(*puppets)
    weights = START.copy()
    for epoch in range(EPOCHS):
        for step in range(2):
            shares = [Share(epoch, number, 0) for number in range(3 * step, 3 * step + 3)]
            weights -= np.float32(RATE) * (sum(of_share(share, weights) for share in shares) / np.float32(3))
    assert np.array_equal(puppets[0].client.state(whole=True).weights, weights)


@all_rules
def test_memory_that_is_shared_and_arrays_in_calls_make_the_same_weights(tmp_path: Path, rule: Rule) -> None:
    weights, shared = [], []
    for transport in ("shared_memory", "object_store"):
        place = Place(setup(tmp_path / transport, rule))
        puppets = [Puppet(place, rank, transport=transport) for rank in range(2)]
        train(*puppets)
        weights.append(puppets[0].client.state(whole=True).weights)
        shared.append(puppets[0].welcome.shared)
    assert shared == [True, False]
    assert np.array_equal(*weights)


def test_a_gradient_in_shared_memory_that_waits_is_not_overwritten(tmp_path: Path) -> None:
    place = Place(setup(tmp_path, WithinBound(1, 2)))
    slow, fast = (Puppet(place, rank, of_share, transport="shared_memory") for rank in range(2))
    slow.act()
    for _ in range(4):  # shares 1 and 2, which wait for share 0
        fast.act()
    assert place.heard.steps == []
    slow.act()
    assert place.heard.steps == [3]
    first_three = sum(of_share(Share(0, number, 0), START) for number in range(3))
    expected = START - np.float32(RATE) * first_three
    # Three steps round the weight, up to 9 by then, by half an eps of float32 each, and the product once.
    np.testing.assert_allclose(slow.client.state(whole=True).weights, expected, rtol=0, atol=4 * 2**-24 * 9)


def test_an_old_session_is_refused_and_nothing_of_it_is_used(tmp_path: Path) -> None:
    place = Place(setup(tmp_path))
    old, other = Puppet(place, 0), Puppet(place, 1)
    old.act()
    session = old.welcome.session
    Puppet(place, 0)
    old.act()  # its gradient is refused: it joins
    assert old.welcome.session != session
    assert place.heard.steps == []
    assert place.begin("state", session, whole=False).result() == Refused("session")
    assert place.begin("evaluate_next", session, 1).result() == Refused("round")
    assert place.begin("evaluated", session, 1, np.zeros(2)).result() == Refused("round")
    assert place.begin("books", session).result() is None
    assert place.begin("committed", session, BEGIN).result() is False
    train(old, other)
    assert Counter(place.heard.rows) == each_share_once()


def test_what_a_worker_that_is_gone_held_goes_to_others(tmp_path: Path) -> None:
    place = Place(setup(tmp_path))
    gone, other = Puppet(place, 0), Puppet(place, 1)
    gone.act()
    other.act()
    held = gone.share
    place.begin("left", 0, "out of memory").result()
    place.begin("left", 7, "never here").result()
    assert place.heard.named("left") == [
        {"rank": 0, "shares": [0], "reason": "out of memory"},
        {"rank": 7, "shares": [], "reason": "never here"},
    ]
    other.act()
    assert other.share == held
    train(other)
    assert Counter(place.heard.rows) == each_share_once()


def test_a_worker_of_which_nothing_is_heard_is_named_and_may_come_back(tmp_path: Path) -> None:
    patience_s = 1e-3
    place = Place(setup(tmp_path, WithinBound(1, 0), patience_s=patience_s), Clock(tick=0.3 * patience_s))
    silent, other = Puppet(place, 0), Puppet(place, 1)
    silent.act()
    held = silent.share
    other.act()
    assert (other.share, place.heard.named("hang")) == (None, [])
    place.clock.now += HANG_S
    other.act()
    assert place.heard.named("hang") == [{"rank": 0}]
    assert other.share == held
    other.act()
    silent.act()  # its gradient is no longer needed
    assert place.server is not None
    assert place.server._shard is not None
    assert place.server._shard.parked == frozenset(), "nor kept"
    train(silent, other)
    assert place.heard.named("hang") == [{"rank": 0}]
    assert Counter(place.heard.rows) == each_share_once()


def test_a_worker_that_falls_silent_in_evaluation_is_named_and_its_part_is_done_by_others(tmp_path: Path) -> None:
    patience_s = 1e-3
    place = Place(setup(tmp_path, Each(1), num_shares=1, patience_s=patience_s), Clock(tick=0.3 * patience_s))
    silent, other = Puppet(place, 0), Puppet(place, 1)
    other.act()
    reply = other.send()
    assert reply.turn == Evaluation(1)
    assert silent.client.evaluate_next(1) == 0
    place.clock.now += HANG_S
    other.do(reply)  # it does the rest, and waits
    assert place.heard.named("hang") == [{"rank": 0}]
    assert place.losses == []
    train(other)
    assert len(place.losses) == EPOCHS
    assert isinstance(silent.client.evaluated(1, np.ones(2)), Refused)


@pytest.mark.parametrize("begun", [True, False], ids=["while it trains", "before it begins"])
def test_a_failure_of_one_ends_all(tmp_path: Path, begun: bool) -> None:
    place = Place(setup(tmp_path))
    if begun:
        puppets = [Puppet(place, rank) for rank in range(2)]
        puppets[1].act()
    else:
        welcome = place.begin("join", 0, Offer(), None).result()
        assert welcome.wants_state
        puppets = [Puppet(place, 1)]
    puppets[0].client.fail("the loss became NaN")
    place.begin("fail", "and so did that of another").result()
    train(*puppets)
    assert {puppet.end for puppet in puppets} == {End("failed", "the loss became NaN")}


def test_nobody_waits_for_what_one_that_failed_found_in_evaluation(tmp_path: Path) -> None:
    place = Place(setup(tmp_path, Each(1), num_shares=1))
    failing, other = Puppet(place, 0), Puppet(place, 1)
    other.act()
    reply = other.send()
    assert reply.turn == Evaluation(1)
    assert failing.client.evaluate_next(1) == 0
    failing.client.fail("the disk is full")
    other.do(reply)
    other.act()
    assert other.end == End("failed", "the disk is full")


def test_one_worker_offers_the_state_and_another_if_it_is_gone(tmp_path: Path) -> None:
    place = Place(setup(tmp_path))
    first = place.begin("join", 0, Offer(), None).result()
    other = Puppet(place, 1)
    assert (first.wants_state, other.welcome.wants_state) == (True, False)
    other.act()
    assert other.share is None
    place.begin("left", 0, "killed").result()
    other.act()
    assert other.welcome.wants_state
    assert place.begin("offer", first.session, State(START, {}, None, None, BEGIN), SIZE).result() is False
    train(other)
    assert Counter(place.heard.rows) == each_share_once()


def test_a_stop_ends_the_run_at_a_step_that_is_committed(tmp_path: Path) -> None:
    place = Place(setup(tmp_path, WithinBound(2, 1)))
    puppets = [Puppet(place, rank) for rank in range(3)]
    for puppet in puppets:  # of the second step one share is handed out
        puppet.act()
    puppets[0].push(totals=[0.0, 1.0, 1.0, 0.0])
    train(*puppets)
    assert {puppet.end for puppet in puppets} == {End("stopped")}
    assert [commit["steps"] for commit in place.commits] == [2]
    assert set(place.heard.rows) == {(0, share) for share in range(4)}


def test_a_gradient_that_is_not_finite_makes_a_step_that_changes_nothing(tmp_path: Path) -> None:
    place = Place(setup(tmp_path))
    puppet = Puppet(place, 0)
    puppet.act()
    puppet.push(gradient=None, samples=0)
    assert place.heard.steps == [1]
    assert np.array_equal(puppet.weights, START)


def test_batch_statistics_are_the_mean_of_the_workers_newest(tmp_path: Path) -> None:
    place = Place(setup(tmp_path))
    puppets = [Puppet(place, rank) for rank in range(2)]
    for rank, values in ((0, 7.0), (0, 1.0), (1, 2.0)):
        puppets[rank].act() if puppets[rank].share is None else None
        puppets[rank].push(buffers=np.full(3, values, np.float32))
    for _ in range(2):
        buffers = puppets[0].client.state(whole=False).buffers
        assert buffers is not None
        assert buffers.tolist() == [1.5] * 3
        place.begin("left", 1, "its statistics stay").result()


def test_weights_come_only_if_they_are_others_than_those_that_a_worker_has(tmp_path: Path) -> None:
    place = Place(setup(tmp_path))
    puppet = Puppet(place, 0)
    assert puppet.client.next().weights is not None
    puppet.client.version = 0
    assert puppet.client.next().weights is None


def test_the_line_of_a_session_that_is_over_is_let_go_of(tmp_path: Path) -> None:
    lines: list[weakref.ref[Line]] = []

    def line_of(offer: Offer) -> Line:
        del offer
        line = CopiedLine()
        lines.append(weakref.ref(line))
        return line

    server = ParameterServer(setup(tmp_path), Heard(), line_of)
    for _ in range(3):
        server.join(0, Offer(), None)
    gc.collect()
    assert [line() is None for line in lines] == [True, True, False]
    server.left(0, "killed")
    gc.collect()
    assert lines[2]() is None
