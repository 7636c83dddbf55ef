"""MySQL and MariaDB: the drivers, which run units over their connections."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Generator, Sequence
from typing import Any, TypeVar

import aiomysql
import anyio
import pymysql

from pyexp_daemon import exceptions
from pyexp_daemon.failpoint import failpoint
from pyexp_daemon.store.mysql_connections import BlockingConnection, connect
from pyexp_daemon.store.mysql_errors import DEAD_SERVER, Conflict, translated, unreachable, usable_after
from pyexp_daemon.store.mysql_session import (
    UPTIME,
    WHO,
    Server,
    Target,
    check_server,
    hang_up,
    keep_alive,
    session_settings,
)
from pyexp_daemon.store.names import quote_schema
from pyexp_daemon.store.packets import Answer, Packet, conversation
from pyexp_daemon.store.unit import Do, Step, Unit

T = TypeVar("T")


DEADLINE_S = 8.0
"""How long one unit may take; then its connection is closed and never used again: soon enough to work on another one
within ten seconds, and long enough for a lock wait."""


CONNECT_S = 10.0
"""How long it may take to open a connection."""


IDLE_S = 20.0
"""How long an unused connection of a daemon stays open."""


CONFLICTS = 20
"""How often a unit is repeated after a deadlock or a lock wait."""


class BlockingMysql:
    """Runs units in the calling thread: commands, the heartbeat, the synchronous API. Reconnects when needed."""

    def __init__(self, target: Target, *, create: bool = False, deadline_s: float = 60.0, daemon: bool = False) -> None:
        self._target = target
        self._deadline_s = deadline_s
        self._daemon = daemon
        self._connection: pymysql.connections.Connection[Any] | None = None
        self._server: Server | None = None
        if create:
            self._create_database()
        self._connected()

    def run(self, unit: Unit[T]) -> T:
        """Run a unit that writes."""
        return self._patiently(unit, write=True)

    def read(self, unit: Unit[T]) -> T:
        """Run a unit that only reads."""
        return self._patiently(unit, write=False)

    def change_schema(self, statements: Sequence[Unit[None]]) -> None:
        """Run DDL, each statement by itself: waiting writers are not held up for longer than 3 s, five times."""
        self.read(Unit("patience", lambda: _one(Do("SET SESSION lock_wait_timeout = 3"))))
        for statement in statements:
            self._patiently(statement, write=False, conflicts=5)

    def describe(self) -> str:
        self._connected()
        assert self._server is not None
        return f"{'MariaDB' if self._server.mariadb else 'MySQL'} {self._server.version}, {self._target}"

    @property
    def server(self) -> Server:
        self._connected()
        assert self._server is not None
        return self._server

    def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            hang_up(connection.close)

    def _create_database(self) -> None:
        try:
            connection = BlockingConnection(**self._target.options(with_database=False))
            with connection, connection.cursor() as cursor:
                cursor.execute(
                    "SELECT 1 FROM information_schema.schemata WHERE schema_name = %s", self._target.database
                )
                if not cursor.fetchone():
                    cursor.execute(f"CREATE DATABASE IF NOT EXISTS {quote_schema(self._target.database)}")
        except (pymysql.Error, *DEAD_SERVER) as error:
            raise unreachable(self._target, error) from error

    def _connected(self) -> pymysql.connections.Connection[Any]:
        if self._connection is None:
            options = self._target.options() | {"read_timeout": self._deadline_s, "write_timeout": self._deadline_s}
            try:
                connection = BlockingConnection(**options)
                keep_alive(getattr(connection, "_sock", None), deadline_s=DEADLINE_S)
                with connection.cursor() as cursor:
                    cursor.execute(WHO)
                    who = cursor.fetchone() or ()
                    cursor.execute(UPTIME)
                    server = check_server(who, cursor.fetchone() or ())
                    cursor.execute(session_settings(server, daemon=self._daemon))
                    while cursor.nextset():
                        pass
            except (pymysql.Error, *DEAD_SERVER) as error:
                raise unreachable(self._target, error) from error
            self._connection, self._server = connection, server
        return self._connection

    def _patiently(self, unit: Unit[T], *, write: bool, conflicts: int = CONFLICTS) -> T:
        for turn in itertools.count(1):
            try:
                return self._once(unit, write=write)
            except Conflict as error:
                if turn >= conflicts:
                    raise exceptions.DatabaseQueryError(f"{unit.name} gave way {turn} times: {error}") from error
                time.sleep(random.uniform(0.005, 0.2))
        raise AssertionError

    def _once(self, unit: Unit[T], *, write: bool) -> T:
        connection = self._connected()
        talk = conversation(unit, write=write)
        commit_sent = False
        try:
            packet = next(talk)
            while True:
                if packet.commits:
                    failpoint(unit.name, "commit")
                    commit_sent = True
                packet = talk.send(self._send(connection, packet))
        except StopIteration as end:
            if write:
                failpoint(unit.name, "committed")
            return end.value  # type: ignore[no-any-return]
        except BaseException as error:
            self._leave(connection, error, in_transaction=write)
            if isinstance(error, pymysql.Error | OSError | EOFError):
                raise translated(error, session=self._server, commit_sent=commit_sent) from error
            raise

    def _send(self, connection: pymysql.connections.Connection[Any], packet: Packet) -> list[Answer]:
        with connection.cursor() as cursor:
            cursor.execute(packet.sql)
            answers: list[Answer] = [(cursor.fetchall(), cursor.rowcount)]
            while cursor.nextset():
                answers.append((cursor.fetchall(), cursor.rowcount))
            return answers

    def _leave(
        self, connection: pymysql.connections.Connection[Any], error: BaseException, *, in_transaction: bool
    ) -> None:
        if usable_after(error):
            if not in_transaction:
                return
            try:
                connection.rollback()
                return
            except (pymysql.Error, OSError):
                pass  # it is closed below
        self._connection = None
        hang_up(connection.close)


def _one(do: Do) -> Generator[Step, Any, None]:
    yield do


class _Cursor(aiomysql.Cursor):  # type: ignore[misc]  # the driver has no types
    """A cursor that does not fetch warnings: a round trip for texts that nobody would read."""

    async def _show_warnings(self, conn: aiomysql.Connection) -> None:
        return


class AsyncMysql:
    """Runs units on connections with reserved roles, opened on demand and closed when idle."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._roles = {name: _Role(target) for name in ("claim", "write", "admin")}

    async def run(self, unit: Unit[T], *, role: str = "write") -> T:
        """Run a unit that writes. Cancelling the caller lets a unit that has begun come to its end first.

        Raises:
            ConnectionLost: with `unknown`, the unit may have been committed.
        """
        return await self._roles[role].run(unit, write=True)

    async def read(self, unit: Unit[T], *, role: str = "admin") -> T:
        """Run a unit that only reads."""
        return await self._roles[role].run(unit, write=False)

    async def kill(self, session: object) -> None:
        """End a lost session on the server and wait until it is gone, so that nothing of it can happen later.

        After a restart of the server it is gone anyway, and its number may be somebody else's.

        Raises:
            ConnectionLost: that could not be done.
        """
        assert isinstance(session, Server)
        number = session.connection_id

        def ends() -> Generator[Step, Any, bool]:
            found = yield Do("SELECT COUNT(*) FROM information_schema.processlist WHERE id = ?", (number,))
            now = self._roles["admin"].server
            if not found.rows[0][0] or (now is not None and not now.is_same_run(session)):
                return True
            yield Do("KILL ?", (number,))
            return False

        for turn in range(40):
            try:
                if await self.read(Unit("kill", ends)):
                    return
            except exceptions.DatabaseQueryError:  # 1094: it went in between
                continue
            await anyio.sleep(0.005 * (turn + 1))
        raise exceptions.ConnectionLost(f"connection {number} does not end")

    async def close_idle(self) -> None:
        """Close the connections that were not used for IDLE_S."""
        for role in self._roles.values():
            await role.close_idle()

    async def close(self) -> None:
        for role in self._roles.values():
            await role.close()

    @property
    def max_packet(self) -> int:
        """The most bytes one packet may have, as the server said last."""
        return min((role.server.max_packet for role in self._roles.values() if role.server), default=16 * 2**20)


