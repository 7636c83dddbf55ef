"""What a transfer makes of each experiment, by what its target has."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pyexp_daemon.model import Status
from pyexp_daemon.space.identity import ColumnType
from pyexp_daemon.store import emissions, fill, schema, structure
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.transfer.parcels import Experiment, Place, exactly
from pyexp_daemon.store.unit import Do, Steps, marks, unit
from pyexp_daemon.store.values import storable

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore


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
class Conflict:
    """An experiment with two results."""

    source_id: int
    target_id: int
    keyfields: Mapping[str, Any]
    source: Mapping[str, Any]
    target: Mapping[str, Any]
    """Only the result fields that differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The table that experiments are compared with, as it is: it may be missing, or PyExperimenter's."""

    table: Table
    columns: frozenset[str] = frozenset()
    """What it has, in small letters; nothing when it is missing."""
    unmarked: Mapping[bytes, int] = field(default_factory=dict)
    """The experiments without a fingerprint, by the one that they will get."""
    logtables: Sequence[str] = ()
    """Every logtable beside it, declared or not."""
    has_emissions: bool = False
    prefer: str | None = None
    """Whose results stay where both are done and differ: `source`, `target`, or nobody's."""
    is_exact: bool = False
    """Whether both databases keep what they are given: see `_as_kept`."""

    @property
    def belongings(self) -> list[str]:
        """The quoted names of the tables with log rows and emissions."""
        return [*map(self.table.beside, self.logtables), *([self.table.emissions] if self.has_emissions else [])]

    def has(self, column: str) -> bool:
        return column.lower() in self.columns


def look(table: Table, store: BlockingStore | None, source: Place, *, prefer: str | None) -> Target:
    """What is there.

    Args:
        store: None when there is no such database.

    Raises:
        TableHasWrongStructureError, SchemaVersionError: no table of these experiments can be made of it.
    """
    if store is None:
        return Target(table=table)
    state = store.read(structure.inspect(table))
    schema.check_completable(table, state)
    schema.refuse_unfinished(table, state)
    schema.check_results(table, state)
    providers = {table.dialect.provider, source.table.dialect.provider}
    is_marked = "pyexpd_fingerprint" in state.columns
    return Target(
        table=table,
        columns=frozenset(column.lower() for column in state.columns),
        unmarked=_unmarked(store, table, is_marked=is_marked) if state.exists else {},
        logtables=schema.logtables(table, state),
        has_emissions=emissions.is_emissions(state.emissions),
        prefer=prefer,
        is_exact=providers == {"sqlite"},
    )


def _unmarked(store: BlockingStore, table: Table, *, is_marked: bool) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    after = 0
    while rows := store.read(fill.unmarked(table, after=after, is_marked=is_marked)):
        for experiment_id, mark in rows:
            found.setdefault(mark, experiment_id)
        after = rows[-1][0]
    return found


@dataclass(frozen=True, slots=True)
class There:
    """An experiment as the target has it."""

    id: int
    status: str
    attempt: int
    results: Mapping[str, Any]


def find(target: Target, experiments: Sequence[Experiment], *, locked: bool) -> Steps[dict[bytes, There]]:
    """Those of the experiments that the target has, by fingerprint."""
    prints = [each.fingerprint or b"" for each in experiments]
    if not prints or not target.columns:
        return {}
    table, marked = target.table, dict[bytes, int]()
    if target.has("pyexpd_fingerprint"):
        marked = yield from fill.owners_of(table, prints)
    unmarked = {mark: target.unmarked[mark] for mark in prints if mark in target.unmarked}
    mark_of = {number: mark for mark, number in (unmarked | marked).items()}
    if not mark_of:
        return {}
    ids = sorted(mark_of)
    results = [name for name in table.resultfields if target.has(name)]
    columns = [
        "ID",
        "status",
        "pyexpd_attempt" if target.has("pyexpd_attempt") else "0",
        *(exactly(table, name) for name in results),
    ]
    rows = yield Do(
        f"SELECT {', '.join(columns)} FROM {table.main} {table.dialect.primary}"
        f" WHERE ID IN ({marks(ids)}){f' ORDER BY ID {table.dialect.for_update}' if locked else ''}",
        ids,
    )
    return {
        mark_of[row[0]]: There(row[0], row[1] or "", row[2], dict(zip(results, row[3:], strict=True)))
        for row in rows.rows
    }


Judged = tuple[Verdict, int, Conflict | None]
"""What becomes of an experiment, its ID in the target (0 before it has one), and the two results that it has."""


@unit
def judge(target: Target, experiments: Sequence[Experiment]) -> Steps[list[Judged]]:
    """What would become of experiments; nothing is changed."""
    there = yield from find(target, experiments, locked=False)
    return [verdict_of(target, each, there.get(each.fingerprint or b"")) for each in experiments]


def verdict_of(target: Target, experiment: Experiment, there: There | None) -> Judged:
    """What becomes of one experiment."""
    if there is None:
        return Verdict.ADDED, 0, None
    if there.status == Status.RUNNING:
        return Verdict.RUNNING, there.id, None
    ours, theirs = _rank(there.status), _rank(experiment.values["status"])
    if theirs > ours:
        return Verdict.TAKEN, there.id, None
    if theirs < ours or theirs < _rank(Status.DONE):
        return Verdict.KEPT, there.id, None
    fields = target.table.resultfields
    differ = [name for name in fields if not _is_same(target, name, experiment.values, there.results)]
    if not differ:
        return Verdict.SAME, there.id, None
    if target.prefer is not None:
        return Verdict.TAKEN if target.prefer == "source" else Verdict.KEPT, there.id, None
    conflict = Conflict(
        source_id=experiment.id,
        target_id=there.id,
        keyfields=target.table.decode([experiment.values[name] for name in target.table.keyfields]),
        source={name: experiment.values.get(name) for name in differ},
        target={name: there.results.get(name) for name in differ},
    )
    return Verdict.CONFLICT, there.id, conflict


def _rank(status: str | None) -> int:
    """How much an experiment has come to: results, another end, nothing yet."""
    if status == Status.DONE:
        return 2
    return 1 if status in (Status.ERROR, Status.PAUSED, Status.CANCELLED) else 0


def _is_same(target: Target, name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    column = ColumnType.parse(target.table.resultfields[name])
    ours, theirs = (storable(results.get(name)) for results in (one, other))
    if target.is_exact:
        return column.canonical_bytes_of_stored(ours) == column.canonical_bytes_of_stored(theirs)
    ours, theirs = column.from_database(ours), column.from_database(theirs)
    if isinstance(ours, datetime.datetime) and isinstance(theirs, datetime.datetime):
        # MySQL rounds parts of seconds, MariaDB cuts them off.
        return abs(ours - theirs) < datetime.timedelta(seconds=1)
    return _as_kept(column, ours) == _as_kept(column, theirs)


def _as_kept(column: ColumnType, value: Any) -> bytes:
    """What a server makes of a value, which SQLite keeps as it is: rounded, without blanks at the end, not infinite."""
    if isinstance(value, str):
        value = value.rstrip(" ")
    try:
        return column.rounded(value)[1]
    except ValueError:
        return column.canonical_bytes_of_stored(value)
