"""The shares of one epoch's samples: handed out to whoever is free, done once each.

A share is a range of positions of the epoch's order, known by its number. What its holder does not finish comes back
and is handed out again. No more than those below `fence` are handed out, so that all can be at one point for a commit.
"""

import heapq
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

Holder = Hashable


@dataclass
class _Lease:
    holder: Holder
    since: float


class WorkQueue:
    """Shares 0 to num - 1, of which those in `done` have been done before."""

    def __init__(self, num: int, *, done: Iterable[int] = ()) -> None:
        self.num = num
        self.fence = num
        self._done = set(done)
        self._returned = [share for share in range(self._first_missing()) if share not in self._done]
        self._fresh = self._first_missing()
        self._leases: dict[int, _Lease] = {}
        self._arrived: set[int] = set()

    def _first_missing(self) -> int:
        return max(self._done, default=-1) + 1

    @property
    def num_done(self) -> int:
        return len(self._done)

    @property
    def settled(self) -> bool:
        """Whether all below the fence is done."""
        return len(self._done) >= self.fence

    @property
    def handed_out(self) -> int:
        """How many have ever been: all of a higher number are fresh."""
        return self._fresh

    def peek(self) -> int | None:
        """The share that would be handed out next."""
        if self._returned:
            return self._returned[0]
        while self._fresh in self._done:
            self._fresh += 1
        return self._fresh if self._fresh < self.fence else None

    def lease(self, holder: Holder, now: float) -> int | None:
        """Hand out the next share, one that came back first; None: there is none now."""
        share = self.peek()
        if share is None:
            return None
        if self._returned:
            heapq.heappop(self._returned)
        else:
            self._fresh += 1
        self._leases[share] = _Lease(holder, now)
        return share

    def take_over(self, holder: Holder, now: float) -> int | None:
        """Hand out a share that another holds, but cannot have begun: it holds one that is older; None: there is none.

        Whoever brings it first has done it. So the end of an epoch does not wait for what the slowest has in store.
        """
        oldest: dict[Holder, float] = {}
        for lease in self._leases.values():
            oldest[lease.holder] = min(lease.since, oldest.get(lease.holder, lease.since))
        waiting = {
            share: lease.since
            for share, lease in self._leases.items()
            if lease.holder != holder and lease.since > oldest[lease.holder]
        }
        if not waiting:
            return None
        share = min(waiting, key=lambda each: (waiting[each], each))
        self._leases[share] = _Lease(holder, now)
        return share

    def arrive(self, share: int) -> bool:
        """Note that a share's result is here, whoever brought it; False: it is here already, or not wanted any more."""
        if share in self._arrived or share in self._done or share not in self._leases:
            return False
        del self._leases[share]
        self._arrived.add(share)
        return True

    def finish(self, share: int) -> None:
        """What arrived has been used."""
        self._arrived.remove(share)
        self._done.add(share)

    def give_back(self, share: int) -> None:
        """Hand a share out again: its result was not used, or will not come."""
        self._arrived.discard(share)
        self._leases.pop(share, None)
        heapq.heappush(self._returned, share)

    def held_by(self, holder: Holder) -> list[int]:
        return sorted(share for share, lease in self._leases.items() if lease.holder == holder)

    def leave(self, holder: Holder) -> list[int]:
        """Take back all that one holds; returns which."""
        shares = self.held_by(holder)
        for share in shares:
            self.give_back(share)
        return shares

    def done_ranges(self) -> list[tuple[int, int]]:
        """What is done, as (first, one past the last)."""
        ranges: list[tuple[int, int]] = []
        for share in sorted(self._done):
            if ranges and ranges[-1][1] == share:
                ranges[-1] = ranges[-1][0], share + 1
            else:
                ranges.append((share, share + 1))
        return ranges
