"""Where in a queue a claim begins, when not at its head.

Beside an old read view, which keeps the server from removing what was claimed from its index, a claim from the head
walks over all that was claimed since that view began: after a slow one the next begins where it ended. And in a crowd
all would meet at the head: each begins at a place of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyexp_daemon.daemon.fleet import Fleet
from pyexp_daemon.model import Claim
from pyexp_daemon.store.leases import Mark

SLOW_S = 0.005
"""A claim that takes longer may have walked."""

RECHECK_S = 1.0
"""So often a claim begins at the head, for experiments of a smaller order that came since …"""

RARELY = 20
"""… and more seldom where that takes long: for a twentieth of the time; …"""

MOST_HEADS_PER_S = 16.0
"""… and in a crowd, which would meet there: so often a second, all together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a claim begins, as `leases.claim` is told."""

    mark: Mark | None = None
    same_order: bool = False
    at_random: bool = False


HEAD = Start()
ANYWHERE = Start(at_random=True)


class LowWater:
    """Where the claims of one queue begin.

    In a small fleet: at a mark that is set by a slow claim, and taken away by an empty one or by a fast one from the
    head. In a crowd: at a random place among the experiments of the smallest order, and then where the last one ended,
    until nothing is left there.
    """

    def __init__(self, fleet: Fleet | None = None) -> None:
        self._fleet = fleet or Fleet()
        self._next = HEAD
        self._looked = float("-inf")
        self._took_s = 0.0

    def start(self, *, now: float) -> Start:
        """Where a claim begins that is sent now.

        Args:
            now: monotonic time.
        """
        recheck_s = self._fleet.pause_s(RECHECK_S, per_s=MOST_HEADS_PER_S)
        if self._next != HEAD and now < self._looked + max(recheck_s, RARELY * self._took_s):
            return self._next
        self._looked = now
        return HEAD

    def claimed(self, claims: Sequence[Claim], *, start: Start, seconds: float) -> None:
        """A claim that began there took so long and brought these, smallest order first."""
        if start == HEAD:
            self._looked, self._took_s = self._looked + seconds, seconds
        if not claims:
            self._next = HEAD
        # Where few have the same order, those that come next are nowhere but at the head.
        elif self._fleet.is_crowd and claims[0].order == claims[-1].order:
            self._next = self._apart(_place(claims[0]), _place(claims[-1]), start)
        else:
            is_marked = start.mark is not None and not start.same_order
            self._next = Start(mark=_place(claims[-1])) if is_marked or seconds > SLOW_S else HEAD

    def _apart(self, first: Mark, last: Mark, start: Start) -> Start:
        """Where a crowd's next claim begins after one that brought what lies between these, all of one order."""
        ours = self._next.mark if self._next.same_order else None
        if start == HEAD and ours and ours[0] <= first[0]:
            return self._next
        wrapped = start.mark is not None and (first < start.mark or first[0] > start.mark[0])
        if start == HEAD or wrapped or not (start.same_order or start.at_random):
            return ANYWHERE
        return Start(mark=last, same_order=True)


def _place(claim: Claim) -> Mark:
    return claim.order, claim.experiment_id
