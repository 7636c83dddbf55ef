"""A state of 64 MiB saved and read back, and whether the daemon's heart goes on beating meanwhile."""

from __future__ import annotations

import json
import time
from typing import Any

from benchmarks.places import FLAVOURS, Flavour, place

STATE_BYTES = 64 * 2**20
HEARTBEAT_S = 0.2

MODULE = f"""
import hashlib
import json
import os
import pathlib
import time

from pyexp_daemon.experiment_status import ExperimentStatus

here = pathlib.Path(__file__)


def run(keyfields, result_processor, custom):
    state, measured = here.with_name("sha256"), here.with_name("measured")
    if result_processor.attempt == 1:
        data = os.urandom({STATE_BYTES})
        state.write_text(hashlib.sha256(data).hexdigest())
        began = time.perf_counter()
        result_processor.save_snapshot(data, keep=1)
        measured.write_text(json.dumps({{"save_s": round(time.perf_counter() - began, 2)}}))
        return ExperimentStatus.CREATED
    began = time.perf_counter()
    data = result_processor.latest_snapshot().state
    read_s = round(time.perf_counter() - began, 2)
    is_equal = hashlib.sha256(data).hexdigest() == state.read_text()
    measured.write_text(json.dumps({{**json.loads(measured.read_text()), "read_s": read_s, "equal": is_equal}}))
"""


def measure() -> list[dict[str, Any]]:
    """One row per database."""
    return [_run(flavour) for flavour in FLAVOURS]


def _run(flavour: Flavour) -> dict[str, Any]:
    with place(flavour) as here:
        (here.folder / "large.py").write_text(MODULE)
        here.database.write_config(
            here.folder,
            function="large:run",
            keyfields={"x": {"type": "INT", "values": [0]}},
            daemon={"slots": 1, "heartbeat": f"{HEARTBEAT_S}s"},
        )
        here.pyexpd("fill")
        with here.daemon("--until-empty") as daemon:
            longest_s = _longest_gap(here.query, daemon.is_running)
        measured = json.loads((here.folder / "measured").read_text())
    return {
        "what": f"snapshot of {STATE_BYTES // 2**20} MiB, {flavour}",
        **measured,
        "heartbeat_s": HEARTBEAT_S,
        "longest_gap_s": round(longest_s, 2),
    }


def _longest_gap(query: Any, goes_on: Any) -> float:
    """The longest time between two heartbeats that others see in the database, while the daemon works."""
    longest_s, last, seen_at = 0.0, None, time.monotonic()
    while goes_on():
        rows = query("SELECT beat FROM exp__pyexpd_daemons WHERE state = 'live'")
        now = time.monotonic()
        if not rows:
            if last is not None:
                break
            seen_at = now
        elif rows[0][0] != last:
            longest_s = max(longest_s, now - seen_at if last is not None else 0.0)
            last, seen_at = rows[0][0], now
        time.sleep(0.005)
    return max(longest_s, 0.0 if last is None else time.monotonic() - seen_at)
