from __future__ import annotations

from typing import Any

import pytest

from benchmarks import comparison
from benchmarks.peers.peer import Failed, Run, Stored
from benchmarks.peers.workers.workload import WORKLOADS, Workload
from benchmarks.probes import PROBES, Probe
from tests.servers import NotToBeHad


class Fake:
    """A peer whose runs take as long as it is told, or end otherwise."""

    def __init__(self, what: str, database: str, *, seconds: float = 1.0, trouble: Exception | None = None) -> None:
        self.what = what
        self.database = database
        self.experiments: dict[Workload, int] = {"noop": 1000, "realistic": 500}
        self._seconds = seconds
        self._trouble = trouble

    def prepare(self) -> str:
        if isinstance(self._trouble, NotToBeHad):
            raise self._trouble
        return "1.2"

    def run(self, workload: Workload, count: int) -> Run:
        if self._trouble:
            raise self._trouble
        return Run(seconds=self._seconds, start_s=0.5)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """A comparison in which Huey cannot be had and Optuna on SQLite loses results; probes give 2000 per second."""
    troubles = {"huey": NotToBeHad("no such package"), "optuna sqlite": Failed("stored is 1, not 2")}
    fakes = [
        Fake(
            peer.what,
            peer.database,
            trouble=troubles.get(f"{_module(peer)} {peer.database}", troubles.get(_module(peer))),
        )
        for peer in comparison.PEERS
    ]
    probes = [
        Probe(what=probe.what, database=probe.database, count=1000, take=lambda count: count / 2000) for probe in PROBES
    ]
    monkeypatch.setattr(comparison, "PEERS", fakes)
    monkeypatch.setattr(comparison, "PROBES", probes)
    return comparison.measure(repeats=2)


def _module(peer: object) -> str:
    return type(peer).__module__.rpartition(".")[2]


def row_of(rows: list[dict[str, Any]], what: str, workload: str, database: str) -> dict[str, Any]:
    (row,) = (row for row in rows if (row["what"], row["workload"], row["database"]) == (what, workload, database))
    return row


def test_every_peer_and_probe_has_a_row_per_workload(found: dict[str, list[dict[str, Any]]]) -> None:
    assert len(found["peers"]) == len(comparison.PEERS) * len(WORKLOADS)
    assert len(found["probes"]) == len(PROBES) * len(WORKLOADS)
    assert row_of(found["peers"], "pyexp_daemon", "realistic", "mariadb")["per_second"]["all"] == [500, 500]
    assert row_of(found["probes"], "bare slot call", "noop", "")["per_second"]["all"] == [2000, 2000]


def test_what_cannot_be_had_is_skipped_with_the_reason(found: dict[str, list[dict[str, Any]]]) -> None:
    row = row_of(found["peers"], "Huey, with results", "noop", "sqlite")

    assert row["skipped"] == "no such package"
    assert row["per_second"] is None
    assert "Huey, with results, noop, sqlite: skipped: no such package" in comparison.table(found)


def test_a_run_that_loses_results_is_an_error_and_has_no_figure(found: dict[str, list[dict[str, Any]]]) -> None:
    row = row_of(found["peers"], "Optuna RDBStorage", "noop", "sqlite")

    assert row["failures"] == ["stored is 1, not 2"] * 2
    assert row["per_second"] is None
    assert comparison.has_failed(found)


def test_the_bars_are_compared_within_a_repeat(found: dict[str, list[dict[str, Any]]]) -> None:
    by_name = {row["what"]: row for row in found["bars"]}

    assert by_name["no-op on sqlite / bare slot call"]["ratio"]["all"] == [0.5, 0.5]
    assert by_name["no-op on sqlite / bare slot call"]["reached"]
    assert by_name["realistic on sqlite / no-op"]["ratio"]["median"] == 0.5
    assert by_name["no-op on mariadb / Optuna RDBStorage"]["reached"] is False
    assert by_name["no-op on sqlite / Huey, with results"]["reached"] is None


def test_missing_results_or_log_rows_are_noticed() -> None:
    Stored(finished=20, results=20, logs=2).check("realistic", 20)
    Stored(finished=20, results=0, logs=0).check("noop", 20)
    for short in (
        Stored(finished=19, results=20, logs=2),
        Stored(finished=20, results=19, logs=2),
        Stored(finished=20, results=20, logs=1),
    ):
        with pytest.raises(Failed):
            short.check("realistic", 20)
