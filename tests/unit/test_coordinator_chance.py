"""Decisions of a parameter server under schedules of chance: what holds whatever happens to workers."""

from collections import Counter

from coordinator_runs import World, course, everything
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.parameter_server.rules import Each, First, Rule, WithinBound

RULES: list[Rule] = [
    *(Each(shares) for shares in (1, 3)),
    *(WithinBound(shares, staleness) for shares in (1, 3) for staleness in range(5)),
    *(First(3 - backup) for backup in range(3)),
]
RANKS = st.integers(0, 2)
EVENTS = st.one_of(
    *[st.tuples(st.just("act"), RANKS)] * 12,
    st.tuples(st.sampled_from(("join", "die", "leave")), RANKS),
    st.tuples(st.sampled_from(("silence", "snapshot", "restart")), st.none()),
)
worlds = st.builds(
    lambda rule, eager, **options: World(rule, course(rule, **options), eager=eager),
    st.sampled_from(RULES),
    st.booleans(),
    in_store=st.sampled_from((0, 1)),
    commit_every=st.sampled_from((0, 0, 1, 2)),
    num_shares=st.integers(1, 7),
    val_shares=st.integers(1, 3),
)


def happen(world: World, schedule: list[tuple[str, int | None]]) -> None:
    for what, rank in schedule:
        getattr(world, what)(*([] if rank is None else [rank]))


@settings(deadline=None, max_examples=400)
@given(world=worlds, schedule=st.lists(EVENTS, max_size=150), told=st.booleans())
def test_whatever_happens_to_workers_a_run_ends_with_every_share_used_once(
    world: World, schedule: list[tuple[str, int | None]], told: bool
) -> None:
    world.join(0)
    happen(world, schedule)
    world.join(0)
    assert world.finish(told=told) == "finished"
    assert world.used() == everything(world)
    assert {0, 1} <= set(world.evaluated), "each epoch"
    steps, every = world.course.num_steps, world.course.commit_every
    due = {*(range(every, 2 * steps, every) if every else ()), steps, 2 * steps}
    assert set(world.commits) == due


@settings(deadline=None, max_examples=200)
@given(world=worlds, before=st.lists(EVENTS, max_size=80), after=st.lists(EVENTS, max_size=40), told=st.booleans())
def test_a_run_that_is_to_stop_ends_at_a_step_that_is_committed_and_may_go_on_there(
    world: World, before: list[tuple[str, int | None]], after: list[tuple[str, int | None]], told: bool
) -> None:
    world.join(0)
    happen(world, before)
    world.stop()
    happen(world, [event for event in after if event[0] != "restart"])
    world.join(0)
    status = world.finish(told=told)
    ledger, used = world.coordinator.ledger, world.used()
    assert ledger.samples == 0, "all is committed"
    assert set(used.values()) <= {1}
    epoch, step, _ = world.coordinator.position()
    assert status == ("finished" if epoch == 2 else "stopped")
    done = [min(step * world.rule.shares_a_step, world.course.num_shares) if each == epoch else 0 for each in range(2)]
    done[:epoch] = [world.course.num_shares] * epoch
    assert used == Counter((each, share) for each in range(2) for share in range(done[each]))


@settings(deadline=None, max_examples=100)
@given(
    rule=st.sampled_from([WithinBound(shares, 0) for shares in (1, 2, 3)]),
    schedule=st.lists(EVENTS.filter(lambda event: event[0] != "restart"), max_size=100),
    in_store=st.sampled_from((0, 1)),
)
def test_a_staleness_of_0_makes_the_updates_of_sync_whoever_computes_them(
    rule: Rule, schedule: list[tuple[str, int | None]], in_store: int
) -> None:
    world = World(rule, course(rule, in_store=in_store))
    world.join(0)
    happen(world, schedule)
    world.join(0)
    world.finish()
    a_step = rule.shares_a_step
    steps = [(epoch, tuple(range(7))[first : first + a_step]) for epoch in range(2) for first in range(0, 7, a_step)]
    assert [(made.epoch, made.shares) for made in world.updates] == steps
    assert [made.lr for made in world.updates] == [1.0 + step for step in range(len(steps))]
    assert [set(made.bases) for made in world.updates] == [{version} for version in range(len(steps))]
