"""Experiments from one database into another: matched by their fingerprints, with all that belongs to them.

A chunk of experiments is one transaction, and a repeated transfer finds what it did before, so one that was killed goes
on when it is called again. Snapshots follow, part by part, each visible when it is complete.
"""

from __future__ import annotations

import datetime
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pyexp_daemon import exceptions
from pyexp_daemon.model import Outcome, Status
from pyexp_daemon.space.identity import ColumnType
from pyexp_daemon.space.sqltypes import Family, server_objection
from pyexp_daemon.store import emissions, fill, filling, schema, snapshots, structure
from pyexp_daemon.store.discovery import OF_EVERY_LOGTABLE
from pyexp_daemon.store.leases import FREED
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.raw import types_of
from pyexp_daemon.store.reports import RECEIPT
from pyexp_daemon.store.selection import ALL, Selection
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.unit import Commit, Do, Steps, marks, unit
from pyexp_daemon.store.values import storable, utc

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore

CHUNK = 200
"""Experiments per transaction."""

MOST_LOG_ROWS = 20_000
"""So many log rows at most go with them, unless one experiment alone has more."""

MOST_BYTES = 8 * 2**20
"""And so much text at most, unless one has more."""

STATEMENT_BYTES = 2**19
"""How much is inserted by one statement, unless one row is larger."""

HELD_S = 3600.0
"""So long a new experiment waits at most for its snapshots: if the transfer was killed, and is not repeated."""

_RESULT = ("start_date", "name", "machine", "end_date", "error")
"""What goes with the results when they replace others."""


