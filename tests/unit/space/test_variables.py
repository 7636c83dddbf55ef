from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from itertools import islice, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyexp_daemon import exceptions
from pyexp_daemon.space import Iterable, Linear, LogLinear, Match, Repeat, Variable, count, expand

FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e100, max_value=1e100)


@pytest.mark.parametrize(
    ("variable", "values"),
    [
        (Linear(0, 1, 5), [0, 0.25, 0.5, 0.75, 1]),
        (Linear(0, 1, 11), [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        (Linear(64, 16, 4), [64, 48.0, 32.0, 16]),
        (Linear(3, 7, 1), [3]),
        (Linear(3, 7, 0), []),
        (LogLinear(1e-4, 1e-1, 4), [1e-4, 1e-3, 1e-2, 1e-1]),
        (LogLinear(100, 1, 3), [100, 10.0, 1]),
        (LogLinear(2, 3, 2), [2, 3]),
        (LogLinear(2, 3, 1), [2]),
        (LogLinear(2, 3, 0), []),
        (Repeat("a", 3), ["a", "a", "a"]),
        (Repeat([1], 0), []),
        (Iterable((3, 1, 3)), [3, 1, 3]),
        (Iterable(x for x in "ab"), ["a", "b"]),
        (Iterable([]), []),
        (Match(range(3)), [0, 1, 2]),
    ],
)
def test_a_variable_has_these_values(variable: Variable, values: list[Any]) -> None:
    assert variable.values() == list(variable) == values
    assert len(variable) == len(values)
    assert variable[1:] == values[1:]
    if values:
        assert (variable[0], variable[-1]) == (values[0], values[-1])
        assert type(variable[0]) is type(values[0])
    with pytest.raises(IndexError):
        variable[len(values)]


def test_numbers_of_numpy_are_bounds_too() -> None:
    bounds: Any = (np.float32(0.5), np.int64(2), np.int8(2))
    assert Linear(*bounds).values() == [0.5, 2]


@given(low=FINITE, high=FINITE, n=st.integers(2, 50))
def test_the_ends_of_a_line_are_as_given_and_the_steps_go_one_way(low: float, high: float, n: int) -> None:
    values = Linear(low, high, n).values()
    assert (values[0], values[-1]) == (low, high)
    assert values == sorted(values, reverse=high < low)


@given(low=st.floats(1e-100, 1e100), high=st.floats(1e-100, 1e100), n=st.integers(2, 50))
def test_the_ends_of_a_logarithmic_line_are_as_given(low: float, high: float, n: int) -> None:
    values = LogLinear(low, high, n).values()
    assert (values[0], values[-1]) == (low, high)
    assert all(min(low, high) * 0.999 <= value <= max(low, high) * 1.001 for value in values)


@pytest.mark.parametrize(
    ("bounds", "values"),
    [
        ((16, 512, 6), [16, 32, 64, 128, 256, 512]),
        ((2, 32, 5), [2, 4, 8, 16, 32]),
        ((0.5, 8, 5), [0.5, 1, 2, 4, 8]),
        ((1e-5, 0.1, 5), [1e-5, 1e-4, 1e-3, 1e-2, 0.1]),
    ],
)
def test_powers_are_what_is_between_powers(bounds: tuple[float, float, int], values: list[float]) -> None:
    assert LogLinear(*bounds).values() == values


@pytest.mark.parametrize(
    ("kind", "arguments", "reason"),
    [
        (Linear, (0, 10**400, 2), "max is not finite"),
        (Repeat, (1, 10**30), "n is not a count"),
        (Linear, ("0", 1, 2), "min is not a number: '0'"),
        (Linear, (0, True, 2), "max is not a number: True"),
        (Linear, (0, math.nan, 2), "max is not finite: nan"),
        (Linear, (0, 1, -1), "n is not a count: -1"),
        (Linear, (0, 1, 2.0), "n is not a count: 2.0"),
        (Linear, (0, 1, True), "n is not a count: True"),
        (LogLinear, (0, 1, 2), "min has no logarithm: 0"),
        (LogLinear, (1, -1.5, 1), "max has no logarithm: -1.5"),
        (LogLinear, (math.inf, 1, 2), "min is not finite: inf"),
        (Repeat, ("a", "b"), "n is not a count: 'b'"),
        (Iterable, ("abc",), "expected a collection of values, got 'abc'"),
        (Match, (3,), "expected a collection of values, got 3"),
    ],
)
def test_an_impossible_variable_is_refused(kind: Any, arguments: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(exceptions.InvalidValuesInConfiguration, match=reason) as caught:
        kind(*arguments)
    assert isinstance(caught.value, ValueError)


def test_variables_are_values() -> None:
    assert Linear(0, 1, 3) == Linear(0, 1, 3) != Linear(0, 1, 4)
    assert len({Repeat(1, 2), Repeat(1, 2), Match([1]), Match([1]), Iterable([1])}) == 3
    assert repr(Match([1, 2])) == "Match([1, 2])"
    assert repr(LogLinear(1, 2, 3)) == "LogLinear(min=1, max=2, n=3)"


SMALL = st.one_of(
    st.builds(Linear, st.integers(0, 5), st.integers(6, 9), st.integers(0, 4)),
    st.builds(LogLinear, st.integers(1, 5), st.integers(6, 9), st.integers(0, 4)),
    st.builds(Repeat, st.integers(), st.integers(0, 3)),
    st.builds(Iterable, st.lists(st.integers(), max_size=4)),
)
CONFIGURATIONS = st.dictionaries(
    st.text(max_size=3), st.one_of(SMALL, st.integers(), st.lists(st.integers())), max_size=5
)


@given(configuration=CONFIGURATIONS)
def test_there_are_as_many_experiments_as_counted_the_first_variable_changing_fastest(
    configuration: Mapping[str, Any],
) -> None:
    experiments = list(expand(configuration))
    swept = {name: value.values() for name, value in configuration.items() if isinstance(value, Variable)}
    assert count(configuration) == len(experiments) == math.prod(map(len, swept.values()))
    slowest_first = product(*reversed(swept.values()))
    assert [[row[name] for name in swept] for row in experiments] == [list(reversed(row)) for row in slowest_first]
    for row in experiments:
        assert list(row) == list(configuration)
        assert all(row[name] is value for name, value in configuration.items() if name not in swept)


@given(configuration=CONFIGURATIONS, more=st.integers(-3, 3))
def test_a_match_advances_with_the_combinations_and_has_one_value_for_each(
    configuration: dict[str, Any], more: int
) -> None:
    combinations = count(configuration)
    wanted = max(0, combinations + more)
    matched = {"first": Match(range(wanted)), **configuration, "last": Match(map(str, range(combinations)))}
    if wanted != combinations:
        with pytest.raises(exceptions.InvalidValuesInConfiguration, match=f"{wanted} values, and {combinations} comb"):
            count(matched)
        with pytest.raises(exceptions.InvalidValuesInConfiguration, match=r"^first: a match of"):
            expand(matched)
    else:
        rows = list(expand(matched))
        assert [(row["first"], row["last"]) for row in rows] == [(place, str(place)) for place in range(combinations)]


def test_constants_only_are_one_experiment_and_variables_within_are_constants() -> None:
    configuration = {"a": 1, "b": [1, 2], "c": {"d": Linear(0, 1, 2)}, "e": range(3), "f": Decimal(1)}
    assert list(expand(configuration)) == [configuration]
    assert list(expand({})) == [{}]
    assert list(expand({"a": Match(["only"])})) == [{"a": "only"}]


def test_a_row_is_nobody_elses() -> None:
    configuration = {"a": Iterable([1, 2]), "b": 3}
    first, second = expand(configuration)
    first["b"] = "changed"
    assert (second["b"], configuration["b"]) == (3, 3)


def test_a_space_that_would_take_centuries_is_counted_and_begun_without_being_expanded() -> None:
    space = {"a": Linear(0, 1, 10**9), **{f"v{i}": Repeat(i, 10) for i in range(9)}}
    assert count(space) == 10**18
    assert [row["a"] for row in islice(expand(space), 2)] == [0, 1 / (10**9 - 1)]


def test_rows_are_no_space() -> None:
    rows: Any = [{"x": 1}]
    with pytest.raises(
        exceptions.InvalidValuesInConfiguration, match="expected variables and constants by name"
    ) as caught:
        expand(rows)
    assert "fill_table_with_rows" in (caught.value.hint or "")
