"""Which combinations of choices there are, where some choices depend on others and some combinations are left out,
and how often each is there.

Columns and choices are numbers here: the first choice of a column is 0, and `NONE` stands for a column that has no
value in a combination.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pyexp_daemon import exceptions
from pyexp_daemon.space.identity import NULL, ColumnType
from pyexp_daemon.space.values import plain, show

NONE = -1
"""The choice of a column whose condition is not met."""

ABSENT = -2
"""A choice that is never met: only other grids have the value."""

COPY = -1
"""The column whose choices are the copies of a combination."""

Condition = Mapping[int, Collection[int]]
"""Columns, and the choices that each must have one of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """When columns have values, and which combinations are left out.

    Args:
        when: by column the condition on others under which it has a value.
        exclude: a combination that meets one of these is left out.
        repeats: by column how often a combination in which it has a value is there; several multiply.
    """

    when: Mapping[int, Condition] = field(default_factory=dict)
    exclude: Sequence[Condition] = ()
    repeats: Mapping[int, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.when or self.exclude)

    def arranged(self, loops: Sequence[int]) -> list[int]:
        """The columns, outermost first, in the order of `loops` but for this: a column comes after those on which it
        depends, and what decides how often a combination is there comes first.

        Raises:
            ValueError: columns depend on each other in a circle; its argument is one of them.
        """
        arranged: list[int] = []

        def place(column: int, above: tuple[int, ...]) -> None:
            if column in above:
                raise ValueError(column)
            if column not in arranged:
                for other in sorted(self.when.get(column, ()), key=loops.index):
                    place(other, (*above, column))
                arranged.append(column)

        for column in (*self._deciding_copies, *loops):
            place(column, ())
        return arranged

    def combinations(self, lengths: Sequence[int], arranged: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Every combination, the last column of `arranged` changing fastest: a choice for each column by its number.

        Nothing is expanded that is left out in the end, as far as the columns so far can tell. With COPY among the
        columns each combination has as many copies as it should.
        """
        chosen = [NONE] * len(lengths)
        known_at = {column: place for place, column in enumerate(arranged)}
        ripe: list[list[Condition]] = [[] for _ in arranged]
        for rule in self.exclude:
            ripe[max(known_at[column] for column in rule)].append(rule)
        copies_known_at = max((known_at[column] for column in self._deciding_copies), default=-1)

        def choose(place: int) -> Iterator[tuple[int, ...]]:
            if place == len(arranged):
                yield tuple(chosen)
                return
            column = arranged[place]
            condition = self.when.get(column)
            has_value = condition is None or _meets(chosen, condition)
            for choice in range(lengths[column]) if has_value else (NONE,):
                chosen[column] = choice
                if place == copies_known_at and COPY in known_at and chosen[COPY] >= self._copies(chosen):
                    continue
                if not any(_meets(chosen, rule) for rule in ripe[place]):
                    yield from choose(place + 1)

        return choose(0)

    def count(self, lengths: Sequence[int], arranged: Sequence[int]) -> int:
        """How many combinations there are, with their copies. Only the columns that decide about others are gone
        through.
        """
        deciding = self._deciding
        free = [column for column in arranged if column not in deciding]
        always = math.prod(lengths[column] for column in free if column not in self.when)
        # A column that only depends on others multiplies each of their combinations, or does not.
        conditional = [(self.when[column], lengths[column]) for column in free if column in self.when]
        return always * sum(
            self._copies(chosen) * math.prod(length for condition, length in conditional if _meets(chosen, condition))
            for chosen in self._decided(lengths, arranged)
        )

    def most_copies(self, lengths: Sequence[int], arranged: Sequence[int]) -> int:
        """How often that combination is there which is there most often."""
        if not self._deciding_copies:
            return math.prod(self.repeats.values())
        return max(map(self._copies, self._decided(lengths, arranged)), default=1)

    def emptied_by(self, lengths: Sequence[int], arranged: Sequence[int]) -> int | None:
        """The first rule of `exclude` after which no combination is left, by its number; None when some are left."""
        if self._has_any(lengths, arranged):
            return None
        so_far = (replace(self, exclude=self.exclude[:end]) for end in range(1, len(self.exclude) + 1))
        return next(number for number, some in enumerate(so_far) if not some._has_any(lengths, arranged))

    def _has_any(self, lengths: Sequence[int], arranged: Sequence[int]) -> bool:
        return next(self._decided(lengths, arranged), None) is not None

    @property
    def _deciding(self) -> set[int]:
        return {column for rule in (*self.when.values(), *self.exclude) for column in rule}

    def _decided(self, lengths: Sequence[int], arranged: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Every combination of the columns that decide about others."""
        deciding = self._deciding
        return self.combinations(lengths, [column for column in arranged if column in deciding])

    @property
    def _deciding_copies(self) -> list[int]:
        return [other for column in self.repeats for other in self.when.get(column, ())]

    def _copies(self, chosen: Sequence[int]) -> int:
        """How often a combination is there."""
        return math.prod(
            times
            for column, times in self.repeats.items()
            if column not in self.when or _meets(chosen, self.when[column])
        )


NO_CONDITIONS = Conditions()


@dataclass(frozen=True, slots=True)
class Choices:
    """A keyfield that a condition may name: its place, the canonical bytes of its values, here and elsewhere."""

    place: int
    type: ColumnType
    values: Sequence[bytes]
    elsewhere: Collection[bytes | None] = ()


class ConditionalLike(Protocol):
    """A keyfield as far as conditions need it."""

    @property
    def when(self) -> Mapping[str, Sequence[Any]]: ...


def read_conditions(
    known: Mapping[str, Choices],
    keyfields: Mapping[str, ConditionalLike],
    exclude: Sequence[Mapping[str, Sequence[Any]]],
    repeats: Mapping[str, int],
) -> Conditions:
    """The conditions of these keyfields by the places of columns and choices.

    Args:
        known: those that have combinations; what only matches those of others has no condition, and is none.
        repeats: keyfields, and how often they repeat the combinations in which they have a value.

    Raises:
        InvalidValuesInConfiguration: a name or a value is none that is there, or conditions go round in a circle.
    """
    when = {}
    for name, keyfield in keyfields.items():
        if keyfield.when and name not in known:
            raise exceptions.InvalidValuesInConfiguration(f"keyfield {name}: what matches has no condition of its own")
        if keyfield.when:
            when[known[name].place] = _condition(f"keyfield {name}: when", keyfield.when, known)
    left_out = [_condition(f"exclude[{number}]", rule, known) for number, rule in enumerate(exclude)]
    times = {known[name].place: number for name, number in repeats.items()}
    conditions = Conditions(when=when, exclude=left_out, repeats=times)
    try:
        conditions.arranged([choices.place for choices in known.values()])
    except ValueError as error:
        name = next(name for name, choices in known.items() if choices.place == error.args[0])
        raise exceptions.InvalidValuesInConfiguration(f"keyfield {name}: its condition depends on itself") from None
    return conditions


def _condition(where: str, wanted: Mapping[str, Sequence[Any]], known: Mapping[str, Choices]) -> Condition:
    if not wanted:
        raise exceptions.InvalidValuesInConfiguration(f"{where}: it names no keyfield")
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            raise exceptions.InvalidValuesInConfiguration(
                f"{where}: {show(name)} is no keyfield with combinations",
                hint=f"did you mean {close[0]!r}?" if close else None,
            )
    return {
        known[name].place: [each for value in values for each in _choices(f"{where}: {name}", value, known[name])]
        for name, values in wanted.items()
    }


def _choices(where: str, value: Any, choices: Choices) -> Sequence[int]:
    try:
        canonical = choices.type.declared(plain(value))[1]
    except ValueError:
        canonical = None
    listed = [choices.values.index(canonical)] if canonical in choices.values else []
    if canonical == NULL:
        return [*listed, NONE]
    if listed:
        return listed
    if canonical is not None and canonical in choices.elsewhere:
        return [ABSENT]
    raise exceptions.InvalidValuesInConfiguration(f"{where}: {show(value)} is none of its values")


def _meets(chosen: Sequence[int], condition: Condition) -> bool:
    return all(chosen[column] in choices for column, choices in condition.items())
