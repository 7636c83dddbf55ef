"""MySQL and MariaDB for the loop of a daemon."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import aiomysql
import anyio
import anyio.to_thread
import pymysql

from pyexp_daemon import exceptions
from pyexp_daemon.failpoint import failpoint
from pyexp_daemon.store.mysql import CONFLICTS, DEADLINE_S
from pyexp_daemon.store.mysql_connections import demand_tls
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
from pyexp_daemon.store.packets import Answer, Packet, conversation
from pyexp_daemon.store.turns import GIVE_BACK_ALL, Turns
from pyexp_daemon.store.unit import Do, Step, Unit

T = TypeVar("T")


CONNECT_S = 10.0
"""How long it may take to open a connection."""


IDLE_S = 20.0
"""How long an unused connection of a daemon stays open."""


class AsyncConnection(aiomysql.Connection):  # type: ignore[misc]  # the driver has no types
    """aiomysql's, which encrypts when it was told to, or sends nothing."""

    def __init__(self, *, server_name: str | None = None, **options: Any) -> None:
        self._server_name = server_name
        super().__init__(**options)

    async def _request_authentication(self) -> None:
        demand_tls(self, wanted=self._ssl_context)
        if self._server_name:
            self._host = self._server_name
        await super()._request_authentication()


async def _connect(**options: Any) -> AsyncConnection:
    """Log in. What `aiomysql.connect` does, with a connection of ours."""
    connection = AsyncConnection(**options)
    await connection._connect()
    return connection


async def _options(target: Target) -> dict[str, Any]:
    """What the driver needs to connect; the loop goes on while a tunnel is opened."""
    if target.credentials.ssh is None:
        return target.options()
    return await anyio.to_thread.run_sync(target.options, abandon_on_cancel=True)


class _Cursor(aiomysql.Cursor):  # type: ignore[misc]  # the driver has no types
    """A cursor that does not fetch warnings: a round trip for texts that nobody would read."""

    async def _show_warnings(self, conn: aiomysql.Connection) -> None:
        return


class AsyncMysql:
    """Runs units on connections with reserved roles, opened on demand and closed when idle."""

    def __init__(self, target: Target, *, is_crowded: Callable[[], bool] = lambda: False) -> None:
        """
        Args:
            is_crowded: whether there are so many daemons that those which claim and write take turns.
        """
        turns = Turns(target.database, is_crowded=is_crowded)
        self._roles = {
            "claim": _Role(target, turns=turns),
            "write": _Role(target, turns=turns),
            "admin": _Role(target),
        }

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

    def __init__(self, target: Target, *, turns: Turns | None = None) -> None:
        self._target = target
        self._turns = turns
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
        turn = self._turns.draw() if self._turns and write else None
        talk = conversation(unit, write=write, turn=turn)
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
            await self._leave(connection, error, in_transaction=write, turn=turn)
            if self._turns and self._turns.is_refusal(error):
                raise Conflict(str(error)) from error  # once more, without
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

    async def _leave(
        self, connection: aiomysql.Connection, error: BaseException, *, in_transaction: bool, turn: str | None
    ) -> None:
        if usable_after(error):
            if not in_transaction:
                return
            try:
                with anyio.fail_after(DEADLINE_S):
                    await connection.rollback()
                    if turn:
                        await self._send(connection, Packet([GIVE_BACK_ALL], [None]))
                return
            except (pymysql.Error, *DEAD_SERVER):
                pass  # it is closed below
        self._drop()

    async def _connected(self) -> aiomysql.Connection:
        if self._connection is None:
            # The driver's connect_timeout does not cover a server that accepts and then says nothing.
            try:
                with anyio.fail_after(CONNECT_S):
                    connection = await _connect(**await _options(self._target))
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
