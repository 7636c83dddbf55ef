"""`fill DSN WORKLOAD COUNT` or `work DSN`, with PgQueuer; every job is a process, `job.py`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode

from benchmarks.peers.workers import workload

WORKERS = 2
JOB = Path(__file__).with_name("job.py")
TABLES = """
CREATE TABLE results (x INTEGER PRIMARY KEY, a DOUBLE PRECISION, b DOUBLE PRECISION, c TEXT);
CREATE TABLE logs (x INTEGER, loss DOUBLE PRECISION);
"""


async def fill(dsn: str, kind: str, count: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(TABLES)
    queries = Queries.from_asyncpg_connection(connection)
    await queries.install()
    jobs: list[bytes | None] = [f"{kind} {x}".encode() for x in range(int(count))]
    await queries.enqueue(["experiment"] * len(jobs), jobs, [0] * len(jobs))
    await connection.close()


async def work(dsn: str) -> None:
    pool = await asyncpg.create_pool(dsn, min_size=WORKERS, max_size=2 * WORKERS)
    slots = asyncio.Semaphore(WORKERS)

    async def experiment(job: Any) -> None:
        async with slots:
            await store(pool, await run(job.payload.decode().split()))

    queuer = PgQueuer.from_asyncpg_pool(pool)
    queuer.entrypoint("experiment")(experiment)
    workload.tell(workload.READY)
    await queuer.run(mode=QueueExecutionMode.drain)
    workload.tell(workload.DONE)


async def run(arguments: list[str]) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(sys.executable, str(JOB), *arguments, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    found: dict[str, Any] = json.loads(said)
    return found


async def store(pool: Any, found: dict[str, Any]) -> None:
    """What a no-op leaves is PgQueuer's own record of it."""
    if found["results"]:
        await pool.execute("INSERT INTO results VALUES ($1, $2, $3, $4)", found["x"], *found["results"].values())
    if found["loss"] is not None:
        await pool.execute("INSERT INTO logs VALUES ($1, $2)", found["x"], found["loss"])


ACTIONS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {"fill": fill, "work": work}

if __name__ == "__main__":
    asyncio.run(ACTIONS[sys.argv[1]](*sys.argv[2:]))
