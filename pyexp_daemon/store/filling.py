"""Filling a table from end to end over a blocking connection: the tables, the fingerprints, the missing rows."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyexp_daemon import exceptions
from pyexp_daemon.space.grid import Grid, Grids, Rows
from pyexp_daemon.store import fill, migrations, schema, structure
from pyexp_daemon.store.tables import Table

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore

PATIENCE_S = 120.0
"""How long to wait for another filler of the table."""

_TURNS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What a fill did, or would do."""

    added: int
    there: int
    others: int = 0
    """Experiments of the table that are not among the rows."""
    duplicates: Sequence[tuple[int, int]] = ()
    """(experiment without fingerprint, the one that has it): equal parameters."""
    statements: Sequence[str] = field(default=())
    """DDL that made, adopted or completed the tables."""


def fill_table(
    store: BlockingStore,
    table: Table,
    rows: Grid | Grids | Rows,
    *,
    show: Callable[[Sequence[str]], None] = lambda statements: None,
    ready: Callable[[], None] = lambda: None,
    advanced: Callable[[int], None] = lambda rows: None,
) -> Filled:
    """Make or complete the tables, and insert the rows that are missing; with any number of fillers at once.

    Args:
        show: see `ensure_tables`.
        ready: told when the tables are there.
        advanced: see `insert_missing`.

    Raises:
        TableHasWrongStructureError, SchemaVersionError: the table was left as it was.
        RowRefused: a value does not fit its column; the chunks before it were inserted.
    """
    keyfields = count_added_keyfields(store, table)
    statements = ensure_tables(store, table, show=show)
    ready()
    duplicates = mark_existing(store, table, keyfields=keyfields)
    added, there = insert_missing(store, table, rows, keyfields=keyfields, advanced=advanced)
    others = max(0, count_distinct(store, table) - len(rows))
    return Filled(added=added, there=there, others=others, duplicates=duplicates, statements=statements)


def ensure_tables(
    store: BlockingStore, table: Table, *, show: Callable[[Sequence[str]], None] = lambda statements: None
) -> list[str]:
    """Make, adopt, upgrade or complete the tables; the statements that did it, none when everything was there.

    Args:
        show: told of the statements before they change a table that is there.

    Raises:
        TableHasWrongStructureError: there is a table with other columns; it was left as it was.
        SchemaVersionError: the table needs a newer version of this code.
    """
    with alone(store, table):
        for turn in itertools.count(1):
            state = store.read(structure.inspect(table))
            schema.check_completable(table, state)
            schema.refuse_unfinished(table, state)
            statements = migrations.statements(table, state)
            if not statements and (state.version or 0) >= migrations.VERSION:
                if not (state.keys and state.results.issuperset(table.resultfields)):
                    store.run(migrations.record_fields(table))
                return []
            if state.exists and statements:
                show(statements)
            try:
                store.change_schema([migrations.ddl(statement) for statement in statements])
                if (state.version or 0) < migrations.VERSION:
                    store.run(migrations.stamp(table))
                else:
                    store.run(migrations.record_fields(table))
            except exceptions.DatabaseQueryError:
                # Another filler (on SQLite, where they exclude each other only within a transaction) was faster.
                if turn == _TURNS:
                    raise
                continue
            return statements
    raise AssertionError


def mark_existing(store: BlockingStore, table: Table, *, keyfields: int | None = None) -> list[tuple[int, int]]:
    """Give fingerprints to rows without one; the pairs of experiments with equal parameters, see `Filled`.

    Args:
        keyfields: see `fill.insert`.
    """
    duplicates: list[tuple[int, int]] = []
    after: int | None = 0
    while after is not None:
        with alone(store, table):
            done = store.run(fill.fingerprint_rows(table, after=after, keyfields=keyfields))
        duplicates += done.duplicates
        after = done.last
    return duplicates


