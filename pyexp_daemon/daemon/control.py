"""What the daemon has been told to do, and the one place where its loop waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")


class Control:
    """Flags that signals, commands and services set and the loop looks at between its steps."""

    def __init__(
        self, *, on_pause: Callable[[], None] = lambda: None, on_drain: Callable[[], None] = lambda: None
    ) -> None:
        """
        Args:
            on_pause: called at every pause, at once: what was claimed ahead must not begin any more.
            on_drain: called whenever a drain is asked for, at once: who ends us may tell our children, too, and what
                dies of that is told from what crashes by whether it was asked to stop.
        """
        self._on_pause = on_pause
        self._on_drain = on_drain
        self.draining = False
        self.skip_wait = False
        self.deadline_s: float | None = None
        """How long what runs may still go on, from `deadline_at` on; None for as long as it takes."""
        self.deadline_at: float | None = None
        """Loop time at which what runs is stopped; None while a drain has no deadline."""
        self.reset_asked = False
        self._pauses: dict[str, str] = {}
        self._wake = anyio.Event()
        self._drain_asked_at = 0.0
        self._interruptible: anyio.CancelScope | None = None

    def drain(self, *, deadline_s: float | None) -> None:
        """Claim nothing more and end; running experiments get `deadline_s` seconds (None: all the time they need).

        A deadline may follow later; asked for one again after more than a second, the wait is skipped. (A key held
        down repeats within the second.)
        """
        now = anyio.current_time()
        if deadline_s is not None:
            if self.deadline_at is None:
                self.deadline_s, self.deadline_at, self._drain_asked_at = deadline_s, now + deadline_s, now
            else:
                self.skip_wait = self.skip_wait or now - self._drain_asked_at > 1.0
        self.draining = True
        self._on_drain()
        self._interrupt()

    def reset(self) -> None:
        """Hand back everything and begin anew; nothing while draining."""
        self.reset_asked = not self.draining
        self._interrupt()

    def pause(self, source: str, reason: str) -> None:
        """Claim nothing until every source that paused us resumes; what runs goes on."""
        self._pauses[source] = reason
        self._on_pause()
        self.wake()

    def resume(self, source: str | None = None) -> None:
        """Take back the pause of this source; of all of them for None."""
        if source is None:
            self._pauses.clear()
        else:
            self._pauses.pop(source, None)
        self.wake()

    @property
    def paused(self) -> str | None:
        """Why nothing is claimed; None when nothing keeps us from it."""
        return "; ".join(self._pauses.values()) or None

    def is_paused_by(self, source: str) -> bool:
        return source in self._pauses

    def is_paused_only_by(self, source: str) -> bool:
        return set(self._pauses) == {source}

    async def unless_told(self, task: Callable[[], Awaitable[T]]) -> T | None:
        """What the task gives; None when a drain or a reset is asked for first, or has been, which cancels it."""
        if self.draining or self.reset_asked:
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

    def _interrupt(self) -> None:
        if self._interruptible is not None:
            self._interruptible.cancel()
        self.wake()
