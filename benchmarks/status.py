"""`pyexpd status --json` in tables of any size: the command, and what its parts take in the database."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from benchmarks.places import FLAVOURS, Place, place
from benchmarks.tables import make_table
from pyexp_daemon.config.load import load_config
from pyexp_daemon.store import open_blocking_store, reads

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore
    from pyexp_daemon.store.tables import Table

REPEATS = 5


def measure(*, large: int = 1_000_000) -> list[dict[str, Any]]:
    """One row per database and size: 90 % done, 1000 waiting, ten a second finished lately."""
    return [_look(flavour, rows) for flavour in FLAVOURS for rows in sorted({10_000, min(large, 1_000_000), large})]


def _look(flavour: Any, rows: int) -> dict[str, Any]:
    with place(flavour) as here:
        table = make_table(here, rows=rows, done=rows * 9 // 10)
        bare = _median(lambda: here.pyexpd("--version"))
        command = _median(lambda: here.pyexpd("status", "--json"))
        return {
            "what": f"status of {rows}, {flavour}",
            "command_s": round(command, 3),
            "bare_s": round(bare, 3),
            "ms": _parts(here, table),
        }


def _parts(here: Place, table: Table) -> dict[str, float]:
    store: BlockingStore = open_blocking_store(load_config(here.folder / "pyexpd.yml"))
    parts = {
        "counts": reads.count_by_status(table),
        "last_minute": reads.finished_since(table, 60.0),
        "code_versions": reads.code_versions(table),
        "held": reads.count_held(table),
        "strangers": reads.strangers(table),
    }
    try:
        return {name: round(_median(lambda unit=unit: store.read(unit)) * 1e3, 2) for name, unit in parts.items()}
    finally:
        store.close()


def _median(call: Any) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
