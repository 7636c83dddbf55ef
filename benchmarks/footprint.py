"""What the command and an idle daemon cost: seconds to help, bytes at rest."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.places import place


def measure() -> list[dict[str, Any]]:
    """Median time of `pyexpd --help`, of a bare Python and of the Python interface; memory of an idle daemon."""
    with place("sqlite") as here:
        return [
            _timed("pyexpd --help", lambda: here.pyexpd("--help")),
            _timed("python -c pass", lambda: _python("pass")),
            _timed("import pyexp_daemon.experimenter", lambda: _python("import pyexp_daemon.experimenter")),
            *_idle("sqlite"),
            *_idle("mariadb"),
        ]


def _timed(what: str, call: Callable[[], object]) -> dict[str, Any]:
    times = []
    for _ in range(7):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return {"what": what, "median_s": round(statistics.median(times), 3)}


def _python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def _idle(flavour: Any) -> list[dict[str, Any]]:
    with place(flavour) as here:
        here.write(rows=1)
        here.pyexpd("fill")
        here.pyexpd("run", "--until-empty")
        with here.daemon() as daemon:
            time.sleep(4)
            slots = [child.memory_info().rss for child in daemon.children()]
            return [
                {"what": f"idle daemon, {flavour}", "rss_mib": round(daemon.memory_info().rss / 2**20, 1)},
                {"what": f"fresh slot, {flavour}", "rss_mib": round(max(slots) / 2**20, 1)},
            ]
