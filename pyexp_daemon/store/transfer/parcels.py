"""What a transfer takes from its source: experiments in chunks, each with its rows in the tables beside it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pyexp_daemon.space.identity import ColumnType
from pyexp_daemon.space.sqltypes import Family
from pyexp_daemon.store import emissions, fill
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.reports import RECEIPT
from pyexp_daemon.store.selection import Selection
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.unit import Do, Steps, marks, unit

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore

CHUNK = 200
"""Experiments per transaction."""


MOST_LOG_ROWS = 20_000
"""So many log rows at most go with them, unless one experiment alone has more."""


MOST_BYTES = 8 * 2**20
"""And so much text at most, unless one has more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One side of a transfer: a connection, and the table there."""

    store: BlockingStore
    table: Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """An experiment as its source has it."""

    id: int
    fingerprint: bytes | None
    values: Mapping[str, Any]
    """The user's columns but ID."""
    queue: str
    order: int
    not_before: float | None
    attempt: int
    tries: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """An experiment with its rows in the tables beside it. `heads` are its snapshots, whose parts stay behind."""

    experiment: Experiment
    attempts: Sequence[Sequence[Any]] = ()
    logs: Mapping[str, Sequence[Sequence[Any]]] = field(default_factory=dict)
    emissions: Sequence[Sequence[Any]] = ()
    heads: Sequence[Mapping[str, Any]] = ()


@unit
def count(table: Table, selection: Selection) -> Steps[int]:
    """How many experiments are selected."""
    found = yield Do(f"SELECT COUNT(*) FROM {table.main} WHERE {selection.condition}", selection.values)
    return int(found.rows[0][0])


def chunks(source: Place, selection: Selection) -> Iterator[list[Experiment]]:
    """The selected experiments by ID, as many at once as have few enough log rows."""
    after = 0
    while sizes := source.store.read(_sizes(source.table, selection, after=after)):
        limit = _how_many([size_bytes for _, size_bytes in sizes])
        found = source.store.read(_read(source.table, selection, after=after, limit=limit))
        if not found:  # somebody has changed them meanwhile, and they are not selected any more
            after = sizes[limit - 1][0]
            continue
        counts = source.store.read(_count_logs(source.table, [each.id for each in found]))
        chunk, rows = list[Experiment](), 0
        for each in found:
            rows += counts[each.id]
            if chunk and rows > MOST_LOG_ROWS:
                break
            chunk.append(each)
        yield chunk
        after = chunk[-1].id


def _how_many(sizes: Sequence[int]) -> int:
    """How many rows of these sizes are held at once; one, however large it is."""
    total = 0
    for number, size_bytes in enumerate(sizes):
        total += size_bytes
        if number and total > MOST_BYTES:
            return number
    return len(sizes)


@unit
def _sizes(table: Table, selection: Selection, *, after: int) -> Steps[list[tuple[int, int]]]:
    """The next experiments, and how long their texts and bytes are."""
    kinds = {**table.resultfields, "error": "LONGTEXT"}
    long = [name for name, kind in kinds.items() if ColumnType.parse(kind).family in (Family.TEXT, Family.BINARY)]
    total = " + ".join(f"COALESCE(LENGTH({quote(name)}), 0)" for name in long)
    found = yield Do(
        f"SELECT ID, {total} FROM {table.main} WHERE ID > ? AND ({selection.condition}) ORDER BY ID LIMIT ?",
        (after, *selection.values, CHUNK),
    )
    return [(row[0], int(row[1])) for row in found.rows]


@unit
def _read(table: Table, selection: Selection, *, after: int, limit: int) -> Steps[list[Experiment]]:
    names = table.columns[1:]
    ours = ("pyexpd_fingerprint", "pyexpd_queue", "pyexpd_order", "pyexpd_attempt", "pyexpd_tries")
    found = yield Do(
        f"SELECT ID, {', '.join(exactly(table, name) for name in names)}, {', '.join(ours)},"
        f" {table.dialect.epoch('pyexpd_not_before')} FROM {table.main}"
        f" WHERE ID > ? AND ({selection.condition}) ORDER BY ID LIMIT ?",
        (after, *selection.values, limit),
    )
    return [
        Experiment(
            id=row[0],
            values=dict(zip(names, row[1:], strict=False)),
            fingerprint=None if (mark := row[len(names) + 1]) is None else bytes(mark),
            queue=row[len(names) + 2],
            order=row[len(names) + 3],
            attempt=row[len(names) + 4],
            tries=row[len(names) + 5],
            not_before=None if row[-1] is None else float(row[-1]),
        )
        for row in found.rows
    ]


def exactly(table: Table, column: str) -> str:
    return bit_by_bit(table, column, table.keyfields.get(column) or table.resultfields.get(column))


