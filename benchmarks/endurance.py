"""The memory of a daemon, from its start to the end of very many experiments."""

from __future__ import annotations

import time
from typing import Any

import psutil

from benchmarks.places import FLAVOURS, Flavour, place
from benchmarks.tables import make_table


def measure(*, large: int = 1_000_000) -> list[dict[str, Any]]:
    """One row per database: resident memory after each tenth of the experiments."""
    return [_run(flavour, large) for flavour in FLAVOURS]


def _run(flavour: Flavour, experiments: int) -> dict[str, Any]:
    with place(flavour) as here:
        make_table(here, rows=experiments, done=0, waiting=0)
        memory: list[float] = []
        with here.daemon("--until-empty") as daemon:
            while daemon.is_running() and daemon.status() != psutil.STATUS_ZOMBIE:
                ((done,),) = here.query("SELECT COALESCE(MAX(experiment_id), 0) FROM exp__pyexpd_attempts")
                if done >= experiments * len(memory) / 10:
                    memory.append(round(daemon.memory_info().rss / 2**20, 1))
                time.sleep(1)
    return {"what": f"daemon over {experiments}, {flavour}", "rss_mib": memory}