class Verdict(StrEnum):
    """What becomes of an experiment in the target."""

    ADDED = "added"
    TAKEN = "taken"
    """The target had it unfinished, or the source was preferred: it has the source's results now."""
    SAME = "same"
    KEPT = "kept"
    """The target's stays: it has ended and the source's has not, neither has, or the target was preferred."""
    RUNNING = "running"
    """It runs in the target: it is left alone."""
    CONFLICT = "conflict"
    """Both are done, with different results, and nobody said which to prefer."""
    DUPLICATE = "duplicate"
    """The source has it twice, and this is not the one that counts."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """An experiment with two results."""

    source_id: int
    target_id: int
    keyfields: Mapping[str, Any]
    source: Mapping[str, Any]
    target: Mapping[str, Any]
    """Only the result fields that differ."""


@dataclass(slots=True)
class Transferred:
    """What a transfer did, or would do."""

    verdicts: Counter[Verdict] = field(default_factory=Counter)
    conflicts: list[Conflict] = field(default_factory=list)
    snapshots: int = 0


def adapted(source: Place, table: Table) -> Place:
    """The source, its table described by what it has of `table`: what it lacks is NULL.

    Raises:
        MissingTable, TableHasWrongStructureError, SchemaVersionError: it is no table of the same experiments, or has
            fields that `table` lacks.
    """
    there = replace(table, name=source.table.name, dialect=source.table.dialect)
    state = source.store.read(structure.inspect(there))
    known = {column.lower() for column in state.columns}
    results = {name: kind for name, kind in there.resultfields.items() if name.lower() in known}
    logtables = {
        name: {column: kind for column, kind in columns.items() if column.lower() in _lower(state.beside[name])}
        for name, columns in there.logtables.items()
        if name in state.beside
    }
    there = replace(there, resultfields=results, logtables=logtables, codecarbon=False)
    schema.check(there, state)
    schema.check_columns(there, state)
    _refuse_strange_logtables(table, state)
    _check_types(table, Place(store=source.store, table=there))
    return Place(store=source.store, table=replace(there, codecarbon=emissions.is_emissions(state.emissions)))


_ALIKE = ({Family.INTEGER, Family.BOOLEAN},)
"""Types between which experiments stay the same: the servers call truth a small number."""


@unit
def _types(table: Table) -> Steps[dict[str, str]]:
    found = yield types_of(table, table.name)
    return {name.lower(): kind for name, kind in found.rows}


def _lower(names: Iterable[str]) -> set[str]:
    return {name.lower() for name in names}


def _refuse_strange_logtables(table: Table, state: structure.State) -> None:
    """Raises TableHasWrongStructureError if a source has log rows that would have no place here."""
    for name, columns in state.beside.items():
        if name.startswith("pyexpd_") or not schema.is_logtable(state, name):
            continue
        ours = table.logtables.get(name)
        if ours is None:
            raise exceptions.TableHasWrongStructureError(
                f"the other table has a logtable {name}, and this has none of that name",
                hint="declare it under logtables; pyexpd fill makes it",
            )
        known = _lower((*OF_EVERY_LOGTABLE, *ours))
        if strange := [column for column in columns if column.lower() not in known]:
            raise exceptions.TableHasWrongStructureError(
                f"logtable {name} of the other table has a column {', '.join(strange)}, which this has not",
                hint="declare it under logtables; pyexpd fill adds it",
            )


def refuse_emissions(source: Place, *, has_room: bool) -> None:
    """
    Raises:
        TableHasWrongStructureError: the source has emissions, and the target no table for them.
    """
    if source.table.codecarbon and not has_room and source.store.read(_has_rows(source.table.emissions)):
        raise exceptions.TableHasWrongStructureError(
            "the experiments there have emissions, and here is no table for them",
            hint="add a section CodeCarbon; pyexpd fill makes the table",
        )


@unit
def _has_rows(name: str) -> Steps[bool]:
    return bool((yield Do(f"SELECT 1 FROM {name} LIMIT 1")).rows)


def portable(table: Table) -> Table:
    """A table with types that its database takes: SQLite has no ENUM, and no words behind parentheses."""
    if table.dialect.provider != "sqlite":
        return table

    def simple(kinds: Mapping[str, str]) -> dict[str, str]:
        return {name: _simple(kind) for name, kind in kinds.items()}

    logtables = {name: simple(columns) for name, columns in table.logtables.items()}
    keys, results = simple(table.keyfields), simple(table.resultfields)
    return replace(table, keyfields=keys, resultfields=results, logtables=logtables)


def _simple(kind: str) -> str:
    sql_type = ColumnType.parse(kind).sql
    if server_objection(sql_type, provider="sqlite") is None:
        return kind
    return "TEXT" if sql_type.members else kind[: kind.index(")") + 1]


def _check_types(table: Table, place: Place) -> None:
    """Whether the keyfields of a table that is there have types by which its experiments are the same as ours.

    Raises:
        TableHasWrongStructureError: they have others.
    """
    there: dict[str, str] = place.store.read(_types(place.table))
    for name, ours in table.key_types.items():
        theirs = there[name.lower()]
        try:
            other = ColumnType.parse(theirs)
        except ValueError:
            continue  # of no kind that we know; its values tell
        families = {ours.family, other.family}
        is_rounded = families == {Family.DECIMAL} and ours.sql.scale != other.sql.scale
        if is_rounded or (len(families) > 1 and not any(families <= alike for alike in _ALIKE)):
            raise exceptions.TableHasWrongStructureError(
                f"keyfield {name} is {theirs} there and {ours.sql.text} here, so no experiments would be the same",
                hint="give it the type of there in the configuration, and the table another name",
            )


def transfer(
    source: Place,
    target: Place,
    *,
    selection: Selection = ALL,
    prefer: str | None = None,
    dry_run: bool = False,
    advanced: Callable[[int], None] = lambda count: None,
) -> Transferred:
    """Bring the experiments of the source into the target, whose tables are there, with fingerprints on every row.

    Args:
        selection: of the source.
        prefer: whose results stay where both are done and differ: `source`, `target`, or nobody's: then those are
            conflicts, and left alone.
        dry_run: only say what would become of them.
        advanced: told after every chunk how many experiments it had.

    Raises:
        RowRefused: the target cannot store an experiment, which is named; those before it are there.
    """
    _check_types(source.table, target)
    state = target.store.read(structure.inspect(target.table))
    refuse_emissions(source, has_room=emissions.is_emissions(state.emissions))
    done = Transferred()
    seen: set[bytes] = set()
    measured = source.store.read(_columns_of_emissions(source.table)) if source.table.codecarbon else ()
    for chunk in _chunks(source, selection):
        marked = _marked(source, chunk, seen)
        done.verdicts[Verdict.DUPLICATE] += len(chunk) - len(marked)
        if dry_run:
            judged = target.store.read(judge(target.table, marked, prefer=prefer))
        else:
            parcels = source.store.read(_pack(source.table, marked, measured, wanted=target.table.logtables))
            with filling.alone(target.store, target.table):
                judged = _deliver(target, parcels, measured, prefer=prefer)
            for parcel, (verdict, target_id, _) in zip(parcels, judged, strict=True):
                if parcel.heads and verdict not in (Verdict.RUNNING, Verdict.CONFLICT):
                    done.snapshots += _copy_snapshots(source, target, parcel, target_id)
                    target.store.run(_open(target.table, parcel, target_id))
        for verdict, _, conflict in judged:
            done.verdicts[verdict] += 1
            if conflict is not None:
                done.conflicts.append(conflict)
        advanced(len(chunk))
    done.verdicts = +done.verdicts
    return done


def _deliver(target: Place, parcels: Sequence[Parcel], measured: Sequence[str], *, prefer: str | None) -> list[Judged]:
    """Write a chunk in one transaction; one with a row that is refused is halved, until that row is alone."""
    try:
        judged: list[Judged] = target.store.run(_unpack(target.table, parcels, measured, prefer=prefer))
        return judged
    except exceptions.RowRefused as error:
        if len(parcels) == 1:
            raise exceptions.RowRefused(
                f"experiment {parcels[0].experiment.id} does not fit: {error}",
                hint="those before it were copied; widen the column there and say it again, which goes on",
            ) from error
        middle = len(parcels) // 2
        return [
            *_deliver(target, parcels[:middle], measured, prefer=prefer),
            *_deliver(target, parcels[middle:], measured, prefer=prefer),
        ]


# What the source has.


def _marked(source: Place, chunk: Sequence[Experiment], seen: set[bytes]) -> list[Experiment]:
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


def _chunks(source: Place, selection: Selection) -> Iterator[list[Experiment]]:
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
def count(table: Table, selection: Selection) -> Steps[int]:
    """How many experiments are selected."""
    found = yield Do(f"SELECT COUNT(*) FROM {table.main} WHERE {selection.condition}", selection.values)
    return int(found.rows[0][0])


@unit
def _read(table: Table, selection: Selection, *, after: int, limit: int) -> Steps[list[Experiment]]:
    names = table.columns[1:]
    ours = ("pyexpd_fingerprint", "pyexpd_queue", "pyexpd_order", "pyexpd_attempt", "pyexpd_tries")
    found = yield Do(
        f"SELECT ID, {', '.join(_exactly(table, name) for name in names)}, {', '.join(ours)},"
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


def _exactly(table: Table, column: str) -> str:
    return _bit_by_bit(table, column, table.keyfields.get(column) or table.resultfields.get(column))


def _bit_by_bit(table: Table, column: str, kind: str | None) -> str:
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
def _columns_of_emissions(table: Table) -> Steps[tuple[str, ...]]:
    there = yield from emissions.columns(table)
    return tuple(column for column in emissions.COLUMNS if column in there)


@unit
def _pack(
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
            _bit_by_bit(table, name, columns[name]) if name in columns else "NULL" for name in wanted.get(logtable, ())
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


# What the target makes of it.

Judged = tuple[Verdict, int, Conflict | None]
"""What becomes of an experiment, its ID in the target (0 before it has one), and the two results that it has."""


@unit
def judge(table: Table, experiments: Sequence[Experiment], *, prefer: str | None) -> Steps[list[Judged]]:
    """What would become of experiments; nothing is changed."""
    there = yield from _find(table, experiments, locked=False)
    return [_judge(table, each, there.get(each.fingerprint or b""), prefer) for each in experiments]


@dataclass(frozen=True, slots=True)
class _There:
    """An experiment as the target has it."""

    id: int
    status: str
    attempt: int
    results: Mapping[str, Any]


def _find(table: Table, experiments: Sequence[Experiment], *, locked: bool) -> Steps[dict[bytes, _There]]:
    """Those of the experiments that the target has."""
    prints = [each.fingerprint for each in experiments]
    if not prints:
        return {}
    found = yield Do(f"SELECT ID FROM {table.main} WHERE pyexpd_fingerprint IN ({marks(prints)})", prints)
    ids = sorted(row[0] for row in found.rows)
    if not ids:
        return {}
    results = list(table.resultfields)
    columns = "".join(f", {_exactly(table, name)}" for name in results)
    rows = yield Do(
        f"SELECT pyexpd_fingerprint, ID, status, pyexpd_attempt{columns} FROM {table.main} {table.dialect.primary}"
        f" WHERE ID IN ({marks(ids)}){f' ORDER BY ID {table.dialect.for_update}' if locked else ''}",
        ids,
    )
    return {
        bytes(row[0]): _There(row[1], row[2] or "", row[3], dict(zip(results, row[4:], strict=True)))
        for row in rows.rows
    }


def _judge(table: Table, experiment: Experiment, there: _There | None, prefer: str | None) -> Judged:
    if there is None:
        return Verdict.ADDED, 0, None
    if there.status == Status.RUNNING:
        return Verdict.RUNNING, there.id, None
    ours, theirs = _rank(there.status), _rank(experiment.values["status"])
    if theirs > ours:
        return Verdict.TAKEN, there.id, None
    if theirs < ours or theirs < _rank(Status.DONE):
        return Verdict.KEPT, there.id, None
    differ = [name for name in table.resultfields if not _is_same(table, name, experiment.values, there.results)]
    if not differ:
        return Verdict.SAME, there.id, None
    if prefer is not None:
        return Verdict.TAKEN if prefer == "source" else Verdict.KEPT, there.id, None
    conflict = Conflict(
        source_id=experiment.id,
        target_id=there.id,
        keyfields=table.decode([experiment.values[name] for name in table.keyfields]),
        source={name: experiment.values.get(name) for name in differ},
        target={name: there.results[name] for name in differ},
    )
    return Verdict.CONFLICT, there.id, conflict


def _rank(status: str | None) -> int:
    """How much an experiment has come to: results, another end, nothing yet."""
    if status == Status.DONE:
        return 2
    return 1 if status in (Status.ERROR, Status.PAUSED, Status.CANCELLED) else 0


def _is_same(table: Table, name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    column = ColumnType.parse(table.resultfields[name])
    ours, theirs = (column.from_database(storable(results.get(name))) for results in (one, other))
    if isinstance(ours, datetime.datetime) and isinstance(theirs, datetime.datetime):
        return abs(ours - theirs) < datetime.timedelta(
            seconds=1
        )  # MySQL rounds parts of seconds, MariaDB cuts them off
    return _as_kept(column, ours) == _as_kept(column, theirs)


def _as_kept(column: ColumnType, value: Any) -> bytes:
    """What a server makes of a value, which SQLite keeps as it is: rounded, without blanks at the end, not infinite."""
    if isinstance(value, str):
        value = value.rstrip(" ")
    try:
        return column.rounded(value)[1]
    except ValueError:
        return column.canonical_bytes_of_stored(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Delivery:
    """A parcel at its destination.

    Args:
        id: the experiment's in the target.
        begin: how many attempts the target's had: those of the source come after them.
    """

    parcel: Parcel
    verdict: Verdict
    id: int
    begin: int = 0

    @property
    def arrives(self) -> bool:
        """Whether the target gets the experiment's results, with everything that came with them."""
        return self.verdict in (Verdict.ADDED, Verdict.TAKEN)


