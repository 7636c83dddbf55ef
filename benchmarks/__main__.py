"""`python -m benchmarks [throughput] [claims] … [--large N] [--json FILE]`: run them and print a table."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import busy, claims, endurance, filling, fleet, footprint, idle, latency, status, throughput

BENCHMARKS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "throughput": throughput.measure,
    "claims": claims.measure,
    "footprint": footprint.measure,
    "filling": filling.measure,
    "status": status.measure,
    "fleet": fleet.measure,
    "idle": idle.measure,
    "latency": latency.measure,
    "busy": busy.measure,
    "endurance": endurance.measure,
}
SIZED = ("claims", "filling", "status", "endurance")
"""Those that take `--large`."""
LARGE = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="benchmark", help=f"any of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--large", type=int, default=LARGE, metavar="N", help=f"rows of {', '.join(SIZED)} ({LARGE})")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    asked = parser.parse_args()
    unknown = set(asked.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}, load {load}")
    figures: dict[str, list[dict[str, Any]]] = {}
    for name in asked.names or BENCHMARKS:
        figures[name] = BENCHMARKS[name](large=asked.large) if name in SIZED else BENCHMARKS[name]()
        for row in figures[name]:
            facts = "  ".join(f"{key}={value}" for key, value in row.items() if key != "what")
            print(f"{row['what']:<32} {facts}", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
