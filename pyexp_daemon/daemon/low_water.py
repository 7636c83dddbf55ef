"""Where a claim begins beside an old read view, which keeps the server from removing what was claimed from its index.

Without a mark every claim walks over all that was claimed since that view began.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyexp_daemon.model import Claim
from pyexp_daemon.store.leases import Mark

SLOW_S = 0.005
"""A claim that takes longer may have walked."""

RECHECK_S = 1.0
"""So often a claim begins at the head, for experiments of a smaller order that came since …"""

RARELY = 20
"""… and more seldom where that takes long: for a twentieth of the time."""


class LowWater:
    """The mark of one queue: set by a slow claim, taken away by an empty one or by a fast one from the head."""

    def __init__(self) -> None:
        self._mark: Mark | None = None
        self._looked = float("-inf")
        self._took_s = 0.0

    def mark(self, *, now: float) -> Mark | None:
        """The order and the experiment at which a claim that is sent now begins; None: at the head.

        Args:
            now: monotonic time.
        """
        if self._mark is not None and now < self._looked + max(RECHECK_S, RARELY * self._took_s):
            return self._mark
        self._looked = now
        return None

    def claimed(self, claims: Sequence[Claim], *, mark: Mark | None, seconds: float) -> None:
        """A claim that began at `mark` took so long and brought these, smallest order first."""
        if mark is None:
            self._looked, self._took_s = self._looked + seconds, seconds
        walks = mark is not None or seconds > SLOW_S
        self._mark = (claims[-1].order, claims[-1].experiment_id) if claims and walks else None
