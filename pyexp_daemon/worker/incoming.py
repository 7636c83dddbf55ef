"""What a child says, as the daemon takes it in."""

from __future__ import annotations

import asyncio
import socket
from collections import deque

import anyio

from pyexp_daemon.worker import channel
from pyexp_daemon.worker.channel import Message

MOST_UNHEARD = 64
MOST_UNHEARD_BYTES = 2**20
"""So many messages, or bytes, are taken from a child ahead of whoever hears them; then it has to wait."""


class Incoming:
    """Takes in what a child sends, as it comes.

    To watch the socket for each message anew would cost more than the message itself.
    """

    def __init__(self, connection: socket.socket, *, limit_bytes: int) -> None:
        self.fault: channel.ChannelError | None = None
        self.was_reset = False
        """Whether the child ended before it had read what was sent to it."""
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._frames = channel.FrameBuffer(limit_bytes=limit_bytes)
        self._messages: deque[Message] = deque()
        self._unheard_bytes = 0
        self._trouble: Exception | None = None
        self._has_ended = False
        self._is_watching = False
        self._arrived = anyio.Event()

    async def next(self) -> Message | None:
        """The next message; None when there will be no more."""
        while not self._messages:
            if self._trouble is not None:
                raise self._trouble
            if self._has_ended:
                return None
            self._unheard_bytes = 0
            self._watch()
            self._arrived = anyio.Event()
            await self._arrived.wait()
        return self._messages.popleft()

    def close(self) -> None:
        """Take in nothing more; to be called before the socket is closed."""
        if self._is_watching:
            self._is_watching = False
            self._loop.remove_reader(self._socket)

    def _watch(self) -> None:
        if not self._is_watching:
            self._is_watching = True
            self._loop.add_reader(self._socket, self._take)

    def _take(self) -> None:
        """Called by the loop as long as there is something to read."""
        try:
            self._has_ended = not self._take_some()
        except BlockingIOError:
            return
        except ConnectionResetError:
            self.was_reset = self._has_ended = True
        except channel.ChannelError as error:  # what came before is good
            self.fault, self._has_ended = error, True
        except Exception as error:  # noqa: BLE001  raised where it is heard
            self._trouble, self._has_ended = error, True
        if self._has_ended or self._is_far_ahead():
            self.close()
        if self._messages or self._has_ended:
            self._arrived.set()

    def _is_far_ahead(self) -> bool:
        count = len(self._messages)
        return count >= MOST_UNHEARD or (count > 0 and self._unheard_bytes > MOST_UNHEARD_BYTES)

    def _take_some(self) -> bool:
        """Take in what is there; False when nothing will follow."""
        data = self._socket.recv(channel.RECEIVE_BYTES)
        self._unheard_bytes += len(data)
        self._frames.feed(data)
        while (message := self._frames.next()) is not None:
            self._messages.append(message)
        return bool(data)
