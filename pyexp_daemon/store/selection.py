"""Selectors: which experiments a command means, as a condition with bound values."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyexp_daemon import exceptions
from pyexp_daemon.model import Status
from pyexp_daemon.space.identity import ColumnType
from pyexp_daemon.space.sqltypes import Family
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.tables import Table

_IDS = re.compile(r"(\d{1,10})(?:-(\d{1,10}))?")
_WHERE = re.compile(r"\s*(\w+)\s*(?:(<=|>=|!=|<>|==|=|<|>)\s*(.+?)|(is\s+null|is\s+not\s+null))\s*", re.IGNORECASE)
_BARE = re.compile(r"[\w.+:/-]+")
_NUMBERS = (Family.INTEGER, Family.BOOLEAN, Family.DECIMAL, Family.SINGLE, Family.DOUBLE)
_OURS = ("pyexpd_queue", "pyexpd_order", "pyexpd_attempt")


@dataclass(frozen=True, slots=True)
class Selection:
    """A condition on the experiment table."""

    condition: str
    values: tuple[Any, ...] = ()


ALL = Selection("1 = 1")


def select(
    table: Table, *, ids: Sequence[str] = (), statuses: Sequence[str] = (), where: Sequence[str] = ()
) -> Selection:
    """The experiments with these IDs (`7`, `3-9`, `1,5`, `all`) AND one of these statuses AND every `where`.

    Raises:
        SelectorError: one of them is malformed, or names an unknown status or column.
    """
    parts: list[Selection] = []
    if ids and "all" not in ids:
        parts.append(_any_of([_id_range(piece) for text in ids for piece in text.split(",") if piece]))
    if statuses:
        parts.append(_any_of([_status(status) for text in statuses for status in text.split(",")]))
    parts += [_comparison(table, text) for text in where]
    if not parts:
        return ALL
    return Selection(
        " AND ".join(f"({part.condition})" for part in parts), tuple(value for part in parts for value in part.values)
    )


def _any_of(parts: Sequence[Selection]) -> Selection:
    if not parts:
        raise exceptions.SelectorError("the selector is empty", hint="name experiments as 7, 3-9, 1,5 or all")
    return Selection(" OR ".join(part.condition for part in parts), tuple(v for part in parts for v in part.values))


def _id_range(text: str) -> Selection:
    found = _IDS.fullmatch(text.strip())
    if not found:
        raise exceptions.SelectorError(f"{text!r} is no experiment", hint="name experiments as 7, 3-9, 1,5 or all")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise exceptions.SelectorError(f"{text!r} runs backwards", hint=f"write {last}-{first}")
    return Selection("ID BETWEEN ? AND ?", (first, last))


def _status(text: str) -> Selection:
    status = text.strip().lower()
    known = [known.value for known in Status]
    if status not in known:
        close = difflib.get_close_matches(status, known, n=1)
        raise exceptions.SelectorError(
            f"there is no status {text!r}",
            hint=f"did you mean {close[0]!r}?" if close else f"one of {', '.join(known)}",
        )
    return Selection("status = ?", (status,))


def _comparison(table: Table, text: str) -> Selection:
    found = _WHERE.fullmatch(text)
    if not found:
        raise exceptions.SelectorError(
            f"--where {text!r} is not a condition",
            hint="""write for example --where "lr < 0.01" or "kernel = 'rbf'" """.strip(),
        )
    column = _column(table, found[1])
    if found[4]:
        return Selection(f"{quote(column)} {' '.join(found[4].upper().split())}")
    operator = {"==": "=", "<>": "!="}.get(found[2], found[2])
    return Selection(f"{quote(column)} {operator} ?", (_literal(found[3], text, is_number=_is_number(table, column)),))


def _is_number(table: Table, column: str) -> bool:
    """Whether a column holds numbers: with those, MySQL would take any other text for 0."""
    if column == "ID" or column in ("pyexpd_order", "pyexpd_attempt"):
        return True
    sql_type = table.keyfields.get(column) or table.resultfields.get(column)
    return sql_type is not None and ColumnType.parse(sql_type).family in _NUMBERS


def _column(table: Table, name: str) -> str:
    known = {column.lower(): column for column in (*table.columns, *_OURS)}
    known |= {"queue": "pyexpd_queue", "attempt": "pyexpd_attempt"} | known
    if name.lower() not in known:
        close = difflib.get_close_matches(name.lower(), list(known), n=1)
        raise exceptions.SelectorError(
            f"table {table.name} has no column {name!r}",
            hint=f"did you mean {known[close[0]]!r}?" if close else f"columns: {', '.join(table.columns)}",
        )
    return known[name.lower()]


def _literal(text: str, condition: str, *, is_number: bool) -> int | float | str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        value = text[1:-1]
    elif _BARE.fullmatch(text):
        value = text
    else:
        raise exceptions.SelectorError(
            f"--where {condition!r}: {text} is no value", hint="put text in quotes: \"kernel = 'my kernel'\""
        )
    if not is_number:
        return value
    number = _number(value)
    if number is None:
        raise exceptions.SelectorError(f"--where {condition!r}: {text} is no number, and the column holds numbers")
    return number


def _number(text: str) -> int | float | None:
    if text.lower() in ("true", "false"):
        return int(text.lower() == "true")
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if math.isfinite(number) else None
    return None
