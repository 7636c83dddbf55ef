"""What has become history long ago: counted, and deleted in chunks that lock little. Results are never touched."""

from __future__ import annotations

from collections import Counter
from functools import partial

from pyexp_daemon.store.snapshots import delete_states
from pyexp_daemon.store.tables import OWNER, Table
from pyexp_daemon.store.unit import Commit, Do, Steps, marks, unit

CHUNK = 500
"""Rows deleted per unit."""

CLEANED = "cleaned_"
"""With this begin the names of meta rows that say how many attempts of an outcome were cleaned away."""

_OVER = ("done", "cancelled")

_OPEN = ("created", "waiting", "running")

_NOT_ACCEPTED = "(a.outcome <> 'done' OR a.attempt <> t.pyexpd_attempt)"


def _old_attempts(table: Table) -> str:
    """Attempts of experiments that are done, but for the one whose result the experiment has."""
    return (
        f"FROM {table.attempts} a JOIN {table.main} t ON t.ID = a.experiment_id"
        f" WHERE t.status = 'done' AND {_NOT_ACCEPTED} AND a.ended < {table.dialect.after()}"
    )


def _old_daemons(table: Table) -> str:
    """Daemons that ended, and hold nothing that others would have to take over first."""
    held = f"SELECT pyexpd_daemon FROM {table.main} {table.use(OWNER)} WHERE pyexpd_daemon > 0 AND status = 'running'"
    return (
        f"FROM {table.daemons} WHERE state IN ('stopped', 'dead') AND beat_at < {table.dialect.after()}"
        f" AND id NOT IN ({held})"
    )


def _old_commands(table: Table) -> str:
    return f"FROM {table.commands} WHERE answered < {table.dialect.after()}"


def _old_snapshots(table: Table, *, of_over: bool) -> str:
    """Snapshots of experiments that were deleted, by PyExperimenter or by hand; or of those, too, that are over."""
    over = "t.ID IS NULL OR t.status IN ('done', 'cancelled')" if of_over else "t.ID IS NULL"
    return (
        f"FROM {table.snapshots} s LEFT JOIN {table.main} t ON t.ID = s.experiment_id"
        f" WHERE ({over}) AND s.created < {table.dialect.after()}"
    )


def _stray_parts(table: Table) -> str:
    """Parts of snapshots that have no head, and will have none: their attempt is not the present one of an experiment
    that is open. (One that was lost may store more after all, as long as nobody took the experiment since.)
    """
    return (
        f"FROM {table.snapshot_parts} p LEFT JOIN {table.main} t ON t.ID = p.experiment_id"
        f" WHERE (t.ID IS NULL OR p.attempt < t.pyexpd_attempt OR t.status NOT IN {_OPEN})"
        f" AND NOT EXISTS (SELECT 1 FROM {table.snapshots} s"
        f" WHERE s.experiment_id = p.experiment_id AND s.state_id = p.state_id)"
        f" AND NOT EXISTS (SELECT 1 FROM {table.attempts} a"
        f" WHERE a.experiment_id = p.experiment_id AND a.attempt = p.attempt AND a.ended >= {table.dialect.after()})"
    )


@unit
def count(table: Table, *, older_s: float, snapshots_of_over: bool = False) -> Steps[dict[str, int]]:
    """How many `attempts`, `daemons`, `commands`, `snapshots` and `snapshot_parts` (of those that were never finished)
    are older than so many seconds and may go.
    """
    found = {}
    old_snapshots = partial(_old_snapshots, of_over=snapshots_of_over)
    for name, old in (
        ("attempts", _old_attempts),
        ("daemons", _old_daemons),
        ("commands", _old_commands),
        ("snapshots", old_snapshots),
        ("snapshot_parts", _stray_parts),
    ):
        counted = yield Do(f"SELECT COUNT(*) {old(table)}", (-older_s,))
        found[name] = int(counted.rows[0][0])
    return found


@unit
def running(table: Table) -> Steps[set[tuple[int, int]]]:
    """Experiment and attempt of everything that runs now."""
    found = yield Do(f"SELECT ID, pyexpd_attempt FROM {table.main} WHERE status = 'running'")
    return {(row[0], row[1]) for row in found.rows}


@unit
def over(table: Table) -> Steps[set[int]]:
    """The experiments that are done or cancelled."""
    found = yield Do(f"SELECT ID FROM {table.main} WHERE status IN ('done', 'cancelled')")
    return {row[0] for row in found.rows}


