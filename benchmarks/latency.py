"""How soon something runs: after `pyexpd run`, and after `fill` put a row beside an idle daemon of the same host."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.places import FLAVOURS, Flavour, Place, place
from pyexp_daemon.experimenter import PyExperimenter
from tests.helpers import wait_until

REPEATS = 9


def measure() -> list[dict[str, Any]]:
    """Two rows per database, each with the median and the longest."""
    return [row for flavour in FLAVOURS for row in (_from_run(flavour), _from_fill(flavour))]


def _from_run(flavour: Flavour) -> dict[str, Any]:
    with place(flavour) as here:
        here.write(rows=REPEATS, function="stamp")
        here.pyexpd("fill")
        times = []
        for number in range(REPEATS):
            began = time.time()
            with here.daemon("--max-experiments", "1"):
                times.append(_stamp(here, number) - began)
    return _row(f"run to first experiment, {flavour}", times)


def _from_fill(flavour: Flavour) -> dict[str, Any]:
    """The row is added by this process, so that the start of a command does not count; from its commit on."""
    with place(flavour) as here:
        file = here.write(rows=1, function="stamp")
        here.pyexpd("fill")
        times = []
        with here.daemon():
            _stamp(here, 0)
            time.sleep(6)  # it polls as seldom as it will by now
            for number in range(1, REPEATS + 1):
                time.sleep(1.3)
                times.append(_add(here, file, number))
    return _row(f"fill to start, {flavour}", times)


def _add(here: Place, file: Path, number: int) -> float:
    credentials = here.folder / "database_credentials.yml"
    experimenter = PyExperimenter(
        str(file),
        database_credential_file_path=str(credentials),
        use_codecarbon=False,
        log_file=str(here.folder / "log"),
    )
    experimenter.fill_table_with_rows([{"x": 1000 + number}])
    began = time.time()
    return _stamp(here, number) - began


def _stamp(here: Place, number: int) -> float:
    """When the experiment after `number` others began."""
    stamps = here.folder / "stamps"
    lines = wait_until(
        lambda: stamps.exists() and (got := stamps.read_text().splitlines()) and len(got) > number and got,
        timeout=60,
        interval=0.002,
    )
    assert lines
    return float(lines[number])


def _row(what: str, times: list[float]) -> dict[str, Any]:
    return {"what": what, "median_s": round(statistics.median(times), 3), "longest_s": round(max(times), 3)}