@unit
def _unpack(
    table: Table, parcels: Sequence[Parcel], measured: Sequence[str], *, prefer: str | None
) -> Steps[list[Judged]]:
    """Write a chunk: new experiments, results that win, and what belongs to both."""
    there = yield from _find(table, [parcel.experiment for parcel in parcels], locked=True)
    judged = [
        _judge(table, parcel.experiment, there.get(parcel.experiment.fingerprint or b""), prefer) for parcel in parcels
    ]
    new = [parcel for parcel, each in zip(parcels, judged, strict=True) if each[0] is Verdict.ADDED]
    ids = yield from _insert(table, new)
    judged = [
        (verdict, number or ids[parcel.experiment.id], conflict)
        for parcel, (verdict, number, conflict) in zip(parcels, judged, strict=True)
    ]
    deliveries = [
        _Delivery(
            parcel=parcel,
            verdict=verdict,
            id=number,
            begin=there[parcel.experiment.fingerprint or b""].attempt if verdict is Verdict.TAKEN else 0,
        )
        for parcel, (verdict, number, _) in zip(parcels, judged, strict=True)
        if verdict not in (Verdict.RUNNING, Verdict.CONFLICT)
    ]
    has_emissions = emissions.is_emissions((yield from emissions.columns(table)))
    arriving = [each for each in deliveries if each.arrives]
    statements = [
        *_take(table, [each for each in deliveries if each.verdict is Verdict.TAKEN], has_emissions=has_emissions),
        *_insert_logs(table, arriving),
        *_insert_emissions(table, arriving if has_emissions else [], measured),
        *(yield from _insert_attempts(table, deliveries)),
    ]
    for statement in statements:  # noqa: UP028 a list takes no answers
        yield statement
    yield Commit([])
    return judged


