from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyexp_daemon import exceptions
from pyexp_daemon.config.load import load_config
from pyexp_daemon.space.grid import Grid, grid_of, grid_of_rows
from pyexp_daemon.space.identity import NULL, ColumnType, copy_of, fingerprint
from pyexp_daemon.space.ranges import range_values
from pyexp_daemon.space.variables import Linear, LogLinear, Match, Repeat


@dataclass(frozen=True)
class Keyfield:
    type: str
    values: Sequence[Any] | None = None
    when: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def grid(**keyfields: Keyfield) -> Grid:
    return Grid.of(keyfields, provider="sqlite")


def numpy_order(pools: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """How PyExperimenter orders combinations."""
    combined = np.stack(np.meshgrid(*pools), axis=-1) if len(pools) == 1 else np.array(np.meshgrid(*pools)).T
    return [tuple(map(int, row)) for row in combined.reshape(-1, len(pools))]


@pytest.mark.parametrize("sizes", [(3,), (2, 3), (2, 3, 2), (2, 3, 2, 3), (3, 1, 2, 2, 2)])
def test_the_order_is_pyexperimenters(sizes: tuple[int, ...]) -> None:
    pools = [range(size) for size in sizes]
    made = grid(**{f"k{i}": Keyfield("INT", pool) for i, pool in enumerate(pools)})
    assert [values for values, _ in made] == numpy_order(pools)


def test_with_two_keyfields_the_first_is_outermost() -> None:
    made = grid(a=Keyfield("INT", [0, 1]), b=Keyfield("INT", [0, 1]))
    assert [values for values, _ in made] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_with_three_keyfields_the_third_is_outermost() -> None:
    made = grid(a=Keyfield("INT", [0, 1]), b=Keyfield("INT", [0, 1]), c=Keyfield("INT", [0, 1]))
    rows = ["".join(map(str, values)) for values, _ in made]
    assert rows == ["000", "010", "100", "110", "001", "011", "101", "111"]


def test_rows_have_the_fingerprint_of_their_values() -> None:
    made = grid(Zeta=Keyfield("DOUBLE", [0.1, 1]), alpha=Keyfield("VARCHAR(3)", [1, "a"]), mid=Keyfield("INT"))
    assert made.columns == ("Zeta", "alpha", "mid")
    rows = list(made)
    assert rows[0][0] == (0.1, "1", None)
    assert rows[0][1] == fingerprint([("Zeta", b"n0.1"), ("alpha", b"t1"), ("mid", NULL)])
    assert len({identity for _, identity in rows}) == len(rows) == len(made) == 4


def test_a_grid_can_be_walked_again_and_only_in_part() -> None:
    made = grid(a=Keyfield("INT", range_values(0, 1000)), b=Keyfield("INT", range_values(0, 1000)))
    assert len(made) == 10**6
    assert [values for values, _ in islice(made, 2)] == [(0, 0), (0, 1)]
    assert [values for values, _ in islice(made, 2)] == [(0, 0), (0, 1)]


def test_a_keyfield_without_values_is_one_null() -> None:
    assert [values for values, _ in grid(a=Keyfield("INT"), b=Keyfield("INT", [1, None]))] == [(None, 1), (None, None)]


@pytest.mark.parametrize(
    ("keyfield", "message", "hint"),
    [
        (
            Keyfield("NUMERIC", [1, 1.5, 2, 2.5]),
            "1.5 and 2 are the same value in NUMERIC",
            "use NUMERIC(10,1) or DOUBLE",
        ),
        (Keyfield("NUMERIC", [2, 1.5]), "2 and 1.5 are the same value in NUMERIC", "use NUMERIC(10,1) or DOUBLE"),
        (Keyfield("NUMERIC", [1.5, 1.6]), "1.5 and 1.6 are the same value in NUMERIC", "use NUMERIC(10,1) or DOUBLE"),
        (Keyfield("INT", [3, 3]), "3 is listed twice", None),
        (Keyfield("INT", [1, "1"]), "1 and '1' are the same value in INT", "keep one of them"),
        (Keyfield("INT", [1, 2.0, 2]), "2.0 and 2 are the same value in INT", "keep one of them"),
        (Keyfield("INT", [0.5]), "0.5 is not a whole number (INT)", "use DOUBLE"),
        (Keyfield("INT", [10**30]), f"{10**30} is too large for an integer column (INT)", "use BIGINT"),
        (Keyfield("INT", [None, None]), "None is listed twice", None),
        (Keyfield("BOOL", [0, 1, 2]), "2 is not true or false (BOOL)", "use BIGINT"),
        (Keyfield("BOOL", ["a"]), "'a' is not true or false (BOOL)", "use VARCHAR(255)"),
        (Keyfield("DOUBLE", [0.1, "abc"]), "'abc' is not a number (DOUBLE)", "use VARCHAR(255)"),
        (
            Keyfield("DOUBLE", [0.3, 0.1 + 0.2]),
            "0.3 and 0.30000000000000004 are the same value in DOUBLE",
            "keep one of them",
        ),
        (Keyfield("DOUBLE", [math.nan]), "nan is not a finite number (DOUBLE)", None),
        (
            Keyfield("FLOAT", [0.1234567, 0.12345671]),
            "0.1234567 and 0.12345671 are the same value in FLOAT",
            "keep one of them",
        ),
        (Keyfield("FLOAT", [1e39]), "1e+39 is too large for FLOAT (FLOAT)", "use DOUBLE"),
        (Keyfield("VARCHAR(3)", ["abcd"]), "'abcd' is longer than 3 characters (VARCHAR(3))", "use VARCHAR(4)"),
        (
            Keyfield("VARCHAR(3)", ["abcd", "abc"]),
            "'abcd' and 'abc' are the same value in VARCHAR(3)",
            "use VARCHAR(4)",
        ),
        (Keyfield("VARCHAR(9)", [{"a": 1}]), "{'a': 1} is not text (VARCHAR(9))", "use JSON"),
        (Keyfield("INT", [[1, 2]]), "[1, 2] is not a number (INT)", "use JSON"),
        (
            Keyfield("DATETIME", ["2024-01-01 00:00:00.25"]),
            "'2024-01-01 00:00:00.25' has a fraction of a second, which the column does not keep (DATETIME)",
            "use DATETIME(6)",
        ),
        (
            Keyfield("DATETIME", ["2024-01-01 00:00:00.75", "2024-01-01 00:00:01"]),
            "'2024-01-01 00:00:00.75' and '2024-01-01 00:00:01' are the same value in DATETIME",
            "use DATETIME(6)",
        ),
        (Keyfield("INT", []), "the list of values is empty", None),
    ],
)
def test_values_that_do_not_fit_are_named(keyfield: Keyfield, message: str, hint: str | None) -> None:
    with pytest.raises(exceptions.InvalidValuesInConfiguration) as caught:
        grid(good=Keyfield("INT", [1]), sigma=keyfield)
    assert (str(caught.value), caught.value.hint) == (f"keyfield sigma: {message}", hint)


def test_what_only_one_database_refuses_depends_on_the_provider() -> None:
    small = {"a": Keyfield("TINYINT", [300])}
    assert len(Grid.of(small, provider="sqlite")) == 1
    with pytest.raises(exceptions.InvalidValuesInConfiguration, match=r"300 is outside -128 … 127 \(TINYINT\)"):
        Grid.of(small, provider="mysql")
    large = {"a": Keyfield("BIGINT UNSIGNED", [2**63])}
    assert len(Grid.of(large, provider="mysql")) == 1
    with pytest.raises(exceptions.InvalidValuesInConfiguration, match="is outside"):
        Grid.of(large, provider="sqlite")


def test_a_grid_needs_keyfields() -> None:
    with pytest.raises(exceptions.InvalidValuesInConfiguration, match="there are no keyfields"):
        grid()


def test_a_grid_that_cannot_be_counted_is_refused() -> None:
    many = {f"k{i}": Keyfield("INT", range_values(0, 10_000)) for i in range(5)}
    with pytest.raises(exceptions.InvalidValuesInConfiguration, match="more combinations than can be counted"):
        Grid.of(many, provider="sqlite")


SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@given(sizes=SIZES)
def test_the_count_is_the_product(sizes: list[int]) -> None:
    made = grid(**{f"k{i}": Keyfield("INT", range(size)) for i, size in enumerate(sizes)})
    rows = list(made)
    assert len(made) == len(rows) == math.prod(sizes)
    assert len({identity for _, identity in rows}) == len({values for values, _ in rows}) == len(rows)


@given(sizes=SIZES, data=st.data())
def test_identity_ignores_the_order_of_keyfields(sizes: list[int], data: st.DataObject) -> None:
    keyfields = {f"k{i}": Keyfield("INT", range(size)) for i, size in enumerate(sizes)}
    shuffled = dict(data.draw(st.permutations(list(keyfields.items()))))
    one, other = Grid.of(keyfields, provider="sqlite"), Grid.of(shuffled, provider="sqlite")
    assert {identity for _, identity in one} == {identity for _, identity in other}


COLUMNS = {"lr": Keyfield("DOUBLE"), "seed": Keyfield("INT")}


def test_explicit_rows_keep_their_order_and_ignore_that_of_their_keys() -> None:
    made = grid_of_rows([{"seed": 1, "lr": 0.1}, {"lr": 0, "seed": np.int64(2)}], COLUMNS, "sqlite")
    assert made.columns == ("lr", "seed")
    assert len(made) == 2
    assert [values for values, _ in made] == [(0.1, 1), (0.0, 2)]


def test_explicit_rows_have_the_identity_of_a_grid() -> None:
    made = grid(lr=Keyfield("DOUBLE", [0.1, 0.2]), seed=Keyfield("INT", [1]))
    rows = grid_of_rows([{"lr": 0.1, "seed": 1}, {"lr": 0.2, "seed": 1}], COLUMNS, "sqlite")
    assert list(rows) == list(made)


def test_of_equal_rows_the_first_counts() -> None:
    rows = grid_of_rows([{"lr": 0.1, "seed": 1}, {"lr": 0.2, "seed": 1}, {"seed": 1.0, "lr": 0.1}], COLUMNS, "sqlite")
    assert [values for values, _ in rows] == [(0.1, 1), (0.2, 1)]


@pytest.mark.parametrize(
    ("rows", "message", "hint"),
    [
        ([{"lr": 0.1, "seed": 1}, {"lr": 0.1}], "row 2: keyfield seed is missing", None),
        ([{"lr": 0.1, "seed": 1, "x": 2}], "row 1: 'x' is not a keyfield", "the keyfields are lr, seed"),
        ([{"lr": 0.1, "seed": 1.5}], "row 1: keyfield seed: 1.5 is not a whole number (INT)", "use DOUBLE"),
    ],
)
def test_explicit_rows_that_do_not_fit_are_named(rows: list[Mapping[str, Any]], message: str, hint: str | None) -> None:
    with pytest.raises(exceptions.ParameterCombinationError) as caught:
        grid_of_rows(rows, COLUMNS, "sqlite")
    assert (str(caught.value), caught.value.hint) == (message, hint)


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    file = tmp_path / "exp.yml"
    file.write_text(
        """
        PY_EXPERIMENTER:
          Database:
            provider: sqlite
            database: results
            table:
              name: runs
              keyfields:
                lr: {type: DOUBLE, values: {start: 0, stop: 0.3, step: 0.1}}
                flag: {type: BOOL, values: [true, false]}
                day: {type: DATE}
        """
    )
    return file


def test_a_configuration_is_expanded_to_what_the_function_receives(configuration: Path) -> None:
    config = load_config(configuration)
    experiments = list(grid_of(config).experiments())
    assert experiments[:2] == [{"lr": 0.0, "flag": True, "day": None}, {"lr": 0.0, "flag": False, "day": None}]
    assert type(experiments[0]["flag"]) is bool
    assert len(experiments) == len(grid_of(config)) == 6


def keys(rows: Grid) -> list[tuple[Any, ...]]:
    return [values for values, _ in rows]


def test_variables_are_values_of_a_keyfield() -> None:
    rows = grid(lr=Keyfield("DOUBLE", LogLinear(1e-2, 1, 3)), width=Keyfield("INT", Linear(16, 48, 3)))
    listed = grid(lr=Keyfield("DOUBLE", [0.01, 0.1, 1]), width=Keyfield("INT", [16, 32, 48]))
    assert list(rows) == list(listed)
    with pytest.raises(exceptions.InvalidValuesInConfiguration, match=r"0\.5 and 1 are the same value in INT"):
        grid(width=Keyfield("INT", Linear(0, 1, 3)))


def test_what_is_repeated_is_there_again_after_all_combinations_each_copy_with_a_fingerprint_of_its_own() -> None:
    once = grid(x=Keyfield("INT", [1, 2]), y=Keyfield("INT", [7]))
    often = grid(x=Keyfield("INT", [1, 2]), y=Keyfield("INT", Repeat(7, 3)))
    assert len(often) == 6
    assert keys(often) == keys(once) * 3
    assert list(often)[:2] == list(once)
    assert len({mark for _, mark in often}) == 6
    named = [("x", ColumnType.parse("INT").canonical(2)[1]), ("y", ColumnType.parse("INT").canonical(7)[1])]
    marks = [mark for values, mark in often if values == (2, 7)]
    assert marks == [fingerprint(named, copy=copy) for copy in range(3)]
    assert [copy_of(mark, [], named) for mark in marks] == [0, 1, 2]
    assert copy_of(b"none of them", named) == 0
    assert copy_of(fingerprint(named, copy=4321), [], named) == 4321


def test_more_copies_leave_those_that_were_there() -> None:
    few, many = (grid(x=Keyfield("INT", [1, 2]), y=Keyfield("INT", Repeat(7, n))) for n in (2, 5))
    assert list(many)[: len(few)] == list(few)
    two = grid(x=Keyfield("INT", Repeat(1, 2)), y=Keyfield("INT", Repeat(7, 3)))
    assert len({mark for _, mark in two}) == len(two) == 6


def test_what_matches_advances_with_the_combinations() -> None:
    rows = grid(
        tag=Keyfield("VARCHAR(9)", Match(list("abcdef"))),
        x=Keyfield("INT", [1, 2]),
        y=Keyfield("INT", [5, 6, 7]),
        again=Keyfield("INT", Match([0, 0, 0, 1, 1, 1])),
    )
    plain = grid(x=Keyfield("INT", [1, 2]), y=Keyfield("INT", [5, 6, 7]))
    assert len(rows) == 6
    assert [(x, y) for _, x, y, _ in keys(rows)] == keys(plain)
    assert [(tag, again) for tag, _, _, again in keys(rows)] == list(zip("abcdef", [0, 0, 0, 1, 1, 1], strict=True))
    types = {"tag": "VARCHAR(9)", "x": "INT", "y": "INT", "again": "INT"}
    named = [
        (name, ColumnType.parse(types[name]).canonical(value)[1])
        for name, value in zip(types, keys(rows)[3], strict=True)
    ]
    assert list(rows)[3][1] == fingerprint(named)


def test_a_match_of_another_length_is_refused() -> None:
    reason = "keyfield tag: a match of 2 values, and 6 combinations"
    with pytest.raises(exceptions.InvalidValuesInConfiguration, match=reason):
        grid(tag=Keyfield("VARCHAR(9)", Match(["a", "b"])), x=Keyfield("INT", [1, 2]), y=Keyfield("INT", Repeat(1, 3)))


def test_values_are_checked_at_expansion_and_not_at_load(configuration: Path) -> None:
    config = load_config(configuration, overrides={"Database.table.keyfields.flag.values": [7]})
    with pytest.raises(exceptions.InvalidValuesInConfiguration, match="7 is not true or false"):
        grid_of(config)


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_the_numpy_spelling_of_a_grid_is_the_same(value: float) -> None:
    plain, spelt = (grid(x=Keyfield("DOUBLE", [number])) for number in (value, np.float64(value)))
    assert list(plain) == list(spelt)
    assert ColumnType.parse("DOUBLE").canonical(value)[0] == next(iter(plain))[0][0]


def test_a_column_of_few_decimals_rounds_and_says_so() -> None:
    """As MySQL does without a word and SQLite does not: the row is the same on both, and a refill finds it again."""
    keyfield = Keyfield("NUMERIC(10,2)", [1, 2.256])
    grid = Grid.of({"budget": keyfield}, provider="sqlite")
    assert [values for values, _ in grid] == [(1,), (2.26,)]
    assert grid.notes == ["keyfield budget: 2.256 is stored as 2.26 (NUMERIC(10,2))"]
    same = Grid.of({"budget": Keyfield("NUMERIC(10,2)", [1, 2.26])}, provider="mysql")
    assert [fingerprint for _, fingerprint in same] == [fingerprint for _, fingerprint in grid]
    assert same.notes == []
