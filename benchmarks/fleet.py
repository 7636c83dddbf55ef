"""1 to 64 daemons at one MariaDB server, with experiments that take no time: what the protocol can carry.

The daemons are simulated, see `simulated.py`, in as many processes as there are cores: one Python process is the limit
otherwise. Every claim and every report is checked: no error, no duplicate, nothing left.
"""

from __future__ import annotations

import os
from typing import Any

from benchmarks.places import place
from benchmarks.simulated import Crew
from benchmarks.tables import make_table

CREWS = (1, 8, 16, 64)


def measure(*, experiments: int = 100_000) -> list[dict[str, Any]]:
    """One row per size of the fleet."""
    return [run_once(daemons, experiments) for daemons in CREWS]


def run_once(daemons: int, experiments: int) -> dict[str, Any]:
    with place("mariadb") as here:
        make_table(here, rows=experiments, done=0, waiting=0)
        crew = Crew("work", here, daemons, processes=min(daemons, os.cpu_count() or 1))
        crew.start()
        said = crew.finish()
        took = max(each["ended"] for each in said) - min(each["began"] for each in said)
        seen = [experiment for each in said for experiment in each["seen"]]
        assert sorted(seen) == list(range(1, experiments + 1)), "an experiment was claimed twice, or never"
        ((done,),) = here.query("SELECT COUNT(*) FROM exp WHERE status = 'done' AND pyexpd_attempt = 1")
        ((receipts,),) = here.query("SELECT COUNT(*) FROM exp__pyexpd_attempts WHERE outcome = 'done'")
        assert done == receipts == experiments
    return {"what": f"{daemons} daemons, mariadb", "experiments": experiments, "per_s": round(experiments / took)}
