"""Before tables change or go: who works on them, and what belongs to them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyexp_daemon import exceptions
from pyexp_daemon.store import emissions, schema
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.structure import State
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.unit import Do, Steps, marks, unit

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore

OURS = (
    "pyexpd_meta",
    "pyexpd_attempts",
    "pyexpd_daemons",
    "pyexpd_commands",
    "pyexpd_snapshots",
    "pyexpd_snapshot_parts",
)
"""Every table that this project makes beside the experiments. First the version: without it nothing is one of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A daemon that has not signed off, whatever version of the schema it knows."""

    name: str
    host: str
    pid: int
    version: str
    schema: int
    """The newest schema it works on."""
    silent_s: float
    """Since its last beat, by the database's clock."""
    keyfields: frozenset[str] | None
    """The keyfields it knows, in small letters; None when it does not notice that there are others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Belongings:
    """What goes with an experiment table.

    Args:
        names: the tables that belong to it, itself included, in an order that can be taken up again anywhere.
        others: tables whose names begin alike and that are not its own.
    """

    names: Sequence[str]
    others: Sequence[str]

    @property
    def statements(self) -> list[str]:
        return [f"DROP TABLE IF EXISTS {quote(name)}" for name in self.names]


@unit
def workers(table: Table, state: State) -> Steps[list[Worker]]:
    """The daemons that have not signed off, oldest first; of a schema of any version."""
    there = state.beside.get("pyexpd_daemons", ())
    if not there:
        return []
    facts = "facts" if "facts" in there else "NULL"
    age = f"{table.dialect.epoch(table.dialect.now)} - {table.dialect.epoch('beat_at')}"
    found = yield Do(
        f"SELECT name, host, pid, version, {facts}, {age} FROM {table.daemons}"
        f" WHERE state IN ('live', 'draining') ORDER BY id"
    )
    return [
        Worker(
            name=name,
            host=host,
            pid=pid,
            version=version,
            schema=_schema(said),
            silent_s=float(age or 0),
            keyfields=_keyfields(said),
        )
        for name, host, pid, version, said, age in found.rows
    ]


def too_old(found: Sequence[Worker], *, oldest: int) -> list[Worker]:
    """Those of them that may not work any more on a table which needs a daemon of schema `oldest`."""
    return [worker for worker in found if worker.schema < oldest]


def everything(table: Table, state: State) -> Belongings:
    """The table and what is beside it.

    Beside it are our tables, the logtables of the configuration, those that we made for a configuration of before, and
    what PyExperimenter noted of energy. A table that only has such a name is not touched.
    """
    logtables = schema.logtables(table, state)
    ours = [name for name in OURS if name in state.beside]
    has_emissions = emissions.is_emissions(state.emissions)
    measured = [f"{table.name}_codecarbon"] if state.emissions else []
    others = [f"{table.name}__{name}" for name in state.beside if name not in (*logtables, *ours)]
    # What refers to the experiments goes before them, and what tells that they are ours after them: until it is gone
    # the command can be repeated.
    return Belongings(
        names=[
            *(f"{table.name}__{name}" for name in logtables),
            *(measured if has_emissions else []),
            *([table.name] if state.exists else []),
            *(f"{table.name}__{name}" for name in reversed(ours)),
        ],
        others=[*others, *([] if has_emissions else measured)],
    )


@unit
def references(table: Table, names: Collection[str]) -> Steps[list[str]]:
    """The tables that refer to one of these by a foreign key and are none of them."""
    if table.dialect.provider == "sqlite":
        found = yield Do(
            'SELECT DISTINCT m.name, f."table" FROM sqlite_master m JOIN pragma_foreign_key_list(m.name) f'
            " WHERE m.type = 'table'"
        )
        ours = {name.lower() for name in names}
        return sorted(name for name, other in found.rows if other.lower() in ours and name.lower() not in ours)
    found = yield Do(
        "SELECT DISTINCT table_schema, table_name, referenced_table_name, table_schema = DATABASE()"
        f" FROM information_schema.key_column_usage WHERE referenced_table_schema = DATABASE()"
        f" AND referenced_table_name IN ({marks(list(names))})",
        list(names),
    )
    return sorted(
        name if is_here else f"{place}.{name}"
        for place, name, other, is_here in found.rows
        if other in names and not (is_here and name in names)
    )


def check_references(table: Table, found: Sequence[str]) -> None:
    """Whether the table can be dropped as far as others' foreign keys go.

    Raises:
        TableError: tables of the user's refer to it; nothing was dropped.
    """
    if found:
        refer = "refers" if len(found) == 1 else "refer"
        raise exceptions.TableError(
            f"{', '.join(found)} {refer} to table {table.name} by a foreign key, so it cannot be dropped",
            hint="drop the foreign key first, or that table",
        )


def droppable(store: BlockingStore, table: Table, state: State) -> Belongings:
    """What goes with the table, when it may be dropped.

    Raises:
        TableHasWrongStructureError, SchemaVersionError: it is none of ours.
        TableError: tables of the user's refer to it.
    """
    schema.check_names(table, state)
    schema.check_version_known(table, state)
    belongings = everything(table, state)
    if belongings.names:
        referring: list[str] = store.read(references(table, belongings.names))
        check_references(table, referring)
    return belongings


def heedless(found: Sequence[Worker]) -> list[Worker]:
    """Those of them that would go on claiming when the table gets another keyfield."""
    return [worker for worker in found if worker.keyfields is None]


def _keyfields(facts: str | None) -> frozenset[str] | None:
    known = json.loads(facts).get("keyfields") if facts else None
    return None if known is None else frozenset(name.lower() for name in known)


def _schema(facts: str | None) -> int:
    """Daemons that know only version 1 say nothing of themselves."""
    return int(json.loads(facts).get("schema", 2)) if facts else 1
