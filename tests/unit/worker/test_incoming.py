"""The daemon's ear: in order, to the end, and not too far ahead of whoever listens."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import anyio
import anyio.lowlevel
import pytest

from pyexp_daemon.worker import channel
from pyexp_daemon.worker.incoming import MOST_UNHEARD, MOST_UNHEARD_BYTES, Incoming

pytestmark = pytest.mark.anyio


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The daemon's end, which never waits, and the child's."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def stored(number: int) -> bytes:
    return channel.encode({"kind": "stored", "number": number})


async def test_messages_come_in_order_and_then_the_end(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    incoming = Incoming(ours, limit_bytes=1000)
    theirs.sendall(stored(1) + stored(2) + stored(3)[:-2])
    assert [(await incoming.next() or {})["number"] for _ in range(2)] == [1, 2]
    theirs.sendall(stored(3)[-2:])
    theirs.close()
    assert (await incoming.next() or {})["number"] == 3
    assert await incoming.next() is None
    assert (incoming.fault, incoming.was_reset) == (None, False)


async def test_what_came_before_a_broken_message_is_heard(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    incoming = Incoming(ours, limit_bytes=1000)
    theirs.sendall(stored(1) + b"\0\0\0\1?" + stored(2))
    assert (await incoming.next() or {})["number"] == 1
    assert await incoming.next() is None
    assert isinstance(incoming.fault, channel.ChannelError)


@pytest.mark.parametrize(("size_bytes", "count"), [(10, 20_000), (100_000, 80)])
async def test_a_child_that_says_too_much_has_to_wait(
    ends: tuple[socket.socket, socket.socket], size_bytes: int, count: int
) -> None:
    ours, theirs = ends
    theirs.setblocking(False)
    incoming = Incoming(ours, limit_bytes=10**6)
    message = channel.encode({"kind": "logs", "experiment_id": 1, "rows": ["x" * size_bytes]})
    left = memoryview(message * count)

    async def talk() -> None:
        nonlocal left
        for _ in range(20):  # the loop takes in between what it would
            with suppress(BlockingIOError):
                while left:
                    left = left[theirs.send(left) :]
            await anyio.lowlevel.checkpoint()

    theirs.send(message)
    assert await incoming.next() is not None
    for _ in range(10):
        await talk()
    taken_bytes = len(message) * count - len(left)
    assert left
    assert taken_bytes < min(MOST_UNHEARD * len(message), MOST_UNHEARD_BYTES) + 2**20
    for _ in range(count):
        assert await incoming.next() is not None
        await talk()
    assert not left
    incoming.close()
