"""Names and types that become part of SQL: which ones are allowed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from pyexp_daemon.config.mistakes import Keys, mistake, show
from pyexp_daemon.space.identity import ColumnType

MAIN_COLUMNS = ("ID", "creation_date", "status", "start_date", "name", "machine", "end_date", "error")
LOG_COLUMNS = ("ID", "experiment_id", "timestamp")
OWN_PREFIX = "pyexpd_"
LONGEST_NAME = 64
LONGEST_TABLE_NAME = 40

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_name(name: str, *, longest: int = LONGEST_NAME) -> str:
    """The name itself, if SQL can carry it."""
    if not _NAME.fullmatch(name):
        raise mistake(f"{show(name)} is not a name", hint="letters, digits and _ only, and no digit first")
    if len(name) > longest:
        raise mistake(f"the name has {len(name)} characters; {longest} are possible")
    return name


def _table_name(name: str) -> str:
    if name.lower().startswith("sqlite_"):
        raise mistake("names beginning with sqlite_ belong to SQLite")
    return check_name(name, longest=LONGEST_TABLE_NAME)


def _own_name(name: str) -> str:
    if name.lower().startswith(OWN_PREFIX):
        raise mistake(f"names beginning with {OWN_PREFIX} belong to the daemon")
    return check_name(name)


def _column_name(name: str) -> str:
    return _own_name(_not_reserved(name, MAIN_COLUMNS, what="every experiment table"))


def _log_column_name(name: str) -> str:
    return _own_name(_not_reserved(name, LOG_COLUMNS, what="every logtable"))


def _not_reserved(name: str, reserved: Iterable[str], *, what: str) -> str:
    for own in reserved:
        if name.lower() == own.lower():
            raise mistake(f"{what} has a column {own} already", hint=f"choose another name, such as {name}_")
    return name


def _sql_type(value: Any) -> Any:
    if isinstance(value, Mapping) and set(value) == {"type"}:
        raise mistake("expected a type, got a mapping", hint=f"write the type alone: {value['type']}")
    if isinstance(value, str):
        try:
            ColumnType.parse(value)
        except ValueError as error:
            raise mistake(str(error), hint="a type such as INT, DOUBLE, VARCHAR(255) or DATETIME") from None
    return value


TableName = Annotated[str, AfterValidator(_table_name)]
LogtableName = Annotated[str, AfterValidator(_own_name)]
ColumnName = Annotated[str, AfterValidator(_column_name)]
LogColumnName = Annotated[str, AfterValidator(_log_column_name)]
SqlTypeText = Annotated[str, BeforeValidator(_sql_type)]


def refuse_repeated(columns: Iterable[tuple[Keys, str]]) -> None:
    """Refuse a name that is there already, capitals aside, as databases do.

    Args:
        columns: each name with the keys below the section that make it.
    """
    seen: dict[str, str] = {}
    for place, name in columns:
        earlier = seen.get(name.lower())
        if earlier is not None:
            spelt = "" if earlier == name else f", spelt {earlier}"
            raise mistake(f"the name {name} is there already{spelt}", at=place)
        seen[name.lower()] = name
