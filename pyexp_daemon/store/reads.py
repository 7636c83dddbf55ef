"""What people look at: counts, rows, attempts, logs. No unit here locks or changes anything."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyexp_daemon.store import counts
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.reports import RECEIPT
from pyexp_daemon.store.tables import CLAIM, ENDED, OWNER, Table
from pyexp_daemon.store.unit import Do, Steps, marks, unit

if TYPE_CHECKING:
    from pyexp_daemon.store.selection import Selection

MOST_RESULTS = 10_000
"""So many of the last results are looked at for the versions of their code: to join millions takes many seconds."""

SCHEDULING = ("pyexpd_queue", "pyexpd_order", "pyexpd_attempt", "pyexpd_tries", "pyexpd_cancel")


@unit
def count_by_status(table: Table) -> Steps[dict[str, int]]:
    """How many experiments each status has; a status put there by hand is shown as it is, NULL as ''."""
    return (yield from counts.count(table))


@unit
def finished_since(table: Table, seconds: float) -> Steps[int]:
    """How many attempts ended as done within the last `seconds`, by the database's clock."""
    found = yield Do(
        f"SELECT COUNT(*) FROM {table.attempts} WHERE outcome = 'done' AND ended >= {table.dialect.after()}",
        (-seconds,),
    )
    return int(found.rows[0][0])


@unit
def typical_duration(table: Table, *, last: int = 100) -> Steps[float | None]:
    """The median of how long the last attempts took that ended as done, seconds; None when there are none."""
    span = f"{table.dialect.epoch('ended')} - {table.dialect.epoch('started')}"
    found = yield Do(
        f"SELECT {span} FROM {table.attempts} {table.use(ENDED)} WHERE outcome = 'done' ORDER BY ended DESC LIMIT ?",
        (last,),
    )
    spans = [float(row[0]) for row in found.rows if row[0] is not None]
    return statistics.median(spans) if spans else None


@unit
def code_versions(table: Table) -> Steps[dict[str, int]]:
    """How many of the results in the table each version of the code has, among the last MOST_RESULTS that came."""
    found = yield Do(
        f"SELECT a.code_version, COUNT(*) FROM (SELECT experiment_id, attempt, code_version FROM {table.attempts}"
        f" {table.use(ENDED)} WHERE outcome = 'done' ORDER BY ended DESC LIMIT ?) a JOIN {table.main} t"
        f" ON t.ID = a.experiment_id AND t.pyexpd_attempt = a.attempt AND t.status = 'done' GROUP BY a.code_version",
        (MOST_RESULTS,),
    )
    return {row[0] or "unknown": row[1] for row in found.rows}


@unit
def experiments(
    table: Table, selection: Selection, *, after: int = 0, limit: int = 1000, ours: bool = False
) -> Steps[list[dict[str, Any]]]:
    """The next selected experiments by ID, one dict per row with the user's columns in table order.

    Args:
        ours: also the columns about scheduling (`pyexpd_…`).
    """
    columns = (*table.columns, *(SCHEDULING if ours else ()))
    found = yield Do(
        f"SELECT {', '.join(map(quote, columns))} FROM {table.main} WHERE ID > ? AND ({selection.condition})"
        f" ORDER BY ID LIMIT ?",
        (after, *selection.values, limit),
    )
    return [_experiment(table, dict(zip(columns, row, strict=True))) for row in found.rows]


