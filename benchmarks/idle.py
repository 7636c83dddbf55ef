"""What a fleet that has nothing to do asks of its server: statements per second, and connections."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.places import Place, place
from benchmarks.simulated import Crew
from benchmarks.tables import make_table

SETTLE_S = 60.0
WATCH_S = 60.0
KINDS = ("Questions", "Com_select", "Com_update", "Com_begin", "Com_commit", "Com_set_option", "Connections")


def measure(*, daemons: int = 500) -> list[dict[str, Any]]:
    """One row for the fleet: after a minute in which it comes to rest, a minute of counting."""
    with place("mariadb", f"--max-connections={4 * daemons}", "--open-files-limit=65535") as here:
        make_table(here, rows=10_000, done=9000, waiting=1000)
        crew = Crew("idle", here, daemons, processes=2)
        crew.start()
        time.sleep(SETTLE_S)
        before, began = _status(here), time.perf_counter()
        connected = []
        while time.perf_counter() - began < WATCH_S:
            time.sleep(2)
            connected.append(_status(here)["Threads_connected"])
        after, took = _status(here), time.perf_counter() - began
        crew.finish()
    rates = {kind: round((after[kind] - before[kind]) / took, 1) for kind in KINDS}
    return [{"what": f"{daemons} idle daemons", "per_s": rates, "connections_each": round(max(connected) / daemons, 2)}]


def _status(here: Place) -> dict[str, int]:
    return {name: int(value) for name, value in here.query("SHOW GLOBAL STATUS") if value.isdigit()}
