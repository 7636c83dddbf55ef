"""End to end through the real command: experiments per second, from the start of `pyexpd run` to its end."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.places import Flavour, place

ROWS = {
    ("sqlite", "noop"): 10000,
    ("sqlite", "realistic"): 5000,
    ("mariadb", "noop"): 8000,
    ("mariadb", "realistic"): 3000,
}


def measure(*, repeats: int = 3) -> list[dict[str, Any]]:
    """One row per database and function, with every repeat's figure and their median."""
    rows = []
    for (flavour, function), count in ROWS.items():
        figures = sorted(run_once(flavour, function, count) for _ in range(repeats))  # type: ignore[arg-type]
        rows.append(
            {
                "what": f"{function}, {flavour}, 2 slots",
                "experiments": count,
                "per_second": round(figures[len(figures) // 2]),
                "all": [round(figure) for figure in figures],
            }
        )
    return rows


def run_once(flavour: Flavour, function: str, count: int) -> float:
    """Experiments per second of one run, start and end of the daemon included."""
    with place(flavour) as here:
        here.write(rows=count, function=function)
        here.pyexpd("fill")
        began = time.perf_counter()
        here.pyexpd("run", "--until-empty")
        took = time.perf_counter() - began
        ((done,),) = here.query("SELECT COUNT(*) FROM exp WHERE status = 'done'")
        assert done == count, f"{done} of {count} done"
    return count / took
