"""SQLite: a unit is one function in the thread that owns the connection, so no await stands inside a transaction."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pyexp_daemon import exceptions
from pyexp_daemon.failpoint import failpoint
from pyexp_daemon.store.unit import Commit, Do, Done, Unit

T = TypeVar("T")

BUSY_S = 2.0
"""How long a statement waits for another process's transaction before the whole unit is tried again: a wait in the
thread that nobody can cut short."""

FILL_CACHE_KIB, FILL_WAL_PAGES = 65_536, 10_000
"""How much of a file whoever fills it keeps in memory, and how long its log grows: more than ten times the default."""

PATIENCE_S = 30.0
"""How long a unit is tried again while the database is locked."""

_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "afs", "9p", "glusterfs"}
)


class Locked(Exception):
    """Another process held the database for longer than BUSY_S; nothing was changed."""


def run_unit(connection: sqlite3.Connection, unit: Unit[T], *, write: bool) -> T:
    """Run a unit of work to its end or leave nothing of it behind."""
    try:
        if write:
            connection.execute("BEGIN IMMEDIATE")
        answer = _run_steps(connection, unit)
        if write:
            failpoint(unit.name, "commit")
            connection.execute("COMMIT")
            failpoint(unit.name, "committed")
        return answer
    except sqlite3.Error as error:
        raise _translated(error) from error
    except (OverflowError, UnicodeError) as error:
        raise exceptions.RowRefused(f"a value cannot be stored: {error}") from error
    finally:
        _roll_back(connection)


def _roll_back(connection: sqlite3.Connection) -> None:
    """Leave nothing of a unit that failed; a connection that was closed has nothing any more."""
    with contextlib.suppress(sqlite3.ProgrammingError):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _run_steps(connection: sqlite3.Connection, unit: Unit[T]) -> T:
    steps = unit.start()
    answer: Any = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        if isinstance(step, Do):
            answer = _do(connection, step)
        else:
            statements = [*step.statements, *step.then] if isinstance(step, Commit) else step
            answer = [_do(connection, statement) for statement in statements]


def _do(connection: sqlite3.Connection, do: Do) -> Done:
    if do.many:
        return Done((), connection.executemany(do.sql, do.values).rowcount)
    cursor = connection.execute(do.sql, do.values)
    return Done(cursor.fetchall(), cursor.rowcount)


def _translated(error: sqlite3.Error) -> Exception:
    if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
        return exceptions.ConnectionLost("SQLite: the connection was closed")
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    text = str(error)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Locked(text)
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return exceptions.ConnectionLost(f"SQLite: {text}")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return exceptions.DatabaseConnectionError(f"SQLite: {text}")
    if text.startswith("no such table"):
        return exceptions.MissingTable(text, hint="pyexpd fill creates and fills it")
    if isinstance(error, sqlite3.OperationalError):
        return exceptions.DatabaseQueryError(f"SQLite: {text}")
    return exceptions.RowRefused(f"a value cannot be stored: {text}")


def check_place(path: Path, *, create: bool) -> None:
    """Whether a database may be opened there.

    Raises:
        MissingTable: there is no such file, and `create` is False.
        DatabaseConnectionError: it lies on a network file system, where SQLite's locks do not work.
    """
    if not path.exists():
        if not create:
            raise exceptions.MissingTable(f"database {path} does not exist", hint="pyexpd fill creates and fills it")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise exceptions.DatabaseConnectionError(f"{path.parent}: {error.strerror}") from error
    kind = filesystem_of(path.parent)
    if is_network(kind):
        raise exceptions.DatabaseConnectionError(
            f"database {path} lies on a network file system ({kind}), where SQLite loses data",
            hint="put it on a local disk (Database.database), or use provider mysql for several machines",
        )


def is_network(kind: str) -> bool:
    """Whether a type of file system is one that several machines may share, or may hide one that they do (FUSE)."""
    return kind in _NETWORK or kind.startswith("fuse")


def filesystem_of(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the file system that holds `path`, '' when it cannot be told."""
    best, kind = "", ""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ").rstrip("/")
        if len(point) >= len(best) and (str(path) == point or str(path).startswith(point + "/")):
            best, kind = point, fields[2]
    return kind


def connect(path: Path, *, create: bool = False, read_only: bool = False) -> sqlite3.Connection:
    """A connection set up for us: WAL, every commit on disk before it returns, foreign keys on.

    Args:
        read_only: leave the file as it is, with the journal that it has.
    """
    check_place(path, create=create)
    mode = "ro" if read_only else "rwc" if create else "rw"
    connection: sqlite3.Connection | None = None
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,
            timeout=BUSY_S,
            check_same_thread=False,
            cached_statements=256,
        )
        if read_only:
            connection.execute("PRAGMA schema_version")  # is it a database?
        else:
            _set_up(connection, path)
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise exceptions.DatabaseConnectionError(f"database {path} cannot be opened: {error}") from error
    return connection


def _set_up(connection: sqlite3.Connection, path: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            # The answer counts: where WAL is impossible SQLite stays in another mode without an error.
            (journal,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError:  # locked: a rollback-journal writer such as PyExperimenter is at work
            if time.monotonic() > end:
                raise
            time.sleep(random.uniform(0.05, 0.5))
    if journal != "wal":
        raise exceptions.DatabaseConnectionError(
            f"database {path} cannot use a write-ahead log (journal mode is {journal})",
            hint="put it on a local disk, or use provider mysql",
        )
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA journal_size_limit = 67108864")


class BlockingSqlite:
    """Runs units in the calling thread: commands, the heartbeat, the synchronous API."""

    def __init__(self, path: Path, *, create: bool = False, read_only: bool = False) -> None:
        self._path = path
        self._connection = connect(path, create=create, read_only=read_only)
        if create:  # to fill it, which writes all over the index of fingerprints
            self._connection.execute(f"PRAGMA cache_size = -{FILL_CACHE_KIB}")
            self._connection.execute(f"PRAGMA wal_autocheckpoint = {FILL_WAL_PAGES}")

    def run(self, unit: Unit[T]) -> T:
        """Run a unit that writes."""
        return self._patiently(unit, write=True)

    def read(self, unit: Unit[T]) -> T:
        """Run a unit that only reads."""
        return self._patiently(unit, write=False)

    def change_schema(self, statements: Sequence[Unit[None]]) -> None:
        """Run DDL, all of it or nothing."""

        def all_of_it() -> Any:
            for statement in statements:
                yield from statement.start()

        self._patiently(Unit("change_schema", all_of_it), write=True)

    def describe(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}, {self._path}"

    def close(self) -> None:
        self._connection.close()

    def _patiently(self, unit: Unit[T], *, write: bool) -> T:
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                return run_unit(self._connection, unit, write=write)
            except Locked as error:
                if time.monotonic() > end:
                    raise exceptions.ConnectionLost(f"database {self._path} stayed locked: {error}") from None
                time.sleep(random.uniform(0.005, 0.25))
