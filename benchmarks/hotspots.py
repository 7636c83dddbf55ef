"""Where a daemon's Python time goes, by part of it: py-spy samples whoever holds the interpreter's lock."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from benchmarks.places import Place, place
from tests.environments import prepared
from tests.servers import CACHE

PARTS = {
    "worker/channel": "messages of children",
    "worker/process": "messages of children",
    "worker": "slots",
    "daemon/completer": "completing",
    "daemon/writer": "completing",
    "daemon/batches": "completing",
    "daemon/spool": "completing",
    "daemon/claim": "claiming",
    "daemon": "the rest of the daemon",
    "store": "database: statements and driver",
    "cli": "event loop",
}
"""Which part the innermost frame of ours belongs to, by the beginning of its path; the first that fits."""

ELSEWHERE = "other threads"
_PACKAGE = "pyexp_daemon/"
_SECONDS, _RATE = 5, 250
ROWS = {
    ("sqlite", "noop"): 40_000,
    ("sqlite", "realistic"): 10_000,
    ("mariadb", "noop"): 30_000,
    ("mariadb", "realistic"): 6000,
}


def measure() -> list[dict[str, Any]]:
    """One row per database and function: the share of each part, in percent of all samples."""
    spy = prepared(CACHE / "benchmarks-envs" / "py-spy", ("py-spy>=0.4",), imports="sys").with_name("py-spy")
    rows = []
    for (flavour, function), count in ROWS.items():
        with place(flavour) as here:  # type: ignore[arg-type]
            here.write(rows=count, function=function)
            here.pyexpd("fill")
            with here.daemon() as daemon:
                _wait_until_it_works(here)
                found = here.folder / "samples"
                options = ["--gil", "--rate", str(_RATE), "--duration", str(_SECONDS), "--format", "raw"]
                subprocess.run(
                    [str(spy), "record", *options, "--output", str(found), "--pid", str(daemon.pid)],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    check=True,
                )
                shares = dict(shared(found.read_text().splitlines()))
        rows.append({"what": f"{function}, {flavour}", "percent": shares})
    return rows


def shared(samples: list[str]) -> Iterator[tuple[str, float]]:
    """The percentage of each part, largest first.

    Args:
        samples: stacks as py-spy prints them: frames from the outermost, then how often it was seen.
    """
    seen: Counter[str] = Counter()
    for line in samples:
        stack, _, times = line.rpartition(" ")
        seen[part_of(stack.split(";"))] += int(times)
    for part, number in seen.most_common():
        yield part, round(100 * number / seen.total(), 1)


def part_of(frames: list[str]) -> str:
    """The part of the innermost frame that is ours; ELSEWHERE when there is none."""
    for frame in reversed(frames):
        _, inside, path = frame.partition(_PACKAGE)
        if inside:
            return next((part for start, part in PARTS.items() if path.startswith(start)), ELSEWHERE)
    return ELSEWHERE


def _wait_until_it_works(here: Place) -> None:
    while here.query("SELECT COUNT(*) FROM exp WHERE status = 'done'")[0][0] < 500:
        time.sleep(0.05)
