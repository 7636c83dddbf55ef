"""Fill: what is missing, once, with any number of fillers."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.space.grid import Grid
from pyexp_daemon.store import fill, filling, migrations, open_blocking_store, release, structure
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
    rows = list(grid_of_bench(bench))
    assert fill.first_copies(bench.table, rows) == {mark: mark for _, mark in rows}


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


def repeated(make_bench: Callable[..., Bench], times: int, *, rows: int = 3, create: bool = True) -> Bench:
    """A table whose every row is there so often, and once more one that the grid has only once."""
    when = {"when": {"x": list(range(1, rows))}}
    keyfields = {
        "x": {"type": "INT", "values": list(range(rows))},
        "trial": {"type": "INT", "values": {"repeat": [0, times]}, **when},
    }
    return make_bench(create=create, keyfields=keyfields)


def grid_of_bench(bench: Bench) -> Grid:
    return Grid.of(bench.config.database.table.keyfields, provider=bench.config.database.provider)


def release_table(bench: Bench) -> None:
    """What `pyexpd db release` leaves."""
    statements = release.statements(bench.table, bench.blocking.read(structure.inspect(bench.table)))
    bench.blocking.change_schema([migrations.ddl(statement) for statement in statements])


def prints(bench: Bench) -> list[tuple[Any, ...]]:
    return bench.query("SELECT ID, pyexpd_fingerprint FROM exp ORDER BY ID")


async def test_copies_are_found_again_in_a_table_that_was_released(make_bench: Callable[..., Bench]) -> None:
    bench = repeated(make_bench, 3)
    before, grid = prints(bench), grid_of_bench(bench)
    assert len(before) == len(grid) == 7
    release_table(bench)
    bench.execute(
        "INSERT INTO exp (x, trial, status) VALUES (0, NULL, 'created'), (2, 0, 'created'), (9, 0, 'created')"
    )
    foreseen = filling.preview(bench.blocking, bench.table, grid)
    filled = filling.fill_table(bench.blocking, bench.table, grid)
    for done in (foreseen, filled):
        assert (done.added, done.there, done.others, done.duplicates) == (0, 7, 1, [(8, 1), (9, 3)])
    assert prints(bench)[:7] == before
    again = filling.preview(bench.blocking, bench.table, grid)
    assert (again.added, again.there, again.others, again.duplicates) == (0, 7, 1, [(8, 1), (9, 3)])
    more = repeated(make_bench, 4, create=False)
    foreseen = filling.preview(more.blocking, more.table, grid_of_bench(more))
    filled = filling.fill_table(more.blocking, more.table, grid_of_bench(more))
    for done in (foreseen, filled):
        assert (done.added, done.there, done.duplicates) == (1, 8, [(8, 1)])  # of x = 2 there were four


async def test_copies_that_matches_tell_apart_are_found_again(make_bench: Callable[..., Bench]) -> None:
    keyfields = {
        "x": {"type": "INT", "values": {"repeat": [1, 4]}},
        "tag": {"type": "VARCHAR(9)", "values": {"match": ["a", "b", "a", "a"]}},
    }
    bench = make_bench(keyfields=keyfields)
    before = prints(bench)
    release_table(bench)
    filled = filling.fill_table(bench.blocking, bench.table, grid_of_bench(bench))
    assert (filled.added, filled.there, filled.duplicates) == (0, 4, [])
    assert prints(bench) == before


async def test_concurrent_fillers_of_a_released_table_find_every_copy_once(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = repeated(make_bench, 5, rows=40)
    monkeypatch.setattr(type(bench.table.dialect), "fill_rows", 7)
    before, grid = prints(bench), grid_of_bench(bench)
    release_table(bench)
    bench.execute("DELETE FROM exp WHERE ID IN (2, 100)")
    filling.ensure_tables(bench.blocking, bench.table)
    left = filling.mark_existing(bench.blocking, bench.table)
    found: list[tuple[int, int]] = []

    def filler() -> None:
        store = open_blocking_store(bench.config)
        spare: fill.Spare = {}
        for number, owner in left:
            spare.setdefault(owner, deque()).append(number)
        found.append(filling.insert_missing(store, bench.table, grid, spare=spare))
        store.close()

    threads = [threading.Thread(target=filler) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(added for added, _ in found) == 2
    assert bench.query("SELECT COUNT(*), COUNT(pyexpd_fingerprint) FROM exp") == [(len(before), len(before))]
    assert {mark for _, mark in prints(bench)} == {mark for _, mark in before}


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
