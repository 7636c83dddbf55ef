"""`pyexpd metrics`: the state of a table and its daemons for Prometheus. See docs/reference/metrics.md."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyexp_daemon.cli.context import Workplace, command
from pyexp_daemon.export.files import replacing
from pyexp_daemon.export.prometheus import Metric, write
from pyexp_daemon.model import Daemon, Outcome, Status
from pyexp_daemon.store import daemons, figures, reads

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore
    from pyexp_daemon.store.tables import Table

RATE_S = 60.0


@command("metrics")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write there instead of stdout.")
def metrics_command(workplace: Workplace, *, output: Path | None) -> None:
    """Print the state of the table and its daemons for Prometheus.

    With -o for node_exporter's textfile collector: the file appears when it is complete, in the place of the older
    one. When the database does not answer, the older one stays as it is.
    """
    with workplace.experiments() as store:
        workplace.announce()
        metrics = [*of_table(store, workplace.table), *of_daemons(store, workplace.table)]
    if output is None or output == Path("-"):
        write(sys.stdout, metrics)
        return
    with replacing(output) as file:
        write(file, metrics)


def of_table(store: BlockingStore, table: Table) -> list[Metric]:
    """What is true of the table as a whole."""
    labels = {"table": table.name}
    experiments = Metric("pyexpd_experiments", "gauge", "Experiments by status.")
    counts = store.read(reads.count_by_status(table))
    for status in dict.fromkeys([*Status, *counts]):
        experiments.add(counts.get(status, 0), **labels, status=str(status))
    oldest = Metric("pyexpd_oldest_running_seconds", "gauge", "Since the start of the oldest running attempt; 0: none.")
    oldest.add(store.read(figures.oldest_running(table)) or 0, **labels)
    lately = Metric("pyexpd_done_last_minute", "gauge", "Attempts that ended as done within the last minute.")
    lately.add(store.read(reads.finished_since(table, RATE_S)), **labels)
    attempts = Metric("pyexpd_attempts_total", "counter", "Attempts that ended, by outcome.")
    ended = store.read(figures.count_attempts(table))
    for outcome in dict.fromkeys([*Outcome, *ended]):
        attempts.add(ended.get(outcome, 0), **labels, outcome=str(outcome))
    superseded = Metric("pyexpd_superseded_total", "counter", "Results that came after their lease was lost.")
    superseded.add(ended.get(Outcome.SUPERSEDED, 0), **labels)
    return [experiments, oldest, lately, attempts, superseded]


def of_daemons(store: BlockingStore, table: Table) -> list[Metric]:
    """What the daemons do that have not signed off, by what they said with their last beat."""
    now = store.read(reads.clock(table))
    held = store.read(reads.count_held(table))
    # A daemon that crashed and was started again is there twice until it is declared dead; a series must not be.
    rows = {(row.name, row.host): row for row in store.read(daemons.look(table))}.values()
    states = Metric("pyexpd_daemons", "gauge", "Daemons by state; silent: without a beat for longer than the lease.")
    counted = [_state(row, now) for row in rows]
    for state in ("live", "draining", "silent"):
        states.add(counted.count(state), table=table.name, state=state)
    by_daemon = _Series()
    for row in rows:
        by_daemon.add(row, {"table": table.name, "daemon": row.name, "host": row.host}, now=now, held=held)
    return [states, *by_daemon.metrics]


def _state(row: Daemon, now: float) -> str:
    return "silent" if now - row.beat_at > row.lease_s else row.state


class _Series:
    """The metrics that every daemon has."""

    def __init__(self) -> None:
        self._info = Metric("pyexpd_daemon_info", "gauge", "Always 1; the version of each daemon.")
        self._age = Metric("pyexpd_daemon_beat_age_seconds", "gauge", "Since the last beat.")
        self._lease = Metric("pyexpd_daemon_lease_seconds", "gauge", "How long claims outlive the last beat.")
        self._paused = Metric("pyexpd_daemon_paused", "gauge", "1: it claims nothing; pyexpd status says why.")
        self._silent = Metric(
            "pyexpd_daemon_silent_experiments", "gauge", "Running ones without a recent sign of life."
        )
        self._slots = Metric("pyexpd_slots", "gauge", "Experiments that may run at once.")
        self._busy = Metric("pyexpd_slots_busy", "gauge", "Experiments that run.")
        self._spool = Metric("pyexpd_spool_bytes", "gauge", "Results that wait on the local disk for the database.")
        self._rescued = Metric("pyexpd_rescued_total", "counter", "Experiments of dead daemons that it put back.")
        self._reconnects = Metric("pyexpd_reconnects_total", "counter", "How often it lost the database.")
        self._ended = Metric("pyexpd_daemon_attempts_total", "counter", "Attempts that ended there since its start.")

    @property
    def metrics(self) -> list[Metric]:
        return [getattr(self, name) for name in vars(self)]

    def add(self, row: Daemon, labels: Mapping[str, str], *, now: float, held: Mapping[int, int]) -> None:
        facts = row.facts
        self._info.add(1, **labels, version=row.version)
        self._age.add(max(0.0, now - row.beat_at), **labels)
        self._lease.add(row.lease_s, **labels)
        self._paused.add(int(facts.get("paused") is not None), **labels)
        self._silent.add(len(_mapping(facts.get("silent"))), **labels)
        self._slots.add(row.slots, **labels)
        self._busy.add(_count(facts.get("running"), otherwise=min(row.slots, held.get(row.id, 0))), **labels)
        self._spool.add(_count(facts.get("spool_bytes")), **labels)
        self._rescued.add(_count(facts.get("rescued")), **labels)
        self._reconnects.add(_count(facts.get("reconnects")), **labels)
        for outcome, count in _mapping(facts.get("ended")).items():
            self._ended.add(_count(count), **labels, outcome=str(outcome))


def _count(said: Any, *, otherwise: int = 0) -> int:
    """A number that a daemon said of itself; daemons of other versions may say none."""
    return said if isinstance(said, int) and not isinstance(said, bool) else otherwise


def _mapping(said: Any) -> Mapping[str, Any]:
    return said if isinstance(said, Mapping) else {}
