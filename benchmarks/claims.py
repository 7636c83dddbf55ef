"""What a claim costs in a small table and in one of a million rows, nine tenths of them done."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import anyio

from benchmarks.places import Place, place
from pyexp_daemon.config.load import load_config
from pyexp_daemon.model import Attempt, Daemon, Incarnation, Outcome, Report, RetryPolicy, make_token
from pyexp_daemon.store import daemons, fill, leases, migrations, open_blocking_store, open_store, reports, structure
from pyexp_daemon.store.tables import Table

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore, Store

POLICY = RetryPolicy(tries={}, first_s=30, longest_s=3600)
LIMIT = 32


def measure(*, large: int = 1_000_000, repeats: int = 60) -> list[dict[str, Any]]:
    """Median seconds of a claim of 32 in both tables, alternating, on each database."""
    rows = []
    for flavour in ("sqlite", "mariadb"):
        with place(flavour) as one, place(flavour) as other:
            small, big = anyio.run(_compare, one, other, large, repeats)
        rows.append(
            {
                "what": f"claim of {LIMIT}, {flavour}",
                "rows": [1000, large],
                "median_ms": [round(small * 1e3, 3), round(big * 1e3, 3)],
                "ratio": round(big / small, 2),
            }
        )
    return rows


async def _compare(one: Place, other: Place, large: int, repeats: int) -> tuple[float, float]:
    benches = [_Bench(one, 1000, waiting=0, done=0), _Bench(other, large, waiting=1000, done=large * 9 // 10)]
    times: list[list[float]] = [[], []]
    for _ in range(repeats + 5):
        for bench, taken in zip(benches, times, strict=True):
            taken.append(await bench.claim_once())
    for bench in benches:
        await bench.close()
    return statistics.median(times[0][5:]), statistics.median(times[1][5:])


def _wait_for_purge(here: Place) -> None:
    """Until the server has removed the index entries that the preparation left behind.

    900,000 rows that become done in one statement leave as many dead entries at the head of the claim index. In real
    life they come one by one and are purged as they come.
    """
    settled = 0
    for _ in range(600):
        began = time.perf_counter()
        here.query("SELECT ID FROM exp FORCE INDEX (pyexpd_claim) WHERE status = 'created' LIMIT 1")
        settled = settled + 1 if time.perf_counter() - began < 0.005 else 0
        if settled == 10:
            return
        time.sleep(0.2)
    raise RuntimeError("the server does not purge")


class _Bench:
    """A filled table and a daemon's connections to it."""

    def __init__(self, here: Place, rows: int, *, waiting: int, done: int) -> None:
        config = load_config(here.write(rows=rows))
        self._table = Table.of(config.database)
        self._blocking: BlockingStore = open_blocking_store(config, create=True, deadline_s=600)
        self._store: Store = open_store(config)
        self._fill(rows)
        here.query(f"UPDATE exp SET status = 'done' WHERE ID <= {done}")
        here.query(f"UPDATE exp SET status = 'waiting' WHERE ID > {done} AND ID <= {done + waiting}")
        if here.database.server:
            here.query("ANALYZE TABLE exp")
            _wait_for_purge(here)
        self._me = self._register()

    def _fill(self, rows: int) -> None:
        state = self._blocking.read(structure.inspect(self._table))
        self._blocking.change_schema([migrations.ddl(text) for text in migrations.statements(self._table, state)])
        for at in range(0, rows, 5000):
            chunk = [((x,), b"\x01" + x.to_bytes(15, "big")) for x in range(at, min(rows, at + 5000))]
            self._blocking.run(fill.insert(self._table, chunk))

    def _register(self) -> Incarnation:
        row = Daemon(
            id=0, incarnation=make_token(), name="b", host="h", host_id="h", boot_id="b", pid=1, pid_start="1",
            version="0", slots=1, state="live", beat=0, lease_s=600, started=0, beat_at=0,
        )  # fmt: skip
        return self._blocking.run(daemons.register(self._table, row))

    async def claim_once(self) -> float:
        unit = leases.claim(self._table, me=self._me, token=make_token(), queue="default", limit=LIMIT)
        began = time.perf_counter()
        claims = await self._store.run(unit, role="claim")
        took = time.perf_counter() - began
        assert len(claims) == LIMIT
        back = [Report(claim=claim, end=Attempt(claim=claim, outcome=Outcome.RELEASED)) for claim in claims]
        await self._store.run(reports.record(self._table, back, me=self._me, host="h", policy=POLICY))
        return took

    async def close(self) -> None:
        self._blocking.close()
        await self._store.close()
