"""MySQL and MariaDB: packets, connections, and what each error means."""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiomysql
import anyio
import pymysql
from pymysql.constants import CLIENT
from pymysql.converters import encoders, escape_item

from pyexp_daemon import exceptions
from pyexp_daemon.config.credentials import Credentials
from pyexp_daemon.store.names import quote_schema
from pyexp_daemon.store.unit import Commit, Do, Done, Step, Unit

T = TypeVar("T")

DEADLINE_S = 10.0
"""How long one unit may take; then its connection is closed and never used again."""

IDLE_S = 20.0
"""How long an unused connection of a daemon stays open."""

CONFLICTS = 20
"""How often a unit is repeated after a deadlock or a lock wait."""

_CONFLICT = frozenset({1213, 1205, 1020, 3572})
_LOST = frozenset({2002, 2003, 2006, 2013, 2014, 2055, 1927, 4031, 1053, 1152, 1158, 1159, 1160, 1161})
_READ_ONLY = frozenset({1290, 1792, 1836, 1047})
_TOO_MANY = frozenset({1040, 1203, 1226, 1041, 1021, 1030, 1114})
_ROW = frozenset(
    {1048, 1062, 1118, 1153, 1264, 1265, 1292, 1364, 1366, 1367, 1406, 1411, 1452, 1644, 1690}
    | {3140, 3819, 3854, 3988, 4025}
)
_REFUSED = frozenset({1044, 1045, 1049, 1142, 1143, 1227, 1698, 1251, 1130, 1129, 2059})

_DEAD_SERVER = (OSError, EOFError, TimeoutError)


class _Conflict(Exception):
    """The server rolled us back in favour of another session; the whole unit may simply run again."""


@dataclass(slots=True)
class _Packet:
    """Statements that travel together."""

    texts: list[str] = field(default_factory=list)
    owners: list[int | None] = field(default_factory=list)
    """For each statement the place of its answer in what the unit receives; None for ours."""
    commits: bool = False

    @property
    def sql(self) -> str:
        return "; ".join(self.texts)

    def add(self, text: str, owner: int | None = None) -> None:
        self.texts.append(text)
        self.owners.append(owner)


_Answer = tuple[Sequence[tuple[Any, ...]], int]
"""Rows and matched rows of one statement."""


def _conversation(unit: Unit[T], *, write: bool) -> Generator[_Packet, list[_Answer], T]:
    """The packets of a unit, one per step; the transaction begins in the first and ends in the last."""
    steps = unit.start()
    begun = not write
    ended = not write
    answer: Any = None
    while True:
        try:
            step: Step = steps.send(answer)
        except StopIteration as end:
            if begun and not ended:
                yield _Packet(["COMMIT"], [None], commits=True)
            return end.value  # type: ignore[no-any-return]
        packet = _Packet()
        if not begun:
            packet.add("START TRANSACTION")
            begun = True
        statements: Sequence[Do] = [step] if isinstance(step, Do) else [] if isinstance(step, Commit) else step
        _add(packet, statements)
        if isinstance(step, Commit):
            statements = [*step.statements, *step.then]
            _add(packet, step.statements)
            if write:
                packet.add("COMMIT")
                packet.commits = ended = True
            _add(packet, step.then, first=len(step.statements))
        answers = yield packet
        dones = _collect(packet, answers, len(statements))
        answer = dones[0] if isinstance(step, Do) else dones


def _add(packet: _Packet, statements: Sequence[Do], *, first: int = 0) -> None:
    for place, do in enumerate(statements, first):
        for text in _render(do):
            packet.add(text, place)


def _collect(packet: _Packet, answers: list[_Answer], wanted: int) -> list[Done]:
    rows: list[list[tuple[Any, ...]]] = [[] for _ in range(wanted)]
    changed = [0] * wanted
    for owner, (got, matched) in zip(packet.owners, answers, strict=True):
        if owner is not None:
            rows[owner].extend(got)
            changed[owner] += matched
    return [Done(got, matched) for got, matched in zip(rows, changed, strict=True)]


def _render(do: Do) -> list[str]:
    """The statement with its values in it, one text or several that follow each other."""
    try:
        if not do.many:
            return [_bind(_split(do.sql), do.values)]
        head, row, tail = _values_clause(do.sql)
        if row is None:
            return [_bind(_split(do.sql), values) for values in do.values]
        parts = _split(row)
        return [f"{head}{', '.join([_bind(parts, values) for values in do.values])}{tail}"]
    except (ValueError, UnicodeError, TypeError, KeyError, pymysql.Error) as error:
        raise exceptions.RowRefused(f"a value cannot be stored: {error}") from error


