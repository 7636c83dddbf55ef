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

RARE = "pyexpd_rare"
"""On SQLite, whose other indexes leave them out, the index of experiments with any other status but `done`."""

RARE_STATUS = (
    "status IS NULL OR (status <> 'created' AND status <> 'waiting' AND status <> 'running' AND status <> 'done')"
)
"""For a NOT IN of four, SQLite would make a table of them for each row that is written."""

ADDED = "keyfield_"
"""With this begin the names of meta rows about keyfields that were added to a table with experiments, in order."""

ENDED, COMMANDED, STATE = "pyexpd_ended", "pyexpd_commanded", "pyexpd_state"
"""The indexes of attempts by their end, of commands by incarnation, of daemons by state."""


@dataclass(frozen=True)
class Table:
    """Names and types of one experiment table; everything of ours is named after it."""

    name: str
    dialect: Dialect
    keyfields: Mapping[str, str]
    resultfields: Mapping[str, str]
    result_timestamps: bool = False
    logtables: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    codecarbon: bool = False
    """Whether there has to be a table of emissions."""

    @classmethod
    def of(cls, database: DatabaseConfig, *, codecarbon: bool = False) -> Table:
        return cls(
            name=database.table.name,
            dialect=DIALECTS[database.provider],
            keyfields={name: keyfield.type for name, keyfield in database.table.keyfields.items()},
            resultfields=dict(database.table.resultfields),
            result_timestamps=database.table.result_timestamps,
            logtables=database.logtables,
            codecarbon=codecarbon,
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
    def commands(self) -> str:
        return self.beside("pyexpd_commands")

    @functools.cached_property
    def snapshots(self) -> str:
        return self.beside("pyexpd_snapshots")

    @functools.cached_property
    def snapshot_parts(self) -> str:
        return self.beside("pyexpd_snapshot_parts")

    @functools.cached_property
    def meta(self) -> str:
        return self.beside("pyexpd_meta")

    @functools.cached_property
    def emissions(self) -> str:
        return quote(f"{self.name}_codecarbon")

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """All tables of ours, the experiment table first."""
        ours = (
            "pyexpd_attempts",
            "pyexpd_daemons",
            "pyexpd_commands",
            "pyexpd_snapshots",
            "pyexpd_snapshot_parts",
            "pyexpd_meta",
        )
        emissions = (f"{self.name}_codecarbon",) if self.codecarbon else ()
        return (self.name, *(f"{self.name}__{name}" for name in (*ours, *self.logtables)), *emissions)

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
    def types(self) -> Mapping[str, str]:
        """The user's columns in table order, with their types: what PyExperimenter's table has, without ours."""
        return {
            "ID": "INTEGER",
            **self.keyfields,
            "creation_date": "DATETIME",
            "status": "VARCHAR(255)",
            "start_date": "DATETIME",
            "name": "LONGTEXT",
            "machine": "VARCHAR(255)",
            **self.result_columns,
            "end_date": "DATETIME",
            "error": "LONGTEXT",
        }

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of these columns."""
        return tuple(self.types)

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
