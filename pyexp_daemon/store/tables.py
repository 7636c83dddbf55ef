"""The experiment table and the tables beside it, as units of work name them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyexp_daemon.config.models import DatabaseConfig
from pyexp_daemon.space.identity import ColumnType
from pyexp_daemon.store.dialect import DIALECTS, Dialect
from pyexp_daemon.store.names import quote

CLAIM, WAITING, OWNER, FINGERPRINT = "pyexpd_claim", "pyexpd_waiting", "pyexpd_owner", "pyexpd_fingerprint"
"""The indexes of the experiment table (on SQLite, where index names are global, prefixed by the table's name)."""


@dataclass(frozen=True)
class Table:
    """Names and types of one experiment table; everything of ours is named after it."""

    name: str
    dialect: Dialect
    keyfields: Mapping[str, str]
    resultfields: Mapping[str, str]
    result_timestamps: bool = False
    logtables: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, database: DatabaseConfig) -> Table:
        return cls(
            name=database.table.name,
            dialect=DIALECTS[database.provider],
            keyfields={name: keyfield.type for name, keyfield in database.table.keyfields.items()},
            resultfields=dict(database.table.resultfields),
            result_timestamps=database.table.result_timestamps,
            logtables=database.logtables,
        )

    @functools.cached_property
    def main(self) -> str:
        return quote(self.name)

    @functools.cached_property
    def attempts(self) -> str:
        return self.beside("pyexpd_attempts")

    @functools.cached_property
    def daemons(self) -> str:
        return self.beside("pyexpd_daemons")

    @functools.cached_property
    def meta(self) -> str:
        return self.beside("pyexpd_meta")

    def beside(self, name: str) -> str:
        """The quoted name of a logtable or of a table of ours."""
        return quote(f"{self.name}__{name}")

    def index(self, name: str) -> str:
        """The name of an index of the experiment table."""
        return f"{self.name}__{name}" if self.dialect.provider == "sqlite" else name

    def use(self, index: str) -> str:
        """The hint to read through an index of the experiment table."""
        return self.dialect.use(self.index(index))

    @functools.cached_property
    def key_types(self) -> Mapping[str, ColumnType]:
        return {name: ColumnType.parse(sql_type) for name, sql_type in self.keyfields.items()}

    @functools.cached_property
    def result_columns(self) -> Mapping[str, str]:
        """Every result column in table order, timestamps included."""
        columns: dict[str, str] = {}
        for name, sql_type in self.resultfields.items():
            columns[name] = sql_type
            if self.result_timestamps:
                columns[f"{name}_timestamp"] = "VARCHAR(255)"
        return columns

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """The user's columns in table order: what PyExperimenter's table has, without ours."""
        before = ("creation_date", "status", "start_date", "name", "machine")
        return ("ID", *self.keyfields, *before, *self.result_columns, "end_date", "error")

    @functools.cached_property
    def parameters(self) -> str:
        """The keyfields, quoted, for a SELECT."""
        return ", ".join(quote(name) for name in self.keyfields)

    def decode(self, values: Sequence[Any]) -> dict[str, Any]:
        """One row of keyfields as the user's function receives it: the same values from every database."""
        return {
            name: None if value is None else column.from_database(value)
            for (name, column), value in zip(self.key_types.items(), values, strict=True)
        }