def _insert(table: Table, parcels: Sequence[Parcel]) -> Steps[dict[int, int]]:
    """Insert experiments, under their own IDs where those are free; the IDs that they have now, by those they had."""
    if not parcels:
        return {}
    experiments = [parcel.experiment for parcel in parcels]
    own = sorted(each.id for each in experiments)
    found = yield Do(f"SELECT ID FROM {table.main} WHERE ID IN ({marks(own)})", own)
    taken = {row[0] for row in found.rows}
    rows_of = [
        (parcel.experiment, _row(table, parcel.experiment, has_snapshots=bool(parcel.heads))) for parcel in parcels
    ]
    # With their own IDs first: those that the database numbers must not take them.
    for names, rows in (
        (("ID",), [(each.id, *row) for each, row in rows_of if each.id not in taken]),
        ((), [row for each, row in rows_of if each.id in taken]),
    ):
        yield from _insert_rows(table.main, (*names, *_columns(table)), rows)
    prints = [each.fingerprint for each in experiments]
    numbered = yield Do(
        f"SELECT pyexpd_fingerprint, ID FROM {table.main} WHERE pyexpd_fingerprint IN ({marks(prints)})", prints
    )
    ids = {bytes(row[0]): row[1] for row in numbered.rows}
    return {each.id: ids[each.fingerprint or b""] for each in experiments}


