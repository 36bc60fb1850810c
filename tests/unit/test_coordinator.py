"""Decisions of a parameter server, one by one, for workers that only pretend."""

import json
from collections import Counter
from typing import Any

import pytest
from coordinator_runs import World, course, everything

from orchestrator.parameter_server.messages import End, Evaluation, Lead, Share, Wait
from orchestrator.parameter_server.rules import Each, First, Rule, WithinBound


@pytest.mark.parametrize("rule", [Each(1), WithinBound(1, 0), First(1)], ids=lambda rule: type(rule).__name__)
def test_a_worker_alone_makes_the_updates_of_sync(rule: Rule) -> None:
    world = World(rule, course(rule))
    world.join(0)
    assert world.finish() == "finished"
    assert [(made.epoch, *made.shares) for made in world.updates] == [*everything(world)]
    assert [made.bases for made in world.updates] == [(version,) for version in range(14)]


@pytest.mark.parametrize("rule", [Each(3), WithinBound(3, 1), First(3)], ids=lambda rule: type(rule).__name__)
def test_totals_are_told_a_global_batch_at_a_time_and_at_the_end_of_an_epoch(rule: Rule) -> None:
    world = World(rule, course(rule))
    world.join(0)
    world.finish()
    assert world.windows == [1 + 2 + 3, 4 + 5 + 6, 7] * 2, "the samples of each"


def acts(world: World, *ranks: int) -> None:
    for rank in ranks:
        world.act(rank)


def two_workers(rule: Rule, **options: Any) -> World:
    world = World(rule, course(rule, **options))
    world.join(0)
    world.join(1)
    return world


def turn(world: World, rank: int) -> object:
    return world.coordinator.turn(world.workers[rank].session, world.now)


def test_the_rate_of_an_update_is_divided_by_one_more_than_its_staleness() -> None:
    world = two_workers(Each(2), scale_lr=True)
    acts(world, 0, 1)  # both begin with the first weights
    acts(world, 0, 1, 0, 1)
    assert [(made.shares, made.bases) for made in world.updates] == [((0,), (0,)), ((1,), (0,))]
    assert [made.lr for made in world.updates] == [1.0, 1.0 / 2]


def test_nobody_begins_what_lies_too_many_updates_ahead() -> None:
    world = two_workers(WithinBound(1, 2))
    acts(world, 0)  # holds share 0
    acts(world, *[1] * 9)
    assert world.updates == []
    assert turn(world, 1) == Wait(), "share 3 has to wait for the update of share 0"
    acts(world, 0, 0)
    assert [made.shares for made in world.updates] == [(0,), (1,), (2,)]
    assert turn(world, 1) == Share(0, 4, 4), "share 3 is rank 0's"


def test_gradients_that_come_after_the_first_are_dropped_and_their_samples_given_out_again() -> None:
    rule = First(2)
    world = World(rule, course(rule))
    for rank in range(3):
        world.join(rank)
    acts(world, 0, 1, 2, 0, 1, 2)  # shares 0, 1 and 2 are under way
    acts(world, 0, 2)  # the two that are first
    assert [(made.shares, made.bases) for made in world.updates] == [((0, 2), (0, 0))]
    acts(world, 1)
    assert world.coordinator.ledger.dropped == 1
    assert world.coordinator.queue.held_by(world.workers[1].session) == [1], "its own again"
    assert world.finish() == "finished"
    assert world.used() == everything(world)


def test_a_gradient_of_an_epoch_that_is_over_is_not_used_in_the_next() -> None:
    world = two_workers(Each(1), num_shares=1)
    acts(world, 0, 0)  # computes share 0
    assert world.silence() == [0]
    acts(world, *[1] * 10)
    assert world.commits == [1]
    assert world.coordinator.queue.held_by(world.workers[1].session) == [0], "share 0 of the next epoch"
    acts(world, 0)
    assert [(made.epoch, made.shares) for made in world.updates] == [(0, (0,))]
    assert world.coordinator.ledger.dropped == 1


def test_one_that_came_back_and_falls_silent_again_is_named_again() -> None:
    world = two_workers(Each(1))
    acts(world, 0)
    assert [world.silence(), world.silence()] == [[0], []]
    acts(world, 0, 0, 0)
    assert world.silence() == [0]


def test_whoever_has_nothing_to_do_takes_over_what_another_has_in_store() -> None:
    world = two_workers(Each(1), num_shares=3, in_store=1)
    acts(world, 0, 0, 1)
    queue, first, second = world.coordinator.queue, world.workers[0].session, world.workers[1].session
    assert (queue.held_by(first), queue.held_by(second)) == ([0, 1], [2])
    assert turn(world, 1) == Wait(), "it has something itself"
    acts(world, 1, 1, 1)
    assert (queue.held_by(first), queue.held_by(second)) == ([0], [1])


def test_of_backup_workers_each_has_its_part_of_a_step_and_more_only_while_others_are_missing() -> None:
    world = two_workers(First(2))
    acts(world, 0, 1, 0, 0)
    assert turn(world, 0) == Wait(), "the other half of the step is rank 1's"
    world.leave(1)
    assert turn(world, 0) == Share(0, 1, 0)


def test_of_backup_workers_one_that_is_silent_is_not_waited_for() -> None:
    world = two_workers(First(2))
    acts(world, 0, 1, 0, 0)
    assert turn(world, 0) == Wait()
    assert world.silence() == [1]
    world.coordinator.hear(world.workers[0].session, world.now)
    assert turn(world, 0) == Share(0, 1, 0)


