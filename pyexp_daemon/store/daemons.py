"""Daemon rows: register, beat, declare dead, and requeue what the dead left behind."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pyexp_daemon.model import Attempt, Claim, Command, Daemon, Incarnation, Outcome, RetryPolicy
from pyexp_daemon.store import commands
from pyexp_daemon.store.budgets import next_status
from pyexp_daemon.store.leases import free_rows
from pyexp_daemon.store.reports import put_receipts, receipt
from pyexp_daemon.store.structure import AddedKeyfield, added_keyfields
from pyexp_daemon.store.tables import ADDED, OWNER, WAITING, Table
from pyexp_daemon.store.unit import Commit, Do, Steps, marks, unit
from pyexp_daemon.store.values import local_time

_READ = (
    "id", "incarnation", "name", "host", "host_id", "boot_id", "pid", "pid_start", "version", "slots", "state", "beat",
    "lease_s", "lock_inode", "facts",
)  # fmt: skip


@unit
def register(table: Table, daemon: Daemon) -> Steps[Incarnation]:
    """Insert the row of a new incarnation, live from now on; the database gives `id`, `beat` and the times.

    Called again for the same incarnation, after a lost reply, it only reads the id.
    """
    sql = table.dialect
    mine = Do(f"SELECT id FROM {table.daemons} WHERE incarnation = ?", (daemon.incarnation,))
    there = yield mine
    if there.rows:
        return Incarnation(id=there.rows[0][0], uuid=daemon.incarnation)
    own = ("incarnation", "name", "host", "host_id", "boot_id", "pid", "pid_start", "version", "slots", "lease_s")
    columns = (*own, "lock_inode")
    inserted = Do(
        f"INSERT INTO {table.daemons} ({', '.join(columns)}, state, beat, started, beat_at, lease_until)"
        f" VALUES ({marks(columns)}, 'live', 0, {sql.now}, {sql.now}, {sql.after()})",
        (*(getattr(daemon, column) for column in columns), daemon.lease_s),
    )
    _, found = yield Commit([inserted], then=[mine])
    return Incarnation(id=found.rows[0][0], uuid=daemon.incarnation)


@dataclass(frozen=True, slots=True)
class Beat:
    """The answer to a heartbeat: whether the lease was renewed, what is ours, and what we were asked to do."""

    alive: bool
    rows: Sequence[tuple[int, str, bool]]
    """(experiment, token, asked to cancel)"""
    commands: Sequence[Command]
    oldest: int
    """The oldest schema version of this code that may work on the table."""
    added: Sequence[AddedKeyfield]
    """The keyfields that the table got after it was made."""


@unit
def beat(
    table: Table, *, me: Incarnation, lease_s: float, facts: str | None = None, former: Collection[str] = ()
) -> Steps[Beat]:
    """Renew the lease of this incarnation and read, in the same packet, every row it holds (the audit).

    Args:
        former: what this process was before: commands to it are ours.
        facts: JSON that says what this daemon does; None leaves what it said before.
    """
    renewed, held, asked, said = yield Commit(
        [
            Do(
                f"UPDATE {table.daemons} SET beat = beat + 1, beat_at = {table.dialect.now},"
                f" lease_until = {table.dialect.after()}, facts = COALESCE(?, facts)"
                f" WHERE id = ? AND incarnation = ? AND state IN ('live', 'draining')",
                (lease_s, facts, me.id, me.uuid),
            )
        ],
        then=[
            Do(
                f"SELECT ID, pyexpd_token, pyexpd_cancel FROM {table.main} {table.use(OWNER)}"
                f" WHERE pyexpd_daemon = ? AND status = 'running'",
                (me.id,),
            ),
            commands.unanswered(table, {me.uuid, *former}),
            Do(
                f"SELECT name, value FROM {table.meta} WHERE name = 'oldest' OR SUBSTR(name, 1, {len(ADDED)}) = ?",
                (ADDED,),
            ),
        ],
    )
    meta = dict(said.rows)
    return Beat(
        alive=bool(renewed.changed),
        rows=[(row[0], row[1], bool(row[2])) for row in held.rows],
        commands=commands.heard(asked.rows),
        oldest=int(meta.get("oldest", 0)),
        added=added_keyfields(meta),
    )


@unit
def change_state(table: Table, *, me: Incarnation, state: str) -> Steps[bool]:
    """Say of ourselves that we are `draining` or `stopped`; False when we were declared dead before."""
    (changed,) = yield Commit(
        [
            Do(
                f"UPDATE {table.daemons} SET state = ?, beat = beat + 1, beat_at = {table.dialect.now}"
                f" WHERE id = ? AND incarnation = ? AND state IN ('live', 'draining')",
                (state, me.id, me.uuid),
            )
        ]
    )
    return bool(changed.changed)


@unit
def look(table: Table, *, states: Sequence[str] = ("live", "draining")) -> Steps[list[Daemon]]:
    """The daemon rows in these states, oldest first."""
    found = yield _look(table, f"state IN ({marks(states)})", states)
    return [_daemon(row) for row in found.rows]


def _daemon(row: Sequence[Any]) -> Daemon:
    values = dict(zip((*_READ, "started", "beat_at"), row, strict=True))
    facts = json.loads(values["facts"]) if values["facts"] else {}
    times = {name: float(values[name]) for name in ("started", "beat_at")}
    return Daemon(**values | times | {"facts": facts})


@unit
def find(table: Table, number: int) -> Steps[Daemon | None]:
    """The daemon row of this number, whatever its state."""
    found = yield _look(table, "id = ?", (number,))
    return _daemon(found.rows[0]) if found.rows else None


def _look(table: Table, condition: str, values: Sequence[object]) -> Do:
    times = ", ".join(f"{table.dialect.epoch(column)} AS {column}" for column in ("started", "beat_at"))
    return Do(f"SELECT {', '.join(_READ)}, {times} FROM {table.daemons} WHERE {condition} ORDER BY id", values)


@unit
def declare_dead(table: Table, daemon: Daemon) -> Steps[bool]:
    """The verdict, as a compare-and-set on the beat that was seen: False when it has beaten since."""
    (changed,) = yield Commit(
        [
            Do(
                f"UPDATE {table.daemons} SET state = 'dead'"
                f" WHERE id = ? AND incarnation = ? AND beat = ? AND state IN ('live', 'draining')",
                (daemon.id, daemon.incarnation, daemon.beat),
            )
        ]
    )
    return bool(changed.changed)


@unit
def abandoned(table: Table) -> Steps[list[int]]:
    """The ids of daemons that hold running rows although they are dead, stopped or unknown."""
    # The owners are read before the living: whoever claims has a daemon row that is older than the claim.
    owners = yield Do(
        f"SELECT DISTINCT pyexpd_daemon FROM {table.main} {table.use(OWNER)}"
        f" WHERE pyexpd_daemon > 0 AND status = 'running'"
    )
    if not owners.rows:
        return []
    ids = [row[0] for row in owners.rows]
    living = yield Do(
        f"SELECT id FROM {table.daemons} WHERE id IN ({marks(ids)}) AND state IN ('live', 'draining')", ids
    )
    return sorted(set(ids) - {row[0] for row in living.rows})


@unit
def sweep(table: Table, *, owner: int, policy: RetryPolicy, limit: int = 200) -> Steps[list[int]]:
    """Requeue up to `limit` running rows of a dead daemon, each charged one `lost`; the experiments concerned.

    Rows without a token belong to PyExperimenter or to a person and have no owner: they are never seen here.
    """
    found = yield Do(
        f"SELECT ID FROM {table.main} {table.use(OWNER)} WHERE pyexpd_daemon = ? AND status = 'running' LIMIT ?",
        (owner, limit),
    )
    if not found.rows:
        return []
    ids = sorted(row[0] for row in found.rows)
    locked, daemon = yield [
        Do(
            f"SELECT ID, pyexpd_attempt, pyexpd_token, pyexpd_cancel, pyexpd_tries, start_date"
            f" FROM {table.main} {table.dialect.primary} WHERE ID IN ({marks(ids)}) AND status = 'running'"
            f" AND pyexpd_daemon = ? AND pyexpd_token IS NOT NULL ORDER BY ID {table.dialect.for_update}",
            (*ids, owner),
        ),
        Do(f"SELECT state, host FROM {table.daemons} WHERE id = ?", (owner,)),
    ]
    if not locked.rows or (daemon.rows and daemon.rows[0][0] in ("live", "draining")):
        return []
    host = daemon.rows[0][1] if daemon.rows else None
    yield Commit(_requeue(table, locked.rows, owner=owner, host=host, policy=policy))
    return [row[0] for row in locked.rows]


def _requeue(
    table: Table, rows: Sequence[Sequence[Any]], *, owner: int, host: str | None, policy: RetryPolicy
) -> list[Do]:
    receipts, changes = [], []
    for number, attempt, token, cancel, tries, start_date in rows:
        status, spent = next_status(Outcome.LOST, cancelled=bool(cancel), tries=tries, policy=policy)
        claim = Claim(experiment_id=number, attempt=attempt, token=token, start_date=str(start_date), keyfields={})
        end = Attempt(claim=claim, outcome=Outcome.LOST, ended=time.time(), error="the daemon that ran it died")
        receipts.append(receipt(table, claim, end, me=owner, host=host, results={}))
        text = f"its daemon died {policy.tries.get('lost', 1)} times while it ran" if status == "error" else None
        over = status in ("error", "cancelled")
        changes.append([number, status.value, spent, text, local_time() if over else None])
    freed = free_rows(table, [(change[0], change[1]) for change in changes])
    columns = {"pyexpd_tries": "{}", "error": "{}", "end_date": "{}"}
    spent_rows = table.dialect.update_rows(table.main, columns, [(change[0], *change[2:]) for change in changes])
    return [*freed, *spent_rows, put_receipts(table, receipts)]


@unit
def is_due(table: Table) -> Steps[bool]:
    """Whether an experiment has waited long enough: an idle daemon asks this without a transaction."""
    due = yield Do(
        f"SELECT 1 FROM {table.main} {table.use(WAITING)} WHERE status = 'waiting'"
        f" AND pyexpd_not_before <= {table.dialect.now} LIMIT 1"
    )
    return bool(due.rows)


@unit
def promote(table: Table, *, limit: int = 200) -> Steps[int]:
    """Make `created` of what has waited long enough; how many were due. Never part of a claim."""
    due = yield Do(
        f"SELECT ID FROM {table.main} {table.use(WAITING)} WHERE status = 'waiting'"
        f" AND pyexpd_not_before <= {table.dialect.now} LIMIT ? {table.dialect.skip_locked}",
        (limit,),
    )
    if not due.rows:
        return 0
    ids = sorted(row[0] for row in due.rows)
    yield Commit(
        [
            Do(
                f"UPDATE {table.main} {table.dialect.primary} SET status = 'created', pyexpd_not_before = NULL"
                f" WHERE ID IN ({marks(ids)}) AND status = 'waiting'",
                ids,
            )
        ]
    )
    return len(ids)
