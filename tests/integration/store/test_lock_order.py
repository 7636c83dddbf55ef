"""Everybody locks experiments by primary key in ascending order: two units that meet wait, and neither is ended."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import anyio
import anyio.to_thread
import pytest

from pyexp_daemon.store import daemons, reports
from pyexp_daemon.store.unit import Commit, Do, Done
from tests.bench import POLICY, Bench, ended
from tests.helpers import wait_until_async


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
async def test_a_sweep_that_meets_an_end_waits_for_it(bench: Bench) -> None:
    """Who found the rows by the index of owners would hold what the end is about to change there: a deadlock."""
    me = bench.register()
    claims = bench.claim(me, 3)
    steps = reports.record(bench.table, [ended(each) for each in claims], me=me, host="h", policy=POLICY).start()
    bench.kill_daemon(me)
    before, swept = deadlocks(bench), list[list[int]]()

    async def sweep() -> None:
        unit = daemons.sweep(bench.table, owner=me.id, policy=POLICY)
        swept.append(await anyio.to_thread.run_sync(bench.run, unit))

    with anyio.fail_after(90), closing(bench.database.connect()) as connection:
        cursor = connection.cursor()
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.execute("BEGIN")
        locking: Any = next(steps)
        commit: Any = steps.send(run(cursor, locking))
        assert isinstance(commit, Commit)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sweep)
            await wait_until_async(lambda: is_anybody_waiting(bench), interval=0.2)  # the server looks every 0.1 s
            for do in commit.statements:
                await anyio.to_thread.run_sync(run, cursor, do)
            cursor.execute("COMMIT")

    assert deadlocks(bench) == before
    assert swept == [[]]
    assert bench.receipts() == [(1, 1, "done"), (2, 1, "done"), (3, 1, "done")]


def run(cursor: Any, do: Do) -> Done:
    (cursor.executemany if do.many else cursor.execute)(do.sql.replace("?", "%s"), do.values)
    return Done(cursor.fetchall(), cursor.rowcount)


def is_anybody_waiting(bench: Bench) -> bool:
    return bench.query("SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'") != [(0,)]


def deadlocks(bench: Bench) -> int:
    return int(bench.query("SHOW GLOBAL STATUS LIKE 'Innodb_deadlocks'")[0][1])
