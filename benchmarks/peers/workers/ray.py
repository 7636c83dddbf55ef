"""`WORKLOAD COUNT` in the current folder, with Ray: the driver."""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import ray

from benchmarks.peers.workers import workload
from benchmarks.peers.workers.logbook import Logbook

WORKERS = 2
IN_FLIGHT = 200


def experiment(kind: str, x: int) -> tuple[int, dict[str, Any] | None, float | None]:
    return x, workload.results(kind, x), workload.loss(kind, x)


def main(kind: str, count: int) -> None:
    logbook = Logbook("results.db")
    task = ray.remote(experiment)
    workload.tell(workload.READY)
    running: list[Any] = []
    for x in range(count):
        running.append(task.remote(kind, x))
        if len(running) == IN_FLIGHT:
            running = store_finished(logbook, running)
    while running:
        running = store_finished(logbook, running)
    workload.tell(workload.DONE)


def store_finished(logbook: Logbook, running: list[Any]) -> list[Any]:
    """Write what has finished, at least one, in one commit; what still runs."""
    ray.wait(running, num_returns=1)
    finished, running = ray.wait(running, num_returns=len(running), timeout=0)
    found = ray.get(finished)
    logbook.write([(x, results) for x, results, _ in found], [(x, loss) for x, _, loss in found if loss is not None])
    return running


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # its sockets need a short path
        ray.init(
            num_cpus=WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=100 * 2**20,
            _temp_dir=folder,
        )
        main(sys.argv[1], int(sys.argv[2]))
        ray.shutdown()
