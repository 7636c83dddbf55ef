"""Whether a source and a target hold experiments of one kind, and how each is to be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pyexp_daemon import exceptions
from pyexp_daemon.space.identity import ColumnType
from pyexp_daemon.space.sqltypes import Family, SqlType, server_objection
from pyexp_daemon.store import emissions, schema, structure
from pyexp_daemon.store.discovery import OF_EVERY_LOGTABLE, has_dates
from pyexp_daemon.store.raw import types_of
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.transfer.judging import Target
from pyexp_daemon.store.transfer.parcels import Place
from pyexp_daemon.store.unit import Do, Steps, unit

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore


def adapted(source: Place, table: Table) -> Place:
    """The source, its table described by what it has of `table`: what it lacks is NULL.

    Raises:
        MissingTable, TableHasWrongStructureError, SchemaVersionError: it is no table of the same experiments, or has
            fields that `table` lacks.
    """
    there = replace(table, name=source.table.name, dialect=source.table.dialect)
    state = source.store.read(structure.inspect(there))
    known = {column.lower() for column in state.columns}
    results = {name: kind for name, kind in there.resultfields.items() if name.lower() in known}
    logtables = {
        name: {column: kind for column, kind in columns.items() if column.lower() in _lower(state.beside[name])}
        for name, columns in there.logtables.items()
        if name in state.beside
    }
    dated = table.result_timestamps and has_dates(_lower(results), known)
    there = replace(there, resultfields=results, result_timestamps=dated, logtables=logtables, codecarbon=False)
    schema.check(there, state)
    schema.check_columns(there, state)
    schema.check_results(there, state)
    _refuse_strange_logtables(table, there, state)
    types = source.store.read(_types(there, there.name))
    _check_keyfields(table, types)
    _check_values("result field", {name: types[name.lower()] for name in results}, _lowered(results))
    for name, columns in logtables.items():
        types = source.store.read(_types(there, f"{there.name}__{name}"))
        _check_values(f"logtable {name}:", {column: types[column.lower()] for column in columns}, _lowered(columns))
    return Place(store=source.store, table=replace(there, codecarbon=emissions.is_emissions(state.emissions)))


def _lower(names: Iterable[str]) -> set[str]:
    return {name.lower() for name in names}


def _lowered(kinds: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): kind for name, kind in kinds.items()}


def _refuse_strange_logtables(table: Table, there: Table, state: structure.State) -> None:
    """Raises TableHasWrongStructureError if a source has log rows that would have no place here."""
    for name in schema.logtables(there, state):
        ours = table.logtables.get(name)
        if ours is None:
            raise exceptions.TableHasWrongStructureError(
                f"the other table has a logtable {name}, and this has none of that name",
                hint="declare it under logtables; pyexpd fill makes it",
            )
        known = _lower((*OF_EVERY_LOGTABLE, *ours))
        if strange := [column for column in state.beside[name] if column.lower() not in known]:
            raise exceptions.TableHasWrongStructureError(
                f"logtable {name} of the other table has a column {', '.join(strange)}, which this has not",
                hint="declare it under logtables; pyexpd fill adds it",
            )


@unit
def _has_rows(name: str) -> Steps[bool]:
    return bool((yield Do(f"SELECT 1 FROM {name} LIMIT 1")).rows)


def portable(table: Table) -> Table:
    """A table with types that its database takes: SQLite has no ENUM, and no words behind parentheses."""
    if table.dialect.provider != "sqlite":
        return table

    def simple(kinds: Mapping[str, str]) -> dict[str, str]:
        return {name: _simple(kind) for name, kind in kinds.items()}

    logtables = {name: simple(columns) for name, columns in table.logtables.items()}
    keys, results = simple(table.keyfields), simple(table.resultfields)
    return replace(table, keyfields=keys, resultfields=results, logtables=logtables)


def _simple(kind: str) -> str:
    sql_type = ColumnType.parse(kind).sql
    if server_objection(sql_type, provider="sqlite") is None:
        return kind
    return "TEXT" if sql_type.members else kind[: kind.index(")") + 1]


def check_fits(source: Place, target: Target, store: BlockingStore | None) -> None:
    """Whether a table that is there has a place for everything that the source has.

    Raises:
        TableHasWrongStructureError: it has not.
    """
    table = source.table
    has_room = target.has_emissions or target.table.codecarbon
    if table.codecarbon and not has_room and source.store.read(_has_rows(table.emissions)):
        raise exceptions.TableHasWrongStructureError(
            "the experiments there have emissions, and here is no table for them",
            hint="add a section CodeCarbon; pyexpd fill makes the table",
        )
    if store is None:
        return
    types = store.read(_types(target.table, target.table.name))
    _check_keyfields(table, types)
    _check_values("result field", table.resultfields, types)
    for name in set(table.logtables) & set(target.logtables):
        there = store.read(_types(target.table, f"{target.table.name}__{name}"))
        _check_values(f"logtable {name}:", table.logtables[name], there)


@unit
def _types(table: Table, name: str) -> Steps[dict[str, str]]:
    """The types of the columns of a table, by their names in small letters; nothing when there is no such table."""
    found = yield types_of(table, name)
    return {column.lower(): kind for column, kind in found.rows}


_ALIKE = {Family.INTEGER, Family.BOOLEAN}
"""The servers call truth a small number."""


def _check_keyfields(table: Table, there: Mapping[str, str]) -> None:
    """Whether keyfields have types by which experiments are the same as ours; one that is missing is no matter here.

    Raises:
        TableHasWrongStructureError: they have others.
    """
    for name, ours in table.keyfields.items():
        theirs = there.get(name.lower(), ours)
        if not (_holds(theirs, ours) and _holds(ours, theirs)):
            raise exceptions.TableHasWrongStructureError(
                f"keyfield {name} is {theirs} there and {ours} here, so no experiments would be the same",
                hint="give it the type of there in the configuration, and the table another name",
            )


def _check_values(what: str, given: Mapping[str, str], there: Mapping[str, str]) -> None:
    """Whether columns that are there hold what they are given.

    Raises:
        TableHasWrongStructureError: one would change it.
    """
    for name, kind in given.items():
        column = there.get(name.lower(), kind)
        if not (_holds(column, kind) or _widens(column, kind)):
            raise exceptions.TableHasWrongStructureError(
                f"{what} {name} comes as {kind} and is {column} where it is to go, which changes values",
                hint="give the column, or the field in the configuration, a type that holds them",
            )


def _holds(column: str, kind: str) -> bool:
    """Whether a column holds the values of a type, and means the same by them."""
    try:
        own, other = ColumnType.parse(column), ColumnType.parse(kind)
    except ValueError:
        return True  # of no kind that we know; its values tell
    if Family.OTHER in (own.family, other.family) or {own.family, other.family} == _ALIKE:
        return True  # a server may know another name for a type that we do not know
    return own.family is other.family and _keeps(own.sql, other.sql)


def _keeps(column: SqlType, kind: SqlType) -> bool:
    """Whether a column keeps all digits of a type of its family."""
    if column.family in (Family.DATETIME, Family.TIME):
        return (column.length or 0) >= (kind.length or 0)
    if column.family in (Family.DOUBLE, Family.SINGLE) and len(column.numbers) == 2:  # DOUBLE(10,2) rounds
        return len(kind.numbers) == 2 and column.scale >= kind.scale
    if column.family is Family.TEXT:
        return column.name not in _NUMERIC_TEXTS or kind.name in _NUMERIC_TEXTS
    return column.family is not Family.DECIMAL or column.scale >= kind.scale


_NUMERIC_TEXTS = {"STR", "STRING"}
"""What SQLite makes a number of where it looks like one."""


_WIDER = {
    Family.DOUBLE: {Family.SINGLE, Family.INTEGER, Family.BOOLEAN},
    Family.TEXT: {Family.JSON},
}


def _widens(column: str, kind: str) -> bool:
    own = ColumnType.parse(column)
    return len(own.sql.numbers) < 2 and ColumnType.parse(kind).family in _WIDER.get(own.family, ())
