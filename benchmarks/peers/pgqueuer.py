"""PgQueuer on PostgreSQL with a process for every job, two at a time.

PgQueuer runs jobs in its own process; isolation is what its users write: the entrypoint starts a Python for the job,
which says on its stdout what it found, and the worker puts that into a table through its pool. That saves each
job a connection of its own. PgQueuer takes jobs as fast as it likes; only the processes are limited to two. A no-op
leaves PgQueuer's own record of it. The server has fsync on and is reached by a socket, which is quicker than TCP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.peers import postgres
from benchmarks.peers.peer import Environment, Run, Stored, call, timed
from benchmarks.peers.workers.workload import Workload
from benchmarks.places import place

ENVIRONMENT = Environment("pgqueuer", installs=(("pgqueuer[asyncpg]>=1.6,<1.7",),), imports="pgqueuer")
STORED = """
SELECT (SELECT COUNT(*) FROM pgqueuer_log WHERE status = 'successful'), (SELECT COUNT(a + b + LENGTH(c)) FROM results),
       (SELECT COUNT(*) FROM logs)
"""


@dataclass(frozen=True, kw_only=True)
class PgQueuer:
    """Start: Python, the import and the connections."""

    experiments: Mapping[Workload, int]

    @property
    def what(self) -> str:
        return "PgQueuer, process per job"

    @property
    def database(self) -> str:
        return "postgresql"

    def prepare(self) -> str:
        postgres.software()
        return ENVIRONMENT.version()

    def run(self, workload: Workload, count: int) -> Run:
        with place("sqlite") as here, postgres.running(here.folder) as server:
            call(ENVIRONMENT.command("pgqueuer", "fill", server.dsn, workload, count), folder=here.folder)
            run = timed([ENVIRONMENT.command("pgqueuer", "work", server.dsn)], folder=here.folder)
            ((finished, results, logs),) = server.query(STORED)
            Stored(finished=int(finished), results=int(results), logs=int(logs)).check(workload, count)
        return run
