"""Deadlocks and lock waits in each unit of work: it is repeated whole, and happens once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import anyio
import anyio.to_thread
import pytest

from pyexp_daemon.model import Claim, Incarnation
from pyexp_daemon.store import daemons, edits, leases, reports
from pyexp_daemon.store.selection import select
from pyexp_daemon.store.unit import Do, Steps, Unit
from tests.bench import POLICY, Bench, ended
from tests.helpers import wait_until_async

servers = pytest.mark.parametrize("database", ["mariadb"], indirect=True)


class Intruder:
    """A session that locks rows; it has written so much that the server ends any other in its favour."""

    def __init__(self, bench: Bench) -> None:
        self._connection = bench.database.connect()
        self._cursor = self._connection.cursor()
        self._cursor.execute("CREATE TABLE IF NOT EXISTS ballast (a INT)")

    def lock(self, table: str, number: int) -> None:
        self._cursor.execute(f"SELECT 1 FROM {table} WHERE ID = {number} FOR UPDATE")

    def begin(self) -> None:
        self._cursor.execute("BEGIN")
        self._cursor.execute(f"INSERT INTO ballast VALUES {', '.join(['(1)'] * 500)}")

    def rollback(self) -> None:
        self._cursor.execute("ROLLBACK")

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def intruder(bench: Bench) -> Iterator[Intruder]:
    with closing(Intruder(bench)) as intruder:
        yield intruder


def is_anybody_waiting(bench: Bench) -> bool:
    return bench.query("SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'") != [(0,)]


def record(bench: Bench, me: Incarnation, claims: list[Claim]) -> Unit[Any]:
    return reports.record(bench.table, [ended(claim) for claim in claims], me=me, host="h", policy=POLICY)


def sweep(bench: Bench, me: Incarnation, claims: list[Claim]) -> Unit[Any]:
    bench.kill_daemon(me)
    return daemons.sweep(bench.table, owner=me.id, policy=POLICY)


def take_back(bench: Bench, me: Incarnation, claims: list[Claim]) -> Unit[Any]:
    bench.kill_daemon(me)
    bench.run(daemons.sweep(bench.table, owner=me.id, policy=POLICY))
    return leases.take_back(bench.table, claims, me=bench.register(), token="t" * 32)


def release_unknown(bench: Bench, me: Incarnation, claims: list[Claim]) -> Unit[Any]:
    return leases.release_unknown(bench.table, me=me, held=[claim.key for claim in claims])


def reset(bench: Bench, me: Incarnation, claims: list[Claim]) -> Unit[Any]:
    return edits.reset(bench.table, bench.run(edits.seen(bench.table, select(bench.table, ids=["1", "2"]))))


LOST = [(1, 1, "lost"), (2, 1, "lost")]


@servers
@pytest.mark.parametrize(
    ("prepare", "statuses", "tries", "receipts"),
    [
        (record, "done", None, [(1, 1, "done"), (2, 1, "done")]),
        (sweep, "created", '{"lost": 1}', LOST),
        (take_back, "running", None, []),
        (release_unknown, "created", None, []),
        (reset, "created", None, []),
    ],
)
async def test_a_unit_that_a_deadlock_ended_is_repeated_whole(
    bench: Bench,
    intruder: Intruder,
    prepare: Callable[[Bench, Incarnation, list[Claim]], Unit[Any]],
    statuses: str,
    tries: str | None,
    receipts: list[tuple[int, int, str]],
) -> None:
    """The other locks the same two rows in the other order."""
    me = bench.register()
    unit = prepare(bench, me, bench.claim(me, 2))
    intruder.begin()
    intruder.lock("exp", 2)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, bench.run, unit)
            await wait_until_async(lambda: is_anybody_waiting(bench), interval=0.2)  # the server looks anew every 0.1 s
            await anyio.to_thread.run_sync(intruder.lock, "exp", 1)  # the unit had this one, and lost it
            intruder.rollback()
    assert bench.query("SELECT status, pyexpd_tries FROM exp WHERE ID IN (1, 2)") == [(statuses, tries)] * 2
    assert bench.receipts() == receipts


def beat(bench: Bench, me: Incarnation, claims: list[Claim]) -> Unit[Any]:
    return daemons.beat(bench.table, me=me, lease_s=5)


def declare_dead(bench: Bench, me: Incarnation, claims: list[Claim]) -> Unit[Any]:
    (daemon,) = bench.run(daemons.look(bench.table))
    return daemons.declare_dead(bench.table, daemon)


def drain(bench: Bench, me: Incarnation, claims: list[Claim]) -> Unit[Any]:
    return daemons.change_state(bench.table, me=me, state="draining")


@servers
@pytest.mark.parametrize(
    ("prepare", "locked", "state", "beats", "receipts"),
    [
        (beat, "exp__pyexpd_daemons", "live", 1, []),
        (declare_dead, "exp__pyexpd_daemons", "dead", 0, []),
        (drain, "exp__pyexpd_daemons", "draining", 1, []),
        (record, "exp", "live", 0, [(1, 1, "done")]),
    ],
)
async def test_a_unit_that_waited_too_long_for_a_lock_is_repeated(
    bench: Bench,
    intruder: Intruder,
    prepare: Callable[[Bench, Incarnation, list[Claim]], Unit[Any]],
    locked: str,
    state: str,
    beats: int,
    receipts: list[tuple[int, int, str]],
) -> None:
    me = bench.register()
    unit = prepare(bench, me, bench.claim(me))
    bench.blocking.read(Unit("patience", less_patience))
    intruder.begin()
    intruder.lock(locked, 1)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, bench.run, unit)
            await anyio.sleep(2.2)
            intruder.rollback()
    assert bench.query("SELECT state, beat FROM exp__pyexpd_daemons") == [(state, beats)]
    assert bench.receipts() == receipts


def less_patience() -> Steps[None]:
    yield Do("SET SESSION innodb_lock_wait_timeout = 1")
