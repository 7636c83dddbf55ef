from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyexp_daemon.space.ranges import Range, range_values


@pytest.mark.parametrize(
    ("start", "stop", "step", "values"),
    [
        (0, 1, 0.1, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        (0, 3, 1, [0, 1, 2]),
        (5, 0, -2, [5, 3, 1]),
        (1.0, 0, -0.25, [1.0, 0.75, 0.5, 0.25]),
        (0, 1, 0.3, [0.0, 0.3, 0.6, 0.9]),
        (1e-3, 5e-3, 1e-3, [0.001, 0.002, 0.003, 0.004]),
        (0, 2.5, 1, [0.0, 1.0, 2.0]),
        (10**20, 10**20 + 2, 1, [10**20, 10**20 + 1]),
    ],
)
def test_a_range_has_the_literal_numbers(start: Any, stop: Any, step: Any, values: list[Any]) -> None:
    numbers = range_values(start, stop, step)
    assert list(numbers) == values
    assert len(numbers) == len(values)
    assert {type(number) for number in numbers} == {type(value) for value in values}
    assert numbers[-1] == values[-1]
    assert list(numbers[1:]) == values[1:]
    assert values[0] in numbers


def test_the_step_is_one_by_default() -> None:
    assert range_values(0, 3) == Range(0, 3, 1)


def test_a_range_is_counted_without_being_expanded() -> None:
    assert len(range_values(0, 10**8)) == 10**8


@pytest.mark.parametrize(
    ("start", "stop", "step", "reason"),
    [
        (0, 1, 0, "step is 0"),
        (0, 1, 0.0, "step is 0"),
        (1, 1, 1, "no values from 1 to 1"),
        (0, 1, -1, "no values from 0 to 1"),
        ("0", 1, 1, "start is not a number: '0'"),
        (0, None, 1, "stop is not a number: None"),
        (0, True, 1, "stop is not a number: True"),
        (0, math.nan, 1, "stop is not finite: nan"),
        (0, math.inf, 1, "stop is not finite: inf"),
        (0, 1e300, 1e-300, "more than 100000000 values"),
    ],
)
def test_an_impossible_range_is_refused(start: Any, stop: Any, step: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        range_values(start, stop, step)


@given(
    start=st.integers(-1000, 1000),
    count=st.integers(1, 200),
    step=st.integers(1, 50),
    digits=st.integers(0, 6),
    sign=st.sampled_from([1, -1]),
)
def test_a_range_of_decimals_does_not_drift(start: int, count: int, step: int, digits: int, sign: int) -> None:
    scale = 10**digits
    numbers = range_values(start / scale, (start + sign * count * step) / scale, sign * step / scale)
    assert list(numbers) == [(start + sign * i * step) / scale for i in range(count)]
    assert len(numbers) == count


@given(start=st.integers(), count=st.integers(1, 50), step=st.integers().filter(bool))
def test_whole_ranges_are_pythons(start: int, count: int, step: int) -> None:
    numbers = range_values(start, start + count * step, step)
    assert list(numbers) == list(range(start, start + count * step, step))
