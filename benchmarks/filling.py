"""`pyexpd fill` of an empty table and of one that has everything already: rows per second, and memory by size."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from benchmarks.places import FLAVOURS, Place, place


def measure(*, large: int = 1_000_000) -> list[dict[str, Any]]:
    """One row per database and size: the first fill, the refill, and the most memory either took."""
    return [_fill_twice(flavour, rows) for flavour in FLAVOURS for rows in (1000, 100_000, large)]


def _fill_twice(flavour: Any, rows: int) -> dict[str, Any]:
    with place(flavour) as here:
        here.write_grid(rows=rows)
        first, again = _fill(here), _fill(here)
        ((there,),) = here.query("SELECT COUNT(*) FROM exp")
        assert there == rows
    return {
        "what": f"fill {rows}, {flavour}",
        "rows_per_s": [round(rows / first[0]), round(rows / again[0])],
        "peak_mib": [round(first[1]), round(again[1])],
    }


def _fill(here: Place) -> tuple[float, float]:
    """Seconds and MiB of one `pyexpd fill`, the start of the command included."""
    command = [sys.executable, "-m", "pyexp_daemon", "fill"]
    began = time.perf_counter()
    with subprocess.Popen(
        command, cwd=here.folder, env=here.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return time.perf_counter() - began, usage.ru_maxrss / 1024
