"""MySQL and MariaDB: units run over a connection."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Generator, Sequence
from typing import Any, TypeVar

import pymysql

from pyexp_daemon import exceptions
from pyexp_daemon.failpoint import failpoint
from pyexp_daemon.store.mysql_connections import BlockingConnection
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
