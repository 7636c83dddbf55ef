"""Fill: fingerprint rows that have none, then insert what is missing, with any number of fillers at once."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyexp_daemon import exceptions
from pyexp_daemon.space.identity import fingerprint
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.tables import ADDED, FINGERPRINT, Table
from pyexp_daemon.store.unit import Commit, Do, Steps, marks, unit
from pyexp_daemon.store.values import local_time

CHUNK = 1000
"""Rows per unit: one round trip is then nothing beside the insert, and no lock is held for long."""

_LOCK = "CONCAT('pyexpd_fill_', CRC32(DATABASE()), '_', ?)"
"""The name of the lock that fillers of one table share: names of locks are the whole server's."""

Row = tuple[tuple[Any, ...], bytes]
"""The values of the keyfields in declared order, and their fingerprint."""

Spare = dict[int, deque[int]]
"""Experiments without a fingerprint, in their order, by the one that has the fingerprint of their parameters."""


@unit
def insert(
    table: Table,
    rows: Sequence[Row],
    *,
    queue: str = "default",
    keyfields: int | None = None,
    are_new: bool = False,
) -> Steps[int]:
    """Insert those of at most `table.dialect.fill_rows` rows whose fingerprint is not there yet; how many were added.

    Must run under `lock` on MySQL: what is looked up here would else be inserted by another filler in between, and
    every insert that is ignored burns a number.

    Args:
        keyfields: how many keyfields had been added to the table later when the filler began; None: do not look.
        are_new: the table has none of them, for all we know: do not look. One that is there is added no second time.

    Raises:
        RowRefused: a value does not fit its column; nothing of the chunk was inserted.
        TableHasWrongStructureError: there are more of them now, so `rows` are none of this table any more.
    """
    yield from _refuse_new_keyfields(table, keyfields)
    missing = rows if are_new else (yield from _missing(table, rows))
    if not missing:
        return 0
    columns, now = [quote(name) for name in table.keyfields], local_time()
    (added,) = yield Commit(
        [
            Do(
                f"INSERT INTO {table.main} ({', '.join([*columns, 'creation_date', 'status', 'pyexpd_queue'])},"
                f" pyexpd_fingerprint) VALUES ({', '.join('?' * (len(columns) + 4))})"
                f" {table.dialect.ignore_duplicates}",
                [(*values, now, "created", queue, mark) for values, mark in missing],
                many=True,
            )
        ]
    )
    return int(added.changed)


def _missing(table: Table, rows: Sequence[Row]) -> Steps[Sequence[Row]]:
    there = yield from owners_of(table, [mark for _, mark in rows])
    return [row for row in rows if row[1] not in there]


@unit
def highest(table: Table) -> Steps[int]:
    """The highest number of an experiment; 0 in an empty table."""
    found = yield Do(f"SELECT MAX(ID) FROM {table.main}")
    return found.rows[0][0] or 0


def _refuse_new_keyfields(table: Table, known: int | None) -> Steps[None]:
    if known is None:
        return
    found = yield Do(
        f"SELECT COUNT(*) FROM {table.meta} WHERE SUBSTR(name, 1, {len(ADDED)}) = ?",
        (ADDED,),
    )
    if found.rows[0][0] != known:
        raise exceptions.TableHasWrongStructureError(
            f"table {table.name} got another keyfield while it was filled", hint="call pyexpd fill again"
        )


@unit
def known(table: Table, prints: Sequence[bytes]) -> Steps[set[bytes]]:
    """Which of these fingerprints the table has."""
    return set((yield from owners_of(table, prints)))


@unit
def owners(table: Table, prints: Sequence[bytes]) -> Steps[dict[bytes, int]]:
    """The experiments that have these fingerprints."""
    return (yield from owners_of(table, prints))


def owners_of(table: Table, prints: Sequence[bytes]) -> Steps[dict[bytes, int]]:
    """The experiments that have these fingerprints, within a unit."""
    found = yield Do(
        f"SELECT pyexpd_fingerprint, ID FROM {table.main} WHERE pyexpd_fingerprint IN ({marks(prints)})",
        prints,
    )
    return {bytes(row[0]): row[1] for row in found.rows}


@unit
def count_marked(table: Table) -> Steps[int]:
    """How many experiments have a fingerprint: those that differ from each other."""
    found = yield Do(f"SELECT COUNT(*) FROM {table.main} WHERE pyexpd_fingerprint IS NOT NULL")
    return int(found.rows[0][0])


@unit
def unmarked(table: Table, *, after: int = 0, is_marked: bool = True) -> Steps[list[tuple[int, bytes]]]:
    """The next experiments without a fingerprint, and the one each would get; changes nothing.

    Args:
        is_marked: whether the table has fingerprints at all.
    """
    missing = "pyexpd_fingerprint IS NULL AND " if is_marked else ""
    found = yield Do(
        f"SELECT ID, {table.parameters} FROM {table.main} WHERE {missing}ID > ? ORDER BY ID LIMIT ?", (after, CHUNK)
    )
    return [(row[0], fingerprint_of(table, row[1:])) for row in found.rows]