def insert_missing(
    store: BlockingStore,
    table: Table,
    rows: Iterable[fill.Row],
    *,
    keyfields: int | None = None,
    advanced: Callable[[int], None] = lambda rows: None,
) -> tuple[int, int]:
    """Insert the rows whose parameters the table lacks; (added, already there).

    Args:
        keyfields: see `fill.insert`.
        advanced: told after every chunk how many rows it had.

    Raises:
        RowRefused: a value does not fit its column; the chunks before it were inserted.
        TableHasWrongStructureError: the table got another keyfield meanwhile; the chunks before it were inserted.
    """
    added = total = last = 0
    for chunk in _chunks(rows, table.dialect.fill_rows):
        with alone(store, table):
            # As long as all that is there came from here, nothing else has to be looked for.
            are_new = added == total and store.read(fill.highest(table)) == last
            added += store.run(fill.insert(table, chunk, keyfields=keyfields, are_new=are_new))
            last = store.read(fill.highest(table)) if are_new else -1
        total += len(chunk)
        advanced(len(chunk))
    return added, total - added


def preview(store: BlockingStore, table: Table, rows: Iterable[fill.Row]) -> Filled:
    """What a fill would do; nothing is changed.

    Raises:
        TableHasWrongStructureError, SchemaVersionError: it would be refused.
    """
    state = store.read(structure.inspect(table))
    schema.check_completable(table, state)
    schema.refuse_unfinished(table, state)
    statements = migrations.statements(table, state)
    if not state.exists:
        return Filled(added=sum(1 for _ in rows), there=0, statements=statements)
    is_marked = "pyexpd_fingerprint" in state.columns
    unmarked, duplicates = _read_unmarked(store, table, is_marked=is_marked)
    added = there = 0
    for chunk in _chunks(rows, fill.CHUNK):
        known = store.read(fill.known(table, [mark for _, mark in chunk])) if is_marked else set()
        seen = sum(1 for _, mark in chunk if mark in known or mark in unmarked)
        there += seen
        added += len(chunk) - seen
    marked = store.read(fill.count_marked(table)) if is_marked else 0
    return Filled(
        added=added,
        there=there,
        others=marked + len(unmarked) - there,
        duplicates=duplicates,
        statements=statements,
    )


def count_distinct(store: BlockingStore, table: Table) -> int:
    """How many experiments the table has that differ from each other."""
    return store.read(fill.count_marked(table))


def count_added_keyfields(store: BlockingStore, table: Table) -> int:
    """How many keyfields the table got after it was made: a number that never shrinks."""
    return len(store.read(structure.inspect(table)).added)


def statements_for_new(table: Table) -> list[str]:
    """The statements that make the tables where there is nothing."""
    return migrations.statements(table, structure.NOTHING)


def _read_unmarked(
    store: BlockingStore, table: Table, *, is_marked: bool
) -> tuple[dict[bytes, int], list[tuple[int, int]]]:
    """Fingerprints that rows without one would get, and the pairs with equal parameters."""
    first: dict[bytes, int] = {}
    duplicates: list[tuple[int, int]] = []
    after = 0
    while found := store.read(fill.unmarked(table, after=after, is_marked=is_marked)):
        owners = store.read(fill.owners(table, [mark for _, mark in found])) if is_marked else {}
        for experiment_id, mark in found:
            owner = owners.get(mark) or first.setdefault(mark, experiment_id)
            if owner != experiment_id:
                duplicates.append((experiment_id, owner))
        after = found[-1][0]
    return first, duplicates


def _chunks(rows: Iterable[fill.Row], size: int) -> Iterator[list[fill.Row]]:
    remaining = iter(rows)
    while chunk := list(itertools.islice(remaining, size)):
        yield chunk


@contextmanager
def alone(store: BlockingStore, table: Table) -> Iterator[None]:
    """Keep other fillers of this table out while the block runs."""
    end = time.monotonic() + PATIENCE_S
    while not store.read(fill.lock(table)):
        if time.monotonic() > end:
            raise exceptions.DatabaseConnectionError(
                f"another fill of table {table.name} does not come to an end", hint="try again later"
            )
    try:
        yield
    finally:
        store.read(fill.unlock(table))
