"""The way back: an experiment table without what this software added, as PyExperimenter fills it."""

from __future__ import annotations

from collections.abc import Sequence

from pyexp_daemon.store import schema, uses
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.structure import State
from pyexp_daemon.store.tables import CLAIM, FINGERPRINT, OWNER, RARE, WAITING, Table
from pyexp_daemon.store.unit import Do, Steps, unit


@unit
def hand_back(table: Table) -> Steps[int]:
    """What only a daemon would go on with becomes `created`: what waits for another attempt, or is held by none now."""
    done = yield Do(
        f"UPDATE {table.main} SET status = 'created', start_date = NULL"
        " WHERE status = 'waiting' OR (status = 'running' AND pyexpd_token IS NOT NULL)"
    )
    changed: int = done.changed
    return changed


def statements(table: Table, state: State) -> list[str]:
    """The DDL that takes everything of ours away and leaves everything of the user's.

    It can be taken up again anywhere: what tells that the table is ours goes last.
    """
    logtables = schema.logtables(table, state)
    indexes = [table.index(name) for name in (CLAIM, WAITING, OWNER, FINGERPRINT, RARE)]
    return [
        *_drop_ours(table, table.name, state.columns, [name for name in indexes if name in state.indexes]),
        *(ddl for name in logtables for ddl in _drop_ours(table, f"{table.name}__{name}", state.beside[name])),
        *(f"DROP TABLE IF EXISTS {table.beside(name)}" for name in reversed(uses.OURS) if name in state.beside),
    ]


def _drop_ours(table: Table, name: str, columns: Sequence[str], indexes: Sequence[str] = ()) -> list[str]:
    dropped = [f"DROP COLUMN {quote(column)}" for column in columns if column.lower().startswith("pyexpd_")]
    if table.dialect.provider == "sqlite":  # which refuses to drop a column that an index holds
        return [
            *(f"DROP INDEX {quote(index)}" for index in indexes),
            *(f"ALTER TABLE {quote(name)} {column}" for column in dropped),
        ]
    dropped = [*(f"DROP INDEX {quote(index)}" for index in indexes), *dropped]
    return [f"ALTER TABLE {quote(name)} {', '.join(dropped)}"] if dropped else []
