"""SQLite for the loop of a daemon: each unit is one call in the thread that owns the connection."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import TypeVar

import aiosqlite
import anyio

from pyexp_daemon import exceptions
from pyexp_daemon.store.sqlite import PATIENCE_S, Locked, connect, run_unit
from pyexp_daemon.store.unit import Unit

T = TypeVar("T")


class AsyncSqlite:
    """Runs units in the threads of two aiosqlite connections: one that writes, one that reads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: dict[str, aiosqlite.Connection] = {}
        self._lock = anyio.Lock(fast_acquire=True)

    async def run(self, unit: Unit[T], *, role: str = "write") -> T:
        """Run a unit that writes. Cancelling the caller lets a unit that has begun come to its end first."""
        return await self._patiently(unit, write=True)

    async def read(self, unit: Unit[T], *, role: str = "admin") -> T:
        """Run a unit that only reads."""
        return await self._patiently(unit, write=False)

    async def kill(self, session: object) -> None:
        """Nothing to do: no statement of ours runs without us."""

    async def close_idle(self) -> None:
        """Nothing to do: connections to a file cost nothing."""

    async def close(self) -> None:
        """Close every connection; the next unit opens one again. What is under way comes to its end first."""
        with anyio.CancelScope(shield=True):
            async with self._lock:
                gone, self._open = list(self._open.values()), {}
            for connection in gone:
                await connection.close()

    @property
    def max_packet(self) -> int:
        """The most bytes one write may have: SQLite's limit for a value."""
        return 1_000_000_000

    async def _patiently(self, unit: Unit[T], *, write: bool) -> T:
        end = anyio.current_time() + PATIENCE_S
        while True:
            try:
                # A unit that is queued in the thread runs whatever becomes of its awaiter, so we wait for it.
                with anyio.CancelScope(shield=True):
                    connection = await self._connection("write" if write else "read")
                    return await self._in_thread(connection, unit, write=write)
            except Locked as error:
                if anyio.current_time() > end:
                    raise exceptions.ConnectionLost(f"database {self._path} stayed locked: {error}") from None
                await anyio.sleep(random.uniform(0.005, 0.25))

    @staticmethod
    async def _in_thread(connection: aiosqlite.Connection, unit: Unit[T], *, write: bool) -> T:
        # aiosqlite's public calls hop to the thread once per statement; this is the one place that hands it a whole
        # unit instead, by the method all its public calls go through.
        if connection._connection is None:
            raise exceptions.ConnectionLost("SQLite: the connection was closed")
        return await connection._execute(run_unit, connection._conn, unit, write=write)  # type: ignore[no-any-return, no-untyped-call]

    async def _connection(self, role: str) -> aiosqlite.Connection:
        async with self._lock:
            if role not in self._open:
                self._open[role] = await aiosqlite.Connection(partial(connect, self._path), iter_chunk_size=64)
            return self._open[role]
