"""From declared values to rows: the grid of a configuration, and rows that are listed one by one."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from operator import itemgetter
from typing import Any, Protocol

from pyexp_daemon import exceptions
from pyexp_daemon.space.advice import better_type
from pyexp_daemon.space.identity import NULL, ColumnType, fingerprint_of_parts, part
from pyexp_daemon.space.sqltypes import Family
from pyexp_daemon.space.values import plain, show

Row = tuple[tuple[Any, ...], bytes]
"""The values to bind, in the order of the columns, and the fingerprint of the row."""


class KeyfieldLike(Protocol):
    """A keyfield as far as expansion needs it; `values` of None is one NULL."""

    @property
    def type(self) -> str:
        """The SQL type of its column."""

    @property
    def values(self) -> Sequence[Any] | None:
        """The values it takes in a grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """One value of a keyfield: what to bind, its canonical bytes, and why the column cannot hold it, if so."""

    value: Any
    stored: Any = None
    canonical: bytes | None = None
    problem: str | None = None

    @property
    def is_rounded(self) -> bool:
        """Whether the column keeps fewer decimals than the value has."""
        return isinstance(self.value, float | Decimal) and self.stored is not None and self.stored != self.value


class Grid:
    """All combinations of the values of the keyfields, in PyExperimenter's order.

    Iterating streams `(values in declared order, fingerprint)`; nothing is held but the values of each keyfield.
    """

    def __init__(self, columns: Mapping[str, ColumnType], choices: Sequence[Sequence[_Choice]]) -> None:
        self.columns = tuple(columns)
        self._types = tuple(columns.values())
        self._choices = choices
        self._loops = _loops(len(self.columns))

    @classmethod
    def of(cls, keyfields: Mapping[str, KeyfieldLike], *, provider: str) -> Grid:
        """The grid of these keyfields, every value of it checked against its column.

        Raises:
            InvalidValuesInConfiguration: a value does not fit its type, is listed twice, or two become the same.
        """
        columns = {name: ColumnType.parse(keyfield.type) for name, keyfield in keyfields.items()}
        values = {name: (None,) if keyfield.values is None else keyfield.values for name, keyfield in keyfields.items()}
        choices = [_checked_choices(name, columns[name], values[name], provider) for name in columns]
        if not choices:
            raise exceptions.InvalidValuesInConfiguration("there are no keyfields")
        if math.prod(map(len, choices)) > sys.maxsize:
            raise exceptions.InvalidValuesInConfiguration("the keyfields have more combinations than can be counted")
        return cls(columns, choices)

    @property
    def notes(self) -> list[str]:
        """What a person should know before the grid is filled: which values their columns round."""
        return [
            f"keyfield {name}: {show(choice.value)} is stored as {show(choice.stored)} ({column_type.sql.text})"
            for name, column_type, choices in zip(self.columns, self._types, self._choices, strict=True)
            for choice in choices
            if column_type.family is Family.DECIMAL and choice.is_rounded
        ]

    def __len__(self) -> int:
        return math.prod(map(len, self._choices))

    def __iter__(self) -> Iterator[Row]:
        stored = [[choice.stored for choice in choices] for choices in self._choices]
        return zip(self._combinations(stored, range(len(self.columns))), self._fingerprints(), strict=True)

    def experiments(self) -> Iterator[dict[str, Any]]:
        """One dict per row, keys = keyfields, with the values the user's function will receive."""
        received = [
            [column_type.from_database(choice.stored) for choice in choices]
            for column_type, choices in zip(self._types, self._choices, strict=True)
        ]
        for values in self._combinations(received, range(len(self.columns))):
            yield dict(zip(self.columns, values, strict=True))

    def _fingerprints(self) -> Iterator[bytes]:
        parts = [
            [part(name, choice.canonical or NULL) for choice in choices]
            for name, choices in zip(self.columns, self._choices, strict=True)
        ]
        by_name = sorted(range(len(self.columns)), key=lambda i: self.columns[i].lower())
        return map(fingerprint_of_parts, self._combinations(parts, by_name))

    def _combinations(self, pools: Sequence[Sequence[Any]], order: Iterable[int]) -> Iterator[tuple[Any, ...]]:
        """One value of each pool, in all combinations; each combination lists the pools in `order`."""
        arrange = _picker([self._loops.index(column) for column in order])
        return map(arrange, product(*(pools[column] for column in self._loops)))