class _Role:
    """One connection that serves one purpose, and the lock that keeps its units apart."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._lock = anyio.Lock(fast_acquire=True)
        self._connection: aiomysql.Connection | None = None
        self._used = 0.0
        self.server: Server | None = None

    async def run(self, unit: Unit[T], *, write: bool) -> T:
        for turn in itertools.count(1):
            try:
                with anyio.CancelScope(shield=True):
                    async with self._lock:
                        return await self._once(unit, write=write)
            except Conflict as error:
                if turn >= CONFLICTS:
                    raise exceptions.DatabaseQueryError(f"{unit.name} gave way {turn} times: {error}") from error
                await anyio.sleep(random.uniform(0.005, 0.2))
        raise AssertionError

    async def close_idle(self) -> None:
        if self._connection is not None and anyio.current_time() - self._used > IDLE_S and not self._lock.locked():
            await self.close()

    async def close(self) -> None:
        async with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            hang_up(connection.close)

    async def _once(self, unit: Unit[T], *, write: bool) -> T:
        connection = await self._connected()
        talk = conversation(unit, write=write)
        commit_sent = False
        try:
            with anyio.fail_after(DEADLINE_S):
                packet = next(talk)
                while True:
                    if packet.commits:
                        failpoint(unit.name, "commit")
                        commit_sent = True
                    packet = talk.send(await self._send(connection, packet))
        except StopIteration as end:
            if write:
                failpoint(unit.name, "committed")
            return end.value  # type: ignore[no-any-return]
        except BaseException as error:
            await self._leave(connection, error, in_transaction=write)
            if isinstance(error, pymysql.Error | OSError | EOFError):
                raise translated(error, session=self.server, commit_sent=commit_sent) from error
            raise
        finally:
            self._used = anyio.current_time()

    async def _send(self, connection: aiomysql.Connection, packet: Packet) -> list[Answer]:
        async with connection.cursor(_Cursor) as cursor:
            await cursor.execute(packet.sql)
            answers: list[Answer] = [(await cursor.fetchall(), cursor.rowcount)]
            while await cursor.nextset():
                answers.append((await cursor.fetchall(), cursor.rowcount))
            return answers

    async def _leave(self, connection: aiomysql.Connection, error: BaseException, *, in_transaction: bool) -> None:
        if usable_after(error):
            if not in_transaction:
                return
            try:
                with anyio.fail_after(DEADLINE_S):
                    await connection.rollback()
                return
            except (pymysql.Error, *DEAD_SERVER):
                pass  # it is closed below
        self._drop()

    async def _connected(self) -> aiomysql.Connection:
        if self._connection is None:
            # The driver's connect_timeout does not cover a server that accepts and then says nothing.
            try:
                with anyio.fail_after(CONNECT_S):
                    connection = await connect(**await self._target.options_at_leisure())
                    try:
                        await self._begin_session(connection)
                    except BaseException:
                        hang_up(connection.close)
                        raise
            except (pymysql.Error, *DEAD_SERVER) as error:
                raise unreachable(self._target, error) from error
            self._connection = connection
        return self._connection

    async def _begin_session(self, connection: aiomysql.Connection) -> None:
        writer = getattr(connection, "_writer", None)
        keep_alive(writer.get_extra_info("socket") if writer else None, deadline_s=DEADLINE_S)
        async with connection.cursor(_Cursor) as cursor:
            await cursor.execute(WHO)
            who = await cursor.fetchone() or ()
            await cursor.execute(UPTIME)
            server = check_server(who, await cursor.fetchone() or ())
            await cursor.execute(session_settings(server, daemon=True))
            while await cursor.nextset():
                pass
        if server.read_only:
            raise pymysql.OperationalError(1290, "the server is read-only")
        self.server = server
