"""Variables: what a parameter takes in turn, counted without being expanded."""

from __future__ import annotations

import decimal
import functools
import math
import operator
import sys
from abc import abstractmethod
from collections.abc import Iterable as AnyIterable
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, overload

from pyexp_daemon import exceptions
from pyexp_daemon.space.values import plain, show

Number = int | float

_DIGITS = 40
"""More than twice those of a float, so that the last one of a float is right."""


class Variable(Sequence[Any]):
    """The values of a parameter, in their order; each is computed when it is asked for."""

    __slots__ = ()

    @abstractmethod
    def _at(self, index: int) -> Any:
        """The value at a place, 0 <= index < len(self)."""

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        chosen = range(len(self))[index]
        return self._at(chosen) if isinstance(chosen, int) else [self._at(place) for place in chosen]

    def __iter__(self) -> Iterator[Any]:
        return map(self._at, range(len(self)))

    def values(self) -> list[Any]:
        """All of them."""
        return list(self)


@dataclass(frozen=True, slots=True)
class _Spaced(Variable):
    """`n` numbers from `min` to `max`. Both ends are there exactly as they were given; one number is `min`."""

    min: Number
    max: Number
    n: int

    def __post_init__(self) -> None:
        """
        Raises:
            InvalidValuesInConfiguration: a bound is no finite number, or `n` no count.
        """
        for name in ("min", "max"):
            object.__setattr__(self, name, finite(name, getattr(self, name)))
        object.__setattr__(self, "n", counted(self.n))

    def __len__(self) -> int:
        return self.n

    def _at(self, index: int) -> Number:
        if index == 0:
            return self.min
        return self.max if index == self.n - 1 else self._between(index)

    @abstractmethod
    def _between(self, index: int) -> float:
        """The value at a place that is no end."""


@dataclass(frozen=True, slots=True)
class Linear(_Spaced):
    """`n` numbers in equal steps from `min` to `max`, both included: `Linear(0, 1, 5)` is 0, 0.25, 0.5, 0.75, 1.

    Between the ends are floats, each the nearest to the exact value; `max` may be the smaller one.

    Raises:
        InvalidValuesInConfiguration: a bound is no finite number, or `n` no count.
    """

    def _between(self, index: int) -> float:
        low, high = _exact(self.min), _exact(self.max)
        return float(low + (high - low) * index / (self.n - 1))


@dataclass(frozen=True, slots=True)
class LogLinear(_Spaced):
    """`n` numbers from `min` to `max` whose logarithms are in equal steps: `LogLinear(1e-4, 1e-1, 4)`.

    Raises:
        InvalidValuesInConfiguration: a bound is not above zero, or not finite, or `n` no count.
    """

    def __post_init__(self) -> None:
        _Spaced.__post_init__(self)
        for name, bound in (("min", self.min), ("max", self.max)):
            if bound <= 0:
                raise exceptions.InvalidValuesInConfiguration(
                    f"{name} has no logarithm: {show(bound)}", hint="both bounds have to be above zero"
                )

    def _between(self, index: int) -> float:
        # With more digits than a float has: powers of two stay what they are.
        with decimal.localcontext(prec=_DIGITS):
            exponent = _logarithm(self.min) * (self.n - 1 - index) + _logarithm(self.max) * index
            return float((exponent / (self.n - 1)).exp())


@dataclass(frozen=True, slots=True)
class Repeat(Variable):
    """One value, `n` times: every combination of the other variables is there so often.

    Raises:
        InvalidValuesInConfiguration: `n` is no count.
    """

    value: Any
    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", counted(self.n))

    def __len__(self) -> int:
        return self.n

    def _at(self, index: int) -> Any:
        return self.value


@dataclass(frozen=True, slots=True, init=False)
class _Listed(Variable):
    _values: tuple[Any, ...]

    def __init__(self, values: AnyIterable[Any]) -> None:
        """
        Raises:
            InvalidValuesInConfiguration: it is one value and no collection of them.
        """
        if isinstance(values, str | bytes) or not isinstance(values, AnyIterable):
            raise exceptions.InvalidValuesInConfiguration(
                f"expected a collection of values, got {show(values)}", hint=f"[{show(values)}]"
            )
        object.__setattr__(self, "_values", tuple(values))

    def __len__(self) -> int:
        return len(self._values)

    def _at(self, index: int) -> Any:
        return self._values[index]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self._values)!r})"


class Iterable(_Listed):
    """The values of any collection, as they are and in its order; equal ones stay."""

    __slots__ = ()


class Match(_Listed):
    """Values that advance with the combinations of the other variables: the first for the first, and so on.

    There have to be as many as combinations. Several variables of this kind advance together.
    """

    __slots__ = ()


def finite(name: str, value: Any) -> Number:
    """
    Raises:
        InvalidValuesInConfiguration: it is no finite number.
    """
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise exceptions.InvalidValuesInConfiguration(f"{name} is not a number: {show(value)}")
    if not is_finite(number):
        raise exceptions.InvalidValuesInConfiguration(f"{name} is not finite: {show(value)}")
    return number


def is_finite(number: Number) -> bool:
    """Whether it is neither infinite, nor NaN, nor larger than any float."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def counted(number: Any, *, name: str = "n") -> int:
    """
    Raises:
        InvalidValuesInConfiguration: it is no whole number, negative, or larger than any length.
    """
    try:
        count = -1 if isinstance(number, bool) else operator.index(plain(number))
    except TypeError:
        count = -1
    if not 0 <= count <= sys.maxsize:
        raise exceptions.InvalidValuesInConfiguration(
            f"{name} is not a count: {show(number)}", hint="a whole number, 0 or more"
        )
    return count


@functools.lru_cache(maxsize=256)
def _logarithm(number: Number) -> decimal.Decimal:
    with decimal.localcontext(prec=_DIGITS):
        return decimal.Decimal(repr(number)).ln()


def _exact(number: Number) -> Fraction:
    """The number as it is written: 0.1 is a tenth, not the nearest binary fraction."""
    return Fraction(repr(number))