def bit_by_bit(table: Table, column: str, kind: str | None) -> str:
    """A column with every bit that it holds: MySQL shows six digits of a FLOAT, unless it is reckoned with."""
    is_single = kind is not None and ColumnType.parse(kind).family is Family.SINGLE
    return f"({quote(column)} + 0e0)" if is_single and table.dialect.provider == "mysql" else quote(column)


@unit
def _count_logs(table: Table, ids: Sequence[int]) -> Steps[Counter[int]]:
    counts: Counter[int] = Counter()
    for logtable in table.logtables:
        found = yield Do(
            f"SELECT experiment_id, COUNT(*) FROM {table.beside(logtable)} WHERE experiment_id IN ({marks(ids)})"
            f" GROUP BY experiment_id",
            ids,
        )
        counts.update(dict(found.rows))
    return counts


@unit
def columns_of_emissions(table: Table) -> Steps[tuple[str, ...]]:
    there = yield from emissions.columns(table)
    return tuple(column for column in emissions.COLUMNS if column in there)


@unit
def pack(
    table: Table, experiments: Sequence[Experiment], measured: Sequence[str], *, wanted: Mapping[str, Mapping[str, str]]
) -> Steps[list[Parcel]]:
    """The experiments with what belongs to them; each row begins with the experiment.

    Args:
        wanted: the logtables of the target; a column that the source lacks is NULL.
    """
    ids = [each.id for each in experiments]
    if not ids:
        return []
    times = ("started", "ended")
    receipt = [f"{table.dialect.epoch(name)}" if name in times else quote(name) for name in RECEIPT]
    attempts = yield Do(
        f"SELECT {', '.join(receipt)} FROM {table.attempts} WHERE experiment_id IN ({marks(ids)})"
        f" ORDER BY experiment_id, attempt, token",
        ids,
    )
    logs: dict[int, dict[str, list[Sequence[Any]]]] = defaultdict(lambda: defaultdict(list))
    for logtable, columns in table.logtables.items():
        there = [
            bit_by_bit(table, name, columns[name]) if name in columns else "NULL" for name in wanted.get(logtable, ())
        ]
        found = yield Do(
            f"SELECT {', '.join(('experiment_id', 'timestamp', *there, 'pyexpd_attempt', 'pyexpd_seq'))}"
            f" FROM {table.beside(logtable)}"
            f" WHERE experiment_id IN ({marks(ids)}) ORDER BY ID",
            ids,
        )
        for row in found.rows:
            logs[row[0]][logtable].append(row)
    energy: Sequence[tuple[Any, ...]] = ()
    if measured:
        found = yield Do(
            f"SELECT {', '.join(map(quote, ('experiment_id', *measured)))} FROM {table.emissions}"
            f" WHERE experiment_id IN ({marks(ids)}) ORDER BY ID",
            ids,
        )
        energy = found.rows
    heads = yield Do(
        f"SELECT experiment_id, sequence, attempt, label, {table.dialect.epoch('created')}, size_bytes, parts, state_id"
        f" FROM {table.snapshots} WHERE experiment_id IN ({marks(ids)}) ORDER BY experiment_id, sequence",
        ids,
    )
    by_id = [_by_experiment(rows) for rows in (attempts.rows, energy, heads.rows)]
    return [
        Parcel(
            experiment=each,
            attempts=by_id[0][each.id],
            logs=logs[each.id],
            emissions=by_id[1][each.id],
            heads=[dict(zip(_HEAD, row[1:], strict=True)) for row in by_id[2][each.id]],
        )
        for each in experiments
    ]


_HEAD = ("sequence", "attempt", "label", "created", "size_bytes", "parts", "state_id")


def _by_experiment(rows: Iterable[Sequence[Any]]) -> dict[int, list[Sequence[Any]]]:
    found: dict[int, list[Sequence[Any]]] = defaultdict(list)
    for row in rows:
        found[row[0]].append(row)
    return found


def marked(source: Place, chunk: Sequence[Experiment], seen: set[bytes]) -> list[Experiment]:
    """The experiments of a chunk by their fingerprints; those that have none get it here, unless another one has it.

    Args:
        seen: fingerprints that were given so far.
    """
    bare = [each for each in chunk if each.fingerprint is None]
    if not bare:
        return list(chunk)
    given = {
        each.id: fill.fingerprint_of(source.table, [each.values[key] for key in source.table.keyfields])
        for each in bare
    }
    owned = source.store.read(fill.known(source.table, sorted(given.values())))
    marked = []
    for each in chunk:
        if each.fingerprint is not None:
            marked.append(each)
        elif given[each.id] not in owned and given[each.id] not in seen:
            seen.add(given[each.id])
            marked.append(replace(each, fingerprint=given[each.id]))
    return marked
