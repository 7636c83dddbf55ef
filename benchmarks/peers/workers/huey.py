"""`fill WORKLOAD COUNT` or `work WORKLOAD COUNT` in the current folder, with Huey."""

from __future__ import annotations

import functools
import os
import signal
import sqlite3
import sys
import threading
import time
from typing import Any

from huey import SqliteHuey

from benchmarks.peers.workers import workload
from benchmarks.peers.workers.logbook import Logbook

WORKERS = 2

queue = SqliteHuey(filename="huey.db", fsync=True, store_none=True)
logbook = functools.cache(lambda: Logbook("logs.db"))


def experiment(kind: str, x: int) -> dict[str, Any] | None:
    loss = workload.loss(kind, x)
    if loss is not None:
        logbook().write([], [(x, loss)])
    return workload.results(kind, x)


task = queue.task()(experiment)


def fill(kind: str, count: int) -> None:
    logbook()
    for x in range(count):
        task(kind, x)


def work(_kind: str, count: int) -> None:
    consumer = queue.create_consumer(workers=WORKERS, worker_type="process", periodic=False)
    threading.Thread(target=interrupt_when_done, args=(count,), daemon=True).start()
    workload.tell(workload.READY)
    consumer.run()


def interrupt_when_done(count: int) -> None:
    """A consumer waits for more for ever."""
    stored = sqlite3.connect("huey.db")
    while stored.execute("SELECT COUNT(*) FROM kv").fetchone() != (count,):
        time.sleep(0.02)
    workload.tell(workload.DONE)
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    {"fill": fill, "work": work}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
