"""Huey with its SQLite queue and result store: an experiment is a task, its consumer has two process workers.

The file is in WAL mode with synchronous FULL, as SQLite has it by default. What a task returns goes into the result
store, and that of a no-op (None) too, for there is no other record that it ran. Huey has no place for log rows: the
task writes them into a table in another SQLite file, equally durable, which does not contend with the queue.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import connect

from benchmarks.peers.peer import Environment, Run, Stored, call, timed
from benchmarks.peers.workers.workload import Workload
from benchmarks.places import place

ENVIRONMENT = Environment("huey", installs=(("huey>=3.5,<3.6",),), imports="huey")


@dataclass(frozen=True, kw_only=True)
class Huey:
    """Start: Python, the import and making the consumer, but not its processes."""

    experiments: Mapping[Workload, int]

    @property
    def what(self) -> str:
        return "Huey, with results"

    @property
    def database(self) -> str:
        return "sqlite"

    def prepare(self) -> str:
        return ENVIRONMENT.version()

    def run(self, workload: Workload, count: int) -> Run:
        with place("sqlite") as here:
            call(ENVIRONMENT.command("huey", "fill", workload, count), folder=here.folder)
            run = timed([ENVIRONMENT.command("huey", "work", workload, count)], folder=here.folder)
            _stored(here.folder).check(workload, count)
        return run


def _stored(folder: Path) -> Stored:
    nothing = len(pickle.dumps(None)) + 16
    with closing(connect(folder / "huey.db")) as queue, closing(connect(folder / "logs.db")) as logbook:
        finished, results = queue.execute(
            "SELECT COUNT(*), COUNT(CASE WHEN LENGTH(value) > ? THEN 1 END) FROM kv", (nothing,)
        ).fetchone()
        (logs,) = logbook.execute("SELECT COUNT(*) FROM logs").fetchone()
    return Stored(finished=finished, results=results, logs=logs)