_OURS = (
    "pyexpd_fingerprint", "pyexpd_queue", "pyexpd_order", "pyexpd_not_before", "pyexpd_attempt", "pyexpd_tries",
)  # fmt: skip


def _columns(table: Table) -> tuple[str, ...]:
    return (*table.columns[1:], *_OURS)


def _row(table: Table, experiment: Experiment, *, has_snapshots: bool) -> list[Any]:
    """The values of a new experiment; one that runs in the source waits here to be run."""
    values = dict(experiment.values)
    if values["status"] == Status.RUNNING:
        values |= {"status": Status.CREATED.value, "start_date": None, "name": None, "machine": None}
    not_before = experiment.not_before
    if has_snapshots and values["status"] == Status.CREATED:  # nobody takes it before they are here, see `_open`
        values["status"], not_before = Status.WAITING.value, time.time() + HELD_S
    for name, column in table.key_types.items():
        values[name] = _key(column, values[name])
    return [
        *(_stored(values.get(name)) for name in table.columns[1:]),
        experiment.fingerprint,
        experiment.queue,
        experiment.order,
        _moment(table, not_before),
        experiment.attempt,
        experiment.tries,
    ]


def _key(column: ColumnType, value: Any) -> Any:
    """A keyfield as this database holds it; what does not belong into its column passes unchanged."""
    try:
        return column.declared(column.from_database(value))[0]
    except ValueError:
        return value


def _stored(value: Any) -> Any:
    """A value that one database gave, for any other."""
    value = storable(value)
    return value if isinstance(value, str | bytes | int | float | None) else str(value)  # dates, which are text here


def _moment(table: Table, seconds: float | None) -> Any:
    """A time of ours, to the microsecond on every database."""
    if seconds is None:
        return None
    micros = round(seconds * 1e6)
    # What `utc` cuts off must not be a whole microsecond.
    return micros / 1e6 if table.dialect.provider == "sqlite" else utc(table, (micros + 0.3) / 1e6)


