"""Fill: what is missing, once, with any number of fillers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.space.grid import Grid
from pyexp_daemon.store import fill, filling, open_blocking_store
from pyexp_daemon.store.unit import Unit
from tests.bench import Bench


async def test_a_refill_adds_nothing_and_burns_no_numbers(bench: Bench) -> None:
    assert bench.fill() == 0
    bench.execute("INSERT INTO exp (x, status) VALUES (77, 'created')")
    assert bench.query("SELECT MAX(ID) FROM exp") == [(6,)]


@pytest.mark.parametrize(
    "keyfields",
    [
        {"a": {"type": "NUMERIC", "values": [1, 2, 3]}},
        {"a": {"type": "NUMERIC(10,2)", "values": [1, 1.5, 2, 2.25]}},
        {"a": {"type": "VARCHAR(255)", "values": [1, 2, "x", 0.5, True, "🌱", ""]}},
        {"a": {"type": "DATETIME", "values": ["2024-01-01 10:00:00", "2024-01-02"]}},
        {"a": {"type": "DATE", "values": ["2024-01-01"]}},
        {"a": {"type": "FLOAT", "values": {"start": 0, "stop": 1, "step": 0.1}}},
        {"a": {"type": "DOUBLE", "values": {"start": 0, "stop": 1, "step": 0.1}}},
        {"a": {"type": "DOUBLE", "values": [1e16, -0.0, 1e-300, 3]}},
        {"a": {"type": "BOOL", "values": [True, False]}},
        {"a": {"type": "BIGINT", "values": [2**53 + 1, -(2**62)]}},
        {"a": {"type": "LONGTEXT", "values": ["long " * 1000]}},
        {"a": {"type": "INT"}},
        {
            "a": {"type": "DOUBLE", "values": {"log": [1e-4, 0.1, 7]}},
        },
        {"a": {"type": "INT", "values": [1, 2]}, "b": {"type": "VARCHAR(9)", "values": {"match": ["x", "y"]}}},
        {"order": {"type": "INT", "values": [1]}, "select": {"type": "VARCHAR(9)", "values": ["k"]}},
    ],
)
async def test_every_type_is_found_again_by_a_refill(make_bench: Callable[..., Bench], keyfields: dict) -> None:  # type: ignore[type-arg]
    """Also when only the stored values are left to go by."""
    bench = make_bench(keyfields=keyfields)
    expected = len(Grid.of(bench.config.database.table.keyfields, provider=bench.config.database.provider))
    assert bench.query("SELECT COUNT(*) FROM exp") == [(expected,)]
    bench.execute("UPDATE exp SET pyexpd_fingerprint = NULL")
    assert bench.run(fill.fingerprint_rows(bench.table)).duplicates == []
    assert bench.fill() == 0


async def test_the_function_receives_the_same_values_from_every_database(make_bench: Callable[..., Bench]) -> None:
    import datetime

    keyfields = {
        "i": {"type": "INT", "values": [2.0]},
        "f": {"type": "DOUBLE", "values": [0.1]},
        "n": {"type": "NUMERIC(10,2)", "values": [1.5]},
        "t": {"type": "VARCHAR(20)", "values": ["a'b\\c%s?;🌱"]},
        "d": {"type": "DATETIME", "values": ["2024-05-06 07:08:09"]},
        "b": {"type": "BOOL", "values": [True]},
        "none": {"type": "INT"},
    }
    bench = make_bench(keyfields=keyfields)
    (claim,) = bench.claim(bench.register())
    received = dict(claim.keyfields)
    assert received == {
        "i": 2,
        "f": 0.1,
        "n": 1.5,
        "t": "a'b\\c%s?;🌱",
        "d": datetime.datetime(2024, 5, 6, 7, 8, 9),  # noqa: DTZ001
        "b": True,
        "none": None,
    }
    assert [type(value) for value in received.values()] == [int, float, float, str, datetime.datetime, bool, type(None)]


async def test_more_copies_are_added_to_those_that_are_there(make_bench: Callable[..., Bench]) -> None:
    def repeated(times: int) -> Bench:
        values = {"x": {"type": "INT", "values": [1, 2]}, "trial": {"type": "INT", "values": {"repeat": [0, times]}}}
        return make_bench(create=times == 2, keyfields=values)

    first = repeated(2)
    assert first.query("SELECT x, trial FROM exp ORDER BY ID") == [(1, 0), (2, 0)] * 2
    assert repeated(3).fill() == 2
    assert first.query("SELECT x, COUNT(*) FROM exp GROUP BY x ORDER BY x") == [(1, 3), (2, 3)]


async def test_concurrent_fillers_add_each_row_once(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(rows=3000, filled=False)
    rows = list(Grid.of(bench.config.database.table.keyfields, provider=bench.config.database.provider))
    added: list[int] = []

    def filler() -> None:
        store = open_blocking_store(bench.config)
        for at in range(0, len(rows), 500):
            while not store.run(fill.lock(bench.table)):
                pass
            added.append(store.run(fill.insert(bench.table, rows[at : at + 500])))
            store.run(fill.unlock(bench.table))
        store.close()

    threads = [threading.Thread(target=filler) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(added) == 3000
    assert bench.query("SELECT COUNT(*), MAX(ID) FROM exp") == [(3000, 3000)]


async def test_whole_fills_at_the_same_time_add_each_row_once(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filler looks for nothing as long as it is alone in a new table, and is not alone any more at any moment."""
    bench = make_bench(rows=3000, filled=False)
    monkeypatch.setattr(type(bench.table.dialect), "fill_rows", 100)
    grid = Grid.of(bench.config.database.table.keyfields, provider=bench.config.database.provider)
    added: list[int] = []

    def filler() -> None:
        store = open_blocking_store(bench.config)
        added.append(filling.insert_missing(store, bench.table, grid)[0])
        store.close()

    threads = [threading.Thread(target=filler) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(added) == 3000
    assert bench.query("SELECT COUNT(*) FROM exp") == [(3000,)]
    if bench.database.server:  # SQLite's fillers exclude each other only within a transaction
        assert bench.query("SELECT MAX(ID) FROM exp") == [(3000,)]


async def test_fingerprints_are_looked_for_unless_all_that_is_there_was_just_inserted(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(rows=50, filled=False)
    monkeypatch.setattr(type(bench.table.dialect), "fill_rows", 10)
    grid = Grid.of(bench.config.database.table.keyfields, provider=bench.config.database.provider)
    chunks: list[bool] = []
    insert = fill.insert

    def noted(*args: Any, are_new: bool, **options: Any) -> Unit[int]:
        chunks.append(are_new)
        return insert(*args, are_new=are_new, **options)

    def another_adds_one(_: int) -> None:
        if len(chunks) == 2:
            bench.execute("INSERT INTO exp (x, status) VALUES (77, 'created')")

    monkeypatch.setattr(fill, "insert", noted)
    assert filling.insert_missing(bench.blocking, bench.table, grid, advanced=another_adds_one) == (50, 0)
    assert filling.insert_missing(bench.blocking, bench.table, grid) == (0, 50)
    assert chunks == [True, True, False, False, False, *[False] * 5]


async def test_a_row_made_by_hand_is_found_by_fill_and_run(bench: Bench) -> None:
    bench.execute("INSERT INTO exp (x, status) VALUES (4, 'created'), (9, 'created')")
    done = bench.run(fill.fingerprint_rows(bench.table))
    assert (done.marked, done.duplicates) == (1, [(6, 5)])
    assert [claim.keyfields["x"] for claim in bench.claim(bench.register(), 10)] == [0, 1, 2, 3, 4, 4, 9]


async def test_a_value_its_column_refuses_changes_nothing(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(filled=False)
    bad = 2**40 if bench.database.server else 2**70  # more than INT and SQLite's integers hold
    with pytest.raises(exceptions.RowRefused):
        bench.run(fill.insert(bench.table, [((1,), b"1" * 16), ((bad,), b"2" * 16)]))
    assert bench.query("SELECT COUNT(*) FROM exp") == [(0,)]
