"""From a plain thread to the event loop, without either ever waiting for the other."""

from __future__ import annotations

import os
from collections import deque
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A queue whose `put` may be called from any thread and whose `take` is awaited in the loop."""

    def __init__(self) -> None:
        self._letters: deque[T] = deque()
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def put(self, letter: T) -> None:
        self._letters.append(letter)
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
        os.close(self._descriptor)
