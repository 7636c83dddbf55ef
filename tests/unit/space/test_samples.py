"""Samples: so many different points, the same ones for the same seed in every process."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyexp_daemon import exceptions
from pyexp_daemon.space import Choice, Distribution, Integers, LogUniform, Uniform, sample
from pyexp_daemon.space.samples import METHODS, Method

SPACE = {"lr": LogUniform(1e-5, 1e-1), "width": Integers(16, 512), "act": Choice(["relu", "tanh"]), "x": Uniform(-1, 1)}
every_method = pytest.mark.parametrize("method", METHODS)


@every_method
@pytest.mark.parametrize("n", [0, 1, 7, 64])
def test_there_are_so_many_points_all_different_and_all_in_the_space(method: Method, n: int) -> None:
    points = sample(SPACE, n, method=method, seed=3)
    assert len(points) == len({repr(point) for point in points}) == n
    for point in points:
        assert list(point) == list(SPACE)
        assert 1e-5 <= point["lr"] <= 1e-1
        assert point["width"] in range(16, 513)
        assert point["act"] in ("relu", "tanh")
        assert -1 <= point["x"] <= 1


@every_method
def test_the_same_seed_gives_the_same_points_in_every_process(method: Method) -> None:
    code = (
        "import json\n"
        "from pyexp_daemon.space import *\n"
        "space = {'lr': LogUniform(1e-5, 1e-1), 'width': Integers(16, 512), 'act': Choice(['relu', 'tanh']),"
        " 'x': Uniform(-1, 1)}\n"
        f"print(json.dumps(sample(space, 20, method={method!r}, seed=5)))\n"
    )
    told = [
        json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout) for _ in "ab"
    ]
    assert told[0] == told[1] == sample(SPACE, 20, method=method, seed=5)
    assert told[0] != sample(SPACE, 20, method=method, seed=6)


@pytest.mark.parametrize("method", ["random", "sobol"])
def test_more_points_begin_with_those_of_fewer(method: Method) -> None:
    assert sample(SPACE, 40, method=method, seed=2)[:12] == sample(SPACE, 12, method=method, seed=2)


@every_method
def test_a_space_of_few_points_is_drawn_to_its_last_and_no_further(method: Method) -> None:
    small: dict[str, Distribution] = {"a": Integers(0, 3), "b": Choice(["xyz", "y", "z"])}
    points = sample(small, 12, method=method)
    assert {(point["a"], point["b"]) for point in points} == set(itertools.product(range(4), ("xyz", "y", "z")))
    with pytest.raises(exceptions.InvalidValuesInConfiguration, match="13 different points are wanted, and 12 found"):
        sample(small, 13, method=method)


def test_a_latin_hypercube_has_one_value_in_each_part_of_the_range() -> None:
    points = sample({"x": Uniform(0, 1), "y": Uniform(0, 1)}, 10, method="latin_hypercube", seed=1)
    for name in ("x", "y"):
        assert sorted(int(point[name] * 10) for point in points) == list(range(10))


def test_sobols_points_fill_the_space() -> None:
    points = sample({"x": Uniform(0, 1), "y": Uniform(0, 1)}, 16, method="sobol", seed=1)
    assert len({(int(point["x"] * 4), int(point["y"] * 4)) for point in points}) == 16


BOUND = st.floats(1e-9, 1e9)


@given(one=BOUND, other=BOUND, share=st.floats(0, 1, exclude_max=True))
def test_values_are_within_their_bounds(one: float, other: float, share: float) -> None:
    low, high = sorted((one, other))
    assert low <= Uniform(low, high).at(share) <= high
    assert low <= LogUniform(low, high).at(share) <= high
    whole = Integers(math.floor(low), math.ceil(high))
    assert whole.low <= whole.at(share) <= whole.high


def test_shares_are_spread_over_the_values() -> None:
    assert [Integers(1, 4).at(share) for share in (0.0, 0.24, 0.25, 0.5, 0.99)] == [1, 1, 2, 3, 4]
    assert [Choice(list("abcd")).at(share) for share in (0.0, 0.24, 0.25, 0.5, 0.99)] == ["a", "a", "b", "c", "d"]
    assert LogUniform(1, 100).at(0.5) == pytest.approx(10)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: Uniform(1, 0), "high is below low: 0 < 1"),
        (
            lambda: Uniform("a", 1),  # type: ignore[arg-type]
            "low is not a number",
        ),
        (lambda: LogUniform(0, 1), "low has no logarithm: 0"),
        (lambda: Integers(0, 1.5), "high is not a whole number: 1.5"),
        (lambda: Choice([]), "there is nothing to choose from"),
        (lambda: sample({}, 1), "there is nothing to draw"),
        (lambda: sample(SPACE, -1), "n is not a count: -1"),
        (lambda: sample(SPACE, 1, seed=-1), "seed is not a count: -1"),
        (
            lambda: sample({"a": Uniform(0, 1), "b": 3}, 1),  # type: ignore[dict-item]
            "b is no distribution: 3",
        ),
        (lambda: Choice({"a", "b"}), "a set has no order"),
        (
            lambda: sample(SPACE, 1, method="magic"),  # type: ignore[arg-type]
            "there is no method 'magic'",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(call: Any, reason: str) -> None:
    with pytest.raises(exceptions.InvalidValuesInConfiguration, match=reason):
        call()


def test_numbers_of_numpy_are_seeds_too() -> None:
    seed: Any = np.int64(3)
    assert sample(SPACE, 3, seed=seed) == sample(SPACE, 3, seed=3)