@functools.lru_cache(maxsize=1024)
def _split(sql: str) -> tuple[str, ...]:
    return tuple(sql.split("?"))


@functools.lru_cache(maxsize=256)
def _values_clause(sql: str) -> tuple[str, str | None, str]:
    """What stands before, in and behind the row after VALUES; the row is None when there is none."""
    start = sql.find(" VALUES (")
    if start < 0:
        return sql, None, ""
    start += len(" VALUES ")
    depth = 0
    for place, character in enumerate(sql[start:], start):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return sql[:start], sql[start : place + 1], sql[place + 1 :]
    raise ValueError(f"unbalanced: {sql}")


def _bind(parts: Sequence[str], values: Sequence[Any]) -> str:
    if len(values) != len(parts) - 1:
        raise TypeError(f"{len(parts) - 1} placeholders, {len(values)} values")
    bound = [
        f"x'{value.hex()}'" if isinstance(value, bytes) else escape_item(value, "utf8mb4", encoders) for value in values
    ]
    return "".join(itertools.chain.from_iterable(itertools.zip_longest(parts, bound, fillvalue="")))


def _translated(error: BaseException, *, session: Server | None, commit_sent: bool) -> Exception:
    """What an error from the driver means for the caller; see protocol.md."""
    code = error.args[0] if error.args and isinstance(error.args[0], int) else None
    text = str(error.args[1]) if len(error.args) > 1 else str(error) or type(error).__name__
    if code in _CONFLICT:
        return _Conflict(text)
    if code in _ROW:
        return exceptions.RowRefused(_cleaned(text))
    if code == 1146:
        return exceptions.MissingTable(_cleaned(text), hint="pyexpd fill creates and fills it")
    if code == 1049:
        return exceptions.MissingTable(_cleaned(text), hint="pyexpd fill (or pyexpd db create) creates it")
    if code in _REFUSED:
        return exceptions.DatabaseConnectionError(f"the database refuses us: {_cleaned(text)}")
    if code in _READ_ONLY | _TOO_MANY:
        return exceptions.ConnectionLost(f"the database does not serve us now: {_cleaned(text)}", session=session)
    if code in _LOST or code == 0 or isinstance(error, (*_DEAD_SERVER, pymysql.InterfaceError)):
        reason = "no answer in time" if isinstance(error, TimeoutError) else _cleaned(text)
        return exceptions.ConnectionLost(
            f"connection to the database lost: {reason}",
            session=session,
            unknown=commit_sent,
            timed_out=isinstance(error, TimeoutError),
        )
    return exceptions.DatabaseQueryError(f"the database refused a statement: {_cleaned(text)} ({code})")