def _take(table: Table, deliveries: Sequence[_Delivery], *, has_emissions: bool) -> Iterator[Do]:
    """Results that replace those of the target, and what belonged to these goes."""
    if not deliveries:
        return
    columns = (*table.result_columns, *_RESULT)
    for each in deliveries:
        experiment = each.parcel.experiment
        changes = {name: _stored(experiment.values.get(name)) for name in columns}
        changes |= {"status": experiment.values["status"], "pyexpd_tries": experiment.tries, "pyexpd_not_before": None}
        changes["pyexpd_attempt"] = each.begin + max(1, experiment.attempt)
        sets = ", ".join(f"{quote(name)} = ?" for name in changes)
        yield Do(
            f"UPDATE {table.main} {table.dialect.primary} SET {sets}, {FREED} WHERE ID = ?",
            (*changes.values(), each.id),
        )
    ids = sorted(each.id for each in deliveries)
    for name in [
        *(table.beside(logtable) for logtable in table.logtables),
        *([table.emissions] if has_emissions else []),
    ]:
        yield Do(f"DELETE FROM {name} WHERE experiment_id IN ({marks(ids)})", ids)


def _insert_logs(table: Table, deliveries: Sequence[_Delivery]) -> Iterator[Do]:
    for logtable, columns in table.logtables.items():
        names = ("experiment_id", "timestamp", *columns, "pyexpd_attempt", "pyexpd_seq")
        rows = []
        for each in deliveries:
            for _, moment, *values, attempt, seq in each.parcel.logs.get(logtable, ()):
                ended = None if attempt is None else each.begin + attempt
                rows.append([each.id, _stored(moment), *map(_stored, values), ended, seq])
        yield from _insert_rows(table.beside(logtable), names, rows)


def _insert_emissions(table: Table, deliveries: Sequence[_Delivery], measured: Sequence[str]) -> Iterator[Do]:
    rows = [[each.id, *map(_stored, row[1:])] for each in deliveries for row in each.parcel.emissions]
    yield from _insert_rows(table.emissions, ("experiment_id", *measured), rows)


def _insert_attempts(table: Table, deliveries: Sequence[_Delivery]) -> Steps[list[Do]]:
    """Attempts that the target does not have; by their tokens, for their numbers may be others there."""
    ids = sorted(each.id for each in deliveries if each.parcel.attempts)
    if not ids:
        return []
    found = yield Do(
        f"SELECT experiment_id, token, attempt FROM {table.attempts} WHERE experiment_id IN ({marks(ids)})", ids
    )
    known = {(row[0], row[1]) for row in found.rows}
    highest = {row[0]: row[2] for row in sorted(found.rows, key=lambda row: row[2])}
    rows, again = [], []
    for each in deliveries:
        for row in each.parcel.attempts:
            facts = dict(zip(RECEIPT, row, strict=True))
            if (each.id, facts["token"]) in known:
                if each.verdict is not Verdict.TAKEN:
                    continue
                again.append((each.id, facts["token"]))  # it came before, as that of a result which did not count
            if not each.arrives and facts["outcome"] == Outcome.DONE:  # the target's own result counts
                facts["outcome"] = Outcome.SUPERSEDED.value
                if facts["attempt"] == each.parcel.experiment.attempt:  # what earlier ones found out, nobody knows
                    results = {name: each.parcel.experiment.values.get(name) for name in table.resultfields}
                    facts["result"] = json.dumps(results, default=str)
            facts |= {"experiment_id": each.id, "attempt": each.begin + facts["attempt"]}
            if not each.arrives:  # behind those of the target: no two have one number
                facts["attempt"] = highest[each.id] = max(highest.get(each.id, 0) + 1, facts["attempt"])
            facts |= {name: _moment(table, _seconds(facts[name])) for name in ("started", "ended")}
            facts["daemon"] = None  # of another table of daemons
            rows.append([_stored(value) for value in facts.values()])
    sql = f"DELETE FROM {table.attempts} WHERE experiment_id = ? AND token = ?"
    return [*([Do(sql, again, many=True)] if again else []), *_insert_rows(table.attempts, RECEIPT, rows)]


def _seconds(value: Any) -> float | None:
    return None if value is None else float(value)


