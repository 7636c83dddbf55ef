"""From a plain thread to the event loop, without either ever waiting for the other."""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A queue whose `put` may be called from any thread and whose `take` is awaited in the loop."""

    def __init__(self) -> None:
        self._letters: deque[T] = deque()
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_closed = False
        self._lock = threading.Lock()

    def put(self, letter: T) -> None:
        """Add a letter; after `close` nobody reads it."""
        self._letters.append(letter)
        with self._lock:  # the number of a closed descriptor may be that of somebody's file by now
            if not self._is_closed:
                os.eventfd_write(self._descriptor, 1)

    async def take(self) -> T:
        while not self._letters:
            await anyio.wait_readable(self._descriptor)
            try:
                os.eventfd_read(self._descriptor)
            except BlockingIOError:
                continue
        return self._letters.popleft()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            os.close(self._descriptor)