def _cleaned(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _usable_after(error: BaseException) -> bool:
    """Whether the connection is in a known state after this error, so that a ROLLBACK puts it right."""
    code = error.args[0] if error.args and isinstance(error.args[0], int) else None
    if isinstance(error, exceptions.PyExperimenterError | _Conflict):
        return True
    return (
        isinstance(error, pymysql.MySQLError)
        and code is not None
        and 1000 <= code < 2000
        and code not in _LOST | _READ_ONLY | _TOO_MANY
    )


@dataclass(frozen=True)
class Target:
    """A database on a server and how to get there. Its repr shows no password."""

    credentials: Credentials
    database: str

    def __str__(self) -> str:
        c = self.credentials
        where = c.unix_socket or f"{c.server}:{c.port}"
        return f"mysql://{where}/{self.database}"

    def options(self, *, with_database: bool = True) -> dict[str, Any]:
        c = self.credentials
        options: dict[str, Any] = {
            "user": c.user,
            "password": c.password.get_secret_value(),
            "charset": "utf8mb4",
            "autocommit": True,
            "client_flag": CLIENT.FOUND_ROWS | CLIENT.MULTI_STATEMENTS,
            "connect_timeout": 5,
        }
        if c.unix_socket:
            options["unix_socket"] = c.unix_socket
        else:
            options |= {"host": c.server, "port": c.port}
        if with_database:
            options["db"] = self.database
        if self.tls is not None:
            options["ssl"] = self.tls
        return options

    @functools.cached_property
    def tls(self) -> ssl.SSLContext | None:
        """One context for all connections of the process: making one costs as much as hundreds of statements."""
        wanted = self.credentials.ssl
        if wanted is None:
            return None
        context = ssl.create_default_context(cafile=wanted.ca)
        if not wanted.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if wanted.cert:
            context.load_cert_chain(wanted.cert, wanted.key)
        return context


@dataclass(frozen=True, slots=True)
class Server:
    """What a server said of itself when a session began."""

    version: str
    read_only: bool
    max_packet: int
    server_id: int
    connection_id: int
    started: float
    """When the server started, by our own monotonic clock: after a restart it counts connections from 1 again."""

    def is_same_run(self, other: Server) -> bool:
        """Whether the server has not been restarted between the two sessions."""
        return abs(self.started - other.started) < 3.0

    @property
    def mariadb(self) -> bool:
        return "mariadb" in self.version.lower()


_WHO = "SELECT VERSION(), @@global.read_only, @@max_allowed_packet, @@server_id, CONNECTION_ID()"
_UPTIME = "SHOW GLOBAL STATUS LIKE 'Uptime'"


def _session(server: Server, *, daemon: bool) -> str:
    statements = [
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        "SET SESSION time_zone = '+00:00', innodb_lock_wait_timeout = 4",
        "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'",
    ]
    if daemon:
        # A session that sleeps inside a transaction holds its rows: the server ends it soon.
        limit = "idle_transaction_timeout = 10" if server.mariadb else "wait_timeout = 60"
        statements.append(f"SET SESSION {limit}")
    return "; ".join(statements)


def _check_server(row: Sequence[Any], uptime: Sequence[Any]) -> Server:
    started = time.monotonic() - float(uptime[1])
    server = Server(str(row[0]), str(row[1]) in ("1", "ON"), int(row[2]), int(row[3]), int(row[4]), started)
    numbers = tuple(int(part) for part in re.findall(r"\d+", server.version)[:2])
    oldest = (10, 6) if server.mariadb else (8, 0)
    if numbers < oldest:
        kind = "MariaDB" if server.mariadb else "MySQL"
        raise exceptions.DatabaseConnectionError(
            f"{kind} {server.version} is too old: {'.'.join(map(str, oldest))} or newer is needed (SKIP LOCKED)"
        )
    return server


def _keep_alive(sock: socket.socket | None) -> None:
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(DEADLINE_S * 1000))


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
            _hang_up(connection.close)

    def _create_database(self) -> None:
        try:
            connection = pymysql.connect(**self._target.options(with_database=False))
            with connection, connection.cursor() as cursor:
                cursor.execute(
                    "SELECT 1 FROM information_schema.schemata WHERE schema_name = %s", self._target.database
                )
                if not cursor.fetchone():
                    cursor.execute(f"CREATE DATABASE IF NOT EXISTS {quote_schema(self._target.database)}")
        except (pymysql.Error, *_DEAD_SERVER) as error:
            raise self._unreachable(error) from error

    def _connected(self) -> pymysql.connections.Connection[Any]:
        if self._connection is None:
            options = self._target.options() | {"read_timeout": self._deadline_s, "write_timeout": self._deadline_s}
            try:
                connection = pymysql.connect(**options)
                _keep_alive(getattr(connection, "_sock", None))
                with connection.cursor() as cursor:
                    cursor.execute(_WHO)
                    who = cursor.fetchone() or ()
                    cursor.execute(_UPTIME)
                    server = _check_server(who, cursor.fetchone() or ())
                    cursor.execute(_session(server, daemon=self._daemon))
                    while cursor.nextset():
                        pass
            except (pymysql.Error, *_DEAD_SERVER) as error:
                raise self._unreachable(error) from error
            self._connection, self._server = connection, server
        return self._connection

    def _unreachable(self, error: BaseException) -> Exception:
        return _unreachable(self._target, error)

    def _patiently(self, unit: Unit[T], *, write: bool, conflicts: int = CONFLICTS) -> T:
        for turn in itertools.count(1):
            try:
                return self._once(unit, write=write)
            except _Conflict as error:
                if turn >= conflicts:
                    raise exceptions.DatabaseQueryError(f"{unit.name} gave way {turn} times: {error}") from error
                time.sleep(random.uniform(0.005, 0.2))
        raise AssertionError

    def _once(self, unit: Unit[T], *, write: bool) -> T:
        connection = self._connected()
        talk = _conversation(unit, write=write)
        commit_sent = False
        try:
            packet = next(talk)
            while True:
                commit_sent = commit_sent or packet.commits
                packet = talk.send(self._send(connection, packet))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        except BaseException as error:
            self._leave(connection, error, in_transaction=write)
            if isinstance(error, pymysql.Error | OSError | EOFError):
                raise _translated(error, session=self._server, commit_sent=commit_sent) from error
            raise

    def _send(self, connection: pymysql.connections.Connection[Any], packet: _Packet) -> list[_Answer]:
        with connection.cursor() as cursor:
            cursor.execute(packet.sql)
            answers: list[_Answer] = [(cursor.fetchall(), cursor.rowcount)]
            while cursor.nextset():
                answers.append((cursor.fetchall(), cursor.rowcount))
            return answers

    def _leave(
        self, connection: pymysql.connections.Connection[Any], error: BaseException, *, in_transaction: bool
    ) -> None:
        if _usable_after(error):
            if not in_transaction:
                return
            try:
                connection.rollback()
                return
            except (pymysql.Error, OSError):
                pass  # it is closed below
        self._connection = None
        _hang_up(connection.close)