def _experiment(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    for name, column in table.key_types.items():
        if row[name] is not None:
            row[name] = column.from_database(row[name])
    for name in ("creation_date", "start_date", "end_date"):
        row[name] = None if row[name] is None else str(row[name])
    return row


@unit
def attempts(table: Table, experiment_id: int) -> Steps[list[dict[str, Any]]]:
    """The attempts of one experiment, oldest first. Times are seconds since the epoch, UTC."""
    columns = [
        f"{table.dialect.epoch(name)} AS {name}" if name in ("started", "ended") else quote(name) for name in RECEIPT
    ]
    found = yield Do(
        f"SELECT {', '.join(columns)} FROM {table.attempts} WHERE experiment_id = ? ORDER BY attempt, ended",
        (experiment_id,),
    )
    rows = [dict(zip(RECEIPT, row, strict=True)) for row in found.rows]
    for row in rows:
        row |= {name: None if row[name] is None else float(row[name]) for name in ("started", "ended")}
    return rows


@unit
def strangers(table: Table) -> Steps[list[int]]:
    """Up to 100 running experiments without a token: PyExperimenter's or a person's, never rescued."""
    found = yield Do(f"SELECT ID FROM {table.main} WHERE status = 'running' AND pyexpd_token IS NULL LIMIT 100")
    return [row[0] for row in found.rows]


@unit
def count_unfinished(table: Table, *, queues: Sequence[str]) -> Steps[int]:
    """How many experiments of these queues are created, waiting, or running under a daemon that looks dead.

    `lease_until` is compared with the server's own clock here: it only decides how long somebody stays to watch.
    """
    served = f"pyexpd_queue IN ({marks(queues)})"
    found = yield Do(
        f"SELECT (SELECT COUNT(*) FROM {table.main} WHERE status = 'created' AND {served})"
        f" + (SELECT COUNT(*) FROM {table.main} WHERE status = 'waiting' AND {served})"
        f" + (SELECT COUNT(*) FROM {table.main} t {table.use(OWNER)} WHERE t.status = 'running' AND t.pyexpd_daemon > 0"
        f" AND t.{served} AND NOT EXISTS (SELECT 1 FROM {table.daemons} d WHERE d.id = t.pyexpd_daemon"
        f" AND d.state IN ('live', 'draining') AND d.lease_until >= {table.dialect.now}))",
        (*queues, *queues, *queues),
    )
    return int(found.rows[0][0])


@unit
def clock(table: Table) -> Steps[float]:
    """What the database's clock says: seconds since the epoch. The ages of beats are measured against it."""
    found = yield Do(f"SELECT {table.dialect.epoch(table.dialect.now)}")
    return float(found.rows[0][0])


@unit
def count_held(table: Table) -> Steps[dict[int, int]]:
    """How many experiments run under each daemon, by its id."""
    found = yield Do(
        f"SELECT pyexpd_daemon, COUNT(*) FROM {table.main} {table.use(OWNER)}"
        f" WHERE pyexpd_daemon > 0 AND status = 'running' GROUP BY pyexpd_daemon"
    )
    return dict(found.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an experiment stands: for whom it waits, until when, or who has it."""

    queue: str
    order: int
    attempt: int
    tries: str | None
    not_before: float | None
    """Seconds since the epoch."""
    daemon: int | None
    has_token: bool
    cancel: bool
    ahead: int
    """How many created experiments of its queue are claimed before it."""


@unit
def place(table: Table, experiment_id: int) -> Steps[Place | None]:
    """Where an experiment stands; None when there is no such experiment."""
    found = yield Do(
        f"SELECT pyexpd_queue, pyexpd_order, pyexpd_attempt, pyexpd_tries, {table.dialect.epoch('pyexpd_not_before')},"
        f" pyexpd_daemon, pyexpd_token IS NOT NULL, pyexpd_cancel FROM {table.main} WHERE ID = ?",
        (experiment_id,),
    )
    if not found.rows:
        return None
    queue, order, attempt, tries, not_before, daemon, has_token, cancel = found.rows[0]
    ahead = yield Do(
        f"SELECT COUNT(*) FROM {table.main} {table.use(CLAIM)} WHERE status = 'created' AND pyexpd_queue = ?"
        f" AND (pyexpd_order < ? OR (pyexpd_order = ? AND ID < ?))",
        (queue, order, order, experiment_id),
    )
    return Place(
        queue=queue,
        order=order,
        attempt=attempt,
        tries=tries,
        not_before=None if not_before is None else float(not_before),
        daemon=daemon,
        has_token=bool(has_token),
        cancel=bool(cancel),
        ahead=ahead.rows[0][0],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Of an experiment what changes while somebody watches it."""

    status: str
    attempt: int
    daemon: int | None


@unit
def standing(table: Table, experiment_id: int) -> Steps[Standing | None]:
    """How an experiment stands now; None when it is there no more."""
    found = yield Do(f"SELECT status, pyexpd_attempt, pyexpd_daemon FROM {table.main} WHERE ID = ?", (experiment_id,))
    if not found.rows:
        return None
    status, attempt, daemon = found.rows[0]
    return Standing(status=status or "", attempt=attempt, daemon=daemon)
