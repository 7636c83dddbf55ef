"""The turns of a crowd on real servers: taken at the end of a transaction, kept by nobody, and no reason to fail."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from typing import Any

import anyio
import anyio.to_thread
import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.store import open_store, packets, turns
from pyexp_daemon.store.turns import PATIENCE_S, TURNS, Turns
from pyexp_daemon.store.unit import Commit, Do, Steps, unit
from tests.bench import Bench
from tests.helpers import wait_until_async

pytestmark = pytest.mark.parametrize("database", ["mariadb", "mysql9"], indirect=True)

CHANGE = Do("UPDATE exp SET pyexpd_order = pyexpd_order + 1 WHERE ID = 1")


def sleep(seconds: float) -> Do:
    return Do("DO SLEEP(?)", (seconds,))


def error(code: int, text: str = "") -> Do:
    """A statement that the server answers with this error."""
    return Do(f"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = ?", (text,))


def names(bench: Bench) -> list[str]:
    return Turns(bench.database.name, is_crowded=lambda: True).names


def holders(bench: Bench) -> list[int]:
    """The sessions that have a turn now."""
    return [user for name in names(bench) for ((user,),) in [bench.query("SELECT IS_USED_LOCK(?)", name)] if user]


def asleep(bench: Bench) -> int:
    """How many sessions are in `sleep` now."""
    ((number,),) = bench.query(
        "SELECT COUNT(*) FROM information_schema.processlist WHERE state = 'User sleep' AND db = ?",
        bench.database.name,
    )
    return int(number)


def changes(bench: Bench) -> int:
    """How often CHANGE was committed."""
    ((order,),) = bench.query("SELECT pyexpd_order FROM exp WHERE ID = 1")
    return int(order)


@unit
def change(*also: Do) -> Steps[None]:
    yield Do("SELECT ID FROM exp WHERE ID = 1 FOR UPDATE")
    yield Commit([CHANGE, *also])


@asynccontextmanager
async def crowd(bench: Bench, *, of: int = 1, is_crowd: bool = True) -> AsyncIterator[list[Any]]:
    """The stores of so many daemons of a crowd."""
    opened = [open_store(bench.config, is_crowded=lambda: is_crowd) for _ in range(of)]
    try:
        with anyio.fail_after(60):
            yield opened
    finally:
        for store in opened:
            await store.close()


@pytest.mark.parametrize(("role", "took"), [("claim", True), ("write", True), ("admin", False)])
async def test_who_claims_or_writes_has_a_turn_until_the_commit(bench: Bench, role: str, took: bool) -> None:
    mine = [f"COALESCE(IS_USED_LOCK('{name}') = CONNECTION_ID(), 0)" for name in names(bench)]
    turns_of_mine = Do(f"SELECT {' + '.join(mine)}")

    @unit
    def look() -> Steps[tuple[int, int, int]]:
        first = yield turns_of_mine
        _, last, after = yield Commit([CHANGE, turns_of_mine], then=[turns_of_mine])
        return first.rows[0][0], last.rows[0][0], after.rows[0][0]

    async with crowd(bench) as (store,):
        assert await store.run(look(), role=role) == (0, int(took), 0)
    assert changes(bench) == 1


async def test_a_small_fleet_takes_no_turns(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets, "take", lambda name: pytest.fail(f"{name} was asked for"))
    await bench.store.run(change())
    assert changes(bench) == 1


async def test_whoever_fails_has_no_turn_any_more(bench: Bench) -> None:
    """The session goes on, and would keep it."""
    async with crowd(bench) as (store,):
        with pytest.raises(exceptions.RowRefused):
            await store.run(change(error(1406)))
        with pytest.raises(exceptions.RowRefused):
            await store.run(change(Do("UPDATE exp SET y = ?", (object(),))))  # before anything is sent
        with pytest.raises(exceptions.DatabaseQueryError):
            await store.run(change(error(1064)))
        assert holders(bench) == []
        assert changes(bench) == 0
        await store.run(change())
    assert changes(bench) == 1


async def test_a_unit_that_gives_way_is_repeated_and_gives_its_turn_back(bench: Bench) -> None:
    seen: list[list[int]] = []

    @unit
    def gives_way() -> Steps[None]:
        seen.append(holders(bench))
        yield CHANGE
        yield Commit([CHANGE, *([error(1213)] if len(seen) < 3 else [])])

    async with crowd(bench) as (store,):
        await store.run(gives_way())
        assert seen == [[]] * 3
        assert holders(bench) == []
    assert changes(bench) == 2


async def test_a_cancelled_caller_leaves_no_turn_behind(bench: Bench) -> None:
    async with crowd(bench) as (store,):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.run, change(sleep(3)))
            await wait_until_async(lambda: anyio.to_thread.run_sync(asleep, bench))
            tasks.cancel_scope.cancel()
        assert holders(bench) == []
    assert changes(bench) == 1


def hold(connection: Any, bench: Bench) -> None:
    """Have this session hold every turn."""
    cursor = connection.cursor()
    for name in names(bench):
        cursor.execute("SELECT GET_LOCK(%s, 5)", (name,))
        assert cursor.fetchall() == ((1,),)


async def test_turns_that_are_not_to_be_had_cost_a_moment_and_nothing_else(bench: Bench) -> None:
    """Somebody may sit on them for ever."""
    with closing(bench.database.connect()) as other:
        hold(other, bench)
        async with crowd(bench) as (store,):
            await store.run(CONNECT, role="write")
            began = time.monotonic()
            await store.run(change())
            took = time.monotonic() - began
    assert PATIENCE_S * 0.9 < took < PATIENCE_S * 10
    assert changes(bench) == 1


@unit
def _connect() -> Steps[None]:
    yield Do("SELECT 1")


CONNECT = _connect()


async def test_the_turn_of_a_session_that_dies_is_free(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURNS", 1)

    async def die(store: Any) -> None:
        with pytest.raises(exceptions.ConnectionLost):
            await store.run(change(sleep(10)))

    async with crowd(bench, of=2) as (one, other):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(die, one)
            (holder,) = await wait_until_async(lambda: anyio.to_thread.run_sync(holders, bench))
            bench.execute(f"KILL {holder}")
        await wait_until_async(lambda: not holders(bench))
        await other.run(change())
    assert changes(bench) == 1


@pytest.mark.parametrize("is_crowd", [True, False])
async def test_so_many_of_a_crowd_change_something_at_a_time(
    bench: Bench, is_crowd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "PATIENCE_S", 60)  # nobody goes on without one, however slow the others are
    dealt = itertools.count()  # by chance too many could meet at one
    monkeypatch.setattr(random, "choice", lambda names: names[next(dealt) % len(names)])
    daemons = 3 * TURNS
    most = 0

    @unit
    def take_long() -> Steps[None]:
        yield Commit([sleep(0.5), sleep(0.5)])

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, await anyio.to_thread.run_sync(asleep, bench))
            await anyio.sleep(0.01)

    async with crowd(bench, of=daemons, is_crowd=is_crowd) as opened, anyio.create_task_group() as tasks:
        for store in opened:
            await store.run(CONNECT)
        tasks.start_soon(watch)
        async with anyio.create_task_group() as all_of_them:
            for store in opened:
                all_of_them.start_soon(store.run, take_long())
        tasks.cancel_scope.cancel()
    assert (most <= TURNS) is is_crowd
    assert most > 1


async def test_a_server_without_such_locks_is_not_asked_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a Galera cluster, or some versions of it."""
    asked: list[str] = []
    refusal = error(1235, "This version of MariaDB doesn't yet support 'GET_LOCK in cluster (WSREP_ON=ON)'")

    def take(name: str) -> str:
        asked.append(name)
        return refusal.sql.replace("?", f'"{refusal.values[0]}"')

    monkeypatch.setattr(packets, "take", take)
    async with crowd(bench) as (store,):
        for role in ("write", "claim", "write"):
            await store.run(change(), role=role)
    assert changes(bench) == 3
    assert len(asked) == 1


async def test_a_change_of_the_schema_amid_a_crowd_is_waited_for(make_bench: Callable[..., Bench]) -> None:
    """It waits for open transactions; one of them may wait for a turn, whose holder waits for the change."""
    bench = make_bench(rows=8)
    with closing(bench.database.connect()) as other:
        cursor = other.cursor()
        async with crowd(bench, of=8) as opened, anyio.create_task_group() as tasks:
            for number, store in enumerate(opened):
                tasks.start_soon(work, store, number)
            await anyio.sleep(0.1)
            for number in range(5):
                column = f"ALTER TABLE exp ADD COLUMN extra{number} INT"
                await anyio.to_thread.run_sync(cursor.execute, column)
    assert bench.query("SELECT SUM(pyexpd_order) FROM exp") == [(4 * 30 * 1 + 4 * 30 * 2,)]


async def work(store: Any, number: int) -> None:
    for _ in range(30):
        await store.run(change_row(number + 1, twice=number % 2 == 0))


@unit
def change_row(number: int, *, twice: bool) -> Steps[None]:
    row = Do("UPDATE exp SET pyexpd_order = pyexpd_order + 1 WHERE ID = ?", (number,))
    if twice:
        yield row
    yield Commit([row, sleep(0.002)])
