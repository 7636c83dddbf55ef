"""Conditional grids: what depends on other keyfields, and what is left out."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyexp_daemon import exceptions
from pyexp_daemon.space.conditions import COPY, NONE, Conditions
from pyexp_daemon.space.grid import Grid
from pyexp_daemon.space.variables import Match, Repeat


@dataclass(frozen=True)
class Keyfield:
    values: Sequence[Any] | None = None
    type: str = "VARCHAR(20)"
    when: Mapping[str, Sequence[Any]] = field(default_factory=dict)


MODELS = {
    "model": Keyfield(["svm", "forest"]),
    "kernel": Keyfield(["rbf", "poly"], when={"model": ["svm"]}),
    "degree": Keyfield([2, 3], "INT", when={"kernel": ["poly"]}),
    "trees": Keyfield([10, 100, 1000], "INT", when={"model": ["forest"]}),
    "seed": Keyfield(range(5), "INT"),
}


def grid(keyfields: Mapping[str, Keyfield], *exclude: Mapping[str, Sequence[Any]]) -> Grid:
    return Grid.of(keyfields, provider="sqlite", exclude=exclude)


def rows(of: Grid) -> list[tuple[Any, ...]]:
    return [values for values, _ in of]


def test_a_keyfield_has_values_only_with_those_of_others() -> None:
    models = grid(MODELS)
    assert len(models) == len(rows(models)) == len({mark for _, mark in models}) == 30
    assert {values[:4] for values in rows(models)} == {
        ("svm", "rbf", None, None),
        ("svm", "poly", 2, None),
        ("svm", "poly", 3, None),
        ("forest", None, None, 10),
        ("forest", None, None, 100),
        ("forest", None, None, 1000),
    }
    received = list(models.experiments())
    assert [tuple(row.values()) for row in received] == rows(models)


def test_combinations_are_left_out() -> None:
    some = grid(MODELS, {"trees": [1000], "seed": [3, 4]}, {"kernel": ["rbf"], "seed": [0]})
    assert len(some) == len(rows(some)) == 27
    assert set(rows(some)) == {
        row
        for row in rows(grid(MODELS))
        if not (row[3] == 1000 and row[4] in (3, 4)) and not (row[1] == "rbf" and row[4] == 0)
    }
    assert {row[0] for row in rows(grid(MODELS, {"degree": [None], "trees": [None]}))} == {"svm", "forest"}
    assert len(grid(MODELS, {"kernel": [None]})) == 15


def test_without_conditions_the_order_stays() -> None:
    plain = {name: Keyfield(keyfield.values, keyfield.type) for name, keyfield in MODELS.items()}
    assert rows(grid(plain, {"seed": [4]})) == [row for row in rows(grid(plain)) if row[4] != 4]


def test_null_is_that_of_the_list_and_that_of_a_keyfield_without_value() -> None:
    keyfields = {
        "model": Keyfield([1, 2], "INT"),
        "b": Keyfield([None, 2], "INT", when={"model": [1]}),
        "c": Keyfield([7], "INT", when={"b": [None]}),
    }
    assert set(rows(grid(keyfields))) == {(1, None, 7), (1, 2, None), (2, None, 7)}
    assert set(rows(grid(keyfields, {"b": [None], "model": [2]}))) == {(1, None, 7), (1, 2, None)}


def test_repeats_and_matches_go_with_what_is_left() -> None:
    keyfields = {**MODELS, "trial": Keyfield(Repeat(0, 2), "INT"), "tag": Keyfield(Match(range(60)), "INT")}
    both = grid(keyfields)
    assert [row["tag"] for row in both.experiments()] == list(range(60))
    assert len({mark for _, mark in both}) == 60
    with pytest.raises(exceptions.InvalidValuesInConfiguration, match="a match of 60 values, and 50 combinations"):
        grid(keyfields, {"seed": [4], "model": ["svm"]}, {"seed": [3], "model": ["forest"], "trees": [10, 100]})


def test_a_combination_in_which_the_repeated_keyfield_has_no_value_is_there_once() -> None:
    keyfields = {**MODELS, "trial": Keyfield(Repeat(0, 3), "INT", when={"model": ["svm"]})}
    some = grid(keyfields)
    trials = Counter(row for row in rows(some))
    assert {row[0]: (row[5], times) for row, times in trials.items()} == {"svm": (0, 3), "forest": (None, 1)}
    assert len(some) == len({mark for _, mark in some}) == 3 * 15 + 15
    assert [tuple(row.values()) for row in some.experiments()] == rows(some)
    once, more = (
        rows(grid({**keyfields, "trial": Keyfield(Repeat(0, n), "INT", when={"model": ["svm"]})})) for n in (1, 4)
    )
    assert rows(some)[: len(once)] == once
    assert more[: len(some)] == rows(some)


def test_copies_of_several_repeats_are_numbered_without_gaps() -> None:
    """Whichever of them apply: a larger number later adds to those that are there."""

    def marks(first: int, second: int) -> dict[Any, set[bytes]]:
        found = defaultdict(set)
        keyfields = {
            "model": Keyfield(["svm", "forest", "none"]),
            "a": Keyfield(Repeat(0, first), "INT", when={"model": ["svm", "forest"]}),
            "b": Keyfield(Repeat(0, second), "INT", when={"model": ["svm"]}),
        }
        for values, mark in grid(keyfields):
            found[values[0]].add(mark)
        return found

    few, many = marks(2, 3), marks(2, 4)
    assert {name: len(copies) for name, copies in few.items()} == {"svm": 6, "forest": 2, "none": 1}
    assert {name: len(many[name] - few[name]) for name in few} == {"svm": 2, "forest": 0, "none": 0}
    assert all(few[name] <= many[name] for name in few)


def test_what_decides_about_copies_alone_is_counted() -> None:
    keyfields = {
        "model": Keyfield(["svm", "forest"]),
        "trial": Keyfield(Repeat(0, 10**6), "INT", when={"model": ["svm"]}),
        "other": Keyfield(Repeat(0, 10**6), "INT", when={"model": ["forest"]}),
        "seed": Keyfield(range(1000), "INT"),
    }
    large = grid(keyfields)
    assert large.count() == 2 * 10**9
    assert [values for values, _ in islice(large, 2)] == [("svm", 0, None, 0), ("svm", 0, None, 1)]


@pytest.mark.parametrize(
    ("exclude", "rule"),
    [
        ([{"model": ["svm", "forest"]}], 0),
        ([{"seed": [0]}, {"model": ["svm"]}, {"trees": [10, 100, 1000]}, {"seed": [1]}], 2),
    ],
)
def test_rules_that_leave_nothing_are_refused(exclude: list[Mapping[str, Any]], rule: int) -> None:
    with pytest.raises(exceptions.InvalidValuesInConfiguration, match=rf"^exclude\[{rule}\]: no combination is left$"):
        grid(MODELS, *exclude)


@pytest.mark.parametrize(
    ("when", "exclude", "reason", "hint"),
    [
        (
            {"modl": ["svm"]},
            [],
            "keyfield kernel: when: 'modl' is no keyfield with combinations",
            "did you mean 'model'?",
        ),
        ({"model": ["swm"]}, [], "keyfield kernel: when: model: 'swm' is none of its values", None),
        ({"degree": [2]}, [], "condition depends on itself", None),
        ({"kernel": ["rbf"]}, [], "keyfield kernel: its condition depends on itself", None),
        ({"tag": [1]}, [], "keyfield kernel: when: 'tag' is no keyfield with combinations", None),
        ({"model": ["svm"]}, [{"seed": [7]}], r"exclude\[0\]: seed: 7 is none of its values", None),
        ({"model": ["svm"]}, [{}], r"exclude\[0\]: it names no keyfield", None),
    ],
)
def test_a_condition_that_cannot_be_meant_is_refused(
    when: Mapping[str, Any], exclude: list[Mapping[str, Any]], reason: str, hint: str | None
) -> None:
    keyfields = {**MODELS, "kernel": Keyfield(["rbf", "poly"], when=when), "tag": Keyfield(Match([1]), "INT")}
    with pytest.raises(exceptions.InvalidValuesInConfiguration, match=reason) as caught:
        grid(keyfields, *exclude)
    assert caught.value.hint == hint


def test_what_matches_has_no_condition() -> None:
    keyfields = {"x": Keyfield(["a"]), "tag": Keyfield(Match([1]), "INT", when={"x": ["a"]})}
    with pytest.raises(exceptions.InvalidValuesInConfiguration, match="keyfield tag: what matches has no condition"):
        grid(keyfields)


@st.composite
def spaces(draw: st.DrawFn) -> tuple[list[int], Conditions]:
    """Columns with few choices; each may depend on ones before it in a random order."""
    lengths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    order = draw(st.permutations(range(len(lengths))))

    def condition(columns: Sequence[int]) -> Any:
        choices = {
            column: st.sets(st.integers(NONE, lengths[column] - 1), min_size=1, max_size=2) for column in columns
        }
        return st.fixed_dictionaries({}, optional=choices).filter(bool)

    when = {
        column: draw(condition(order[:place])) for place, column in enumerate(order) if place and draw(st.booleans())
    }
    exclude = draw(st.lists(condition(order), max_size=3))
    repeats = draw(st.dictionaries(st.sampled_from(order), st.integers(1, 3), max_size=2))
    return lengths, Conditions(when=when, exclude=exclude, repeats=repeats)


@given(space=spaces())
def test_there_are_those_combinations_that_meet_the_conditions_each_once_and_as_many_as_counted(
    space: tuple[list[int], Conditions],
) -> None:
    lengths, conditions = space
    arranged = conditions.arranged(range(len(lengths)))

    def meets(row: tuple[int, ...], condition: Mapping[int, Any]) -> bool:
        return all(row[column] in choices for column, choices in condition.items())

    def fits(row: tuple[int, ...]) -> bool:
        dependent = all(
            (row[column] != NONE) == (column not in conditions.when or meets(row, conditions.when[column]))
            for column in range(len(lengths))
        )
        return dependent and not any(meets(row, rule) for rule in conditions.exclude)

    wanted = {row for row in product(*(range(NONE, length) for length in lengths)) if fits(row)}
    found = list(conditions.combinations(lengths, arranged))
    assert len(found) == len(set(found))
    assert set(found) == wanted
    times = {row: math.prod(n for column, n in conditions.repeats.items() if row[column] != NONE) for row in wanted}
    most = conditions.most_copies(lengths, arranged)
    copied = list(conditions.combinations([*lengths, most], [COPY, *arranged]))
    assert conditions.count(lengths, arranged) == len(copied) == sum(times.values())
    assert set(copied) == {(*row, copy) for row in wanted for copy in range(times[row])}
    assert most >= max(times.values(), default=1)
    assert (conditions.emptied_by(lengths, arranged) is None) == bool(wanted)
