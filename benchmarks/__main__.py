"""`python -m benchmarks [peers] [throughput] [claims] … [--large N] [--json FILE]`: run them and print tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    busy,
    claims,
    comparison,
    costs,
    endurance,
    filling,
    fleet,
    footprint,
    hotspots,
    idle,
    latency,
    merging,
    page,
    slow_import,
    snapshots,
    status,
    throughput,
)

BENCHMARKS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "throughput": throughput.measure,
    "costs": costs.measure,
    "hotspots": hotspots.measure,
    "claims": claims.measure,
    "footprint": footprint.measure,
    "filling": filling.measure,
    "status": status.measure,
    "fleet": fleet.measure,
    "idle": idle.measure,
    "latency": latency.measure,
    "busy": busy.measure,
    "imports": slow_import.measure,
    "snapshots": snapshots.measure,
    "merging": merging.measure,
    "endurance": endurance.measure,
}
NAMES = ("peers", *BENCHMARKS)
SIZED = ("claims", "filling", "status", "endurance")
"""Those that take `--large`."""
LARGE = 1_000_000


def main() -> None:
    asked = _arguments()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}")
    figures = _kept(asked.json)
    chosen = asked.names or (() if asked.page else NAMES)
    for name in chosen:
        figures["machine"] = machine()
        if name == "peers":
            figures |= comparison.measure(repeats=asked.repeats, quick=asked.quick)
            print(*comparison.table(figures), sep="\n", flush=True)
        else:
            figures[name] = BENCHMARKS[name](**({"large": asked.large} if name in SIZED else {}))
            print(*map(facts, figures[name]), sep="\n", flush=True)
        if asked.json:
            asked.json.write_text(json.dumps(figures, indent=2))
    if asked.page:
        asked.page.write_text(page.page(figures))
    sys.exit("peers" in chosen and comparison.has_failed(figures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="benchmark", help=f"any of {', '.join(NAMES)}; default: all")
    parser.add_argument("--json", type=Path, help="also write the figures to this file; others that it has stay there")
    parser.add_argument(
        "--page", type=Path, help="make docs/performance.md of that file; only what is named is measured"
    )
    parser.add_argument("--large", type=int, default=LARGE, metavar="N", help=f"rows of {', '.join(SIZED)} ({LARGE})")
    parser.add_argument("--repeats", type=int, default=3, help="of peers: how often everything is measured (3)")
    parser.add_argument("--quick", action="store_true", help="of peers: half as many experiments")
    asked = parser.parse_args()
    unknown = set(asked.names) - set(NAMES)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    return asked


def _kept(path: Path | None) -> dict[str, Any]:
    """The figures of former runs."""
    kept: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.exists() else {}
    return kept


def machine() -> dict[str, Any]:
    """Where the figures come from, and how busy it was with other things."""
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.platform(),
        "sqlite": sqlite3.sqlite_version,
        "date": time.strftime("%Y-%m-%d"),
        "load_before": os.getloadavg(),
    }


def facts(row: dict[str, Any]) -> str:
    """A row of a benchmark as a line."""
    return f"{row['what']:<32} " + "  ".join(f"{key}={value}" for key, value in row.items() if key != "what")


if __name__ == "__main__":
    main()
