from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.parameter_server.work_queue import WorkQueue

NUM, WORKERS = 7, range(3)


def leased(queue: WorkQueue, holder: int, count: int, now: float = 0.0) -> list[int | None]:
    return [queue.lease(holder, now) for _ in range(count)]


def use(queue: WorkQueue, *shares: int) -> None:
    for share in shares:
        assert queue.arrive(share)
        queue.finish(share)


def test_shares_are_handed_out_in_order_and_those_that_came_back_first() -> None:
    queue = WorkQueue(5)
    assert leased(queue, 1, 3) == [0, 1, 2]
    assert queue.leave(1) == [0, 1, 2]
    assert leased(queue, 2, 6) == [0, 1, 2, 3, 4, None]
    assert queue.held_by(1) == []
    assert queue.held_by(2) == [0, 1, 2, 3, 4]


def test_nothing_beyond_the_fence_is_handed_out_until_it_is_moved() -> None:
    queue = WorkQueue(5)
    queue.fence = 2
    assert leased(queue, 1, 3) == [0, 1, None]
    use(queue, 1)
    assert not queue.settled
    use(queue, 0)
    assert queue.settled
    queue.fence = 4
    assert not queue.settled
    assert leased(queue, 1, 3) == [2, 3, None]


def test_a_share_that_came_back_keeps_the_fence_open() -> None:
    queue = WorkQueue(4)
    queue.fence = 2
    leased(queue, 1, 2)
    use(queue, 1)
    queue.give_back(0)
    assert not queue.settled
    assert leased(queue, 2, 2) == [0, None]


def test_a_result_counts_once_whoever_brings_it() -> None:
    queue = WorkQueue(2)
    leased(queue, 1, 1)
    queue.leave(1)
    assert not queue.arrive(0), "nobody was asked for it"
    queue.lease(2, 0.0)
    assert queue.arrive(0), "by whomever"
    assert not queue.arrive(0), "it is here"
    queue.finish(0)
    assert not queue.arrive(0), "it is done"
    assert not queue.arrive(1), "it was never handed out"


def test_a_result_that_was_not_used_is_asked_for_again() -> None:
    queue = WorkQueue(2)
    leased(queue, 1, 2)
    queue.arrive(0)
    queue.give_back(0)
    assert (queue.num_done, queue.lease(2, 0.0)) == (0, 0)


@pytest.mark.parametrize(
    ("leases", "holder", "expected"),
    [
        ([], 9, None),
        ([(1, 0.0)], 9, None),
        ([(1, 0.0), (1, 1.0)], 9, 1),
        ([(1, 0.0), (1, 1.0)], 1, None),
        ([(1, 0.0), (2, 1.0), (2, 3.0), (1, 2.0)], 9, 3),
        ([(1, 0.0), (1, 0.0)], 9, None),
        ([(1, 0.0), (2, 0.5)], 2, None),
    ],
    ids=["nothing is held", "begun", "in store", "one's own", "of several the oldest", "of one moment", "both begun"],
)
def test_only_what_another_has_in_store_is_taken_over(
    leases: list[tuple[int, float]], holder: int, expected: int | None
) -> None:
    queue = WorkQueue(len(leases))
    for each, now in leases:
        queue.lease(each, now)
    assert queue.take_over(holder, 9.0) == expected
    if expected is not None:
        assert queue.held_by(holder) == [expected]
        assert queue.arrive(expected), "of whoever is first"
        assert not queue.arrive(expected)


def test_what_was_taken_over_does_not_come_back_from_who_had_it() -> None:
    queue = WorkQueue(2)
    queue.lease(1, 0.0)
    queue.lease(1, 1.0)
    assert queue.take_over(2, 2.0) == 1
    assert queue.leave(1) == [0]
    assert queue.leave(2) == [1]


