"""A unit of work: what must happen together in the database, as a generator of statements.

A unit yields statements, receives what they gave, and returns its answer. It opens no connection, awaits nothing and
catches nothing; the drivers run it, and run the whole of it again when the database reports a conflict.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Do:
    """One statement with `?` for each bound value; with `many` it runs once for each row of `values`."""

    sql: str
    values: Sequence[Any] = ()
    many: bool = False


@dataclass(frozen=True, slots=True)
class Commit:
    """The last packet of a unit: `statements`, the COMMIT, and `then` reads what was committed."""

    statements: Sequence[Do]
    then: Sequence[Do] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """What a statement gave: its rows, and how many rows it matched (not: how many it really changed)."""

    rows: Sequence[tuple[Any, ...]]
    changed: int


Step = Do | Sequence[Do] | Commit
Steps = Generator[Step, Any, T]


@dataclass(frozen=True, slots=True)
class Unit(Generic[T]):
    """A unit of work that can be started any number of times."""

    name: str
    start: Callable[[], Steps[T]]


def unit(steps: Callable[P, Steps[T]]) -> Callable[P, Unit[T]]:
    """Make a generator function into a maker of units: calling it runs nothing yet."""

    @functools.wraps(steps)
    def make(*args: P.args, **kwargs: P.kwargs) -> Unit[T]:
        return Unit(steps.__name__, lambda: steps(*args, **kwargs))

    return make


def marks(values: Sequence[Any]) -> str:
    """`?, ?, ?` for a list of values; the list must not be empty."""
    return ", ".join("?" * len(values))
