"""`pyexpd db merge` of 100,000 experiments with three log rows each, and the same again: seconds, and memory."""

from __future__ import annotations

from typing import Any

from benchmarks.places import FLAVOURS, Flavour, place
from benchmarks.tables import make_table

EXPERIMENTS = 100_000
LOG_ROWS = 3


def measure() -> list[dict[str, Any]]:
    """Two rows per direction: a tenth of the experiments, for its memory, and all."""
    return [
        _merge(source, target, rows) for source in FLAVOURS for target in FLAVOURS for rows in (10_000, EXPERIMENTS)
    ]


def _merge(source: Flavour, target: Flavour, rows: int) -> dict[str, Any]:
    with place(source) as there, place(target) as here:
        make_table(there, rows=rows, done=rows, waiting=0)
        for number in range(LOG_ROWS):
            there.query(
                "INSERT INTO exp__epochs (experiment_id, timestamp, loss, pyexpd_attempt, pyexpd_seq)"
                f" SELECT ID, '2026-01-01 00:00:00', a / 7.0, 1, {number + 1} FROM exp"
            )
        here.write(rows=1)
        other = str(there.folder / ("results.db" if source == "sqlite" else "pyexpd.yml"))
        first, again = (here.measured("db", "merge", other, "--yes") for _ in range(2))
        counts = [here.query(f"SELECT COUNT(*) FROM {name}")[0][0] for name in ("exp", "exp__epochs")]
        assert counts == [rows, LOG_ROWS * rows], counts
    return {
        "what": f"merge {rows}, {source} into {target}",
        "s": [round(first[0], 1), round(again[0], 1)],
        "peak_mib": [round(first[1]), round(again[1])],
    }
