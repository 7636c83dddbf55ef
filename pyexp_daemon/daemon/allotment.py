"""The end of an allocation: nothing begins that it would cut off, and what runs gets time to save what it has."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import anyio
import anyio.to_thread

from pyexp_daemon import exceptions
from pyexp_daemon.daemon.allocation import Allocation, ask_end
from pyexp_daemon.daemon.control import Control
from pyexp_daemon.log import get_logger

log = get_logger()

LAST_WORDS_S = 10.0
"""How long a drain waits, beyond the grace of the children, for the database to take what is left."""

LOOK_S = 1.0

ASK_AGAIN_S = 300.0
"""How often the batch system is asked whether the end has moved."""

ONCE_MORE_S = 30.0
"""So long before what runs is asked to stop, it is asked once more."""

SAME_S = 30.0
"""A smaller move is none: limits are minutes, and the answer takes a moment."""


class Allotment:
    """Drains a daemon before its allocation ends. Without an allocation it does nothing."""

    def __init__(
        self,
        allocation: Allocation | None,
        control: Control,
        *,
        drain_s: Callable[[], float],
        last_s: Callable[[], float],
        needed_s: Callable[[], float | None],
        is_idle: Callable[[], bool],
        moved: Callable[[float | None], None],
        say: Callable[[str], None],
        ask: Callable[[], float | None] = ask_end,
        ask_again_s: float = ASK_AGAIN_S,
    ) -> None:
        """
        Args:
            drain_s: how long a drain waits for what runs.
            last_s: how long it takes after that to end what still runs, and to write everything down.
            needed_s: how long an experiment takes that begins now; None: nobody knows.
            is_idle: whether nothing runs, and nothing waits here.
            moved: told of another end than before.
            say: tells a person.
            ask: when the allocation ends by now, see `ask_end`; called in a thread.
        """
        self.ends = allocation.ends if allocation else None
        """Seconds since the epoch, as far as is known now; None: nobody knows, or never."""
        self._allocation = allocation
        self._control = control
        self._drain_s = drain_s
        self._last_s = last_s
        self._needed_s = needed_s
        self._is_idle = is_idle
        self._moved = moved
        self._say = say
        self._ask = ask
        self._ask_again_s = ask_again_s

    @property
    def left_s(self) -> float:
        """Seconds until what runs is asked to stop."""
        return math.inf if self.ends is None else self.ends - time.time() - self._drain_s() - self._last_s()

    def may_begin(self) -> bool:
        """Whether an experiment that begins now ends before that, as far as anybody can tell."""
        return self.ends is None or self.left_s > (self._needed_s() or 0.0)

    async def run(self) -> None:
        """Wait for the moment to drain, or until there is nothing more that could be finished."""
        if self._allocation is None:
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._ask_again)
            while self.left_s > 0 and not (self._is_idle() and not self.may_begin()):  # noqa: ASYNC110 time tells
                await anyio.sleep(min(LOOK_S, max(0.05, self.left_s)))
            tasks.cancel_scope.cancel()
        self._drain()

    def _drain(self) -> None:
        left_s = (self.ends or 0.0) - time.time()
        log.info("allocation.ending", left_s=round(left_s, 1))
        self._say(f"the allocation ends in {left_s:.0f} s: nothing more is begun")
        if self._control.deadline_at is None:  # else that was said before, and again would mean at once
            self._control.drain(deadline_s=max(0.0, min(self._drain_s(), left_s - self._last_s())))

    async def _ask_again(self) -> None:
        """Ask now and then when the allocation ends, for limits are changed; what is not known stays as it was."""
        is_silent = False
        while True:
            await anyio.sleep(self._pause_s())
            try:
                ends = await anyio.to_thread.run_sync(self._ask, abandon_on_cancel=True)
            except exceptions.AllocationUnknown as unknown:
                if not is_silent:
                    log.warning("allocation.unknown", command=unknown.command, error=unknown.error)
                is_silent = True
                continue
            is_silent = False
            if ends is None:
                return  # there is nobody to ask
            self._note(ends)

    def _pause_s(self) -> float:
        """Until it is asked next: shortly before the end that is known, too, if that comes first."""
        left_s = self.left_s - ONCE_MORE_S
        return left_s if 0 < left_s < self._ask_again_s else self._ask_again_s

    def _note(self, ends: float) -> None:
        before = math.inf if self.ends is None else self.ends
        if ends == before or abs(ends - before) < SAME_S:
            return
        self.ends = None if ends == math.inf else ends
        log.info("allocation.moved", left_s=None if self.ends is None else round(ends - time.time(), 1))
        self._moved(self.ends)
