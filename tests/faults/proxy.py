"""A TCP proxy in front of a database server that delays, holds, loses and cuts what passes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Self

from tests.servers import Server

_BLOCK = 65536

Direction = Literal["request", "reply"]
What = Literal["cut_request", "cut_reply", "hold_request", "late_request", "hold_reply"]


@dataclass(eq=False)
class Ambush:
    """What happens to the next requests that contain a text.

    `cut_request`: the connection breaks, and the server never gets it. `cut_reply`: the server gets it, and the
    connection breaks when the answer comes. `hold_request`: it is kept from the server until `release`, though the
    client's side may be closed meanwhile. `late_request`: the client's side breaks at once, and the server, which has
    heard nothing of that, gets it at `release`. `hold_reply`: the server gets it, its answer is kept until `release`.
    """

    text: bytes
    what: What
    times: int = 1
    sprung: threading.Event = field(default_factory=threading.Event)
    """Set when it happened for the first time."""
    _released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        self._released.set()

    async def wait(self) -> None:
        while not self._released.is_set():  # noqa: ASYNC110  released from another thread
            await asyncio.sleep(0.005)


class Proxy:
    """Carries connections to a server; every method may be called from any thread while it does."""

    def __init__(self, server: Server) -> None:
        self._target = (server.host, server.port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="proxy", daemon=True)
        self._lines: set[_Line] = set()
        self._ready = threading.Event()
        self._listener: asyncio.Server | None = None
        self.port = 0
        self.accepted = 0
        """How many connections there were."""
        self.delay_s = 0.0
        """How long every block that the server sends is kept."""
        self.is_black_hole = False
        self.refuses = False
        self.ambushes: list[Ambush] = []
        self._cut_after: dict[Direction, int] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close)
        self._thread.join(10)

    @property
    def open(self) -> int:
        """How many connections there are now."""
        return len(self._lines)

    def black_hole(self) -> None:
        """Nothing arrives any more, either way, and nobody is told: connections stay open, new ones too."""
        self.is_black_hole = True

    def half_open(self) -> None:
        """What is open now stays open and silent for ever; new connections work."""
        for line in list(self._lines):
            line.is_silent = True

    def refuse(self) -> None:
        """Break every connection, and every new one at once."""
        self.refuses = True
        self.cut()

    def heal(self, *, cut: bool = False) -> None:
        """Pass everything on again, also what was held; with `cut`, what was open is broken instead, unsent."""
        if cut:
            self.cut()
        self.is_black_hole = self.refuses = False
        self.delay_s = 0.0

    def cut(self) -> None:
        """Break every open connection with a reset, now."""
        self._call(self._cut_all)

    def _cut_all(self) -> None:
        for line in list(self._lines):
            line.cut()

    def cut_after(self, count: int, direction: Direction) -> None:
        """Break the connection on which, from now on, the `count`-th byte of a direction passes; that byte is lost."""
        self._cut_after[direction] = count

    def ambush(self, text: str, what: What, *, times: int = 1) -> Ambush:
        """Lie in wait for the next requests that contain a text."""
        ambush = Ambush(text.encode(), what, times)
        self.ambushes.append(ambush)
        return ambush

    def _sprung(self, block: bytes) -> Ambush | None:
        for ambush in self.ambushes:
            if ambush.times and ambush.text in block:
                ambush.times -= 1
                ambush.sprung.set()
                return ambush
        return None

    def _allowed(self, block: bytes, direction: Direction) -> bytes | None:
        """What of a block may pass before the connection is cut; None when all of it may."""
        left = self._cut_after.get(direction)
        if left is None:
            return None
        if len(block) < left:
            self._cut_after[direction] = left - len(block)
            return None
        del self._cut_after[direction]
        return block[: left - 1]

    def _call(self, function: Callable[[], object]) -> None:
        done = threading.Event()

        def call() -> None:
            function()
            done.set()

        self._loop.call_soon_threadsafe(call)
        assert done.wait(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._listener = self._loop.run_until_complete(asyncio.start_server(self._carry, "127.0.0.1", 0, backlog=1024))
        self.port = self._listener.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    def _close(self) -> None:
        assert self._listener
        self._listener.close()
        self._cut_all()
        self._loop.stop()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        line = _Line(self, reader, writer)
        if self.refuses:
            line.cut()
            return
        self._lines.add(line)
        try:
            await line.carry(self._target)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._lines.discard(line)
            line.close()


class _Line:
    """One client's connection and ours to the server."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._client = (reader, writer)
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._trap: Ambush | None = None
        self._answered = asyncio.Event()
        self.is_silent = False

    @property
    def _is_held(self) -> bool:
        """Whether a request is on its way to the server, whoever has hung up."""
        return self._trap is not None and self._trap.what in ("hold_request", "late_request")

    async def carry(self, target: tuple[str, int]) -> None:
        await self._passable()
        self._server = await asyncio.open_connection(*target)
        pumps = [asyncio.ensure_future(self._requests()), asyncio.ensure_future(self._replies())]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if self._is_held:
                await pumps[0]
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _requests(self) -> None:
        assert self._server
        while block := await self._client[0].read(_BLOCK):
            trap = self._proxy._sprung(block)
            if trap is not None:
                self._trap = trap
                if trap.what == "cut_request":
                    return self.cut()
                if trap.what == "late_request":
                    _reset(self._client[1])
                if self._is_held:
                    self._answered.clear()
                    await trap.wait()
            await self._passable()
            if await self._pass(block, "request", self._server[1]):
                return None
            if trap is not None and trap.what == "late_request":
                return await self._answer()
            if self._is_held:
                self._trap = None
        await self._passable()  # a silent network does not tell the server either that its client has gone
        return None

    async def _answer(self) -> None:
        """Wait until the server has answered, or hung up before."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._answered.wait(), 5)

    async def _replies(self) -> None:
        assert self._server
        while block := await self._server[0].read(_BLOCK):
            self._answered.set()
            trap, self._trap = self._trap, self._trap if self._is_held else None
            if trap is not None and trap.what == "cut_reply":
                return self.cut()
            if trap is not None and trap.what == "hold_reply":
                await trap.wait()
            if self._proxy.delay_s:
                await asyncio.sleep(self._proxy.delay_s)
            await self._passable()
            if await self._pass(block, "reply", self._client[1]):
                return None
        return None

    async def _pass(self, block: bytes, direction: Direction, to: asyncio.StreamWriter) -> bool:
        """Hand a block on; True when the connection was cut amid it."""
        allowed = self._proxy._allowed(block, direction)
        to.write(block if allowed is None else allowed)
        await to.drain()
        if allowed is not None:
            self.cut()
        return allowed is not None

    async def _passable(self) -> None:
        while self._proxy.is_black_hole or self.is_silent:  # noqa: ASYNC110  set from another thread
            await asyncio.sleep(0.01)

    def cut(self) -> None:
        """Reset both sides: what is on its way is lost."""
        for _, writer in filter(None, (self._client, self._server)):
            _reset(writer)

    def close(self) -> None:
        for _, writer in filter(None, (self._client, self._server)):
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
