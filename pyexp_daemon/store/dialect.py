"""Where the two databases differ by a fragment of SQL."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pyexp_daemon.store.names import quote
from pyexp_daemon.store.unit import Do


class Dialect(ABC):
    """The fragments that units of work put into their statements."""

    provider: ClassVar[str]
    now: ClassVar[str]
    """The server's time in UTC, as our own columns hold it."""
    skip_locked: ClassVar[str]
    for_update: ClassVar[str]
    primary: ClassVar[str]
    """Makes a statement find experiments by primary key, which keeps the order of locks."""
    ignore_duplicates: ClassVar[str]
    fill_rows: ClassVar[int]
    """How many experiments are inserted in one transaction."""

    @abstractmethod
    def use(self, index: str) -> str:
        """The hint to read through an index of the experiment table."""

    @abstractmethod
    def after(self, seconds: str = "?") -> str:
        """The server's time plus so many seconds; NULL seconds give NULL."""

    @abstractmethod
    def epoch(self, column: str) -> str:
        """A column of ours that holds a time, as seconds since the epoch."""

    @abstractmethod
    def exactly(self, column: str) -> str:
        """A column of text to group by, so that texts which differ in capitals or blanks at the end stay apart."""

    @abstractmethod
    def update_rows(self, table: str, assignments: Mapping[str, str], rows: Sequence[Sequence[Any]]) -> list[Do]:
        """Statements that set columns of many experiments, each row to values of its own.

        Args:
            table: quoted name.
            assignments: column -> expression with `{}` for the value, in the order of the values.
            rows: one sequence per experiment: its ID, then the values.
        """

    @abstractmethod
    def put_receipts(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Do:
        """Insert rows of the attempts table; one that is there already stays, unless its outcome is `lost`."""


class Sqlite(Dialect):
    """SQLite: one writer, so nothing is locked row by row."""

    provider = "sqlite"
    now = "((julianday('now') - 2440587.5) * 86400.0)"  # unixepoch('subsec') is NULL before 3.42
    skip_locked = ""
    for_update = ""
    primary = ""
    ignore_duplicates = "ON CONFLICT DO NOTHING"
    fill_rows = 10_000  # a commit writes every page it touched, and fingerprints touch all pages of their index

    def use(self, index: str) -> str:
        return f"INDEXED BY {quote(index)}"

    def after(self, seconds: str = "?") -> str:
        return f"({self.now} + {seconds})"

    def epoch(self, column: str) -> str:
        return column

    def exactly(self, column: str) -> str:
        return column

    def update_rows(self, table: str, assignments: Mapping[str, str], rows: Sequence[Sequence[Any]]) -> list[Do]:
        changes = ", ".join(f"{quote(column)} = {value.format('?')}" for column, value in assignments.items())
        sql = f"UPDATE {table} SET {changes} WHERE ID = ?"
        return [Do(sql, [(*row[1:], row[0]) for row in rows], many=True)]

    def put_receipts(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Do:
        columns = [quote(column) for column in columns]
        replaced = ", ".join(f"{column} = excluded.{column}" for column in columns)
        return Do(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
            f" ON CONFLICT (experiment_id, attempt, token) DO UPDATE SET {replaced} WHERE {table}.outcome = 'lost'",
            rows,
            many=True,
        )


class Mysql(Dialect):
    """MySQL >= 8.0 and MariaDB >= 10.6."""

    provider = "mysql"
    now = "UTC_TIMESTAMP(6)"
    skip_locked = "FOR UPDATE SKIP LOCKED"
    for_update = "FOR UPDATE"
    primary = "FORCE INDEX (PRIMARY)"
    ignore_duplicates = "ON DUPLICATE KEY UPDATE ID = ID"
    fill_rows = 1000  # one packet, whatever the values

    def use(self, index: str) -> str:
        return f"FORCE INDEX ({quote(index)})"

    def after(self, seconds: str = "?") -> str:
        return f"({self.now} + INTERVAL {seconds} SECOND)"

    def epoch(self, column: str) -> str:
        return f"(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {column}) / 1e6)"

    def exactly(self, column: str) -> str:
        return f"CAST({column} AS BINARY)"

    def update_rows(self, table: str, assignments: Mapping[str, str], rows: Sequence[Sequence[Any]]) -> list[Do]:
        # A join with a derived table is one round trip for any number of rows, and unlike INSERT … ON DUPLICATE KEY
        # UPDATE it does not need a valid insert. A union mixes types, so rows of other Python types go apart.
        by_types: dict[tuple[type, ...], list[Sequence[Any]]] = {}
        for row in rows:
            by_types.setdefault(tuple(map(type, row)), []).append(row)
        changes = ", ".join(
            f"t.{quote(column)} = {value.format(f'v.c{number}')}"
            for number, (column, value) in enumerate(assignments.items())
        )
        first = "SELECT ? AS i" + "".join(f", ? AS c{number}" for number in range(len(assignments)))
        other = " UNION ALL SELECT ?" + ", ?" * len(assignments)
        return [
            Do(
                f"UPDATE ({first}{other * (len(alike) - 1)}) v STRAIGHT_JOIN {table} t ON t.ID = v.i SET {changes}",
                [value for row in alike for value in row],
            )
            for alike in by_types.values()
        ]

    def put_receipts(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Do:
        # SET runs from left to right with values already changed: outcome decides, so it comes last.
        columns = [quote(column) for column in columns]
        kept_last = sorted(columns, key=lambda column: column == "`outcome`")
        replaced = ", ".join(f"{column} = IF(outcome = 'lost', VALUES({column}), {column})" for column in kept_last)
        return Do(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
            f" ON DUPLICATE KEY UPDATE {replaced}",
            rows,
            many=True,
        )


DIALECTS: Mapping[str, Dialect] = {"sqlite": Sqlite(), "mysql": Mysql()}
