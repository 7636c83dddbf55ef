"""Ray on two CPUs of this machine: an experiment is a task, and the driver stores what they return.

Ray keeps nothing on disk. The driver writes each result into an SQLite table (WAL, synchronous FULL) as it comes in,
all that have come in together as one commit; for a no-op the row says that it ran. Up to 200 tasks are under way, so
that neither the workers wait for the driver nor the driver searches through thousands of references.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from sqlite3 import connect

from benchmarks.peers.peer import Environment, Run, Stored, timed
from benchmarks.peers.workers.workload import Workload
from benchmarks.places import place

ENVIRONMENT = Environment("ray", installs=(("ray>=2.60,<2.61",),), imports="ray")


@dataclass(frozen=True, kw_only=True)
class Ray:
    """Start: Python, the import and `ray.init`, which is most of it."""

    experiments: Mapping[Workload, int]

    @property
    def what(self) -> str:
        return "Ray tasks, results by the driver"

    @property
    def database(self) -> str:
        return "sqlite"

    def prepare(self) -> str:
        return ENVIRONMENT.version()

    def run(self, workload: Workload, count: int) -> Run:
        with place("sqlite") as here:
            run = timed([ENVIRONMENT.command("ray", workload, count)], folder=here.folder)
            with closing(connect(here.folder / "results.db")) as stored:
                finished, results = stored.execute("SELECT COUNT(*), COUNT(a + b + LENGTH(c)) FROM results").fetchone()
                (logs,) = stored.execute("SELECT COUNT(*) FROM logs").fetchone()
            Stored(finished=finished, results=results, logs=logs).check(workload, count)
        return run
