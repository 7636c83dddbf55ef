"""What the daemon has been told to do, and the one place where its loop waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")


class Control:
    """Flags that signals and commands set and the loop looks at between its steps."""

    def __init__(self) -> None:
        self.draining = False
        self.skip_wait = False
        self.deadline_s: float | None = None
        self._wake = anyio.Event()
        self._drain_asked_at = 0.0
        self._interruptible: anyio.CancelScope | None = None

    def drain(self, *, deadline_s: float | None) -> None:
        """Claim nothing more and end; running experiments get `deadline_s` seconds (None: all the time they need).

        Asked again after more than a second, the wait is skipped. (A key held down repeats within the second.)
        """
        now = anyio.current_time()
        if self.draining:
            self.skip_wait = self.skip_wait or now - self._drain_asked_at > 1.0
        else:
            self.draining, self.deadline_s, self._drain_asked_at = True, deadline_s, now
            if self._interruptible is not None:
                self._interruptible.cancel()
        self.wake()

    async def unless_draining(self, task: Callable[[], Awaitable[T]]) -> T | None:
        """What the task gives; None when a drain begins first, or has begun, which cancels it."""
        if self.draining:
            return None
        with anyio.CancelScope() as self._interruptible:
            return await task()
        return None

    def wake(self) -> None:
        """End the current or next `sleep`."""
        self._wake.set()

    async def sleep(self, seconds: float) -> None:
        """Wait, at most so long; something to do ends it at once."""
        with anyio.move_on_after(seconds):
            await self._wake.wait()
        self._wake = anyio.Event()
