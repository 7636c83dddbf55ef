"""A table beside the experiments that a configuration stands for: whether they are the same, and made so."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyexp_daemon import exceptions
from pyexp_daemon.store import emissions, filling, schema, structure
from pyexp_daemon.store.fill import CHUNK, Row, fingerprint_of
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.unit import Commit, Do, Steps, unit
from pyexp_daemon.store.values import local_time

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore

EXAMPLES = 3
"""So many experiments that only one side has are named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Experiments that only one side has: how many, and some of them as the function would get them."""

    there: int
    """How many the table has in all."""
    only_configured: int
    only_there: int
    configured: Sequence[dict[str, Any]]
    stored: Sequence[dict[str, Any]]

    def __bool__(self) -> bool:
        return bool(self.only_configured or self.only_there)

    @property
    def words(self) -> str:
        """`2 only in the configuration (x=8; x=9), 1 only in the table (x=0)`"""
        parts = []
        for count, some, where in (
            (self.only_configured, self.configured, "in the configuration"),
            (self.only_there, self.stored, "in the table"),
        ):
            if count:
                shown = "; ".join(", ".join(f"{name}={value!r}" for name, value in row.items()) for row in some)
                parts.append(f"{count} only {where} ({shown}{'; …' if count > len(some) else ''})")
        return ", ".join(parts)


def difference(store: BlockingStore, table: Table, rows: Iterable[Row]) -> Difference:
    """What the configuration's experiments and the table's do not share.

    Args:
        rows: can be iterated again.

    Raises:
        TableHasWrongStructureError, SchemaVersionError: it has other fields, or has to be completed first.
    """
    seen = filling.preview(store, table, rows)
    if not (seen.added or seen.others or seen.duplicates):
        return Difference(there=seen.there, only_configured=0, only_there=0, configured=[], stored=[])
    missing = {mark for _, mark in rows}
    is_marked = "pyexpd_fingerprint" in store.read(structure.inspect(table)).columns
    stored, there, after = list[dict[str, Any]](), 0, 0
    while found := store.read(_marked(table, after=after, is_marked=is_marked)):
        for number, mark, values in found:
            there += 1
            if mark in missing:  # no other row has it
                missing.remove(mark)
            elif len(stored) < EXAMPLES:
                stored.append(table.decode(values))
            after = number
    lacking = (values for values, mark in rows if mark in missing)
    only_there = seen.others + len(seen.duplicates)
    return Difference(
        there=there,
        only_configured=seen.added,
        only_there=only_there,
        configured=[table.decode(values) for values in itertools.islice(lacking, min(EXAMPLES, seen.added))],
        stored=stored[:only_there],
    )


@unit
def _marked(table: Table, *, after: int, is_marked: bool) -> Steps[list[tuple[int, bytes | None, tuple[Any, ...]]]]:
    mark = "pyexpd_fingerprint" if is_marked else "NULL"
    found = yield Do(
        f"SELECT ID, {mark}, {table.parameters} FROM {table.main} WHERE ID > ? ORDER BY ID LIMIT ?",
        (after, 5 * CHUNK),
    )
    return [
        (row[0], fingerprint_of(table, row[2:]) if row[1] is None else bytes(row[1]), row[2:]) for row in found.rows
    ]


@unit
def check_idle(table: Table) -> Steps[None]:
    """
    Raises:
        UsageError: experiments are running.
    """
    yield from _refuse_running(table)


def _refuse_running(table: Table, how: str = "") -> Steps[None]:
    counted = yield Do(f"SELECT COUNT(CASE WHEN status = 'running' THEN 1 END) FROM {table.main} {how}")
    if running := counted.rows[0][0]:
        raise exceptions.UsageError(
            f"{running} experiments of table {table.name} are running",
            hint="pyexpd daemon drain --all ends the daemons when they are finished, stop --all at once",
        )


@unit
def overwrite(table: Table, rows: Iterable[Row]) -> Steps[tuple[int, int]]:
    """Delete all experiments with everything that belongs to them, and insert these, in one transaction.

    Args:
        rows: can be iterated again, when the database has this repeated.

    Returns:
        How many were deleted, and inserted.

    Raises:
        UsageError: some are running; nothing was changed.
    """
    # Read with locks on all of them, in their order: nobody claims one after this.
    yield from _refuse_running(table, f"{table.dialect.primary} {table.dialect.for_update}")
    state = yield from structure.inspect(table).start()
    beside = [table.beside(logtable) for logtable in schema.logtables(table, state)]
    beside += [table.emissions] if emissions.is_emissions(state.emissions) else []
    for name in (*beside, table.snapshots, table.snapshot_parts, table.attempts):
        yield Do(f"DELETE FROM {name}")
    deleted = yield Do(f"DELETE FROM {table.main}")
    columns = [*map(quote, table.keyfields), "creation_date", "status", "pyexpd_fingerprint"]
    sql = f"INSERT INTO {table.main} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    inserted, now = 0, local_time()
    remaining = iter(rows)
    while chunk := list(itertools.islice(remaining, CHUNK)):
        yield Do(sql, [(*values, now, "created", mark) for values, mark in chunk], many=True)
        inserted += len(chunk)
    yield Commit([])
    return deleted.changed, inserted
