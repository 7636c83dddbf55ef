"""Claims under crowds, in small tables, beside old views, and on servers that are set up otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from pyexp_daemon.config.load import load_config
from pyexp_daemon.model import Claim, make_token
from pyexp_daemon.store import leases, open_store
from pyexp_daemon.store.unit import Do, Steps, unit
from tests.bench import Bench
from tests.databases import Database
from tests.helpers import wait_until
from tests.servers import PrivateServer

Make = Callable[..., Bench]
on_servers = pytest.mark.parametrize("database", ["mariadb", "mysql9"], indirect=True)


@asynccontextmanager
async def stores(bench: Bench, count: int) -> AsyncIterator[list[Any]]:
    """So many stores, each with connections of its own, as that many daemons have."""
    opened = [open_store(bench.config) for _ in range(count)]
    try:
        yield opened
    finally:
        async with anyio.create_task_group() as tasks:
            for store in opened:
                tasks.start_soon(store.close)


@pytest.mark.slow
@on_servers
async def test_two_hundred_claimers_share_what_waits_and_none_starves(make_bench: Make) -> None:
    """An empty answer comes only when all that is left may be locked by claims on their way, or just claimed."""
    rows, limit, claimers, at_once = (
        5000,
        8,
        200,
        50,
    )  # more at once would only wait for two cores, beyond their deadline
    bench = make_bench(rows=rows)
    me = bench.register()
    turns = anyio.CapacityLimiter(at_once)
    claimed: list[int] = []
    starved: list[int] = []

    async def claim_all(store: Any) -> None:
        while len(claimed) < rows:
            async with turns:
                left = rows - len(claimed)
                claim = leases.claim(bench.table, me=me, token=make_token(), queue="default", limit=limit)
                claims = await store.run(claim, role="claim")
            claimed.extend(claim.experiment_id for claim in claims)
            if not claims and left > 2 * at_once * limit:
                starved.append(left)

    async with stores(bench, claimers) as opened:
        with anyio.fail_after(250):
            async with anyio.create_task_group() as tasks:
                for store in opened:
                    tasks.start_soon(claim_all, store)
    assert sorted(claimed) == list(range(1, rows + 1))
    assert not starved


def locks(cursor: Any) -> Any:
    """How many locks the transaction of this session holds, in a row; None while the server does not list it."""
    mine = "trx_mysql_thread_id = CONNECTION_ID()"
    cursor.execute(f"SELECT trx_rows_locked FROM information_schema.innodb_trx WHERE {mine}")
    return cursor.fetchone()


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
@pytest.mark.parametrize("rows", [3, 400])
async def test_a_claim_locks_what_it_returns_and_nothing_else(make_bench: Make, rows: int) -> None:
    """In a table of three rows the optimiser would rather read them all."""
    bench = make_bench(rows=rows)
    with closing(bench.database.connect()) as holder:
        cursor = holder.cursor()
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.execute("START TRANSACTION")
        cursor.execute(leases._claimable(bench.table, "").replace("?", "%s"), ("default", 2))
        assert len(cursor.fetchall()) == 2
        # The server makes its list anew only when nobody has read it for a tenth of a second.
        (locked,) = wait_until(lambda: locks(cursor), interval=0.25, what="the list of transactions")
        claims = bench.claim(bench.register(), 1)
        cursor.execute("ROLLBACK")
    assert locked == 4  # the entry of the index and the row, of two experiments
    assert [claim.experiment_id for claim in claims] == [3]


@on_servers
@pytest.mark.parametrize("rows", [3, 400])
async def test_a_claim_from_a_mark_reads_two_ranges_and_locks_what_it_returns(make_bench: Make, rows: int) -> None:
    """What lies before the mark is not read: there may be fifty thousand dead entries."""
    bench = make_bench(rows=rows)
    bench.execute("UPDATE exp SET pyexpd_order = ID % 3")
    sql, bound = leases._claimable(bench.table, leases.FROM_MARK).replace("?", "%s"), ("default", 1, 1, 1, 1)
    with closing(bench.database.connect()) as holder:
        cursor = holder.cursor()
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        prefix = "ANALYZE" if bench.database.flavour == "mariadb" else "EXPLAIN"
        cursor.execute(f"{prefix} FORMAT=TRADITIONAL {sql}" if prefix == "EXPLAIN" else f"ANALYZE {sql}", bound)
        (plan,) = cursor.fetchall()
        assert plan[3 if prefix == "ANALYZE" else 4] == "range"
        assert "Using index" in plan[-1]
        assert "filesort" not in plan[-1]
        cursor.execute("START TRANSACTION")
        cursor.execute(sql, bound)
        assert cursor.fetchall() == ((1,),)
        claims = bench.claim(bench.register(), 1)
        cursor.execute("ROLLBACK")
    assert [claim.experiment_id for claim in claims] == [3]


async def test_a_claim_from_a_mark_finds_nothing_before_it_until_there_is_nothing_else(make_bench: Make) -> None:
    bench = make_bench(rows=6)
    bench.execute("UPDATE exp SET pyexpd_order = 1 WHERE ID <= 3")
    me = bench.register()
    assert [claim.experiment_id for claim in bench.claim(me, 2, mark=(1, 2))] == [2, 3]
    (claim,) = bench.claim(me, 1, mark=(1, 2))
    assert (claim.order, claim.experiment_id) == (0, 4)


@on_servers
async def test_an_old_view_held_elsewhere_keeps_no_claim_from_its_rows(make_bench: Make) -> None:
    """What was claimed and done stays in the index for the old view; the claim passes over it."""
    bench = make_bench(rows=600)
    me = bench.register()
    with closing(bench.database.connect()) as reader:
        cursor = reader.cursor()
        cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        cursor.execute("SELECT COUNT(*) FROM exp WHERE status = 'created'")
        seen: list[Claim] = []
        while claims := bench.claim(me, 50):
            for claim in claims:
                bench.end(me, claim, results={"y": 1.0})
            seen += claims
        cursor.execute("SELECT COUNT(*) FROM exp WHERE status = 'created'")
        assert cursor.fetchone() == (600,)
        cursor.execute("ROLLBACK")
    assert [claim.experiment_id for claim in seen] == list(range(1, 601))
    assert bench.query("SELECT status, COUNT(*) FROM exp GROUP BY status") == [("done", 600)]


@unit
def isolation() -> Steps[str]:
    """The isolation level of the session it runs in."""
    said = yield Do("SELECT @@SESSION.tx_isolation")
    return str(said.rows[0][0])


@pytest.mark.slow
async def test_a_server_set_to_repeatable_read_with_snapshot_isolation_changes_nothing(
    private_mariadb: PrivateServer, tmp_path: Path
) -> None:
    """The defaults of MariaDB 11.8: a locking read of a row that changed since the snapshot would fail with 1020."""
    private_mariadb.query("SET GLOBAL tx_isolation = 'REPEATABLE-READ'")
    private_mariadb.query("SET GLOBAL innodb_snapshot_isolation = ON")
    name = private_mariadb.create_database()
    database = Database(provider="mysql", flavour="mariadb", name=name, server=private_mariadb)
    keyfields = {"x": {"type": "INT", "values": list(range(300))}}
    bench = Bench(database, load_config(database.write_config(tmp_path, keyfields=keyfields)))
    bench.create()
    bench.fill()
    me = bench.register()

    async def work(store: Any) -> None:
        claim = leases.claim(bench.table, me=me, token=make_token(), queue="default", limit=3)
        while claims := await store.run(claim, role="claim"):
            for held in claims:
                bench.end(me, held, results={"y": 1.0})
            claim = leases.claim(bench.table, me=me, token=make_token(), queue="default", limit=3)

    async with stores(bench, 4) as opened:
        assert {await store.read(isolation(), role="claim") for store in opened} == {"READ-COMMITTED"}
        async with anyio.create_task_group() as tasks:
            for store in opened:
                tasks.start_soon(work, store)
    assert bench.run(isolation()) == "READ-COMMITTED"
    assert bench.query("SELECT status, COUNT(*) FROM exp GROUP BY status") == [("done", 300)]
    assert len(bench.receipts()) == 300
    bench.blocking.close()
    await bench.store.close()
