"""From declared values to rows: the grid of a configuration, and rows that are listed one by one."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from operator import itemgetter
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from pyexp_daemon import exceptions
from pyexp_daemon.space.advice import better_type
from pyexp_daemon.space.conditions import COPY, NO_CONDITIONS, Choices, Conditions, read_conditions
from pyexp_daemon.space.identity import NULL, ColumnType, copy_part, fingerprint_of_parts, part
from pyexp_daemon.space.samples import Distribution, Method, sample
from pyexp_daemon.space.sqltypes import Family
from pyexp_daemon.space.sweep import check_match
from pyexp_daemon.space.values import plain, show
from pyexp_daemon.space.variables import Match, Repeat

T = TypeVar("T")

NOTHING: Mapping[str, Any] = MappingProxyType({})

Row = tuple[tuple[Any, ...], bytes]
"""The values to bind, in the order of the columns, and the fingerprint of the row."""


class KeyfieldLike(Protocol):
    """A keyfield as far as expansion needs it; `values` of None is one NULL."""

    @property
    def type(self) -> str:
        """The SQL type of its column."""

    @property
    def values(self) -> Sequence[Any] | Distribution | None:
        """The values it takes in a grid, or how they are drawn."""

    @property
    def when(self) -> Mapping[str, Sequence[Any]]:
        """Other keyfields, and the values one of which each must have; else it is NULL."""


class SamplingLike(Protocol):
    """How many points are drawn of the keyfields that have distributions, and how."""

    @property
    def n(self) -> int: ...
    @property
    def method(self) -> Method: ...
    @property
    def seed(self) -> int: ...


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


_POINT = COPY - 1
"""What is combined beside the columns and the number of a copy: points that were drawn, each of several columns."""


class Grid:
    """All combinations of the values of the keyfields, in PyExperimenter's order, with each point that was drawn, and
    each of them so often as the values are repeated that it has; values that match advance with all of it.

    Iterating streams `(values in declared order, fingerprint)`; nothing is held but the values of each keyfield.
    """

    def __init__(
        self,
        columns: Mapping[str, ColumnType],
        choices: Sequence[Sequence[_Choice]],
        *,
        matched: Collection[str] = (),
        drawn: Collection[str] = (),
        conditions: Conditions = NO_CONDITIONS,
    ) -> None:
        """
        Args:
            choices: by column; NULL is the last one of a column that has values only under a condition.
            matched: columns whose choices advance with the combinations of the others.
            drawn: columns whose choices advance together, as points.
        """
        self.columns = tuple(columns)
        self._types = tuple(columns.values())
        self._choices = choices
        self._conditions = conditions
        self._matched = [place for place, name in enumerate(self.columns) if name in matched]
        self._drawn = [place for place, name in enumerate(self.columns) if name in drawn]
        combined = [place for place in range(len(self.columns)) if place not in (*self._matched, *self._drawn)]
        self._loops = conditions.arranged([combined[place] for place in _loops(len(combined))])
        own = [len(listed) - (place in conditions.when) for place, listed in enumerate(choices)]
        self._copies = conditions.most_copies(own, self._loops)
        self._lengths = [*own, own[self._drawn[0]] if self._drawn else 1, self._copies]
        """How many choices each column has by itself; at last how many points there are, and copies."""
        if self._copies > 1:
            self._loops.insert(0, COPY)
        if drawn:
            self._loops.append(_POINT)

    @classmethod
    def of(
        cls,
        keyfields: Mapping[str, KeyfieldLike],
        *,
        provider: str,
        exclude: Sequence[Mapping[str, Sequence[Any]]] = (),
        sampling: SamplingLike | None = None,
        elsewhere: Mapping[str, Sequence[Any]] = NOTHING,
    ) -> Grid:
        """The grid of these keyfields, every value of it checked against its column.

        Args:
            exclude: combinations that are left out: of each of these keyfields one of the values.
            sampling: how keyfields that have distributions are drawn.
            elsewhere: values that conditions may name although this grid does not have them.

        Raises:
            InvalidValuesInConfiguration: a value does not fit its type, is listed twice, or two become the same; a
                match has not as many values as there are combinations; a condition names what is not there; no
                combination is left.
        """
        if not keyfields:
            raise exceptions.InvalidValuesInConfiguration("there are no keyfields")
        columns = {name: ColumnType.parse(keyfield.type) for name, keyfield in keyfields.items()}
        points = _points(keyfields, sampling)
        choices = [
            _drawn_choices(name, columns[name], points[name], provider)
            if name in points
            else _checked_choices(name, columns[name], keyfields[name].values, provider)
            for name in columns
        ]
        _refuse_lost_points(list(points), [choices[place] for place, name in enumerate(columns) if name in points])
        matched = {name: keyfield.values for name, keyfield in keyfields.items() if isinstance(keyfield.values, Match)}
        repeats = {name: len(each.values) for name, each in keyfields.items() if isinstance(each.values, Repeat)}
        known = _known(columns, choices, elsewhere, without={*matched, *points})
        conditions = read_conditions(known, keyfields, exclude, repeats)
        for place in conditions.when:
            choices[place] = [*choices[place], _Choice(value=None)]
        grid = cls(columns, choices, matched=matched, drawn=points, conditions=conditions)
        grid._refuse_nothing()
        if grid.count() > sys.maxsize:
            raise exceptions.InvalidValuesInConfiguration("the keyfields have more combinations than can be counted")
        for name, values in matched.items():
            check_match(f"keyfield {name}", values, grid.count())
        return grid

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
        return self.count()

    def count(self) -> int:
        """How many experiments there are, also where that is more than `len` can say."""
        return self._conditions.count(self._lengths, self._combined) * self._lengths[_POINT]

    def _refuse_nothing(self) -> None:
        """
        Raises:
            InvalidValuesInConfiguration: no combination is left; the first rule after which none is is named.
        """
        rule = self._conditions.emptied_by(self._lengths, self._combined)
        if rule is not None:
            raise exceptions.InvalidValuesInConfiguration(
                f"exclude[{rule}]: no combination is left", hint="take it out, or let it name more keyfields together"
            )

    @property
    def _combined(self) -> list[int]:
        """The columns that are combined, outermost first."""
        return [place for place in self._loops if place >= 0]

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
        if self._copies > 1 and self._matched:  # what matches tells combinations apart that are copies else
            seen: Counter[bytes] = Counter()
            return (_identity_of_copy(row, seen) for row in self._combinations(parts, by_name))
        if self._copies > 1:
            by_name.append(COPY)
        copies = [copy_part(number) for number in range(self._copies)]
        return map(fingerprint_of_parts, self._combinations(parts, by_name, copies))

    def _combinations(
        self, pools: Sequence[Sequence[Any]], order: Iterable[int], copies: Sequence[Any] = ()
    ) -> Iterator[tuple[Any, ...]]:
        """One value of each pool, in all combinations; each combination lists the pools in `order`."""
        points = list(zip(*(pools[column] for column in self._drawn), strict=True))
        every = [*pools, points, copies or range(self._copies)]
        walked = [every[column] for column in self._loops]
        combinations = self._chosen(walked) if self._conditions else product(*walked)
        listed = list(self._loops)
        if self._drawn:
            listed[-1:] = self._drawn
            combinations = ((*chosen[:-1], *chosen[-1]) for chosen in combinations)
        if self._matched:
            listed += self._matched
            advancing = zip(*(pools[column] for column in self._matched), strict=True)
            combinations = (chosen + more for chosen, more in zip(combinations, advancing, strict=True))
        return map(_picker([listed.index(column) for column in order]), combinations)

    def _chosen(self, walked: Sequence[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
        """Of each of these pools a value, as far as the conditions let them be together."""
        for chosen in self._conditions.combinations(self._lengths, self._loops):
            yield tuple(pool[chosen[column]] for column, pool in zip(self._loops, walked, strict=True))


def _known(
    columns: Mapping[str, ColumnType],
    choices: Sequence[Sequence[_Choice]],
    elsewhere: Mapping[str, Sequence[Any]],
    *,
    without: Collection[str],
) -> dict[str, Choices]:
    """What conditions may name: the keyfields that are combined, and their values by their canonical bytes."""
    return {
        name: Choices(
            place,
            column_type,
            [choice.canonical or NULL for choice in choices[place]],
            frozenset(_nearest(column_type, value) for value in elsewhere.get(name, ())),
        )
        for place, (name, column_type) in enumerate(columns.items())
        if name not in without
    }


def _points(keyfields: Mapping[str, KeyfieldLike], sampling: SamplingLike | None) -> dict[str, list[Any]]:
    """Of each keyfield that is drawn the values, one for each point."""
    drawn = {name: keyfield.values for name, keyfield in keyfields.items() if isinstance(keyfield.values, Distribution)}
    for name in drawn:
        if sampling is None:
            raise exceptions.InvalidValuesInConfiguration(
                f"keyfield {name}: nothing says how many values are drawn", hint="sample: {n: 100, seed: 0}"
            )
        if keyfields[name].when:
            raise exceptions.InvalidValuesInConfiguration(
                f"keyfield {name}: what is drawn has no condition of its own", hint="draw it in one of several grids"
            )
    if sampling is None or not drawn:
        return {}
    points = sample(drawn, sampling.n, method=sampling.method, seed=sampling.seed)
    return {name: [point[name] for point in points] for name in drawn}


def _drawn_choices(name: str, column_type: ColumnType, values: Sequence[Any], provider: str) -> list[_Choice]:
    return _without_problems(name, column_type, [_choice(column_type, value, provider) for value in values])


def _refuse_lost_points(names: Sequence[str], columns: Sequence[Sequence[_Choice]]) -> None:
    """Points that differ must differ in their columns too."""
    points = [tuple(choice.canonical for choice in point) for point in zip(*columns, strict=True)]
    if len(set(points)) < len(points):
        raise exceptions.InvalidValuesInConfiguration(
            f"keyfields {', '.join(names)}: of {len(points)} points {len(set(points))} stay different in their columns",
            hint="give them columns with more digits, such as DOUBLE",
        )


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


def _identity_of_copy(parts: Sequence[bytes], copies: Counter[bytes]) -> bytes:
    """The fingerprint of a row by its parts, where equal rows are copies of the first; `copies` counts them."""
    identity = fingerprint_of_parts(parts)
    copies[identity] += 1
    return fingerprint_of_parts([*parts, copy_part(copies[identity] - 1)])


def grid_of_rows(
    rows: Iterable[Mapping[str, Any]],
    columns: Mapping[str, KeyfieldLike],
    provider: str,
    *,
    repeated: bool = False,
) -> Rows:
    """The rows, each checked against the columns; of equal ones the first.

    Args:
        rows: one mapping per row, keys = keyfields in any order.
        columns: the keyfields by name; their `values` do not matter.
        provider: `sqlite` or `mysql`.
        repeated: equal rows are experiments of their own, the copies of the first, as `repeat` makes them.

    Raises:
        ParameterCombinationError: a row has an unknown or missing key, or a value that does not fit its column. The
            message names the row, counted from 1.
    """
    types = {name: ColumnType.parse(keyfield.type) for name, keyfield in columns.items()}
    by_name = sorted(types, key=str.lower)
    checked: dict[bytes, Row] = {}
    copies: Counter[bytes] = Counter()
    for number, row in enumerate(rows, start=1):
        _check_keys(number, row, types)
        choices = {name: _row_choice(number, name, types[name], row[name], provider) for name in types}
        parts = [part(name, choices[name].canonical or NULL) for name in by_name]
        identity = _identity_of_copy(parts, copies) if repeated else fingerprint_of_parts(parts)
        checked.setdefault(identity, (tuple(choice.stored for choice in choices.values()), identity))
    return Rows(tuple(types), tuple(checked.values()))


class _TableLike(Protocol):
    @property
    def keyfields(self) -> Mapping[str, KeyfieldLike]: ...
    @property
    def exclude(self) -> Sequence[Mapping[str, Sequence[Any]]]: ...
    @property
    def grids(self) -> Sequence[Mapping[str, Any]]: ...
    @property
    def sample(self) -> SamplingLike | None: ...


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


class Grids:
    """Several grids of the same columns, one after the other; an experiment that more than one has is there once.

    To count them all of them are gone through.
    """

    def __init__(self, grids: Sequence[Grid]) -> None:
        self.columns = grids[0].columns
        self.notes = list(dict.fromkeys(note for grid in grids for note in grid.notes))
        self._grids = grids

    def __len__(self) -> int:
        return self._count

    @functools.cached_property
    def _count(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Row]:
        return _first_of_equals((row[1], row) for grid in self._grids for row in grid)

    def experiments(self) -> Iterator[dict[str, Any]]:
        """One dict per row, keys = keyfields, with the values the user's function will receive."""
        return _first_of_equals(
            (mark, experiment)
            for grid in self._grids
            for (_, mark), experiment in zip(grid, grid.experiments(), strict=True)
        )


