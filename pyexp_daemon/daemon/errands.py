"""What may hang for ever, as a disk does whose server is away: done in threads, and waited for no longer than a moment.

A thread that hangs cannot be ended. It is left behind, and must not be joined either.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")

PATIENCE_S = 5.0
"""How long a disk may take over one step."""


class DiskHangs(OSError):
    """The disk did not answer in time, or not yet since; what was asked of it has no effect, even if it comes back."""

    def __init__(self) -> None:
        super().__init__(errno.ETIMEDOUT, "the disk does not answer")


class Errands:
    """Runs what blocks on one disk. As long as something hangs there, nothing else is begun."""

    def __init__(self) -> None:
        self._left_behind: list[_Errand] = []

    @property
    def hang(self) -> bool:
        """Whether something that was given up is still at it."""
        self._left_behind = [errand for errand in self._left_behind if not errand.is_over]
        return bool(self._left_behind)

    async def run(self, work: Callable[[], T], *, undo: Callable[[T], object] = lambda done: None) -> T:
        """What `work`, run in a thread, returns. Cancelled, it ends after that, or after the same moment.

        Args:
            undo: called with it in the same thread when it comes too late.

        Raises:
            DiskHangs: it took too long, or something before it still does.
        """
        if self.hang:
            raise DiskHangs
        errand = _Errand(work, undo)
        # Shielded: whoever cancels this must not believe that nobody touches the disk any more.
        with anyio.CancelScope(shield=True) as waiting:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(errand.cancel_when_stuck, waiting)
                try:
                    await anyio.to_thread.run_sync(errand.run, abandon_on_cancel=True)
                except RuntimeError as error:  # there is no thread to be had
                    errand.refuse(OSError(errno.EAGAIN, str(error)))
                tasks.cancel_scope.cancel()
        if errand.give_up():
            self._left_behind.append(errand)
            raise DiskHangs
        if errand.error is not None:
            raise errand.error
        result: T = errand.result
        return result

    def later(self, work: Callable[[], object]) -> None:
        """Do this as soon as what hangs comes back, in its thread; now if nothing does."""
        if not any(errand.add(work) for errand in self._left_behind):
            work()


def goes_on() -> None:
    """Long work calls this now and then in its thread: the disk answers."""
    errand = _at_work.get()
    if errand is not None:
        errand.moved_at = time.monotonic()


class _Errand:
    """One piece of work, and who has the last word on it: its thread, or the one who waits for it."""

    def __init__(self, work: Callable[[], Any], undo: Callable[[Any], object]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_over = False
        self.moved_at = time.monotonic()
        self._work = work
        self._undo = undo
        self._then: list[Callable[[], object]] = []
        self._has_begun = False
        self._is_given_up = False
        self._lock = threading.Lock()

    async def cancel_when_stuck(self, waiting: anyio.CancelScope) -> None:
        while (left := self.moved_at + PATIENCE_S - time.monotonic()) > 0:  # noqa: ASYNC110 of another thread
            await anyio.sleep(left)
        waiting.cancel()

    def run(self) -> None:
        if not self._begins():
            return
        _at_work.set(self)
        try:
            self.result = self._work()
        except BaseException as error:  # noqa: BLE001 it is raised where the result is wanted
            self.error = error
        with self._lock:
            if not self._is_given_up:
                self.is_over = True
                return
        if self.error is None:
            self._then.insert(0, lambda: self._undo(self.result))
        while True:
            with self._lock:
                if not self._then:
                    self.is_over = True
                    return
                work = self._then.pop(0)
            with suppress(Exception):  # nobody waits for it any more
                work()

    def _begins(self) -> bool:
        with self._lock:
            self._has_begun = not self._is_given_up
            return self._has_begun

    def refuse(self, error: OSError) -> None:
        """It never began."""
        self.error, self.is_over = error, True

    def give_up(self) -> bool:
        """From now on the result is not wanted; False when it is there."""
        with self._lock:
            self._is_given_up = not self.is_over
            # A process that was stopped may give up before there was a thread: then none will ever say that it is over.
            self.is_over = self.is_over or not self._has_begun
            return self._is_given_up

    def add(self, work: Callable[[], object]) -> bool:
        """Let the thread do this, too; False when it is at its end."""
        with self._lock:
            if not self.is_over:
                self._then.append(work)
            return not self.is_over


_at_work: ContextVar[_Errand | None] = ContextVar("at_work", default=None)


def briefly(work: Callable[[], object]) -> None:
    """Do what may hang outside any event loop; after a moment we go on without."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
