"""Whether slots wait for the daemon: experiments of 100 ms, two slots, a minute."""

from __future__ import annotations

from typing import Any

from benchmarks.places import FLAVOURS, Flavour, place

EXPERIMENT_S = 0.1


def measure(*, seconds: float = 60.0, slots: int = 2) -> list[dict[str, Any]]:
    """One row per database: the share of the slots' time in which an experiment ran."""
    return [_work(flavour, seconds, slots) for flavour in FLAVOURS]


def _work(flavour: Flavour, seconds: float, slots: int) -> dict[str, Any]:
    with place(flavour) as here:
        here.write(rows=int(seconds * slots / EXPERIMENT_S), function="tenth", slots=slots)
        here.pyexpd("fill")
        here.pyexpd("run", "--until-empty")
        seconds_of = "TIMESTAMPDIFF(MICROSECOND, {}, {}) / 1e6" if here.database.server else "{1} - {0}"
        run, whole = (seconds_of.format(*pair) for pair in (("started", "ended"), ("MIN(started)", "MAX(ended)")))
        ((count, ran, took),) = here.query(f"SELECT COUNT(*), SUM({run}), {whole} FROM exp__pyexpd_attempts")
    # An experiment that took longer than it sleeps waited for a processor, and that is no work of its slot.
    worked = count * EXPERIMENT_S
    share, asleep = (float(each) / (slots * float(took)) for each in (ran, worked))
    return {"what": f"busy slots, {flavour}", "share": round(share, 4), "asleep_share": round(asleep, 4)}
