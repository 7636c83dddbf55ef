"""Experiment tables as their columns tell them, for whoever has no configuration of them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from pyexp_daemon import exceptions
from pyexp_daemon.space.identity import ColumnType
from pyexp_daemon.store import emissions, schema, structure
from pyexp_daemon.store.dialect import Dialect
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.raw import types_of
from pyexp_daemon.store.structure import RESULTS, added_keyfields
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.unit import Do, Steps, unit

OF_EVERY_LOGTABLE = ("ID", "experiment_id", "timestamp", "pyexpd_attempt", "pyexpd_seq")
"""The columns of a logtable that no configuration names."""

_MARKS = ("ID", "creation_date", "machine", "end_date")
"""An experiment table has these; keyfields stand between the first two, result fields between the last two."""


@unit
def names(dialect: Dialect) -> Steps[list[str]]:
    """The experiment tables of a database."""
    if dialect.provider == "sqlite":
        found = yield Do(
            "SELECT t.name, c.name FROM sqlite_master t JOIN pragma_table_info(t.name) c WHERE t.type = 'table'"
        )
    else:
        found = yield Do(
            "SELECT c.table_name, c.column_name FROM information_schema.columns c JOIN information_schema.tables t"
            " ON t.table_schema = c.table_schema AND t.table_name = c.table_name AND t.table_type = 'BASE TABLE'"
            " WHERE c.table_schema = DATABASE()"
        )
    columns: dict[str, set[str]] = {}
    for name, column in found.rows:
        columns.setdefault(name, set()).add(column)
    return sorted(name for name, there in columns.items() if there.issuperset(_MARKS))


def fields(own: Table, name: str) -> Steps[tuple[dict[str, str], dict[str, str]] | None]:
    """The keyfields and result fields of an experiment table with their types; None when it is none.

    Args:
        own: any table of the database.
    """
    found = yield types_of(own, name)
    types: dict[str, str] = dict(found.rows)
    places = {column: place for place, column in enumerate(types)}
    if not places.keys() >= set(_MARKS):
        return None

    def between(first: str, last: str) -> dict[str, str]:
        return {column: types[column] for column in list(types)[places[first] + 1 : places[last]]}

    keys, results = between("ID", "creation_date"), between("machine", "end_date")
    meta = yield types_of(own, f"{name}__pyexpd_meta")
    if meta.rows:
        recorded = yield Do(f"SELECT name, value FROM {quote(f'{name}__pyexpd_meta')}")
        columns = {column.lower(): column for column in types}

        def there(names: Iterable[str]) -> dict[str, str]:
            found = [columns[each.lower()] for each in names if each.lower() in columns]
            return {column: types[column] for column in found}

        keys |= there(each.name for each in added_keyfields(dict(recorded.rows)))
        results |= there(value for mark, value in recorded.rows if mark.startswith(RESULTS))
    own_results = {column: kind for column, kind in results.items() if not _is_date_of(column, results)}
    if not has_dates(own_results, types):  # so these are results like others
        own_results = results
    for column, kind in (keys | own_results).items():
        _check_type(name, column, kind)
    return keys, own_results


def has_dates(results: Iterable[str], columns: Container[str]) -> bool:
    """Whether every result field has a column that says when it was written."""
    return all(f"{column}_timestamp" in columns for column in results)


def _is_date_of(column: str, results: Mapping[str, str]) -> bool:
    return column.endswith("_timestamp") and column.removesuffix("_timestamp") in results


def _check_type(table: str, column: str, kind: str) -> None:
    """
    Raises:
        TableHasWrongStructureError: nobody knows what the column holds.
    """
    try:
        ColumnType.parse(kind)
    except ValueError:
        raise exceptions.TableHasWrongStructureError(
            f"table {table}: column {column} has type {kind!r}, of which nothing is known",
            hint="pyexpd, with a configuration that says what it holds, can read the table",
        ) from None


@unit
def table(dialect: Dialect, name: str) -> Steps[Table | None]:
    """An experiment table as it is; None when there is none of that name."""
    bare = Table(name=name, dialect=dialect, keyfields={}, resultfields={})
    found = yield from fields(bare, name)
    if found is None:
        return None
    keys, results = found
    state = yield from structure.inspect(bare).start()
    logtables = {}
    for logtable in schema.logtables(bare, state):
        types = yield types_of(bare, f"{name}__{logtable}")
        logtables[logtable] = {column: kind for column, kind in types.rows if column not in OF_EVERY_LOGTABLE}
    return Table(
        name=name,
        dialect=dialect,
        keyfields=keys,
        resultfields=results,
        result_timestamps=bool(results) and has_dates(results, set(state.columns) - results.keys()),
        logtables=logtables,
        codecarbon=emissions.is_emissions(state.emissions),
    )


def parsed(fields: Mapping[str, str]) -> dict[str, ColumnType]:
    """Fields with what their types do to values."""
    return {name: ColumnType.parse(kind) for name, kind in fields.items()}
