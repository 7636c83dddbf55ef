"""What a running experiment asks the database for: its snapshots, and what other experiments have found out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyexp_daemon import exceptions
from pyexp_daemon.space.identity import ColumnType
from pyexp_daemon.space.sqltypes import Family
from pyexp_daemon.store import discovery, snapshots
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.unit import Do, Steps, Unit, unit

PAGE = 100
"""How many experiments `results_where` gives at once, …"""

PAGE_BYTES = 2**20
"""… unless they are large: then as few as make up this, and one at least."""

_AS_SAME = 1e-14
"""Floats that differ by no more than this share are looked at; the same are those of which 15 digits are."""

_COMPARED = (Family.INTEGER, Family.BOOLEAN, Family.TEXT)
"""Of these `=` of the databases finds all that are the same, and others; for MySQL no FLOAT is 0.1."""


def look_up(table: Table, experiment_id: int, what: str, arguments: Mapping[str, Any]) -> Unit[Any]:
    """The unit that finds what a running experiment asks for.

    Args:
        what: `snapshots` (label, limit), `snapshot_part` (state_id, part), `results_of` (experiment_id, table) or
            `results_where` (table, keyfields, after).

    Raises:
        UsageError: there is no such question.
    """
    questions: Mapping[str, Callable[..., Unit[Any]]] = {
        "snapshots": lambda label, limit: snapshots.heads(table, experiment_id, label=label, limit=limit),
        "snapshot_part": lambda state_id, part: snapshots.part(table, experiment_id, state_id=state_id, number=part),
        "results_of": lambda experiment_id, table: _results_of(own, experiment_id, name=table),
        "results_where": lambda table, keyfields, after: _results_where(own, keyfields, name=table, after=after),
    }
    own = table
    try:
        return questions[what](**arguments)
    except (KeyError, TypeError) as error:
        raise exceptions.UsageError(f"{what!r} is no question that the database answers: {error}") from error


@dataclass(frozen=True, slots=True)
class _Fields:
    """The keyfields and result fields of an experiment table."""

    name: str
    keys: Mapping[str, ColumnType]
    results: Mapping[str, ColumnType]

    @property
    def columns(self) -> str:
        return ", ".join(map(quote, (*self.keys, *self.results)))

    def results_in(self, row: Sequence[Any]) -> dict[str, Any]:
        return _decoded(self.results, row[len(self.keys) :])

    def keys_in(self, row: Sequence[Any]) -> dict[str, Any]:
        return _decoded(self.keys, row)


def _decoded(fields: Mapping[str, ColumnType], row: Sequence[Any]) -> dict[str, Any]:
    return {name: column.from_database(value) for (name, column), value in zip(fields.items(), row, strict=False)}


@unit
def _results_of(own: Table, experiment_id: int, *, name: str | None) -> Steps[dict[str, Any] | None]:
    fields = yield from _fields_of(own, name)
    found = yield Do(f"SELECT status, {fields.columns} FROM {quote(fields.name)} WHERE ID = ?", (experiment_id,))
    if not found.rows:
        raise exceptions.SelectorError(
            f"table {fields.name} has no experiment {experiment_id}", hint="pyexpd list shows what there is"
        )
    status, *row = found.rows[0]
    return fields.results_in(row) if status == "done" else None


@unit
def _results_where(
    own: Table, keyfields: Mapping[str, Any], *, name: str | None, after: int
) -> Steps[list[dict[str, Any]]]:
    """The next experiments by ID that are done and have these values; [] at the end."""
    fields = yield from _fields_of(own, name)
    wanted = {column: _Wanted.of(fields, column, value) for column, value in keyfields.items()}
    parts, values = ["ID > ?", "status = 'done'"], list[Any]()
    for column, each in wanted.items():
        if each.value is None:
            parts.append(f"{quote(column)} IS NULL")
        elif each.type.family is Family.DOUBLE and math.isfinite(each.value):
            parts.append(f"{quote(column)} BETWEEN ? AND ?")
            margin = abs(each.value) * _AS_SAME
            values += [each.value - margin, each.value + margin]
        elif each.type.family in _COMPARED:
            parts.append(f"{quote(column)} = ?")
            values.append(each.value)
    sql = f"SELECT ID, {fields.columns} FROM {quote(fields.name)} WHERE {' AND '.join(parts)} ORDER BY ID LIMIT ?"
    while True:
        found = yield Do(sql, (after, *values, PAGE))
        alike = [row for row in found.rows if _are_all_in(fields, row[1:], wanted)]
        if alike or len(found.rows) < PAGE:
            return [{"ID": row[0], **fields.keys_in(row[1:]), **fields.results_in(row[1:])} for row in _first_of(alike)]
        after = found.rows[-1][0]


def _first_of(rows: Sequence[Sequence[Any]]) -> Sequence[Sequence[Any]]:
    """So many of the rows as fit into one answer."""
    size_bytes = 0
    for number, row in enumerate(rows):
        size_bytes += sum(len(value) if isinstance(value, str | bytes) else 16 for value in row)
        if number and size_bytes > PAGE_BYTES:
            return rows[:number]
    return rows


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A value that a keyfield has to have: as its column holds it, and by what makes experiments the same."""

    type: ColumnType
    value: Any
    canonical: bytes

    @classmethod
    def of(cls, fields: _Fields, name: str, value: Any) -> _Wanted:
        if name not in fields.keys:
            raise exceptions.SelectorError(
                f"table {fields.name} has no keyfield {name!r}", hint=f"keyfields are: {', '.join(fields.keys)}"
            )
        column = fields.keys[name]
        if column.family is Family.TEXT and isinstance(value, dict | list):
            column = ColumnType.parse("JSON")  # of another table: MariaDB's JSON is text
        try:
            return cls(column, *column.declared(value))
        except ValueError as error:
            raise exceptions.SelectorError(
                f"no experiment of table {fields.name} has {name} = {value!r}: {error}"
            ) from error

    def is_in(self, stored: Any) -> bool:
        """Whether a column holds it, which is a finer question than `=` of the databases."""
        return self.type.canonical_bytes_of_stored(stored) == self.canonical


def _are_all_in(fields: _Fields, row: Sequence[Any], wanted: Mapping[str, _Wanted]) -> bool:
    stored = dict(zip(fields.keys, row, strict=False))
    return all(each.is_in(stored[name]) for name, each in wanted.items())


def _fields_of(own: Table, name: str | None) -> Steps[_Fields]:
    """What an experiment table has; of another one than ours its columns tell."""
    if name is None or name == own.name:
        return _Fields(own.name, own.key_types, discovery.parsed(own.resultfields))
    found = yield from discovery.fields(own, name)
    if found is None:
        raise exceptions.SelectorError(
            f"the database has no experiment table {name!r}", hint="a table that this or PyExperimenter has made"
        )
    keys, results = found
    return _Fields(name, discovery.parsed(keys), discovery.parsed(results))