@unit
def lock(table: Table, *, wait_s: int = 10) -> Steps[bool]:
    """Make other fillers of this table wait (MySQL; on SQLite the unit itself is exclusive). False: still taken."""
    if table.dialect.provider == "sqlite":
        return True
    got = yield Do(f"SELECT GET_LOCK({_LOCK}, ?)", (table.name, wait_s))
    return bool(got.rows[0][0])


@unit
def unlock(table: Table) -> Steps[None]:
    """Let the next filler in."""
    if table.dialect.provider == "mysql":
        yield Do(f"SELECT RELEASE_LOCK({_LOCK})", (table.name,))


@dataclass(frozen=True, slots=True)
class Fingerprinted:
    """What one chunk of `fingerprint_rows` did; `last` is where the next begins, None at the end."""

    last: int | None
    marked: int = 0
    duplicates: Sequence[tuple[int, int]] = ()
    """(experiment without fingerprint, the one that has it): equal parameters."""


@unit
def fingerprint_rows(table: Table, *, after: int = 0, keyfields: int | None = None) -> Steps[Fingerprinted]:
    """Give fingerprints to rows without one (made by hand or by PyExperimenter), in chunks by ID.

    Of rows with equal parameters the lowest number gets it; the others keep NULL and are returned.

    Args:
        keyfields: see `insert`.
    """
    yield from _refuse_new_keyfields(table, keyfields)
    hint = table.use(FINGERPRINT) if table.dialect.provider == "mysql" else ""  # SQLite's index leaves NULL out
    found = yield Do(
        f"SELECT ID, {table.parameters} FROM {table.main} {hint}"
        f" WHERE pyexpd_fingerprint IS NULL AND ID > ? ORDER BY ID LIMIT ?",
        (after, CHUNK),
    )
    if not found.rows:
        return Fingerprinted(last=None)
    prints = {row[0]: fingerprint_of(table, row[1:]) for row in found.rows}
    first = {mark: number for number, mark in reversed(prints.items())}
    taken = yield Do(
        f"SELECT pyexpd_fingerprint, ID FROM {table.main} WHERE pyexpd_fingerprint IN ({marks(list(first))})",
        list(first),
    )
    owners = first | {bytes(mark): owner for mark, owner in taken.rows}
    unmarked = [(mark, number) for mark, number in first.items() if owners[mark] == number]
    if unmarked:
        yield Commit([_mark(table, unmarked)])
    duplicates = [(number, owners[mark]) for number, mark in prints.items() if owners[mark] != number]
    return Fingerprinted(last=found.rows[-1][0], marked=len(unmarked), duplicates=duplicates)


def _mark(table: Table, marked: Sequence[tuple[bytes, int]]) -> Do:
    sql = f"UPDATE {table.main} SET pyexpd_fingerprint = ? WHERE ID = ? AND pyexpd_fingerprint IS NULL"
    return Do(sql, marked, many=True)


@unit
def mark_copies(table: Table, rows: Sequence[Row], spare: Spare, *, keyfields: int | None = None) -> Steps[list[int]]:
    """Give spare experiments the fingerprints of copies among the rows that nobody has.

    As `insert`, it must run under `lock` on MySQL.

    Args:
        keyfields: see `insert`.

    Returns:
        Of each experiment that is not spare any more, the one of equal parameters; in the order of `spare`. When there
        are any, call it again without them: some may have got their fingerprints from another filler.
    """
    yield from _refuse_new_keyfields(table, keyfields)
    missing = yield from _missing(table, rows)
    firsts = first_copies(table, missing)
    owners = (yield from owners_of(table, list(set(firsts.values())))) if firsts else {}
    taken = list(pair_copies(firsts, owners, spare))
    if not taken:
        return []
    ids = [number for _, _, number in taken]
    found = yield Do(f"SELECT ID FROM {table.main} WHERE ID IN ({marks(ids)}) AND pyexpd_fingerprint IS NULL", ids)
    unmarked = {row[0] for row in found.rows}
    marked = [(mark, number) for mark, _, number in taken if number in unmarked]
    if marked:
        yield Commit([_mark(table, marked)])
    return [owner for _, owner, _ in taken]


def first_copies(table: Table, rows: Sequence[Row]) -> dict[bytes, bytes]:
    """By the fingerprint of each row the one of its parameters, which the first of its copies has."""
    return {mark: fingerprint_of(table, values) for values, mark in rows}


def pair_copies(
    firsts: Mapping[bytes, bytes], owners: Mapping[bytes, int], spare: Spare
) -> Iterator[tuple[bytes, int, int]]:
    """Fingerprints of copies, the experiment that is the first copy, and the spare one that is to have it.

    Args:
        firsts: see `first_copies`.
        owners: the experiments that have the fingerprints of the first ones.
    """
    left: dict[int, Iterator[int]] = {}
    for mark, first in firsts.items():
        owner = owners.get(first, 0)
        numbers = left.setdefault(owner, iter(spare.get(owner, ())))
        yield from ((mark, owner, number) for number in itertools.islice(numbers, 1))


def fingerprint_of(table: Table, values: Sequence[Any]) -> bytes:
    """The fingerprint of a stored row: of the values as their columns give them back."""
    return fingerprint(
        (name, column.canonical_bytes_of_stored(value))
        for (name, column), value in zip(table.key_types.items(), values, strict=True)
    )
