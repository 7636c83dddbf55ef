"""Which column type would hold the values that this one cannot."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from pyexp_daemon.space.identity import ColumnType
from pyexp_daemon.space.sqltypes import Family
from pyexp_daemon.space.values import plain, read_number, to_decimal

_FLOATS = {Family.SINGLE, Family.DOUBLE}
_NUMERIC = {Family.INTEGER, Family.BOOLEAN, Family.DECIMAL, *_FLOATS}


def better_type(column_type: ColumnType, values: Iterable[Any]) -> str | None:
    """A hint such as `use NUMERIC(10,1) or DOUBLE`, or None when no other type is the obvious answer."""
    held = [plain(value) for value in values if value is not None]
    if any(isinstance(value, dict | list | tuple) for value in held):
        return None if column_type.family is Family.JSON else "use JSON"
    if column_type.family in _NUMERIC:
        return _better_number(column_type, held)
    match column_type.family:
        case Family.TEXT if column_type.sql.length is not None:
            longest = max((len(str(value)) for value in held), default=0)
            return f"use VARCHAR({longest})" if longest > column_type.sql.length else None
        case Family.DATETIME | Family.TIME if column_type.sql.length is None:
            return f"use {column_type.sql.name}(6)" if any("." in str(value) for value in held) else None
    return None


def _better_number(column_type: ColumnType, values: list[Any]) -> str | None:
    if any(isinstance(value, str) and not _numbers([value]) for value in values):
        return "use VARCHAR(255)"
    numbers = _numbers(values)
    if not numbers:
        return None
    if column_type.family is Family.DECIMAL:
        return f"use {_wide_enough(column_type, numbers)} or DOUBLE"
    wanted = "DOUBLE" if column_type.family in _FLOATS or any(n != int(n) for n in numbers) else "BIGINT"
    return f"use {wanted}" if column_type.sql.name != wanted else None


def _numbers(values: list[Any]) -> list[Decimal]:
    """All values as numbers; empty when one is none."""
    try:
        return [to_decimal(read_number(value)) for value in values]
    except ValueError:
        return []


def _wide_enough(column_type: ColumnType, numbers: list[Decimal]) -> str:
    decimals = max(_decimals(number) for number in numbers)
    digits = max(max(number.adjusted() + 1, 1) for number in numbers)
    return f"{column_type.sql.name}({max(column_type.sql.precision, digits + decimals)},{decimals})"


def _decimals(number: Decimal) -> int:
    exponent = number.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0