def _first_of_equals(marked: Iterable[tuple[bytes, T]]) -> Iterator[T]:
    seen: set[bytes] = set()
    for mark, item in marked:
        if mark not in seen:
            seen.add(mark)
            yield item


@dataclass(frozen=True, slots=True)
class _Given:
    """A keyfield with the values of one grid of several."""

    type: str
    values: Sequence[Any] | Distribution | None
    when: Mapping[str, Sequence[Any]]


def grid_of(config: ConfigLike) -> Grid | Grids:
    """The experiments of a configuration.

    Raises:
        InvalidValuesInConfiguration: see `Grid.of`; the message says in which grid, when there are several.
    """
    provider, table = config.database.provider, config.database.table
    if table.sample is not None and not any(
        isinstance(values, Distribution)
        for given in ({name: keyfield.values for name, keyfield in table.keyfields.items()}, *table.grids)
        for values in given.values()
    ):
        raise exceptions.InvalidValuesInConfiguration(
            "sample: nothing is drawn", hint="give a keyfield a distribution: values: {uniform: [0, 1]}"
        )
    if not table.grids:
        return Grid.of(table.keyfields, provider=provider, exclude=table.exclude, sampling=table.sample)
    variants = [
        {
            name: _Given(keyfield.type, given.get(name, keyfield.values), keyfield.when)
            for name, keyfield in table.keyfields.items()
        }
        for given in table.grids
    ]
    elsewhere: dict[str, list[Any]] = {name: [] for name in table.keyfields}
    for keyfields in (table.keyfields, *variants):
        for name, keyfield in keyfields.items():
            elsewhere[name] += keyfield.values if isinstance(keyfield.values, Sequence) else []
    grids = []
    for number, keyfields in enumerate(variants):
        try:
            grids.append(
                Grid.of(keyfields, provider=provider, exclude=table.exclude, sampling=table.sample, elsewhere=elsewhere)
            )
        except exceptions.InvalidValuesInConfiguration as error:
            raise exceptions.InvalidValuesInConfiguration(f"grids[{number}]: {error}", hint=error.hint) from None
    return Grids(grids)


def _checked_choices(name: str, column_type: ColumnType, values: Any, provider: str) -> list[_Choice]:
    listed = [None] if values is None else values[:1] if isinstance(values, Repeat) else values
    if not len(listed):
        raise exceptions.InvalidValuesInConfiguration(f"keyfield {name}: the list of values is empty")
    choices = [_choice(column_type, value, provider) for value in listed]
    if not isinstance(values, Match):
        _refuse_collapse(name, column_type, choices)
    return _without_problems(name, column_type, choices)


def _without_problems(name: str, column_type: ColumnType, choices: list[_Choice]) -> list[_Choice]:
    for choice in choices:
        if choice.problem is not None:
            message = f"keyfield {name}: {choice.problem} ({column_type.sql.text})"
            hint = better_type(column_type, [choice.value for choice in choices])
            raise exceptions.InvalidValuesInConfiguration(message, hint=hint)
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
