"""Parquet files, by pyarrow: typed columns, and never more than one group of rows in memory."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any

from pyexp_daemon import exceptions
from pyexp_daemon.export.values import as_text, is_number
from pyexp_daemon.space.identity import ColumnType
from pyexp_daemon.space.sqltypes import Family

GROUP = 10_000
"""How many rows are in memory at once."""

_TYPES: Mapping[Family, tuple[str, type]] = {
    Family.INTEGER: ("int64", int),
    Family.BOOLEAN: ("bool", bool),
    Family.DECIMAL: ("float64", float),
    Family.SINGLE: ("float64", float),
    Family.DOUBLE: ("float64", float),
    Family.DATETIME: ("timestamp[us]", datetime.datetime),
    Family.DATE: ("date32", datetime.date),
    Family.BINARY: ("binary", bytes),
}
"""Arrow's names of types, with those of their values; what is not here is text."""

_REFUSED = (ValueError, OverflowError)
"""What is raised about a value that the type has no room for."""


def write_parquet(file: IO[bytes], columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write the rows, their types by those of the columns and not by the values; how many rows there were.

    Args:
        columns: name and SQL type of each.

    Raises:
        UsageError: pyarrow is not installed, or a value does not belong into its column, as SQLite may hold it.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise exceptions.UsageError("pyarrow is not installed", hint="pip install 'pyexp-daemon[export]'") from error
    kinds = {name: ColumnType.parse(sql_type) for name, sql_type in columns.items()}
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(_alias(kind))) for name, kind in kinds.items()])

    def column(name: str, group: Sequence[Mapping[str, Any]]) -> Any:
        return pyarrow.array([_value(row[name], kinds[name]) for row in group], schema.field(name).type)

    remaining = iter(rows)
    count = 0
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while group := list(itertools.islice(remaining, GROUP)):
            try:
                writer.write_batch(pyarrow.record_batch([column(name, group) for name in kinds], schema=schema))
            except _REFUSED as error:
                raise _misfit(group, columns, column) from error
            count += len(group)
    return count


def _alias(kind: ColumnType) -> str:
    alias, _ = _TYPES.get(kind.family, ("string", str))
    return f"u{alias}" if alias == "int64" and kind.sql.is_unsigned else alias


def _value(value: Any, kind: ColumnType) -> Any:
    """What the column holds, alike from every database. Arrow itself would take 1.5 for the integer 1."""
    if value is None:
        return None
    if kind.family not in _TYPES:
        return as_text(value)
    _, wanted = _TYPES[kind.family]
    if wanted is float and is_number(value):
        return float(value)
    if type(value) is not wanted:
        value = kind.from_database(value)
    if type(value) is not wanted:
        raise ValueError(f"{value!r} is no {wanted.__name__}")
    return value


def _misfit(
    group: Sequence[Mapping[str, Any]], columns: Mapping[str, str], column: Callable[..., Any]
) -> exceptions.UsageError:
    """Which value it was that was refused."""
    for name, row in itertools.product(columns, group):
        try:
            column(name, [row])
        except _REFUSED:
            return exceptions.UsageError(
                f"experiment {row.get('ID')}: {name} is {row[name]!r}, which is no {columns[name]}",
                hint="csv and json take it as it is",
            )
    raise AssertionError("every value alone was taken")
