"""What people do to experiments: cancel, reset, delete, set. Always by what they saw, so that no new result is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyexp_daemon.store import emissions, snapshots
from pyexp_daemon.store.leases import FREED
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.reports import result_columns
from pyexp_daemon.store.selection import Selection
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.unit import Commit, Do, Steps, marks, unit
from pyexp_daemon.store.values import local_time

CHUNK = 200
"""Experiments changed per unit: few row locks, held for milliseconds."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An experiment as it was when the person decided."""

    id: int
    status: str
    attempt: int


@unit
def seen(table: Table, selection: Selection, *, after: int = 0, limit: int = 5000) -> Steps[list[Seen]]:
    """The next selected experiments by ID; [] at the end."""
    found = yield Do(
        f"SELECT ID, status, pyexpd_attempt FROM {table.main} WHERE ID > ? AND ({selection.condition})"
        f" ORDER BY ID LIMIT ?",
        (after, *selection.values, limit),
    )
    return [Seen(*row) for row in found.rows]


@unit
def reset(table: Table, chosen: Sequence[Seen], *, keep_snapshots: bool = False) -> Steps[int]:
    """Put experiments back to `created`, in place: results, error, dates, log rows, emissions and tries are cleared.

    So are their snapshots, unless they are to go on from those. The attempts stay as history. A row that moved on since
    it was seen is left alone. How many were reset.
    """
    ids = yield from _unchanged(table, chosen)
    if not ids:
        return 0
    measured = yield from emissions.columns(table)
    cleared = [*table.result_columns, "start_date", "end_date", "error", "name", "machine"]
    yield Commit(
        [
            Do(
                f"UPDATE {table.main} {table.dialect.primary} SET status = 'created',"
                f" {', '.join(f'`{column}` = NULL' for column in cleared)}, pyexpd_tries = NULL,"
                f" pyexpd_not_before = NULL, pyexpd_attempt = {_next_attempt(table)}, {FREED}"
                f" WHERE ID IN ({marks(ids)})",
                ids,
            ),
            *_delete_logs(table, ids),
            *emissions.deletes(table, ids, measured),
            *([] if keep_snapshots else snapshots.deletes(table, ids)),
        ]
    )
    return len(ids)


@unit
def cancel(table: Table, chosen: Sequence[Seen]) -> Steps[tuple[int, int]]:
    """Cancel experiments: (how many are cancelled now, how many running ones were asked to stop).

    The owner of a running one stops it at its next heartbeat; what is done stays done.
    """
    ids = sorted(row.id for row in chosen)
    locked = yield Do(
        f"SELECT ID, status FROM {table.main} {table.dialect.primary} WHERE ID IN ({marks(ids)})"
        f" AND status IN ('running', 'created', 'waiting', 'paused', 'error') {table.dialect.for_update}",
        ids,
    )
    running = [row[0] for row in locked.rows if row[1] == "running"]
    idle = [row[0] for row in locked.rows if row[1] != "running"]
    writes = []
    if running:
        writes.append(
            Do(
                f"UPDATE {table.main} {table.dialect.primary} SET pyexpd_cancel = 1 WHERE ID IN ({marks(running)})",
                running,
            )
        )
    if idle:
        writes.append(
            Do(
                f"UPDATE {table.main} {table.dialect.primary} SET status = 'cancelled',"
                f" pyexpd_not_before = NULL, {FREED}"
                f" WHERE ID IN ({marks(idle)})",
                idle,
            )
        )
    if writes:
        yield Commit(writes)
    return len(idle), len(running)


@unit
def delete(table: Table, chosen: Sequence[Seen]) -> Steps[int]:
    """Delete experiments with their log rows, emissions, snapshots and attempts; how many were.

    A row that moved on is left alone.
    """
    ids = yield from _unchanged(table, chosen)
    if not ids:
        return 0
    measured = yield from emissions.columns(table)
    yield Commit(
        [
            *_delete_logs(table, ids),
            *emissions.deletes(table, ids, measured),
            *snapshots.deletes(table, ids),
            Do(f"DELETE FROM {table.main} WHERE ID IN ({marks(ids)})", ids),
            Do(f"DELETE FROM {table.attempts} WHERE experiment_id IN ({marks(ids)})", ids),
        ]
    )
    return len(ids)


@unit
def complete(table: Table, experiment_id: int, results: Mapping[str, Any]) -> Steps[bool]:
    """Store results that a person has, whatever the status; False when there is no such experiment.

    A running attempt is superseded: its daemon stops it, and what it computes changes nothing.

    Raises:
        RowRefused: a value cannot be stored; nothing was written.
    """
    changes = result_columns(table, results)
    sets = "".join(f", {quote(name)} = ?" for name in changes)
    (changed,) = yield Commit(
        [
            Do(
                f"UPDATE {table.main} {table.dialect.primary} SET status = 'done', end_date = ?, error = NULL,"
                f" pyexpd_not_before = NULL, pyexpd_attempt = {_next_attempt(table)}, {FREED}{sets} WHERE ID = ?",
                (local_time(), *changes.values(), experiment_id),
            )
        ]
    )
    return bool(changed.changed)


@unit
def reopen(table: Table, experiment_id: int) -> Steps[bool]:
    """Put an experiment that has ended back to `created`, its results and snapshots left; False when it has not."""
    (changed,) = yield Commit(
        [
            Do(
                f"UPDATE {table.main} {table.dialect.primary} SET status = 'created', error = NULL, end_date = NULL,"
                f" pyexpd_tries = NULL, pyexpd_attempt = {_next_attempt(table)}, {FREED}"
                f" WHERE ID = ? AND status IN ('done', 'error', 'paused', 'cancelled')",
                (experiment_id,),
            )
        ]
    )
    return bool(changed.changed)


@unit
def set_scheduling(
    table: Table, chosen: Sequence[Seen], *, queue: str | None = None, order: int | None = None
) -> Steps[int]:
    """Change which nodes may take experiments (`queue`) and how early (`order`, smaller first); how many were."""
    ids = sorted(row.id for row in chosen)
    changes = {"pyexpd_queue": queue, "pyexpd_order": order}
    given = {column: value for column, value in changes.items() if value is not None}
    (changed,) = yield Commit(
        [
            Do(
                f"UPDATE {table.main} {table.dialect.primary} SET {', '.join(f'{column} = ?' for column in given)}"
                f" WHERE ID IN ({marks(ids)})",
                (*given.values(), *ids),
            )
        ]
    )
    return int(changed.changed)


def _next_attempt(table: Table) -> str:
    """A number that no attempt has: those which came with a merge are behind the one that has the results."""
    return (
        f"1 + COALESCE((SELECT MAX(a.attempt) FROM {table.attempts} a WHERE a.experiment_id = {table.main}.ID"
        f" AND a.attempt > {table.main}.pyexpd_attempt), pyexpd_attempt)"
    )


def _unchanged(table: Table, chosen: Sequence[Seen]) -> Steps[list[int]]:
    """Lock, and keep those that still are what was seen."""
    expected = {row.id: row for row in chosen}
    locked = yield Do(
        f"SELECT ID, status, pyexpd_attempt FROM {table.main} {table.dialect.primary}"
        f" WHERE ID IN ({marks(chosen)}) {table.dialect.for_update}",
        sorted(expected),
    )
    return sorted(row[0] for row in locked.rows if expected[row[0]] == Seen(*row))


def _delete_logs(table: Table, ids: Sequence[int]) -> list[Do]:
    return [
        Do(f"DELETE FROM {table.beside(logtable)} WHERE experiment_id IN ({marks(ids)})", ids)
        for logtable in table.logtables
    ]
