"""What a claim and a report cost in a table of 1000 rows and in a large one, through a daemon's own claimer.

Also beside an old read view, which keeps the server from removing what was claimed since from its index.
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack, closing
from typing import Any

import anyio

from benchmarks.places import FLAVOURS, Flavour, Place, place
from benchmarks.simulated import SimulatedDaemon
from benchmarks.tables import make_table
from pyexp_daemon.config.load import load_config
from pyexp_daemon.model import Outcome

LIMIT = 32
REPEATS = 60
WARM = 5
BEHIND_VIEW = 50_000
MIXES = {"nothing done": 0.0, "half done": 0.5, "nearly all done": 0.99}


def measure(*, large: int = 1_000_000) -> list[dict[str, Any]]:
    """Median seconds of a claim and of a report, in both tables in turn, for each database and mix of statuses."""
    rows = [
        _compare(flavour, large, mix, at_random=at_random)
        for flavour in FLAVOURS
        for mix, at_random in [*((mix, False) for mix in MIXES), ("half done", True)]
    ]
    return [*rows, _beside_view()]


def _compare(flavour: Flavour, large: int, mix: str, *, at_random: bool) -> dict[str, Any]:
    with ExitStack() as stack:
        small, big = (stack.enter_context(place(flavour)) for _ in range(2))
        make_table(small, rows=2000, done=0)
        make_table(big, rows=large, done=int((large - 2000) * MIXES[mix]))
        times = anyio.run(_in_turn, [small, big], at_random)
    claim, finish = ([statistics.median(taken[which]) for taken in times] for which in (0, 1))
    order = ", at random" if at_random else ""
    return {
        "what": f"claim of {LIMIT}, {flavour}, {mix}{order}",
        "rows": [1000, large],
        "claim_ms": [round(each * 1e3, 2) for each in claim],
        "claim_ratio": round(claim[1] / claim[0], 2),
        "report_ms": [round(each * 1e3, 2) for each in finish],
        "report_ratio": round(finish[1] / finish[0], 2),
    }


async def _in_turn(places: list[Place], at_random: bool) -> list[tuple[list[float], list[float]]]:
    """For each place the seconds of every claim and of every report. What was claimed is handed back."""
    daemons = [SimulatedDaemon(load_config(here.folder / "pyexpd.yml"), 1, at_random=at_random) for here in places]
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in daemons]
    for daemon in daemons:
        await daemon.join()
    for turn in range(REPEATS + WARM):
        for daemon, taken in zip(daemons, times, strict=True):
            claim_s, report_s = await _cycle(daemon, Outcome.RELEASED)
            if turn >= WARM:
                taken[0].append(claim_s)
                taken[1].append(report_s)
    for daemon in daemons:
        await daemon.leave()
    return times


async def _cycle(daemon: SimulatedDaemon, outcome: Outcome) -> tuple[float, float]:
    began = time.perf_counter()
    claims = await daemon.claim(LIMIT)
    claimed = time.perf_counter()
    assert claims  # fewer than LIMIT where a random start lies near the end
    await daemon.finish(claims, outcome)
    return claimed - began, time.perf_counter() - claimed


def _beside_view() -> dict[str, Any]:
    """The first claims and the last of BEHIND_VIEW experiments, all done beside one old read view."""
    with place("mariadb") as here:
        make_table(here, rows=BEHIND_VIEW + 20_000, done=0)
        with closing(here.database.connect()) as view:
            cursor = view.cursor()
            cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
            cursor.execute("SELECT COUNT(*) FROM exp")
            times = anyio.run(_work_beside, here)
            cursor.execute("ROLLBACK")
    parts = len(times) // 10
    first, last = statistics.median(times[:parts]), statistics.median(times[-parts:])
    return {
        "what": f"claim of {LIMIT}, mariadb, old read view",
        "claimed": BEHIND_VIEW,
        "claim_ms": [round(first * 1e3, 2), round(last * 1e3, 2)],
        "mean_ms": round(statistics.mean(times[-parts:]) * 1e3, 2),
        "claim_ratio": round(last / first, 2),
    }


async def _work_beside(here: Place) -> list[float]:
    daemon = SimulatedDaemon(load_config(here.folder / "pyexpd.yml"), 1)
    await daemon.join()
    times = [(await _cycle(daemon, Outcome.DONE))[0] for _ in range(BEHIND_VIEW // LIMIT)]
    await daemon.leave()
    return times
