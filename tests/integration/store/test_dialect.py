"""Where the databases differ by a fragment of SQL, they do the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyexp_daemon.store.dialect import MOST_CASES
from pyexp_daemon.store.unit import Commit, Steps, unit
from tests.bench import Bench


@unit
def _update(bench: Bench, assignments: dict[str, str], rows: list[list[Any]]) -> Steps[int]:
    dones = yield Commit(bench.table.dialect.update_rows(bench.table.main, assignments, rows))
    return sum(done.changed for done in dones)


async def test_each_row_is_set_to_values_of_its_own(make_bench: Callable[..., Bench]) -> None:
    """More rows than one statement has cases for, with values of several types, and a column that is alike in all."""
    count = 2 * MOST_CASES + 3
    bench = make_bench(rows=count + 1)
    wanted = [
        (number, [None, number, number / 7, float(number)][number % 4], f"{number} 'it' \\ ?%s", "alike")
        for number in range(1, count + 1)
    ]
    rows = [list(row) for row in wanted]
    assert bench.run(_update(bench, {"y": "{}", "note": "{}", "name": "{}"}, rows)) == count
    assert bench.query("SELECT ID, y, note, name FROM exp ORDER BY ID") == [*wanted, (count + 1, None, None, None)]


async def test_an_expression_is_applied_to_the_value_of_each_row(bench: Bench) -> None:
    expressions = {"y": "({} + 0.5)", "pyexpd_tries": "{}"}
    bench.run(_update(bench, expressions, [[1, 1, "a"], [2, 2, "a"], [4, None, "b"]]))
    assert bench.query("SELECT ID, y, pyexpd_tries FROM exp ORDER BY ID") == [
        (1, 1.5, "a"), (2, 2.5, "a"), (3, None, None), (4, None, "b"), (5, None, None),
    ]  # fmt: skip
