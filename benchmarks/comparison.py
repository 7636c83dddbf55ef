"""This project, its peers and the limits of the machine, taken in turn: `python -m benchmarks peers`.

A peer's figure is experiments per second from the start of its worker to the last result stored, its start-up included;
ours is to the end of the command. Filling is not counted for anybody, except that Optuna and Ray have their
experiments from the worker itself. The modules in `peers/` say what each does and why that is fair.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from benchmarks.peers.huey import Huey
from benchmarks.peers.optuna import Optuna
from benchmarks.peers.ours import Ours
from benchmarks.peers.peer import Failed, Peer
from benchmarks.peers.pgqueuer import PgQueuer
from benchmarks.peers.pyexperimenter import PyExperimenter
from benchmarks.peers.ray import Ray
from benchmarks.peers.workers.workload import WORKLOADS, Workload
from benchmarks.probes import PROBES, Probe
from benchmarks.series import Bar, Series, columns, text
from tests.servers import NotToBeHad

PEERS: tuple[Peer, ...] = (
    Ours(flavour="sqlite", experiments={"noop": 10000, "realistic": 6000}),
    Ours(flavour="mariadb", experiments={"noop": 8000, "realistic": 4000}),
    Ours(flavour="mariadb", isolation="fresh", experiments={"noop": 60, "realistic": 60}),
    PyExperimenter(flavour="sqlite", experiments={"noop": 500, "realistic": 300}),
    PyExperimenter(flavour="mariadb", experiments={"noop": 60, "realistic": 30}),
    PyExperimenter(flavour="mariadb", tls=False, experiments={"noop": 400, "realistic": 200}),
    Optuna(flavour="sqlite", experiments={"noop": 200, "realistic": 120}),
    Optuna(flavour="mariadb", experiments={"noop": 200, "realistic": 120}),
    Huey(experiments={"noop": 4000, "realistic": 4000}),
    Ray(experiments={"noop": 4000, "realistic": 4000}),
    PgQueuer(experiments={"noop": 100, "realistic": 100}),
)

AllSeries = Mapping[tuple[str, str, str], Series]


def measure(*, repeats: int = 3, quick: bool = False) -> dict[str, list[dict[str, Any]]]:
    """Everything as rows: `peers` (with us), `probes`, and the `bars` between them. Progress goes to stderr.

    Ctrl-C ends it early; what was measured by then is there.

    Args:
        quick: half as many experiments of everything.
    """
    share = 2 if quick else 1
    keys = {"peers": _keys(PEERS), "probes": _keys(PROBES)}
    series = {key: Series(what=key[0], workload=key[1], database=key[2]) for key in [*keys["peers"], *keys["probes"]]}
    _prepare(series)
    with suppress(KeyboardInterrupt):
        for repeat in range(repeats):
            for workload in WORKLOADS:
                print(f"repeat {repeat + 1} of {repeats}, {workload}", file=sys.stderr)
                _measure_once(workload, series, share)
    rows = {name: [series[key].row() for key in found] for name, found in keys.items()}
    return {**rows, "bars": [bar.row() for bar in bars(series)]}


def _measure_once(workload: Workload, series: AllSeries, share: int) -> None:
    for probe in PROBES:
        _take(probe, series[probe.what, workload, probe.database], share)
    for peer in PEERS:
        _run(peer, workload, series[peer.what, workload, peer.database], share)


def bars(series: AllSeries) -> list[Bar]:
    """What we hold our own speed against."""

    def ours(workload: Workload, database: str) -> Series:
        return series["pyexp_daemon", workload, database]

    def noop(database: str, what: str, least: float, *, on: str | None = None) -> Bar:
        theirs = series[what, "noop", database if on is None else on]
        return Bar(what=f"no-op on {database} / {what}", least=least, ours=ours("noop", database), theirs=theirs)

    return [
        noop("sqlite", "bare slot call", 0.35, on=""),
        noop("sqlite", "Huey, with results", 1.3),
        noop("sqlite", "PyExperimenter", 20),
        noop("mariadb", "claim and finish of 32", 0.5),
        noop("mariadb", "PyExperimenter, TLS disabled", 15),
        noop("mariadb", "PyExperimenter", 100),
        noop("mariadb", "Optuna RDBStorage", 25),
        *(
            Bar(
                what=f"realistic on {database} / no-op",
                least=0.4,
                ours=ours("realistic", database),
                theirs=ours("noop", database),
            )
            for database in ("sqlite", "mariadb")
        ),
    ]


def table(found: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """What `measure` found, as lines for people."""
    heads = ["", "version", "workload", "database", "per second", "min", "max", "start s"]
    rows = [_cells(row) for row in [*found["probes"], *found["peers"]]]
    judged = [["bar", "at least", "ratio", "min", "max", ""], *(_judged(row) for row in found["bars"])]
    notes = [
        f"{row['what']}, {row['workload']}, {row['database']}: {note}"
        for row in [*found["probes"], *found["peers"]]
        for note in [*(["skipped: " + row["skipped"]] if row["skipped"] else []), *row["failures"]]
    ]
    return [*columns([heads, *rows], left=4), "", *columns(judged, left=1), *([""] if notes else []), *notes]


def has_failed(found: Mapping[str, list[dict[str, Any]]]) -> bool:
    """Whether a run left less in its database than it should."""
    return any(row["failures"] for row in found["peers"])


def _cells(row: Mapping[str, Any]) -> list[str]:
    rates = row["per_second"] or {}
    figures = [text(rates.get(name)) for name in ("median", "min", "max")]
    start = "-" if row["start_s"] is None else f"{row['start_s']:.2f}"
    return [row["what"], row["version"], row["workload"], row["database"], *figures, start]


def _judged(row: Mapping[str, Any]) -> list[str]:
    found = row["ratio"] or {}
    verdict = {True: "reached", False: "MISSED", None: "unknown"}[row["reached"]]
    return [row["what"], f"{row['least']:g}", *(text(found.get(name)) for name in ("median", "min", "max")), verdict]


def _keys(measured: Sequence[Peer | Probe]) -> list[tuple[str, str, str]]:
    return [(each.what, workload, each.database) for workload in WORKLOADS for each in measured]


def _prepare(series: AllSeries) -> None:
    for peer in PEERS:
        found = [series[peer.what, workload, peer.database] for workload in WORKLOADS]
        try:
            version = peer.prepare()
        except NotToBeHad as reason:
            for each in found:
                each.skipped = str(reason)
        else:
            for each in found:
                each.version = version


def _take(probe: Probe, series: Series, share: int) -> None:
    count = probe.count // share
    try:
        series.figures.append(count / probe.take(count))
    except NotToBeHad as reason:
        series.skipped = str(reason)
    _say(series)


def _run(peer: Peer, workload: Workload, series: Series, share: int) -> None:
    if series.skipped:
        return
    count = peer.experiments[workload] // share
    try:
        run = peer.run(workload, count)
    except NotToBeHad as reason:
        series.skipped = str(reason)
    except Failed as error:
        series.failures.append(str(error))
        series.figures.append(None)
    else:
        series.figures.append(count / run.seconds)
        series.starts += [] if run.start_s is None else [run.start_s]
    _say(series)


def _say(series: Series) -> None:
    figure = series.figures[-1] if series.figures else None
    said = f"{text(figure)}/s" if figure is not None else series.skipped or series.failures[-1]
    print(f"  {series.what} {series.database}: {said}", file=sys.stderr)
