"""What people are told of: experiments that failed for good, a table in which nothing is left to do."""

from __future__ import annotations

from collections.abc import Mapping

from pyexp_daemon.store import counts
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.unit import Commit, Do, Steps, marks, unit


@unit
def failed_for_good(table: Table, attempts: Mapping[int, int]) -> Steps[list[int]]:
    """Which of these experiments had no try left after this attempt (experiment -> attempt), and are in error."""
    ids = sorted(attempts)
    found = yield Do(
        f"SELECT ID, pyexpd_attempt FROM {table.main} WHERE ID IN ({marks(ids)}) AND status = 'error' ORDER BY ID", ids
    )
    return [number for number, attempt in found.rows if attempts[number] == attempt]


@unit
def is_finished(table: Table) -> Steps[bool]:
    """Whether no experiment is created, waiting or running."""
    return (yield from _is_finished(table))


def _is_finished(table: Table) -> Steps[bool]:
    # One question for each status: SQLite has a partial index for each.
    left = " + ".join(
        f"EXISTS (SELECT 1 FROM {table.main} WHERE status = '{status}')" for status in ("created", "waiting", "running")
    )
    found = yield Do(f"SELECT {left}")
    return not found.rows[0][0]


@unit
def all_finished(table: Table) -> Steps[dict[str, int] | None]:
    """How many experiments each status has; None as long as any is created, waiting or running."""
    return (yield from counts.count(table)) if (yield from _is_finished(table)) else None


@unit
def be_first(table: Table) -> Steps[bool]:
    """Whether no daemon has told yet that the table is finished, since the last attempt ended; True once."""
    last = yield Do(f"SELECT {table.dialect.epoch('MAX(ended)')} FROM {table.attempts}")
    mark = str(last.rows[0][0])
    _, changed = yield Commit(
        [
            Do(
                f"INSERT INTO {table.meta} (name, value) SELECT 'finished', 'never' FROM (SELECT 1 AS one) one_row"
                f" WHERE NOT EXISTS (SELECT 1 FROM {table.meta} WHERE name = 'finished')"
            ),
            Do(f"UPDATE {table.meta} SET value = ? WHERE name = 'finished' AND value <> ?", (mark, mark)),
        ]
    )
    return bool(changed.changed)
