"""Snapshots of experiments: a head each, and the parts of their states. Written under the lock of the experiment."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pyexp_daemon import exceptions
from pyexp_daemon.model import Outcome, Report, SnapshotHead
from pyexp_daemon.store.budgets import read_tries
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.unit import Do, Steps, marks, unit
from pyexp_daemon.store.values import utc

_FORGIVEN = (Outcome.CRASH, Outcome.LOST)
"""What does not count any more once an experiment has got further."""


@dataclass(frozen=True, slots=True)
class _Kept:
    sequence: int
    label: str | None
    state_id: str


def writes(table: Table, reports: Sequence[Report]) -> Steps[list[Do]]:
    """The statements that store parts and heads, for experiments whose rows are locked; a repeated write is harmless.

    With a head go the snapshots that it says not to keep, and parts that belong to none: of attempts that were ended
    while they saved.

    Raises:
        RowRefused: a part of a state is missing, so it makes no snapshot.
    """
    statements = _put_parts(table, reports)
    headed = [report for report in reports if report.snapshots]
    if not headed:
        return statements
    ids = sorted(report.claim.experiment_id for report in headed)
    states = sorted(head.state_id for report in headed for head in report.snapshots)
    kept, parts = yield [
        Do(
            f"SELECT experiment_id, sequence, label, state_id FROM {table.snapshots}"
            f" WHERE experiment_id IN ({marks(ids)}) ORDER BY experiment_id, sequence",
            ids,
        ),
        Do(
            f"SELECT experiment_id, state_id, part FROM {table.snapshot_parts}"
            f" WHERE experiment_id IN ({marks(ids)}) AND state_id IN ({marks(states)})",
            (*ids, *states),
        ),
    ]
    there: dict[int, list[_Kept]] = defaultdict(list)
    for experiment_id, *head in kept.rows:
        there[experiment_id].append(_Kept(*head))
    stored = {tuple(row) for row in parts.rows}
    for report in headed:
        stored |= {(report.claim.experiment_id, part.state_id, part.part) for part in report.parts}
        for head in report.snapshots:
            _check_complete(report.claim.experiment_id, head, stored)
        statements += _put_heads(table, report, there[report.claim.experiment_id])
    return statements


def _put_parts(table: Table, reports: Sequence[Report]) -> list[Do]:
    rows = [
        (report.claim.experiment_id, part.state_id, part.part, report.claim.attempt, part.data)
        for report in reports
        for part in report.parts
    ]
    return [put_parts(table, rows)] if rows else []


def put_parts(table: Table, rows: Sequence[tuple[Any, ...]]) -> Do:
    """Parts of snapshots: experiment, state, number, attempt, data. One that is there is replaced."""
    columns = "experiment_id, state_id, part, attempt, data"
    return Do(f"REPLACE INTO {table.snapshot_parts} ({columns}) VALUES (?, ?, ?, ?, ?)", rows, many=True)


def put_heads(table: Table, rows: Sequence[tuple[Any, ...]]) -> Do:
    """Heads of snapshots: experiment, sequence, attempt, label, time, bytes, number of parts, state."""
    columns = "experiment_id, sequence, attempt, label, created, size_bytes, parts, state_id"
    return Do(f"INSERT INTO {table.snapshots} ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows, many=True)


def _check_complete(experiment_id: int, head: SnapshotHead, stored: Iterable[tuple[Any, ...]]) -> None:
    missing = {(experiment_id, head.state_id, part) for part in range(head.parts)}.difference(stored)
    if missing:
        raise exceptions.RowRefused(f"{len(missing)} of {head.parts} parts of the snapshot are missing")


def _put_heads(table: Table, report: Report, there: Sequence[_Kept]) -> list[Do]:
    experiment_id, attempt = report.claim.experiment_id, report.claim.attempt
    kept, added = list(there), list[tuple[Any, ...]]()
    for head in report.snapshots:
        if head.state_id not in (each.state_id for each in kept):
            sequence = max((each.sequence for each in kept), default=0) + 1
            kept.append(_Kept(sequence, head.label, head.state_id))
            created = utc(table, head.created)
            added.append(
                (experiment_id, sequence, attempt, head.label, created, head.size_bytes, head.parts, head.state_id)
            )
        if head.keep is not None:
            alike = [each for each in kept if each.label == head.label]
            kept = [each for each in kept if each not in alike[: -head.keep]]
    left = {each.sequence for each in kept}
    replaced = [each for each in there if each.sequence not in left]
    rows = [row for row in added if row[1] in left]
    # Parts of this attempt are left alone: another process may be saving for it at the same time.
    stray = (
        f"DELETE FROM {table.snapshot_parts} WHERE experiment_id = ? AND attempt < ?"
        f" AND state_id NOT IN (SELECT state_id FROM {table.snapshots} WHERE experiment_id = ?)"
    )
    return [
        *delete_states(table, [(experiment_id, each.sequence, each.state_id) for each in replaced]),
        *([put_heads(table, rows)] if rows else []),
        Do(stray, (experiment_id, attempt, experiment_id)),
    ]


def delete_states(table: Table, rows: Sequence[tuple[int, int, str]]) -> list[Do]:
    """The statements that delete snapshots: experiment, sequence, state."""
    if not rows:
        return []
    heads = f"DELETE FROM {table.snapshots} WHERE experiment_id = ? AND sequence = ?"
    parts = f"DELETE FROM {table.snapshot_parts} WHERE experiment_id = ? AND state_id = ?"
    return [
        Do(heads, [(row[0], row[1]) for row in rows], many=True),
        Do(parts, [(row[0], row[2]) for row in rows], many=True),
    ]


def forgiven(tries: str | None, *, was_lost: bool = False) -> str | None:
    """The tries of an experiment that has saved a snapshot: crashes and losses before it do not count.

    Args:
        was_lost: the attempt that saved it was lost after that, and is charged for it.
    """
    left = {outcome: count for outcome, count in read_tries(tries).items() if outcome not in _FORGIVEN}
    left |= {Outcome.LOST.value: 1} if was_lost else {}
    return json.dumps(left, sort_keys=True) if left else None


def deletes(table: Table, ids: Sequence[int]) -> list[Do]:
    """The statements that delete the snapshots of experiments whose rows are locked."""
    return [
        Do(f"DELETE FROM {name} WHERE experiment_id IN ({marks(ids)})", ids)
        for name in (table.snapshots, table.snapshot_parts)
    ]


@unit
def heads(
    table: Table, experiment_id: int, *, label: str | None = None, limit: int | None = None
) -> Steps[list[dict[str, Any]]]:
    """The snapshots of an experiment, the newest first: everything but their states.

    Args:
        label: only those of this label; None for all.
        limit: at most so many.
    """
    columns = ("sequence", "attempt", "label", "size_bytes", "parts", "state_id", "created")
    exactly = "" if label is None else f" AND {table.dialect.exactly('label')} = {table.dialect.exactly('?')}"
    found = yield Do(
        f"SELECT {', '.join(columns[:-1])}, {table.dialect.epoch('created')} FROM {table.snapshots}"
        f" WHERE experiment_id = ?{exactly} ORDER BY sequence DESC{'' if limit is None else ' LIMIT ?'}",
        [value for value in (experiment_id, label, limit) if value is not None],
    )
    return [{**dict(zip(columns, row, strict=True)), "created": float(row[-1])} for row in found.rows]


@unit
def part(table: Table, experiment_id: int, *, state_id: str, number: int) -> Steps[bytes | None]:
    """One part of a state; None when there is none (any more)."""
    found = yield Do(
        f"SELECT data FROM {table.snapshot_parts} WHERE experiment_id = ? AND state_id = ? AND part = ?",
        (experiment_id, state_id, number),
    )
    return bytes(found.rows[0][0]) if found.rows else None