@unit
def delete_attempts(table: Table, *, older_s: float, after: int) -> Steps[tuple[int, int | None]]:
    """Delete the next old attempts, of experiments after this ID; how many, and the `after` of the next call.

    None instead of that at the end. The meta table goes on counting them, so that no metric runs backwards.
    """
    picked = yield Do(
        f"SELECT a.experiment_id, a.attempt, a.token, a.outcome {_old_attempts(table)} AND a.experiment_id > ?"
        f" ORDER BY a.experiment_id LIMIT ?",
        (-older_s, after, CHUNK),
    )
    if not picked.rows:
        return 0, None
    deleted = Do(
        f"DELETE FROM {table.attempts} WHERE experiment_id = ? AND attempt = ? AND token = ?",
        [tuple(row[:3]) for row in picked.rows],
        many=True,
    )
    outcomes = Counter(str(row[3]) for row in picked.rows)
    yield Commit(
        [deleted, *(count for outcome in sorted(outcomes) for count in _add(table, outcome, outcomes[outcome]))]
    )
    return len(picked.rows), picked.rows[-1][0] - 1


def _add(table: Table, outcome: str, number: int) -> list[Do]:
    name = f"{CLEANED}{outcome}"
    return [
        Do(
            f"INSERT INTO {table.meta} (name, value) SELECT ?, '0' FROM (SELECT 1 AS one) one_row"
            f" WHERE NOT EXISTS (SELECT 1 FROM {table.meta} WHERE name = ?)",
            (name, name),
        ),
        Do(f"UPDATE {table.meta} SET value = value + ? WHERE name = ?", (number, name)),
    ]


@unit
def delete_daemons(table: Table, *, older_s: float) -> Steps[int]:
    """Delete up to CHUNK daemons of long ago, with what they were asked and never answered; how many."""
    picked = yield Do(f"SELECT id, incarnation {_old_daemons(table)} ORDER BY id LIMIT ?", (-older_s, CHUNK))
    if not picked.rows:
        return 0
    ids = [row[0] for row in picked.rows]
    yield Commit(
        [
            Do(f"DELETE FROM {table.commands} WHERE incarnation IN ({marks(ids)})", [row[1] for row in picked.rows]),
            Do(f"DELETE FROM {table.daemons} WHERE id IN ({marks(ids)}) AND state IN ('stopped', 'dead')", ids),
        ]
    )
    return len(ids)


@unit
def delete_commands(table: Table, *, older_s: float) -> Steps[int]:
    """Delete up to CHUNK commands that were answered long ago; how many."""
    picked = yield Do(f"SELECT id {_old_commands(table)} ORDER BY id LIMIT ?", (-older_s, CHUNK))
    if not picked.rows:
        return 0
    ids = [row[0] for row in picked.rows]
    yield Commit([Do(f"DELETE FROM {table.commands} WHERE id IN ({marks(ids)})", ids)])
    return len(ids)


@unit
def delete_snapshots(table: Table, *, older_s: float, of_over: bool) -> Steps[int]:
    """Delete up to CHUNK old snapshots of experiments that are gone (or over); how many were looked at."""
    picked = yield Do(
        f"SELECT s.experiment_id, s.sequence, s.state_id {_old_snapshots(table, of_over=of_over)} LIMIT ?",
        (-older_s, CHUNK),
    )
    if not picked.rows:
        return 0
    ids = sorted({row[0] for row in picked.rows})
    locked = yield Do(
        f"SELECT ID, status FROM {table.main} {table.dialect.primary} WHERE ID IN ({marks(ids)})"
        f" {table.dialect.for_update}",
        ids,
    )
    # Somebody may have reset one meanwhile, to go on from there.
    again = {number for number, status in locked.rows if status not in _OVER}
    chosen = [row for row in picked.rows if row[0] not in again]
    if chosen:
        yield Commit(delete_states(table, chosen))
    return len(chosen)


@unit
def delete_parts(table: Table, *, older_s: float) -> Steps[int]:
    """Delete up to CHUNK parts of snapshots that were never finished; how many were looked at."""
    picked = yield Do(
        f"SELECT p.experiment_id, p.state_id, p.part, p.attempt {_stray_parts(table)} LIMIT ?", (-older_s, CHUNK)
    )
    if not picked.rows:
        return 0
    ids = sorted({row[0] for row in picked.rows})
    locked = yield Do(
        f"SELECT ID, pyexpd_attempt FROM {table.main} {table.dialect.primary}"
        f" WHERE ID IN ({marks(ids)}) AND status IN {_OPEN} {table.dialect.for_update}",
        ids,
    )
    # Somebody may have reset one meanwhile, to go on with it, or have finished what we saw.
    present = {row[0]: row[1] for row in locked.rows}
    chosen = [row[:3] for row in picked.rows if row[0] not in present or row[3] < present[row[0]]]
    if chosen:
        headless = f"state_id NOT IN (SELECT state_id FROM {table.snapshots} WHERE experiment_id = ?)"
        sql = f"DELETE FROM {table.snapshot_parts} WHERE experiment_id = ? AND state_id = ? AND part = ? AND {headless}"
        yield Commit([Do(sql, [(*row, row[0]) for row in chosen], many=True)])
    return len(chosen)