def _insert_rows(name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Generator[Do, Any, None]:
    """Statements that insert rows, each of a size that every server takes."""
    sql = f"INSERT INTO {name} ({', '.join(map(quote, columns))}) VALUES ({marks(columns)})"
    some, size_bytes = list[Sequence[Any]](), 0
    for row in rows:
        row_bytes = sum(2 * len(value) if isinstance(value, str | bytes) else 16 for value in row)
        if some and size_bytes + row_bytes > STATEMENT_BYTES:
            yield Do(sql, some, many=True)
            some, size_bytes = [], 0
        some.append(row)
        size_bytes += row_bytes
    if some:
        yield Do(sql, some, many=True)


# Snapshots.


def _copy_snapshots(source: Place, target: Place, parcel: Parcel, target_id: int) -> int:
    """Copy the snapshots of one experiment that the target does not have; how many."""
    there = {head["state_id"] for head in target.store.read(snapshots.heads(target.table, target_id))}
    count = 0
    for head in parcel.heads:
        if head["state_id"] in there:
            continue
        for number in range(head["parts"]):
            unit_of_part = snapshots.part(source.table, parcel.experiment.id, state_id=head["state_id"], number=number)
            data = source.store.read(unit_of_part)
            if data is None:
                break  # replaced by a newer one meanwhile
            target.store.run(_put_part(target.table, target_id, head, number, data))
        else:
            count += target.store.run(_put_head(target.table, target_id, head))
    return count


@unit
def _open(table: Table, parcel: Parcel, experiment_id: int) -> Steps[None]:
    """Let an experiment be run that has waited for its snapshots."""
    experiment = parcel.experiment
    if experiment.values["status"] in (Status.CREATED, Status.RUNNING):
        yield Commit(
            [
                Do(
                    f"UPDATE {table.main} {table.dialect.primary} SET status = 'created', pyexpd_not_before = NULL"
                    f" WHERE ID = ? AND status = 'waiting' AND pyexpd_attempt = ? AND COALESCE(pyexpd_tries, '') = ?",
                    (experiment_id, experiment.attempt, experiment.tries or ""),  # not one that waits after a failure
                )
            ]
        )


@unit
def _put_part(table: Table, experiment_id: int, head: Mapping[str, Any], number: int, data: bytes) -> Steps[None]:
    row = (experiment_id, head["state_id"], number, head["attempt"], data)
    yield Commit([snapshots.put_parts(table, [row])])


@unit
def _put_head(table: Table, experiment_id: int, head: Mapping[str, Any]) -> Steps[int]:
    """Make a snapshot of parts that are there, in its place among those of the experiment; 0 when it cannot be done."""
    locked = yield Do(
        f"SELECT status FROM {table.main} {table.dialect.primary} WHERE ID = ? {table.dialect.for_update}",
        (experiment_id,),
    )
    parts = yield Do(
        f"SELECT COUNT(*) FROM {table.snapshot_parts} WHERE experiment_id = ? AND state_id = ?",
        (experiment_id, head["state_id"]),
    )
    if not locked.rows or locked.rows[0][0] == Status.RUNNING or parts.rows[0][0] < head["parts"]:
        return 0
    found = yield Do(
        f"SELECT sequence, {table.dialect.epoch('created')} FROM {table.snapshots} WHERE experiment_id = ?"
        f" ORDER BY sequence",
        (experiment_id,),
    )
    # Only the clocks can say which of two databases was further.
    later = [row[0] for row in found.rows if float(row[1]) > float(head["created"])]
    earlier = [row[0] for row in found.rows if row[0] not in later]
    sequence = max([head["sequence"], *(number + 1 for number in earlier)])
    if later and sequence >= min(later):  # by way of numbers that nobody has: each has to be the only one at any time
        shift = f"UPDATE {table.snapshots} SET sequence = -(sequence + ?) WHERE experiment_id = ? AND sequence >= ?"
        yield Do(shift, (sequence + 1 - min(later), experiment_id, min(later)))
        yield Do(
            f"UPDATE {table.snapshots} SET sequence = -sequence WHERE experiment_id = ? AND sequence < 0",
            (experiment_id,),
        )
    row = (
        experiment_id, sequence, head["attempt"], head["label"], _moment(table, _seconds(head["created"])),
        head["size_bytes"], head["parts"], head["state_id"],
    )  # fmt: skip
    yield Commit([snapshots.put_heads(table, [row])])
    return 1
