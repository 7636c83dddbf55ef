"""`pyexpd fill` of an empty table and of one that has everything already: rows per second, and memory by size."""

from __future__ import annotations

from typing import Any

from benchmarks.places import FLAVOURS, place


def measure(*, large: int = 1_000_000) -> list[dict[str, Any]]:
    """One row per database and size: the first fill, the refill, and the most memory either took."""
    sizes = sorted({1000, 100_000, min(large, 1_000_000), large})
    return [_fill_twice(flavour, rows) for flavour in FLAVOURS for rows in sizes]


def _fill_twice(flavour: Any, rows: int) -> dict[str, Any]:
    with place(flavour) as here:
        here.write_grid(rows=rows)
        first, again = here.measured("fill"), here.measured("fill")
        ((there,),) = here.query("SELECT COUNT(*) FROM exp")
        assert there == rows
    return {
        "what": f"fill {rows}, {flavour}",
        "rows_per_s": [round(rows / first[0]), round(rows / again[0])],
        "peak_mib": [round(first[1]), round(again[1])],
    }
