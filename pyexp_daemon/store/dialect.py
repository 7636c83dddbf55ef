"""Where the two databases differ by a fragment of SQL."""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pyexp_daemon.store.names import quote
from pyexp_daemon.store.unit import Do, marks

MOST_CASES = 64
"""So many rows an UPDATE for MySQL sets to values of their own: it looks for each row among all of them."""


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
    def update_rows(
        self, table: str, assignments: Mapping[str, str], rows: Sequence[Sequence[Any]], *, guard: Sequence[str] = ()
    ) -> list[Do]:
        """Statements that set columns of many experiments, each row to values of its own.

        Args:
            table: quoted name.
            assignments: column -> expression with `{}` for the value, in the order of the values.
            rows: one sequence per experiment: its ID, the values, then what the columns of the guard must have.
            guard: columns without which a row stays as it is, and is not counted among the changed ones.
        """

    def put_receipts(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Do:
        """Insert rows of the attempts table; one that is there already stays, unless its outcome is `lost`."""
        return Do(self._put_receipt(table, tuple(columns)), rows, many=True)

    @functools.lru_cache(maxsize=16)  # noqa: B019 a dialect stays as long as the process
    def _put_receipt(self, table: str, columns: Sequence[str]) -> str:
        quoted = [quote(column) for column in columns]
        head = f"INSERT INTO {table} ({', '.join(quoted)}) VALUES ({', '.join('?' * len(quoted))})"
        return f"{head} {self._unless_lost(table, quoted)}"

    @abstractmethod
    def _unless_lost(self, table: str, columns: Sequence[str]) -> str:
        """The end of an INSERT that leaves a row of the attempts table as it is, unless its outcome is `lost`."""


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

    def update_rows(
        self, table: str, assignments: Mapping[str, str], rows: Sequence[Sequence[Any]], *, guard: Sequence[str] = ()
    ) -> list[Do]:
        sql = self._update(table, tuple(assignments.items()), tuple(guard))
        return [Do(sql, [(*row[1:], row[0]) for row in rows], many=True)]

    @staticmethod
    @functools.lru_cache(maxsize=256)
    def _update(table: str, assignments: Sequence[tuple[str, str]], guard: Sequence[str]) -> str:
        changes = ", ".join(f"{quote(column)} = {value.format('?')}" for column, value in assignments)
        guarded = "".join(f"{quote(column)} = ? AND " for column in guard)
        return f"UPDATE {table} SET {changes} WHERE {guarded}ID = ?"

    def _unless_lost(self, table: str, columns: Sequence[str]) -> str:
        replaced = ", ".join(f"{column} = excluded.{column}" for column in columns)
        return f"ON CONFLICT (experiment_id, attempt, token) DO UPDATE SET {replaced} WHERE {table}.outcome = 'lost'"


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

    def update_rows(
        self, table: str, assignments: Mapping[str, str], rows: Sequence[Sequence[Any]], *, guard: Sequence[str] = ()
    ) -> list[Do]:
        # One statement for many rows. CASE has one type, so rows of other Python types go apart.
        by_types: dict[tuple[type, ...], list[Sequence[Any]]] = {}
        for row in rows:
            by_types.setdefault(tuple(map(type, row)), []).append(row)
        return [
            self._update_alike(table, assignments, alike[first : first + MOST_CASES], guard)
            for alike in by_types.values()
            for first in range(0, len(alike), MOST_CASES)
        ]

    def _update_alike(
        self, table: str, assignments: Mapping[str, str], rows: Sequence[Sequence[Any]], guard: Sequence[str]
    ) -> Do:
        ids, *given = zip(*rows, strict=True)
        changes, values = list[str](), list[Any]()
        for (column, expression), each in zip(assignments.items(), given, strict=False):  # of the guard comes after
            if each.count(each[0]) == len(each):  # as most columns are when experiments end
                value = "?"
                values.append(each[0])
            else:
                value = f"CASE ID{' WHEN ? THEN ?' * len(ids)} END"
                values += itertools.chain.from_iterable(zip(ids, each, strict=True))
            changes.append(f"{quote(column)} = {expression.format(value)}")
        sql = f"UPDATE {table} {self.primary} SET {', '.join(changes)} WHERE ID IN ({marks(ids)})"
        if not guard:
            return Do(sql, [*values, *ids])
        guards = [(row[0], *row[len(row) - len(guard) :]) for row in rows]
        columns = ", ".join(map(quote, ("ID", *guard)))
        rows_of_marks = ", ".join([f"({marks(guards[0])})"] * len(guards))
        return Do(f"{sql} AND ({columns}) IN ({rows_of_marks})", [*values, *ids, *itertools.chain(*guards)])

    def _unless_lost(self, table: str, columns: Sequence[str]) -> str:
        # SET runs from left to right with values already changed: outcome decides, so it comes last.
        kept_last = sorted(columns, key=lambda column: column == "`outcome`")
        replaced = ", ".join(f"{column} = IF(outcome = 'lost', VALUES({column}), {column})" for column in kept_last)
        return f"ON DUPLICATE KEY UPDATE {replaced}"


DIALECTS: Mapping[str, Dialect] = {"sqlite": Sqlite(), "mysql": Mysql()}
