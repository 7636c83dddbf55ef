"""How many experiments each status has, in tables of millions."""

from __future__ import annotations

from collections import Counter

from pyexp_daemon.model import Status
from pyexp_daemon.store.tables import RARE_STATUS, Table
from pyexp_daemon.store.unit import Do, Steps, marks

KNOWN = tuple(status.value for status in Status)


def count(table: Table) -> Steps[dict[str, int]]:
    """How many experiments each status has; a status put there by hand is shown as it is, NULL as ''.

    Also `DONE`, which MySQL's collations take for `done`: it would count under either name, as it happens.
    """
    by = _by_indexes if table.dialect.provider == "sqlite" else _by_groups
    return (yield from by(table))


def _by_indexes(table: Table) -> Steps[dict[str, int]]:
    """SQLite counts all rows in an instant, and has an index of each status but `done`: that is what is left.

    It is one statement, so that everything is counted at the same moment.
    """
    each = [
        f"SELECT 1, '{status}', COUNT(*) FROM {table.main} WHERE status = '{status}'"
        for status in (Status.CREATED, Status.WAITING, Status.RUNNING)
    ]
    rare = f"SELECT 1, status, COUNT(*) FROM {table.main} WHERE {RARE_STATUS} GROUP BY status"
    found = yield Do(" UNION ALL ".join([*each, rare, f"SELECT 0, 'done', COUNT(*) FROM {table.main}"]))
    counts: Counter[str] = Counter()
    total = 0
    for is_part, status, number in found.rows:
        if is_part:
            counts[status or ""] += number
        else:
            total = number
    counts["done"] = total - counts.total()
    return {status: number for status, number in counts.items() if number}


def _by_groups(table: Table) -> Steps[dict[str, int]]:
    """MySQL reads an index; only where a group has other texts than the statuses is each row grouped by its bytes.

    Whether all are known is asked by BIT_AND, for a SUM adds decimal numbers, which takes longer than to look.
    """
    found = yield Do(
        f"SELECT status, COUNT(*), BIT_AND({table.dialect.exactly('status')} IN ({marks(KNOWN)})) FROM {table.main}"
        f" GROUP BY status",
        KNOWN,
    )
    counts: Counter[str] = Counter()
    for status, number, all_known in found.rows:
        if status is None or all_known:
            counts[status or ""] += number
        else:
            counts.update(dict((yield _exactly(table, status)).rows))
    return dict(counts)


def _exactly(table: Table, status: str) -> Do:
    return Do(
        f"SELECT MIN(status), COUNT(*) FROM {table.main} WHERE status = ? GROUP BY {table.dialect.exactly('status')}",
        (status,),
    )