def test_who_leads_a_commit_is_told_so_as_often_as_it_asks_and_nobody_else() -> None:
    world = two_workers(Each(2), commit_every=1)
    acts(world, 0, 0, 0, 0, 0)
    assert [turn(world, 0), turn(world, 1), turn(world, 0)] == [Lead(), Wait(), Lead()]
    world.leave(0)
    assert turn(world, 1) == Lead()


def test_how_many_gradients_it_has_sent_does_not_keep_a_worker_from_evaluation() -> None:
    rule = Each(1)
    world = World(rule, course(rule, num_shares=1))
    world.join(0)
    acts(world, 0, 0, 0)
    world.coordinator.members[world.workers[0].session].pushes = 1  # as a server counts
    assert turn(world, 0) == Evaluation(1)


def evaluating() -> World:
    """Rank 0 has evaluated one share of three, rank 1 has evaluated one and not said so."""
    world = two_workers(Each(1), num_shares=1)
    acts(world, *[0] * 5, 1, 1)
    assert world.coordinator.round is not None
    return world


@pytest.mark.parametrize("fate", ["leaves", "is silent"])
def test_an_evaluation_begins_anew_without_who_takes_what_it_found_along(fate: str) -> None:
    world = evaluating()
    world.die(1)
    if fate == "leaves":
        world.leave(1)
    else:
        acts(world, 0)
        world.now += world.course.hang_s
        world.coordinator.hear(world.workers[0].session, world.now)
        assert world.coordinator.overdue(world.now) == [1]
    assert turn(world, 0) == Evaluation(2)
    assert world.finish(told=False) == "finished"
    assert world.evaluated == [0, 1]


def test_an_evaluation_goes_on_without_who_has_said_what_it_found() -> None:
    world = evaluating()
    acts(world, 0, 0)
    assert world.workers[0].said
    world.leave(0)
    acts(world, 1)
    assert world.evaluated == [0]
    assert world.workers[1].leads


def test_when_who_leads_the_commit_of_an_epoch_dies_the_others_evaluate_again() -> None:
    world = evaluating()
    acts(world, 0, 0, 1)
    assert world.workers[1].leads
    world.die(1)
    world.leave(1)
    acts(world, 0)  # the round is over
    assert turn(world, 0) == Evaluation(2)


def test_a_commit_counts_only_from_who_leads_it() -> None:
    world = evaluating()
    with pytest.raises(KeyError, match=str(world.workers[0].session)):
        world.coordinator.committed(world.workers[0].session, {})


def test_a_worker_of_the_same_rank_takes_the_place_of_the_one_before() -> None:
    world = two_workers(Each(1))
    acts(world, 0)
    before = world.workers[0].session
    world.join(0)
    assert before not in world.coordinator.members
    assert turn(world, 1) == Share(0, 0, 0), "what it held"


@pytest.mark.parametrize("end", [End("finished"), End("stopped"), End("failed", "the disk is full")])
def test_a_snapshot_of_a_run_that_has_ended_ends_it_again(end: End) -> None:
    world = two_workers(Each(1))
    acts(world, 0, 0)
    world.coordinator.finish(end)
    world.coordinator.finish(End("failed", "later"))
    world.snapshot()
    world.restart()
    world.join(0)
    assert turn(world, 0) == end


def test_a_stop_before_anything_is_trained_ends_the_run_without_a_commit() -> None:
    world = two_workers(Each(1))
    world.stop()
    assert turn(world, 0) == End("stopped")


def test_a_stop_before_the_state_is_there_is_not_forgotten() -> None:
    world = two_workers(Each(2))
    world.stop()
    world.coordinator.begin_at(1, 4, {"steps": 6})
    assert turn(world, 0) == End("stopped")


def test_a_commit_that_a_snapshot_does_not_know_is_made_again() -> None:
    world = two_workers(Each(1), commit_every=2)
    acts(world, *[0] * 6)
    assert world.coordinator.queue.settled
    world.snapshot()
    acts(world, 0, 0)
    assert world.commits == [2]
    world.restart()
    world.join(0)
    assert turn(world, 0) == Lead()


def test_a_stop_is_in_a_snapshot() -> None:
    world = two_workers(Each(2))
    acts(world, 0, 0, 0)
    world.stop()
    world.snapshot()
    world.restart()
    world.join(0)
    assert world.finish() == "stopped"
    assert world.used() == Counter({(0, 0): 1, (0, 1): 1})


def test_a_snapshot_stays_as_it_is_while_training_goes_on() -> None:
    world = two_workers(Each(1))
    acts(world, 0, 0, 0)
    state = world.coordinator.state()
    text = json.dumps(state)
    world.finish()
    assert json.dumps(state) == text


def test_a_run_goes_on_from_the_commit_of_any_strategy_with_what_that_counted() -> None:
    world = two_workers(WithinBound(3, 1))
    counted = {"updates": 5, "updates_lost": 1, "staleness": {"0": 3, "2": 2}, "steps": 5, "epoch_replaced": 2}
    world.coordinator.ledger.updates_lost = 4  # told by those who knew more than this server
    world.coordinator.begin_at(1, 6, counted)
    assert turn(world, 0) == Share(1, 6, 5)
    books = world.coordinator.ledger.to_json()
    assert books["updates_lost"] == 5
    assert {name: books[name] for name in ("updates", "staleness", "epoch_replaced")} == {
        name: counted[name] for name in ("updates", "staleness", "epoch_replaced")
    }
    world.coordinator.begin_at(1, 6, counted | {"updates": None})
    assert world.coordinator.ledger.updates == 5, "of sync, as many as steps"


def test_a_run_that_was_trained_to_its_end_ends_at_once() -> None:
    world = two_workers(Each(1))
    world.coordinator.begin_at(2, 0, {"steps": 14})
    assert turn(world, 0) == End("finished")
