"""Rows of the experiment table, chunk by chunk, as listings and exports take them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pyexp_daemon import exceptions
from pyexp_daemon.store import reads
from pyexp_daemon.store.selection import Selection, select
from pyexp_daemon.store.tables import Table

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore

CHUNK = 1000

SCHEDULING = {
    "queue": "pyexpd_queue",
    "priority": "pyexpd_order",
    "attempt": "pyexpd_attempt",
    "tries": "pyexpd_tries",
}
"""Columns of ours by the names people use; the priority is the order with the other sign."""


def read_rows(
    store: BlockingStore, table: Table, selection: Selection, *, limit: int | None = None, ours: bool = False
) -> Iterator[dict[str, Any]]:
    """The selected experiments by ID, read in chunks: no transaction stays open between them.

    Args:
        limit: the most rows to read.
        ours: also the columns of SCHEDULING, under their names there.
    """
    after, left = 0, limit
    while left is None or left > 0:
        size = CHUNK if left is None else min(CHUNK, left)
        rows = store.read(reads.experiments(table, selection, after=after, limit=size, ours=ours))
        yield from (_with_names(row) if ours else row for row in rows)
        if len(rows) < size:
            return
        after = rows[-1]["ID"]
        left = None if left is None else left - len(rows)


def read_one(store: BlockingStore, table: Table, experiment_id: int, *, ours: bool = False) -> dict[str, Any]:
    """One experiment.

    Raises:
        SelectorError: there is none of that number.
    """
    found = next(read_rows(store, table, select(table, ids=[str(experiment_id)]), limit=1, ours=ours), None)
    if found is None:
        raise exceptions.SelectorError(
            f"table {table.name} has no experiment {experiment_id}", hint="pyexpd list shows what there is"
        )
    return found


def choose_columns(table: Table, text: str | None, default: Sequence[str]) -> tuple[str, ...]:
    """The columns that `--columns a,b` names.

    Raises:
        SelectorError: there is no such column.
    """
    if text is None:
        return tuple(default)
    known = {column.lower(): column for column in (*SCHEDULING, *table.columns)}
    chosen = []
    for name in filter(None, (piece.strip() for piece in text.split(","))):
        if name.lower() not in known:
            close = difflib.get_close_matches(name.lower(), known, n=1)
            raise exceptions.SelectorError(
                f"table {table.name} has no column {name!r}",
                hint=f"did you mean {known[close[0]]!r}?" if close else f"columns: {', '.join(table.columns)}",
            )
        chosen.append(known[name.lower()])
    if not chosen:
        raise exceptions.SelectorError("--columns names no column", hint=f"columns: {', '.join(table.columns)}")
    return tuple(chosen)


def _with_names(row: dict[str, Any]) -> dict[str, Any]:
    named = {column: value for column, value in row.items() if not column.startswith("pyexpd_")}
    for name, column in SCHEDULING.items():
        named.setdefault(name, -row[column] if name == "priority" else row[column])
    return named
