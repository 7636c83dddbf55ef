"""Combinations of variables, in Experimenter.jl's order: the first variable changes fastest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyexp_daemon import exceptions
from pyexp_daemon.space.values import show
from pyexp_daemon.space.variables import Match, Variable


def count(configuration: Mapping[str, Any]) -> int:
    """How many experiments a configuration has; nothing is expanded. Constants only are one experiment.

    Raises:
        InvalidValuesInConfiguration: a `Match` has more or fewer values than there are combinations.
    """
    if not isinstance(configuration, Mapping):
        raise exceptions.InvalidValuesInConfiguration(
            f"expected variables and constants by name, got {show(configuration)}",
            hint="fill_table_with_rows takes rows, such as those of sample(…)",
        )
    combinations = math.prod(_lengths(configuration))
    for name, value in configuration.items():
        if isinstance(value, Match):
            check_match(name, value, combinations)
    return combinations


def check_match(name: str, values: Match, combinations: int) -> None:
    """
    Raises:
        InvalidValuesInConfiguration: there are more or fewer values than combinations.
    """
    if len(values) != combinations:
        raise exceptions.InvalidValuesInConfiguration(
            f"{name}: a match of {len(values)} values, and {combinations} combinations of the other variables",
            hint="it needs a value for each combination",
        )


def expand(configuration: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The experiments of a configuration, lazily: one dict each, with the keys of the configuration in its order.

    Args:
        configuration: by name a variable, or a constant; only a value that is itself a `Variable` is one, what
            stands in a list or a mapping is a constant.

    Raises:
        InvalidValuesInConfiguration: at once, when a `Match` does not fit.
    """
    count(configuration)
    return _rows(configuration)


def _rows(configuration: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    swept = {name: value for name, value in configuration.items() if _is_swept(value)}
    matched = {name: value for name, value in configuration.items() if isinstance(value, Match)}
    for place, chosen in enumerate(_combinations(list(swept.values()))):
        row = dict(configuration)
        row.update(zip(swept, chosen, strict=True))
        row.update((name, values[place]) for name, values in matched.items())
        yield row


def _combinations(variables: Sequence[Variable]) -> Iterator[tuple[Any, ...]]:
    """One value of each, the first changing fastest; of no variable more than one value is held at a time."""
    if not variables:
        yield ()
        return
    *faster, slowest = variables
    for value in slowest:
        for chosen in _combinations(faster):
            yield (*chosen, value)


def _is_swept(value: Any) -> bool:
    return isinstance(value, Variable) and not isinstance(value, Match)


def _lengths(configuration: Mapping[str, Any]) -> Iterator[int]:
    return (_length(value) for value in configuration.values() if _is_swept(value))


def _length(variable: Variable) -> int:
    return variable.__len__()  # also where that is more than `len` can say
