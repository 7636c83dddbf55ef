"""Whole tables as they are stored, for people who read them into a DataFrame; without the columns of ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pyexp_daemon import exceptions
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.unit import Do, Steps, unit

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore

CHUNK = 5000


def read(store: BlockingStore, table: Table, name: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The columns and the rows, by ID, of the experiment table or of one beside it.

    Args:
        name: the table's full name.

    Raises:
        MissingTable: there is none of that name.
    """
    columns = store.read(_users_columns(table, name))
    if not columns:
        raise exceptions.MissingTable(f"table {name} does not exist", hint="fill_table_from_config creates it")
    return columns, list(_rows(store, name, columns))


def _rows(store: BlockingStore, name: str, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """In chunks: no transaction stays open between them."""
    after = 0
    while found := store.read(_chunk(name, columns, after)):
        yield from (row[1:] for row in found)
        after = found[-1][0]


@unit
def _users_columns(table: Table, name: str) -> Steps[list[str]]:
    """Those of a table, in its order; none when there is no such table."""
    found = yield columns_of(table, name)
    return [column for _, column in found.rows if not column.startswith("pyexpd_")]


def columns_of(table: Table, name: str) -> Do:
    """The statement that lists the columns of a table in order, each behind the table's name as the server has it."""
    if table.dialect.provider == "sqlite":
        return Do("SELECT ?, name FROM pragma_table_info(?) ORDER BY cid", (name, name))
    return Do(
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = DATABASE() AND table_name = ? ORDER BY table_name, ordinal_position",
        (name,),
    )


def types_of(table: Table, name: str) -> Do:
    """The statement that lists the columns of a table in order, each with its type as SQL.

    MariaDB's JSON is a text that is checked to be some; the comments are for MariaDB alone.
    """
    if table.dialect.provider == "sqlite":
        return Do("SELECT name, type FROM pragma_table_info(?) ORDER BY cid", (name,))
    return Do(
        "SELECT column_name, /*M! IF(column_type = 'longtext' AND EXISTS (SELECT 1"
        " FROM information_schema.check_constraints k WHERE k.constraint_schema = c.table_schema"
        " AND k.table_name = c.table_name AND k.constraint_name = c.column_name"
        " AND k.check_clause = CONCAT('json_valid(`', c.column_name, '`)')), 'json', */ column_type /*M! ) */"
        " FROM information_schema.columns c"
        " WHERE table_schema = DATABASE() AND table_name = ? ORDER BY ordinal_position",
        (name,),
    )


@unit
def _chunk(name: str, columns: Sequence[str], after: int) -> Steps[list[tuple[Any, ...]]]:
    found = yield Do(
        f"SELECT ID, {', '.join(map(quote, columns))} FROM {quote(name)} WHERE ID > ? ORDER BY ID LIMIT ?",
        (after, CHUNK),
    )
    return list(found.rows)
