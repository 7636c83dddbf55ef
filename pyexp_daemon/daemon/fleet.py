"""How many daemons there are at the table: the more, the more seldom each asks, for the server hears them all."""

from __future__ import annotations

from dataclasses import dataclass

CROWD = 8
"""More daemons than these get into each other's way on one server, and do less together."""


@dataclass(slots=True)
class Fleet:
    """The live daemons of the table as they were seen last; alone until then."""

    size: int = 1
    rank: int = 0
    """How many of them were there before us."""

    @property
    def is_crowd(self) -> bool:
        """Whether they are so many that they take turns, and claim at several places at once."""
        return self.size > CROWD

    def pause_s(self, least_s: float, *, per_s: float) -> float:
        """How long each waits so that all together do something at most so often a second; at least `least_s`."""
        return max(least_s, self.size / per_s)

    def pause_by_rank_s(self, least_s: float, *, first: int) -> float:
        """How long we wait so that the `first` of them do something as often as if they were alone, and those behind
        more and more seldom: they only stand in.
        """
        return least_s * max(1.0, (self.rank + 1) / first)
