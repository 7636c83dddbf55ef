"""Figures about a table for monitoring, beside those that people look at in `reads`."""

from __future__ import annotations

import time
from datetime import datetime

from pyexp_daemon.store.cleaning import CLEANED
from pyexp_daemon.store.tables import OWNER, Table
from pyexp_daemon.store.unit import Do, Steps, unit


@unit
def count_attempts(table: Table) -> Steps[dict[str, int]]:
    """How many attempts ended in each outcome, those included that `clean` has deleted."""
    found = yield Do(f"SELECT outcome, COUNT(*) FROM {table.attempts} GROUP BY outcome")
    counts = {str(row[0]): int(row[1]) for row in found.rows}
    cleaned = yield Do(f"SELECT name, value FROM {table.meta}")
    for name, value in cleaned.rows:
        if name.startswith(CLEANED):
            outcome = name.removeprefix(CLEANED)
            counts[outcome] = counts.get(outcome, 0) + int(float(value))
    return counts


@unit
def oldest_running(table: Table) -> Steps[float | None]:
    """For how many seconds the experiment has run that was started first; None when none runs.

    Experiments say in local time when they started: this is right where the nodes live in one time zone.
    """
    found = yield Do(
        f"SELECT MIN(start_date) FROM {table.main} {table.use(OWNER)} WHERE pyexpd_daemon > 0 AND status = 'running'"
    )
    started = found.rows[0][0]
    return None if started is None else max(0.0, time.time() - datetime.fromisoformat(str(started)).timestamp())
