"""The section `Database`: the tables, their columns and the values of the grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, PlainSerializer, PlainValidator, model_validator

from pyexp_daemon import exceptions
from pyexp_daemon.config.fields import Text
from pyexp_daemon.config.mistakes import MISSING, UNKNOWN, did_you_mean, mistake, show
from pyexp_daemon.config.names import (
    LONGEST_NAME,
    ColumnName,
    LogColumnName,
    LogtableName,
    SqlTypeText,
    TableName,
    refuse_repeated,
)
from pyexp_daemon.config.section import Section
from pyexp_daemon.space.identity import ColumnType
from pyexp_daemon.space.sqltypes import server_objection
from pyexp_daemon.space.variables import Range, range_values

_RANGE_KEYS = ("start", "stop", "step")


def _read_values(value: Any) -> tuple[Any, ...] | Range | None:
    if value is None or isinstance(value, Range):
        return value
    if isinstance(value, Mapping):
        return _read_range(value)
    if not isinstance(value, list | tuple):
        raise mistake(f"expected a list or a range, got {show(value)}", hint=f"values: [{show(value)}]")
    if not value:
        raise mistake(
            "the list is empty",
            hint="give it values, or leave `values` out to have NULL",
            error=exceptions.InvalidValuesInConfiguration,
        )
    return tuple(value)


def _read_range(content: Mapping[str, Any]) -> Range:
    for key in content:
        if key not in _RANGE_KEYS:
            raise mistake(UNKNOWN, at=(str(key),), hint=did_you_mean(key, _RANGE_KEYS))
    for key in ("start", "stop"):
        if content.get(key) is None:
            raise mistake(MISSING, at=(key,), hint="a range is {start: 0, stop: 10, step: 1}; stop is left out")
    try:
        return range_values(content["start"], content["stop"], 1 if content.get("step") is None else content["step"])
    except ValueError as error:
        raise mistake(str(error), error=exceptions.InvalidValuesInConfiguration) from None


def _as_it_is(values: Any) -> Any:
    return values


Values = Annotated[tuple[Any, ...] | Range | None, PlainValidator(_read_values), PlainSerializer(_as_it_is)]


class Keyfield(Section):
    """One parameter of the experiments: a column, and the values it takes in the grid; None is one NULL."""

    type: SqlTypeText
    values: Values = None

    @model_validator(mode="before")
    @classmethod
    def _explain_bare_type(cls, content: Any) -> Any:
        if isinstance(content, str):
            raise mistake(f"expected a mapping, got {show(content)}", hint=f"write {{type: {content}}}")
        return content


class TableConfig(Section):
    """The experiment table."""

    name: TableName
    keyfields: dict[ColumnName, Keyfield]
    resultfields: dict[ColumnName, SqlTypeText] = Field(default_factory=dict)
    result_timestamps: bool = False

    @model_validator(mode="after")
    def _name_every_column_once(self) -> Self:
        if not self.keyfields:
            raise mistake("there is no keyfield", at=("keyfields",))
        refuse_repeated(self._columns())
        return self

    def _columns(self) -> Iterator[tuple[tuple[str, str], str]]:
        """The columns of the user, each with the key that makes it."""
        for name in self.keyfields:
            yield ("keyfields", name), name
        for name in self.resultfields:
            yield ("resultfields", name), name
        for name in self.resultfields if self.result_timestamps else ():
            yield ("resultfields", name), f"{name}_timestamp"


class DatabaseConfig(Section):
    """Where the experiments live."""

    provider: Literal["sqlite", "mysql"]
    database: Text
    use_ssh: bool = Field(default=False, validation_alias=AliasChoices("use_ssh", "use_ssh_tunnel"))
    table: TableConfig
    logtables: dict[LogtableName, dict[LogColumnName, SqlTypeText]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _prefer_one_spelling(cls, content: Any) -> Any:
        """An override says `use_ssh`, whichever of the two the file has."""
        if isinstance(content, Mapping) and "use_ssh" in content:
            return {key: value for key, value in content.items() if key != "use_ssh_tunnel"}
        return content

    @model_validator(mode="after")
    def _check_logtables(self) -> Self:
        for logtable, columns in self.logtables.items():
            full_name = f"{self.table.name}__{logtable}"
            if len(full_name) > LONGEST_NAME:
                message = f"its table would be {full_name}, which is longer than {LONGEST_NAME} characters"
                raise mistake(message, at=("logtables", logtable))
            if not columns:
                raise mistake("the logtable has no columns", at=("logtables", logtable))
            refuse_repeated((("logtables", logtable, name), name) for name in columns)
        refuse_repeated((("logtables", name), name) for name in self.logtables)
        return self

    @model_validator(mode="after")
    def _check_types(self) -> Self:
        for place, sql_type in self._types():
            objection = server_objection(ColumnType.parse(sql_type).sql, provider=self.provider)
            if objection:
                message, hint = objection
                raise mistake(message, at=place, hint=hint)
        return self

    def _types(self) -> Iterator[tuple[tuple[str, ...], str]]:
        for name, keyfield in self.table.keyfields.items():
            yield ("table", "keyfields", name, "type"), keyfield.type
        for name, sql_type in self.table.resultfields.items():
            yield ("table", "resultfields", name), sql_type
        for logtable, columns in self.logtables.items():
            for name, sql_type in columns.items():
                yield ("logtables", logtable, name), sql_type