@given(done=st.sets(st.integers(0, 30)))
def test_what_is_done_is_told_in_ranges_from_which_the_rest_is_done(done: set[int]) -> None:
    queue = WorkQueue(31, done=done)
    ranges = queue.done_ranges()
    assert {share for first, stop in ranges for share in range(first, stop)} == done
    assert all(before[1] < after[0] for before, after in pairwise(ranges)), "apart, ascending"
    again = WorkQueue(31, done=(share for first, stop in ranges for share in range(first, stop)))
    assert (again.num_done, again.handed_out) == (len(done), max(done, default=-1) + 1)
    rest = [share for share in leased(again, 1, 32) if share is not None]
    assert rest == sorted(set(range(31)) - done)
    use(again, *rest)
    assert again.settled
    assert again.done_ranges() == [(0, 31)]


@dataclass
class Expected:
    """What a queue should say, kept the simple way: what has become of each share."""

    state: list[str]
    holder: dict[int, int] = field(default_factory=dict)
    used: list[int] = field(default_factory=list)

    def of(self, state: str) -> list[int]:
        return [share for share, each in enumerate(self.state) if each == state]

    def held_by(self, worker: int) -> list[int]:
        return [share for share in self.of("held") if self.holder[share] == worker]

    def next(self, fence: int) -> int | None:
        fresh = [share for share in self.of("fresh") if share < fence]
        return min(self.of("back") or fresh, default=None)


OPERATIONS = ("lease", "lease", "arrive", "finish", "give_back", "leave", "take_over", "fence")


def apply(queue: WorkQueue, expected: Expected, operation: str, worker: int, share: int, now: float) -> None:
    match operation:
        case "lease":
            following = expected.next(queue.fence)
            assert queue.peek() == following
            assert queue.lease(worker, now) == following
            if following is not None:
                expected.state[following], expected.holder[following] = "held", worker
        case "arrive":
            assert queue.arrive(share) == (expected.state[share] == "held")
            if expected.state[share] == "held":
                expected.state[share] = "arrived"
        case "finish" if expected.state[share] == "arrived":
            queue.finish(share)
            expected.used.append(share)
            expected.state[share] = "done"
        case "give_back" if expected.state[share] in ("held", "arrived"):
            queue.give_back(share)
            expected.state[share] = "back"
        case "leave":
            assert queue.leave(worker) == expected.held_by(worker)
            for each in expected.held_by(worker):
                expected.state[each] = "back"
        case "take_over":
            taken = queue.take_over(worker, now)
            if taken is not None:
                assert expected.state[taken] == "held"
                former = expected.holder[taken]
                assert former != worker
                assert len(expected.held_by(former)) > 1, "it has another that it can be at"
                expected.holder[taken] = worker
        case "fence":
            queue.fence = max(queue.handed_out, share)


@settings(deadline=None, max_examples=300)
@given(
    done=st.sets(st.integers(0, NUM - 1)),
    schedule=st.lists(
        st.tuples(st.sampled_from(OPERATIONS), st.sampled_from(WORKERS), st.integers(0, NUM - 1)), max_size=60
    ),
)
def test_whatever_happens_each_share_is_done_once(done: set[int], schedule: list[tuple[str, int, int]]) -> None:
    queue = WorkQueue(NUM, done=done)
    before = max(done, default=-1) + 1
    states = ["done" if share in done else "back" if share < before else "fresh" for share in range(NUM)]
    expected = Expected(states)
    for now, (operation, worker, share) in enumerate(schedule):
        apply(queue, expected, operation, worker, share, float(now))
        assert queue.num_done == len(expected.of("done"))
        assert all(queue.held_by(each) == expected.held_by(each) for each in WORKERS)
        assert all(expected.state[each] == "fresh" for each in range(queue.handed_out, NUM))
        assert queue.settled == (queue.num_done >= queue.fence)
    queue.fence = NUM
    for worker in WORKERS:
        queue.leave(worker)
    for share in expected.of("arrived"):
        queue.give_back(share)
    rest = [share for share in leased(queue, 9, NUM) if share is not None]
    use(queue, *rest)
    assert sorted([*done, *expected.used, *rest]) == list(range(NUM))
    assert queue.settled
    assert queue.lease(9, 0.0) is None