def _one(do: Do) -> Generator[Step, Any, None]:
    yield do


def _hang_up(close: Callable[[], object]) -> None:
    """Close a connection that may be broken already; nothing is expected of it any more."""
    with contextlib.suppress(pymysql.Error, OSError):
        close()


def _unreachable(target: Target, error: BaseException) -> Exception:
    translated = _translated(error, session=None, commit_sent=False)
    if isinstance(translated, exceptions.ConnectionLost):
        return exceptions.ConnectionLost(f"database {target} is not reachable: {_reason(error)}")
    if isinstance(translated, exceptions.MissingTable):
        return exceptions.MissingTable(f"{target}: {translated}", hint=translated.hint)
    return exceptions.DatabaseConnectionError(f"{target}: {translated}", hint=getattr(translated, "hint", None))


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return _cleaned(str(error.args[1] if len(error.args) > 1 else error))


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
        self._lock = anyio.Lock()
        self._connection: aiomysql.Connection | None = None
        self._used = 0.0
        self.server: Server | None = None

    async def run(self, unit: Unit[T], *, write: bool) -> T:
        for turn in itertools.count(1):
            try:
                with anyio.CancelScope(shield=True):
                    async with self._lock:
                        return await self._once(unit, write=write)
            except _Conflict as error:
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
            _hang_up(connection.close)

    async def _once(self, unit: Unit[T], *, write: bool) -> T:
        connection = await self._connected()
        talk = _conversation(unit, write=write)
        commit_sent = False
        try:
            with anyio.fail_after(DEADLINE_S):
                packet = next(talk)
                while True:
                    commit_sent = commit_sent or packet.commits
                    packet = talk.send(await self._send(connection, packet))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        except BaseException as error:
            await self._leave(connection, error, in_transaction=write)
            if isinstance(error, pymysql.Error | OSError | EOFError):
                raise _translated(error, session=self.server, commit_sent=commit_sent) from error
            raise
        finally:
            self._used = anyio.current_time()

    async def _send(self, connection: aiomysql.Connection, packet: _Packet) -> list[_Answer]:
        async with connection.cursor(_Cursor) as cursor:
            await cursor.execute(packet.sql)
            answers: list[_Answer] = [(await cursor.fetchall(), cursor.rowcount)]
            while await cursor.nextset():
                answers.append((await cursor.fetchall(), cursor.rowcount))
            return answers

    async def _leave(self, connection: aiomysql.Connection, error: BaseException, *, in_transaction: bool) -> None:
        if _usable_after(error):
            if not in_transaction:
                return
            try:
                with anyio.fail_after(DEADLINE_S):
                    await connection.rollback()
                return
            except (pymysql.Error, *_DEAD_SERVER):
                pass  # it is closed below
        self._drop()

    async def _connected(self) -> aiomysql.Connection:
        if self._connection is None:
            # The driver's connect_timeout does not cover a server that accepts and then says nothing.
            try:
                with anyio.fail_after(DEADLINE_S):
                    connection = await aiomysql.connect(**self._target.options())
                    try:
                        await self._begin_session(connection)
                    except BaseException:
                        _hang_up(connection.close)
                        raise
            except (pymysql.Error, *_DEAD_SERVER) as error:
                raise _unreachable(self._target, error) from error
            self._connection = connection
        return self._connection

    async def _begin_session(self, connection: aiomysql.Connection) -> None:
        writer = getattr(connection, "_writer", None)
        _keep_alive(writer.get_extra_info("socket") if writer else None)
        async with connection.cursor(_Cursor) as cursor:
            await cursor.execute(_WHO)
            who = await cursor.fetchone() or ()
            await cursor.execute(_UPTIME)
            server = _check_server(who, await cursor.fetchone() or ())
            await cursor.execute(_session(server, daemon=True))
            while await cursor.nextset():
                pass
        if server.read_only:
            raise pymysql.OperationalError(1290, "the server is read-only")
        self.server = server
