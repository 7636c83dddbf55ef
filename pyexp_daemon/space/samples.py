"""Samples of a space that is too large for a grid: at random, by a Latin hypercube, or by Sobol's sequence."""

from __future__ import annotations

import math
import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pyexp_daemon import exceptions
from pyexp_daemon.space.values import show
from pyexp_daemon.space.variables import Iterable, Number, counted, finite

Method = Literal["random", "latin_hypercube", "sobol"]
METHODS: tuple[Method, ...] = get_args(Method)

_FRUITLESS = 100
"""So many draws that bring nothing new, for each point that is wanted, and the space has no more points."""


class Distribution(ABC):
    """How the values of a parameter are drawn."""

    __slots__ = ()

    @abstractmethod
    def at(self, share: float) -> Any:
        """The value below which this share of the distribution lies, 0 <= share < 1."""


@dataclass(frozen=True, slots=True)
class _Between(Distribution):
    low: Number
    high: Number

    def __post_init__(self) -> None:
        """
        Raises:
            InvalidValuesInConfiguration: a bound is no finite number, or `high` is below `low`.
        """
        for name in ("low", "high"):
            object.__setattr__(self, name, finite(name, getattr(self, name)))
        if self.high < self.low:
            raise exceptions.InvalidValuesInConfiguration(f"high is below low: {show(self.high)} < {show(self.low)}")


@dataclass(frozen=True, slots=True)
class Uniform(_Between):
    """Floats from `low` to `high`, all equally likely.

    Raises:
        InvalidValuesInConfiguration: a bound is no finite number, or `high` is below `low`.
    """

    def at(self, share: float) -> float:
        return min(float(self.high), self.low + (self.high - self.low) * share)


@dataclass(frozen=True, slots=True)
class LogUniform(_Between):
    """Floats from `low` to `high` whose logarithms are all equally likely.

    Raises:
        InvalidValuesInConfiguration: a bound is not above zero or not finite, or `high` is below `low`.
    """

    def __post_init__(self) -> None:
        _Between.__post_init__(self)
        if self.low <= 0:
            raise exceptions.InvalidValuesInConfiguration(
                f"low has no logarithm: {show(self.low)}", hint="both bounds have to be above zero"
            )

    def at(self, share: float) -> float:
        value = math.exp(math.log(self.low) + (math.log(self.high) - math.log(self.low)) * share)
        return min(max(value, float(self.low)), float(self.high))


@dataclass(frozen=True, slots=True)
class Integers(_Between):
    """Whole numbers from `low` to `high`, both included, all equally likely.

    Raises:
        InvalidValuesInConfiguration: a bound is no whole number, or `high` is below `low`.
    """

    def __post_init__(self) -> None:
        _Between.__post_init__(self)
        for name, bound in (("low", self.low), ("high", self.high)):
            if not isinstance(bound, int):
                raise exceptions.InvalidValuesInConfiguration(f"{name} is not a whole number: {show(bound)}")

    def at(self, share: float) -> int:
        return min(int(self.high), int(self.low) + int(share * (int(self.high) - int(self.low) + 1)))


@dataclass(frozen=True, slots=True, init=False)
class Choice(Distribution):
    """One of these values, all equally likely.

    Raises:
        InvalidValuesInConfiguration: there are none.
    """

    values: tuple[Any, ...]

    def __init__(self, values: Collection[Any]) -> None:
        if isinstance(values, set | frozenset):
            raise exceptions.InvalidValuesInConfiguration("a set has no order", hint="make it a list")
        object.__setattr__(self, "values", tuple(Iterable(values)))
        if not self.values:
            raise exceptions.InvalidValuesInConfiguration("there is nothing to choose from")

    def at(self, share: float) -> Any:
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]


def sample(
    space: Mapping[str, Distribution], n: int, *, method: Method = "random", seed: int = 0
) -> list[dict[str, Any]]:
    """`n` points of a space, all different: one dict each, with the keys of the space in its order.

    The same seed gives the same points in every process and on every machine.

    Args:
        space: by name how the values of each parameter are drawn; not empty.
        n: how many points, >= 0.
        method: `random`: each by itself. `latin_hypercube`: of each parameter one value in each n-th of its range
            (McKay, Beckman, Conover 1979). `sobol`: scrambled points of Sobol's sequence, which leave no gaps; best for
            powers of 2 (Owen 1998). These two need SciPy.
        seed: >= 0.

    Raises:
        InvalidValuesInConfiguration: the space has fewer points, or there is no such method; a parameter is no
            distribution; `n` or `seed` is no count.
        UsageError: SciPy is not installed.
    """
    if not space:
        raise exceptions.InvalidValuesInConfiguration("there is nothing to draw")
    if method not in METHODS:
        raise exceptions.InvalidValuesInConfiguration(
            f"there is no method {show(method)}", hint=f"methods are {', '.join(METHODS)}"
        )
    for name, distribution in space.items():
        if not isinstance(distribution, Distribution):
            raise exceptions.InvalidValuesInConfiguration(
                f"{name} is no distribution: {show(distribution)}",
                hint=f"Choice([{show(distribution)}]) is always that",
            )
    n, seed = counted(n, name="n"), counted(seed, name="seed")
    points: dict[str, list[Any]] = {}
    for drawn, shares in enumerate(_shares(len(space), n, method, seed)):
        if len(points) == n:
            break
        if drawn > n + _FRUITLESS * (len(points) + 1):
            raise exceptions.InvalidValuesInConfiguration(
                f"{n} different points are wanted, and {len(points)} found", hint="ask for fewer, or use a grid"
            )
        point = [each.at(share) for each, share in zip(space.values(), shares, strict=True)]
        points.setdefault(repr(point), point)
    return [dict(zip(space, point, strict=True)) for point in points.values()]


def _shares(dimensions: int, n: int, method: Method, seed: int) -> Iterator[Sequence[float]]:
    """Points of the unit cube without end; the first `n` are those of the method."""
    draw = _random(dimensions, seed) if method == "random" else _by_scipy(dimensions, method, seed)
    while True:
        yield from draw(max(n, 1))


def _random(dimensions: int, seed: int) -> Callable[[int], Iterator[Sequence[float]]]:
    generator = random.Random(seed)
    return lambda n: ([generator.random() for _ in range(dimensions)] for _ in range(n))


def _by_scipy(dimensions: int, method: Method, seed: int) -> Callable[[int], Iterator[Sequence[float]]]:
    try:
        from scipy.stats import qmc
    except ImportError:
        raise exceptions.UsageError(
            f"the method {method} needs SciPy", hint="pip install 'pyexp-daemon[sample]'"
        ) from None
    kinds = {"latin_hypercube": qmc.LatinHypercube, "sobol": qmc.Sobol}
    engine = kinds[method](d=dimensions, seed=seed)

    def draw(n: int) -> Iterator[Sequence[float]]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The balance properties of Sobol", UserWarning)
            return iter(engine.random(n).tolist())

    return draw
