"""The section `Database`: the tables, their columns and the values of the grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasChoices,
    Field,
    NonNegativeInt,
    PlainSerializer,
    PlainValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from pyexp_daemon import exceptions
from pyexp_daemon.config.fields import Count, Text
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
from pyexp_daemon.space.ranges import MOST, Range, range_values
from pyexp_daemon.space.samples import Choice, Distribution, Integers, LogUniform, Uniform
from pyexp_daemon.space.sqltypes import server_objection
from pyexp_daemon.space.variables import Linear, LogLinear, Match, Repeat, Variable

_RANGE_KEYS = ("start", "stop", "step")
_VARIABLES: Mapping[str, tuple[Callable[..., Variable | Distribution], int | None, str]] = {
    "linear": (Linear, 3, "{linear: [0, 1, 5]} is 5 numbers from 0 to 1, both included"),
    "log": (LogLinear, 3, "{log: [1e-4, 1e-1, 4]} is 4 numbers from 0.0001 to 0.1, both included"),
    "repeat": (Repeat, 2, "{repeat: [0, 3]} is 0, and every combination three times"),
    "match": (lambda *values: Match(values), None, "{match: [a, b]} has one value for each combination"),
    "uniform": (Uniform, 2, "{uniform: [0, 1]} draws numbers from 0 to 1"),
    "loguniform": (LogUniform, 2, "{loguniform: [1e-5, 1e-1]} draws numbers whose logarithms are equally likely"),
    "integers": (Integers, 2, "{integers: [1, 10]} draws whole numbers from 1 to 10"),
    "choice": (lambda *values: Choice(values), None, "{choice: [a, b]} draws one of these"),
}
"""What is made by which key, of how many arguments, and an example."""


def _read_values(value: Any) -> tuple[Any, ...] | Variable | Distribution | None:
    if value is None or isinstance(value, Variable | Distribution):
        return value
    if isinstance(value, Mapping):
        return _read_variable(value) if _VARIABLES.keys() & value.keys() else _read_range(value)
    if not isinstance(value, list | tuple):
        raise mistake(f"expected a list or a range, got {show(value)}", hint=f"values: [{show(value)}]")
    if not value:
        raise mistake(
            "the list is empty",
            hint="give it values, or leave `values` out to have NULL",
            error=exceptions.InvalidValuesInConfiguration,
        )
    return tuple(value)


def _read_variable(content: Mapping[str, Any]) -> Variable | Distribution:
    name = next(key for key in content if key in _VARIABLES)
    make, wanted, example = _VARIABLES[name]
    arguments = content[name]
    for key in content:
        if key != name:
            raise mistake(f"nothing else can stand beside {name}", at=(str(key),), hint=example)
    if not isinstance(arguments, list | tuple) or wanted not in (None, len(arguments)):
        size = "" if wanted is None else f" of {wanted}"
        raise mistake(f"expected a list{size}, got {show(arguments)}", at=(name,), hint=example)
    try:
        variable = make(*arguments)
    except exceptions.InvalidValuesInConfiguration as error:
        raise mistake(str(error), at=(name,), hint=error.hint, error=type(error)) from None
    if isinstance(variable, Variable) and len(variable) > MOST:
        raise mistake(f"more than {MOST} values", at=(name,), error=exceptions.InvalidValuesInConfiguration)
    if isinstance(variable, Variable) and not len(variable):
        raise mistake("there are no values", at=(name,), hint=example, error=exceptions.InvalidValuesInConfiguration)
    return variable


def _read_range(content: Mapping[str, Any]) -> Range:
    for key in content:
        if key not in _RANGE_KEYS:
            raise mistake(UNKNOWN, at=(str(key),), hint=did_you_mean(key, (*_RANGE_KEYS, *_VARIABLES)))
    for key in ("start", "stop"):
        if content.get(key) is None:
            raise mistake(MISSING, at=(key,), hint="a range is {start: 0, stop: 10, step: 1}; stop is left out")
    try:
        return range_values(content["start"], content["stop"], 1 if content.get("step") is None else content["step"])
    except ValueError as error:
        raise mistake(str(error), error=exceptions.InvalidValuesInConfiguration) from None


def _as_it_is(values: Any) -> Any:
    return values


Values = Annotated[
    tuple[Any, ...] | Variable | Distribution | None, PlainValidator(_read_values), PlainSerializer(_as_it_is)
]


def _read_condition(value: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(value, Mapping) or not value:
        raise mistake(f"expected a mapping of keyfields to values, got {show(value)}", hint="{model: svm}")
    for name, each in value.items():
        if isinstance(each, list | tuple) and not each:
            raise mistake("the list is empty", at=(str(name),), hint="name the values that are meant")
    return {name: tuple(each) if isinstance(each, list | tuple) else (each,) for name, each in value.items()}


_MANY = (list, tuple, Mapping, Variable, Distribution, type(None))


def _read_grid(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        raise mistake(f"expected a mapping of keyfields to values, got {show(value)}", hint="{model: [svm, forest]}")
    given = {}
    for name, values in value.items():
        try:
            given[name] = _read_values(values if isinstance(values, _MANY) else [values])
        except PydanticCustomError as error:
            raise _below(name, error) from None
    return given


def _below(name: Any, error: PydanticCustomError) -> PydanticCustomError:
    """The same mistake, further down."""
    context = error.context or {}
    return mistake(context["message"], hint=context["hint"], at=(str(name), *context["at"]), error=context["error"])


GridValues = Annotated[dict[str, Any], PlainValidator(_read_grid), PlainSerializer(_as_it_is)]
Condition = Annotated[dict[str, tuple[Any, ...]], PlainValidator(_read_condition)]


class Keyfield(Section):
    """One parameter of the experiments: a column, and the values it takes in the grid; None is one NULL.

    With `when` it takes them only in combinations in which each keyfield named there has one of the values; else NULL.
    """

    type: SqlTypeText
    values: Values = None
    when: Condition = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _explain_bare_type(cls, content: Any) -> Any:
        if isinstance(content, str):
            raise mistake(f"expected a mapping, got {show(content)}", hint=f"write {{type: {content}}}")
        return content


class SampleConfig(Section):
    """How many points are drawn of the keyfields that have distributions, and how."""

    n: Count
    method: Literal["random", "latin_hypercube", "sobol"] = "random"
    seed: NonNegativeInt = 0


class TableConfig(Section):
    """The experiment table."""

    name: TableName
    keyfields: dict[ColumnName, Keyfield]
    exclude: tuple[Condition, ...] = ()
    grids: tuple[GridValues, ...] = ()
    sample: SampleConfig | None = None
    resultfields: dict[ColumnName, SqlTypeText] = Field(default_factory=dict)
    result_timestamps: bool = False

    @field_validator("exclude", "grids", mode="before")
    @classmethod
    def _expect_lists(cls, content: Any) -> Any:
        if not isinstance(content, list | tuple):
            raise mistake(f"expected a list of mappings, got {show(content)}", hint=f"[{show(content)}]")
        return content

    @model_validator(mode="after")
    def _name_every_column_once(self) -> Self:
        if not self.keyfields:
            raise mistake("there is no keyfield", at=("keyfields",))
        refuse_repeated(self._columns())
        for number, given in enumerate(self.grids):
            for name in given:
                if name not in self.keyfields:
                    raise mistake(UNKNOWN, at=("grids", number, str(name)), hint=did_you_mean(name, self.keyfields))
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
