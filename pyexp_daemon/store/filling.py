"""Filling a table from end to end over a blocking connection: the tables, the fingerprints, the missing rows."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
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
    spare = _spare(mark_existing(store, table, keyfields=keyfields))
    added, there = insert_missing(store, table, rows, spare=spare, keyfields=keyfields, advanced=advanced)
    others = max(0, count_distinct(store, table) - len(rows))
    return Filled(added=added, there=there, others=others, duplicates=_pairs(spare), statements=statements)


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
    spare: fill.Spare | None = None,
    keyfields: int | None = None,
    advanced: Callable[[int], None] = lambda rows: None,
) -> tuple[int, int]:
    """Insert the rows whose parameters the table lacks; (added, already there).

    Args:
        spare: experiments that may be copies among the rows. Those that are get their fingerprints, and are taken out.
        keyfields: see `fill.insert`.
        advanced: told after every chunk how many rows it had.

    Raises:
        RowRefused: a value does not fit its column; the chunks before it were inserted.
        TableHasWrongStructureError: the table got another keyfield meanwhile; the chunks before it were inserted.
    """
    added = total = last = 0
    for chunk in _chunks(rows, table.dialect.fill_rows):
        with alone(store, table):
            if spare:
                _mark_copies(store, table, chunk, spare, keyfields=keyfields)
            # As long as all that is there came from here, nothing else has to be looked for.
            are_new = added == total and store.read(fill.highest(table)) == last
            added += store.run(fill.insert(table, chunk, keyfields=keyfields, are_new=are_new))
            last = store.read(fill.highest(table)) if are_new else -1
        total += len(chunk)
        advanced(len(chunk))
    return added, total - added


def _mark_copies(
    store: BlockingStore, table: Table, chunk: Sequence[fill.Row], spare: fill.Spare, *, keyfields: int | None
) -> None:
    while taken := store.run(fill.mark_copies(table, chunk, spare, keyfields=keyfields)):
        _take(spare, taken)


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
    owners_of = partial(_owners, store, table, unmarked, is_marked=is_marked)
    spare = _spare(duplicates)
    added = there = copies = 0
    for chunk in _chunks(rows, fill.CHUNK):
        owners = owners_of([mark for _, mark in chunk])
        missing = [row for row in chunk if row[1] not in owners]
        found = _take_copies(table, missing, spare, owners_of) if spare else 0
        added += len(missing) - found
        there += len(chunk) - len(missing) + found
        copies += found
    marked = store.read(fill.count_marked(table)) if is_marked else 0
    return Filled(
        added=added,
        there=there,
        others=marked + len(unmarked) + copies - there,
        duplicates=_pairs(spare),
        statements=statements,
    )


def _owners(
    store: BlockingStore, table: Table, unmarked: Mapping[bytes, int], prints: Sequence[bytes], *, is_marked: bool
) -> dict[bytes, int]:
    """The experiments that have these fingerprints, or would get them."""
    there: dict[bytes, int] = store.read(fill.owners(table, prints)) if is_marked and prints else {}
    return {mark: unmarked[mark] for mark in prints if mark in unmarked} | there


def _take_copies(
    table: Table,
    missing: Sequence[fill.Row],
    spare: fill.Spare,
    owners_of: Callable[[Sequence[bytes]], Mapping[bytes, int]],
) -> int:
    """Take out of the spare experiments those that are copies among the rows; how many."""
    firsts = fill.first_copies(table, missing)
    taken = [owner for _, owner, _ in fill.pair_copies(firsts, owners_of(list(set(firsts.values()))), spare)]
    _take(spare, taken)
    return len(taken)


def _spare(duplicates: Iterable[tuple[int, int]]) -> fill.Spare:
    spare: dict[int, deque[int]] = {}
    for number, owner in duplicates:
        spare.setdefault(owner, deque()).append(number)
    return spare


def _take(spare: fill.Spare, owners: Iterable[int]) -> None:
    """Take the next experiment of each of these out."""
    for owner in owners:
        spare[owner].popleft()
        if not spare[owner]:
            del spare[owner]


def _pairs(spare: fill.Spare) -> list[tuple[int, int]]:
    """What is left, as in `Filled.duplicates`."""
    return sorted((number, owner) for owner, numbers in spare.items() for number in numbers)


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