def _loops(count: int) -> list[int]:
    """The keyfields, outermost first. PyExperimenter walks numpy's meshgrid(...).T: the last one is the slowest, but
    for the first two.
    """
    return [*range(count - 1, 1, -1), *range(min(count, 2))]


def combine(
    keyfields: Sequence[str],
    parameters: Mapping[str, Sequence[Any]],
    fixed: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Each combination of the parameters, with each of the fixed ones: one dict per row, in PyExperimenter's order.

    Args:
        keyfields: all of them; each row has to name these, and no others.
        parameters: the values of some.
        fixed: rows of values of the others.

    Raises:
        ParameterCombinationError: there is no combination, or a name is none of the keyfields, missing, or twice there.
    """
    names = [name for name in keyfields if name in parameters]
    loops = _loops(len(names))
    arrange = [loops.index(position) for position in range(len(names))]
    grid = [
        {name: values[at] for name, at in zip(names, arrange, strict=True)}
        for values in product(*(parameters[names[position]] for position in loops))
    ]
    rows = [_united(one, another) for one in grid for another in fixed or ({},)]
    if rows in ([], [{}]):
        raise exceptions.ParameterCombinationError("there is no combination of parameters", hint="give them values")
    stray = [name for name in parameters if name not in keyfields]
    for name in stray or (name for name in rows[0] if name not in keyfields):
        raise exceptions.ParameterCombinationError(
            f"{show(name)} is not a keyfield", hint=f"the keyfields are {', '.join(keyfields)}"
        )
    return rows


def _united(one: Mapping[str, Any], another: Mapping[str, Any]) -> dict[str, Any]:
    if twice := one.keys() & another.keys():
        names = ", ".join(sorted(map(str, twice)))
        raise exceptions.ParameterCombinationError(
            f"{names}: among the parameters and among the fixed ones", hint="leave it in one of them"
        )
    return {**one, **another}


@dataclass(frozen=True, slots=True)
class Rows:
    """Explicit rows, checked: iterating gives `(values in the order of the columns, fingerprint)`, as a Grid does."""

    columns: tuple[str, ...]
    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


def grid_of_rows(
    rows: Iterable[Mapping[str, Any]],
    columns: Mapping[str, KeyfieldLike],
    provider: str,
) -> Rows:
    """The rows, each checked against the columns; of equal ones the first.

    Args:
        rows: one mapping per row, keys = keyfields in any order.
        columns: the keyfields by name; their `values` do not matter.
        provider: `sqlite` or `mysql`.

    Raises:
        ParameterCombinationError: a row has an unknown or missing key, or a value that does not fit its column. The
            message names the row, counted from 1.
    """
    types = {name: ColumnType.parse(keyfield.type) for name, keyfield in columns.items()}
    by_name = sorted(types, key=str.lower)
    checked: dict[bytes, Row] = {}
    for number, row in enumerate(rows, start=1):
        _check_keys(number, row, types)
        choices = {name: _row_choice(number, name, types[name], row[name], provider) for name in types}
        identity = fingerprint_of_parts(part(name, choices[name].canonical or NULL) for name in by_name)
        checked.setdefault(identity, (tuple(choice.stored for choice in choices.values()), identity))
    return Rows(tuple(types), tuple(checked.values()))


class _TableLike(Protocol):
    @property
    def keyfields(self) -> Mapping[str, KeyfieldLike]: ...


class _DatabaseLike(Protocol):
    @property
    def provider(self) -> str: ...
    @property
    def table(self) -> _TableLike: ...


class ConfigLike(Protocol):
    """A loaded configuration as far as expansion needs it."""

    @property
    def database(self) -> _DatabaseLike:
        """Its section `Database`."""


def expand(config: ConfigLike) -> Iterator[dict[str, Any]]:
    """The experiments of a configuration in the order of `fill`: one dict per row, keys = keyfields.

    Raises:
        InvalidValuesInConfiguration: at once, when a value does not fit its keyfield.
    """
    return Grid.of(config.database.table.keyfields, provider=config.database.provider).experiments()


def count(config: ConfigLike) -> int:
    """How many experiments a configuration has; nothing is expanded and no value looked at."""
    keyfields = config.database.table.keyfields.values()
    return math.prod(1 if keyfield.values is None else len(keyfield.values) for keyfield in keyfields)


def _checked_choices(name: str, column_type: ColumnType, values: Sequence[Any], provider: str) -> list[_Choice]:
    if not len(values):
        raise exceptions.InvalidValuesInConfiguration(f"keyfield {name}: the list of values is empty")
    choices = [_choice(column_type, value, provider) for value in values]
    _refuse_collapse(name, column_type, choices)
    for choice in choices:
        if choice.problem is not None:
            message = f"keyfield {name}: {choice.problem} ({column_type.sql.text})"
            raise exceptions.InvalidValuesInConfiguration(message, hint=better_type(column_type, values))
    return choices


def _refuse_collapse(name: str, column_type: ColumnType, choices: Sequence[_Choice]) -> None:
    """Name both of two values that the column would hold as one, also when one of them does not fit by itself."""
    seen: dict[bytes, _Choice] = {}
    for choice in choices:
        if choice.canonical is None:
            continue
        earlier = seen.setdefault(choice.canonical, choice)
        if earlier is choice:
            continue
        if type(earlier.value) is type(choice.value) and earlier.value == choice.value:
            raise exceptions.InvalidValuesInConfiguration(f"keyfield {name}: {show(choice.value)} is listed twice")
        pair = f"{show(earlier.value)} and {show(choice.value)}"
        message = f"keyfield {name}: {pair} are the same value in {column_type.sql.text}"
        raise exceptions.InvalidValuesInConfiguration(message, hint=_how_to_part(column_type, earlier, choice, choices))


def _how_to_part(column_type: ColumnType, earlier: _Choice, later: _Choice, choices: Sequence[_Choice]) -> str | None:
    if not any(choice.problem or choice.is_rounded for choice in (earlier, later)):
        return "keep one of them"
    return better_type(column_type, [choice.value for choice in choices])


def _choice(column_type: ColumnType, value: Any, provider: str) -> _Choice:
    value = plain(value)
    try:
        stored, canonical = column_type.declared(value)
        column_type.limits(value, provider=provider)
    except ValueError as error:
        return _Choice(value=value, canonical=_nearest(column_type, value), problem=str(error))
    return _Choice(value=value, stored=stored, canonical=canonical)


def _nearest(column_type: ColumnType, value: Any) -> bytes | None:
    try:
        return column_type.rounded(value)[1]
    except (ValueError, ArithmeticError):
        return None


def _check_keys(number: int, row: Mapping[str, Any], types: Mapping[str, ColumnType]) -> None:
    for key in row:
        if key not in types:
            known = f"the keyfields are {', '.join(types)}"
            raise exceptions.ParameterCombinationError(f"row {number}: {show(key)} is not a keyfield", hint=known)
    for name in types:
        if name not in row:
            raise exceptions.ParameterCombinationError(f"row {number}: keyfield {name} is missing")


def _row_choice(number: int, name: str, column_type: ColumnType, value: Any, provider: str) -> _Choice:
    choice = _choice(column_type, value, provider)
    if choice.problem is not None:
        message = f"row {number}: keyfield {name}: {choice.problem} ({column_type.sql.text})"
        raise exceptions.ParameterCombinationError(message, hint=better_type(column_type, [value]))
    return choice


def _picker(positions: Sequence[int]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """A function that takes these positions out of a tuple, as a tuple."""
    if len(positions) == 1:
        return lambda combination: (combination[positions[0]],)
    return itemgetter(*positions)
