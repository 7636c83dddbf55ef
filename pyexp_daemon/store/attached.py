"""What a process writes that did not start the experiment: as long as its row is what was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyexp_daemon.model import Claim, Report
from pyexp_daemon.store import snapshots
from pyexp_daemon.store.reports import log_inserts, result_changes
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.unit import Commit, Do, Steps, unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """An experiment as it was when a process attached itself: its lease, or its status when nobody holds it."""

    experiment_id: int
    status: str
    attempt: int
    token: str | None
    start_date: str

    @property
    def claim(self) -> Claim:
        """The claim on whose behalf is written."""
        return Claim(
            experiment_id=self.experiment_id,
            attempt=self.attempt,
            token=self.token or "",
            start_date=self.start_date,
            keyfields={},
        )


@unit
def attach(table: Table, experiment_id: int) -> Steps[Attachment | None]:
    """The experiment as it is now; None when there is none of that number."""
    found = yield _look(table, experiment_id)
    return _attachment(experiment_id, found.rows[0]) if found.rows else None


@unit
def write(table: Table, seen: Attachment, report: Report) -> Steps[bool]:
    """Write results, log rows and snapshots; False when the experiment moved on: nothing was written.

    Raises:
        RowRefused: a value cannot be stored; nothing was written.
    """
    found = yield _look(table, seen.experiment_id, locked=True)
    if not found.rows or _attachment(seen.experiment_id, found.rows[0]) != seen:
        return False
    changes = result_changes(table, report)
    updates = table.dialect.update_rows(
        table.main, dict.fromkeys(changes, "{}"), [[seen.experiment_id, *changes.values()]]
    )
    saved = yield from snapshots.writes(table, [report])
    yield Commit([*(updates if changes else []), *log_inserts(table, [report]), *saved])
    return True


def _look(table: Table, experiment_id: int, *, locked: bool = False) -> Do:
    return Do(
        f"SELECT status, pyexpd_attempt, pyexpd_token, start_date FROM {table.main} {table.dialect.primary}"
        f" WHERE ID = ? {table.dialect.for_update if locked else ''}",
        (experiment_id,),
    )


def _attachment(experiment_id: int, row: tuple[Any, ...]) -> Attachment:
    status, attempt, token, start_date = row
    return Attachment(
        experiment_id=experiment_id, status=status or "", attempt=attempt, token=token, start_date=str(start_date)
    )
