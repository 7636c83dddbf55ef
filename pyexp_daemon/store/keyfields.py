"""A new keyfield for a table that has experiments: its column, its value in all of them, and their new fingerprints.

Three acts, each of which can be repeated: a meta row says that it begins (from then on nobody fills, for rows with old
and new fingerprints stand side by side), the rows are changed in chunks, and the meta row says that it is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from pyexp_daemon import exceptions
from pyexp_daemon.space.identity import copy_of, fingerprint
from pyexp_daemon.store import fill, filling, migrations, schema, structure
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.structure import AddedKeyfield, State, added_keyfields
from pyexp_daemon.store.tables import ADDED, Table
from pyexp_daemon.store.unit import Commit, Do, Steps, marks, unit

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore

_KNOWN_SINCE = 2
"""The first version of this code that knows of keyfields that were added: older ones would fill what is there again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKeyfield:
    """A keyfield that a table is to get, and the value of the experiments that are there already.

    Args:
        sql_type: of its column.
        value: as it is bound into SQL.
        canonical: the value's canonical bytes.
        text: the value as it was asked for.
    """

    name: str
    sql_type: str
    value: Any
    canonical: bytes
    text: str

    @property
    def beginning(self) -> AddedKeyfield:
        """What is recorded while it is being added."""
        mark = blake2b(self.canonical, digest_size=8).hexdigest()
        return AddedKeyfield(name=self.name, value_mark=mark, value_text=self.shown)

    @property
    def shown(self) -> str:
        """The value for messages: cut, with an ellipsis, when it is long."""
        return self.text if len(self.text) <= schema.MOST_TEXT else f"{self.text[: schema.MOST_TEXT]}…"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What adding a keyfield would do.

    Args:
        table: with the keyfields that the table has afterwards: those of the configuration that are still missing
            are left out.
        statements: DDL, none when the column was made before a stop.
        experiments: how many there are.
    """

    table: Table
    statements: Sequence[str]
    experiments: int


def plan(store: BlockingStore, table: Table, new: NewKeyfield) -> Plan:
    """What `add` would do; nothing is changed.

    Raises:
        MissingTable, SchemaVersionError: there is no table, or it has to be adopted or upgraded first.
        TableHasWrongStructureError: the table has such a keyfield already, or another keyfield or value was begun with.
    """
    state = store.read(structure.inspect(table))
    schema.check_names(table, state)
    if not state.exists:
        raise exceptions.MissingTable(f"table {table.name} does not exist", hint="pyexpd fill creates and fills it")
    schema.check_version_known(table, state)
    schema.check_version(table, state)
    schema.check_keyfields(table, state)
    schema.check_columns(table, state)
    is_begun = _check_beginning(table, state.added, new)
    there = {column.lower() for column in state.columns}
    is_keyfield = new.name.lower() in (state.fingerprinted or there)
    if is_keyfield and not is_begun:
        raise exceptions.TableHasWrongStructureError(
            f"table {table.name} has a keyfield {new.name} already", hint="pyexpd fill fills the table as it is"
        )
    # A column made by hand is no keyfield yet: fingerprints are made without it.
    wanted = (state.fingerprinted or there) | {new.name.lower()}
    afterwards = {name: kind for name, kind in table.keyfields.items() if name.lower() in wanted}
    return Plan(
        table=replace(table, keyfields=afterwards),
        statements=[] if new.name.lower() in there else [_add_column(table, state, new)],
        experiments=store.read(_count(table)),
    )


def add(
    store: BlockingStore,
    planned: Plan,
    new: NewKeyfield,
    *,
    advanced: Callable[[int], None] = lambda rows: None,
) -> list[tuple[int, int]]:
    """Add it; the pairs of experiments that turned out to have equal parameters, of which the first keeps no
    fingerprint. Stopped in the middle, it goes on when it is called again with the same value.

    Args:
        advanced: told after every chunk how many rows it had.

    Raises:
        TableHasWrongStructureError: somebody else adds a keyfield.
    """
    table = planned.table
    with filling.alone(store, table):
        store.run(_begin(table, new))
        present = {column.lower() for column in store.read(structure.inspect(table)).columns}
        if new.name.lower() not in present:
            _make_column(store, planned, new)
    duplicates: list[tuple[int, int]] = []
    after: int | None = 0
    while after is not None:
        with filling.alone(store, table):
            done = store.run(_give_value(table, new, after=after))
        duplicates += done.duplicates
        advanced(done.marked)
        after = done.last
    store.run(_finish(table, new))
    return duplicates


def _make_column(store: BlockingStore, planned: Plan, new: NewKeyfield) -> None:
    """Make the column or, when the database refuses it, leave the table as it was before."""
    try:
        try:
            store.change_schema([migrations.ddl(statement) for statement in planned.statements])
        except exceptions.DatabaseQueryError:
            # MySQL before 8.0.29 adds a column at once only at the end.
            store.change_schema([migrations.ddl(_add_column(planned.table, structure.NOTHING, new))])
    except exceptions.ConnectionLost:
        raise  # it may be there: the same command goes on
    except exceptions.DatabaseError:
        store.run(_withdraw(planned.table, new))
        raise


def _check_beginning(table: Table, added: Sequence[AddedKeyfield], new: NewKeyfield) -> bool:
    """Whether this keyfield was begun with before, with this value."""
    unfinished = next((earlier for earlier in added if not earlier.is_complete), None)
    if unfinished is None:
        return False
    if unfinished.name.lower() != new.name.lower():
        raise exceptions.TableHasWrongStructureError(
            f"table {table.name}: keyfield {unfinished.name} is being added, one after the other",
            hint=f"{schema.resume_of(unfinished)} completes it",
        )
    if unfinished.value_mark != new.beginning.value_mark:
        raise exceptions.TableHasWrongStructureError(
            f"table {table.name}: experiments got the value {unfinished.value_text} of keyfield {new.name} already",
            hint=f"{schema.resume_of(unfinished)} goes on where it was stopped",
        )
    return True


def _add_column(table: Table, state: State, new: NewKeyfield) -> str:
    column = f"ALTER TABLE {table.main} ADD COLUMN {quote(new.name)} {new.sql_type} DEFAULT NULL"
    if table.dialect.provider == "sqlite":
        return column
    ours = {name.lower() for name in table.keyfields}
    last = next((f" AFTER {quote(name)}" for name in reversed(state.columns) if name.lower() in ours), "")
    return f"{column}{last}, ALGORITHM=INSTANT"


@unit
def _count(table: Table) -> Steps[int]:
    found = yield Do(f"SELECT COUNT(*) FROM {table.main}")
    return int(found.rows[0][0])


@unit
def _begin(table: Table, new: NewKeyfield) -> Steps[None]:
    """Record that it begins: from now on nobody fills the table."""
    meta = yield from _read_meta(table)
    added = added_keyfields(meta)
    if _check_beginning(table, added, new):
        return
    yield Commit(
        [
            Do(
                f"INSERT INTO {table.meta} (name, value) VALUES (?, ?)",
                (f"{ADDED}{len(added) + 1}", str(new.beginning)),
            ),
            Do(
                f"UPDATE {table.meta} SET value = ? WHERE name = 'oldest'",
                (str(max(_KNOWN_SINCE, int(meta.get("oldest", 0)))),),
            ),
        ]
    )


@unit
def _finish(table: Table, new: NewKeyfield) -> Steps[None]:
    meta = yield from _read_meta(table)
    rows = [name for name, value in meta.items() if name.startswith(ADDED) and value == str(new.beginning)]
    if rows:
        yield Commit([Do(f"UPDATE {table.meta} SET value = ? WHERE name = ?", (new.name, rows[-1]))])


@unit
def _withdraw(table: Table, new: NewKeyfield) -> Steps[None]:
    """Forget that it was begun."""
    yield Commit([Do(f"DELETE FROM {table.meta} WHERE value = ?", (str(new.beginning),))])


def _read_meta(table: Table) -> Steps[Mapping[str, str]]:
    return dict((yield Do(f"SELECT name, value FROM {table.meta}")).rows)


@unit
def _give_value(table: Table, new: NewKeyfield, *, after: int) -> Steps[fill.Fingerprinted]:
    """Give the next experiments by ID the value, and those that have a fingerprint their new one."""
    found = yield Do(
        f"SELECT ID, pyexpd_fingerprint, {table.parameters} FROM {table.main} WHERE ID > ? ORDER BY ID LIMIT ?",
        (after, fill.CHUNK),
    )
    if not found.rows:
        return fill.Fingerprinted(last=None)
    prints = {
        number: _fingerprint(table, new, values, before=bytes(mark))
        for number, mark, *values in found.rows
        if mark is not None
    }
    owners = yield from _owners(table, prints)
    kept = [(number, mark if owners[mark] == number else None) for number, mark in prints.items()]
    last = found.rows[-1][0]
    given = Do(
        f"UPDATE {table.main} {table.dialect.primary} SET {quote(new.name)} = ?"
        f" WHERE ID > ? AND ID <= ? AND {quote(new.name)} IS NULL",
        (new.value, after, last),
    )
    column = {"pyexpd_fingerprint": "{}"}
    changes = [given] if new.value is not None else []
    changes += table.dialect.update_rows(table.main, column, kept) if kept else []
    if changes:
        yield Commit(changes)
    return fill.Fingerprinted(
        last=last,
        marked=len(found.rows),
        duplicates=[(number, owners[mark]) for number, mark in prints.items() if owners[mark] != number],
    )


def _owners(table: Table, prints: dict[int, bytes]) -> Steps[dict[bytes, int]]:
    """Which experiment has each of these fingerprints: the one that had it before, else the first of those given."""
    if not prints:
        return {}
    first = {mark: number for number, mark in reversed(prints.items())}
    taken = yield Do(
        f"SELECT pyexpd_fingerprint, ID FROM {table.main} WHERE pyexpd_fingerprint IN ({marks(list(first))})",
        list(first),
    )
    return first | {bytes(mark): owner for mark, owner in taken.rows}


def _fingerprint(table: Table, new: NewKeyfield, values: Sequence[Any], *, before: bytes) -> bytes:
    """The fingerprint of an experiment once it has the value; a copy stays the copy that it is."""
    named = [
        (name, new.canonical if name == new.name and value is None else column.canonical_bytes_of_stored(value))
        for (name, column), value in zip(table.key_types.items(), values, strict=True)
    ]
    # It may have been given the new one already, before a stop.
    without = [(name, canonical) for name, canonical in named if name != new.name]
    return fingerprint(named, copy=copy_of(before, without, named))
