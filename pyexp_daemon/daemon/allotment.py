"""The end of an allocation: nothing begins that it would cut off, and what runs gets time to save what it has."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio

from pyexp_daemon.daemon.control import Control
from pyexp_daemon.log import get_logger

log = get_logger()

LAST_WORDS_S = 10.0
"""How long a drain waits, beyond the grace of the children, for the database to take what is left."""

LOOK_S = 1.0


class Allotment:
    """Drains a daemon before its allocation ends. Without an end it does nothing."""

    def __init__(
        self,
        ends: float | None,
        control: Control,
        *,
        drain_s: Callable[[], float],
        last_s: Callable[[], float],
        needed_s: Callable[[], float | None],
        is_idle: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        """
        Args:
            ends: seconds since the epoch; None: never.
            drain_s: how long a drain waits for what runs.
            last_s: how long it takes after that to end what still runs, and to write everything down.
            needed_s: how long an experiment takes that begins now; None: nobody knows.
            is_idle: whether nothing runs, and nothing waits here.
            say: tells a person.
        """
        self._ends = ends
        self._control = control
        self._drain_s = drain_s
        self._last_s = last_s
        self._needed_s = needed_s
        self._is_idle = is_idle
        self._say = say

    @property
    def left_s(self) -> float:
        """Seconds until what runs is asked to stop."""
        return float("inf") if self._ends is None else self._ends - time.time() - self._drain_s() - self._last_s()

    def may_begin(self) -> bool:
        """Whether an experiment that begins now ends before that, as far as anybody can tell."""
        needed_s = self._needed_s() or 0.0
        return self._ends is None or self.left_s > needed_s

    async def run(self) -> None:
        """Wait for the moment to drain, or until there is nothing more that could be finished."""
        if self._ends is None:
            return
        while self.left_s > 0 and not (self._is_idle() and not self.may_begin()):  # noqa: ASYNC110 time tells, no event
            await anyio.sleep(min(LOOK_S, max(0.05, self.left_s)))
        left_s = self._ends - time.time()
        log.info("allocation.ending", left_s=round(left_s, 1))
        self._say(f"the allocation ends in {left_s:.0f} s: nothing more is begun")
        if self._control.deadline_at is None:  # else that was said before, and again would mean at once
            self._control.drain(deadline_s=max(0.0, min(self._drain_s(), left_s - self._last_s())))
