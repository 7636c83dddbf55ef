"""Metrics: the text that Prometheus reads, the list of them, and the rules over them."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pyexp_daemon.cli import metrics
from pyexp_daemon.config.load import load_config
from pyexp_daemon.export.prometheus import Metric, write
from pyexp_daemon.model import Daemon, Outcome, Status
from pyexp_daemon.store.tables import Table
from tests.unit.config.factories import write_config

DOCS = Path(__file__).parents[3] / "docs"
RULES = (DOCS / "examples" / "alerts.yml").read_text()


class Fixed:
    """A store whose units are answered from a table, by their name."""

    def __init__(self, **answers: Any) -> None:
        self._answers = answers

    def read(self, unit: Any) -> Any:
        return self._answers[unit.name]


def daemon(**fields: Any) -> Daemon:
    given = {"id": 1, "name": "node-1", "host": "node", "state": "live", "beat_at": 995.0, "lease_s": 60.0, "slots": 4}
    other = {"incarnation": "", "host_id": "", "boot_id": "", "pid": 1, "pid_start": "", "version": "0.1.0"}
    return Daemon(**{**other, "beat": 1, "started": 900.0, **given, **fields})


FACTS = {
    "running": 3,
    "ended": {"done": 5, "error": 2},
    "rescued": 7,
    "reconnects": 1,
    "spool_bytes": 2048,
    "paused": "disk nearly full",
    "silent": {"4": 99.5},
}


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table.of(load_config(write_config(tmp_path)).database)


def gathered(table: Table, *rows: Daemon, held: Mapping[int, int] | None = None) -> list[Metric]:
    store: Any = Fixed(
        count_by_status={"done": 5, 'odd "one"\n\\': 1},
        oldest_running=12.3456789,
        finished_since=4,
        count_attempts={"done": 5, "superseded": 2},
        clock=1000.0,
        count_held=held or {},
        look=list(rows),
    )
    return [*metrics.of_table(store, table), *metrics.of_daemons(store, table)]


def parsed(found: list[Metric]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """As Prometheus's own client library reads it; a series that is there twice fails."""
    file = io.StringIO()
    write(file, found)
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(file.getvalue()):
        assert family.documentation
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()) - {("table", "runs")})
            assert sample.labels["table"] == "runs"
            assert key not in samples
            samples[key] = sample.value
    return samples


def value(samples: Mapping[Any, float], name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_the_table_in_figures(table: Table) -> None:
    samples = parsed(gathered(table))
    assert value(samples, "pyexpd_experiments", status="done") == 5
    assert value(samples, "pyexpd_experiments", status='odd "one"\n\\') == 1
    assert [value(samples, "pyexpd_experiments", status=status.value) for status in Status].count(0) == 6
    assert value(samples, "pyexpd_oldest_running_seconds") == 12.345679
    assert value(samples, "pyexpd_done_last_minute") == 4
    assert value(samples, "pyexpd_attempts_total", outcome="done") == 5
    assert [value(samples, "pyexpd_attempts_total", outcome=outcome.value) for outcome in Outcome].count(0) == 8
    assert value(samples, "pyexpd_superseded_total") == 2
    assert [value(samples, "pyexpd_daemons", state=state) for state in ("live", "draining", "silent")] == [0, 0, 0]


def test_a_daemon_in_figures(table: Table) -> None:
    samples = parsed(gathered(table, daemon(facts=FACTS)))
    who = {"daemon": "node-1", "host": "node"}
    expected = {
        "daemon_beat_age_seconds": 5,
        "daemon_lease_seconds": 60,
        "daemon_paused": 1,
        "daemon_silent_experiments": 1,
        "slots": 4,
        "slots_busy": 3,
        "spool_bytes": 2048,
        "rescued_total": 7,
        "reconnects_total": 1,
    }
    assert {name: value(samples, f"pyexpd_{name}", **who) for name in expected} == expected
    assert value(samples, "pyexpd_daemon_attempts_total", **who, outcome="error") == 2
    assert value(samples, "pyexpd_daemon_info", **who, version="0.1.0") == 1


def test_a_daemon_of_another_version_says_little_or_nonsense(table: Table) -> None:
    """What runs is then what the table says, at most the slots: what is claimed ahead does not run."""
    old = daemon(id=1, name="old")
    odd = daemon(id=2, name="odd", facts={"running": "many", "ended": [1], "silent": None, "spool_bytes": True})
    samples = parsed(gathered(table, old, odd, held={1: 9}))
    assert value(samples, "pyexpd_slots_busy", daemon="old", host="node") == 4
    assert value(samples, "pyexpd_slots_busy", daemon="odd", host="node") == 0
    assert value(samples, "pyexpd_spool_bytes", daemon="odd", host="node") == 0


def test_daemons_by_state(table: Table) -> None:
    rows = [daemon(name="a"), daemon(name="b", state="draining"), daemon(name="c", beat_at=900.0)]
    samples = parsed(gathered(table, *rows))
    assert [value(samples, "pyexpd_daemons", state=state) for state in ("live", "draining", "silent")] == [1, 1, 1]


def test_a_daemon_that_was_started_again_is_there_once(table: Table) -> None:
    """Its former self is not declared dead yet. A series that is there twice makes Prometheus refuse the whole file."""
    samples = parsed(gathered(table, daemon(id=1, beat_at=500.0), daemon(id=2, beat_at=999.0)))
    assert value(samples, "pyexpd_daemon_beat_age_seconds", daemon="node-1", host="node") == 1


def names(found: list[Metric]) -> set[str]:
    return {metric.name for metric in found}


def test_every_metric_is_described_with_its_type_and_labels_and_no_other(table: Table) -> None:
    found = gathered(table, daemon(facts=FACTS))
    rows = re.findall(
        r"^\| `(pyexpd_\w+)` \| (\w+) \| ([^|]*)\|", (DOCS / "reference/metrics.md").read_text(), re.MULTILINE
    )
    described = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert described == {metric.name: (metric.kind, set(metric.samples[0][0]) - {"table"}) for metric in found}


def test_the_rules_are_yaml_over_metrics_that_exist(table: Table) -> None:
    rules = yaml.safe_load(RULES)["groups"][0]["rules"]
    assert len(rules) > 10
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["annotations"]["summary"]
        used = set(re.findall(r"\b(?:pyexpd|node)_\w+", rule["expr"]))
        assert used
        assert used <= names(gathered(table)) | {"node_textfile_mtime_seconds"}
        assert rule["expr"].count("(") == rule["expr"].count(")")


def test_the_statuses_and_outcomes_in_the_rules_exist() -> None:
    statuses = set(re.findall(r'status="(\w+)"', RULES))
    outcomes = {word for found in re.findall(r'outcome=~"([^"]+)"', RULES) for word in found.split("|")}
    assert statuses <= set(Status)
    assert outcomes <= set(Outcome)
