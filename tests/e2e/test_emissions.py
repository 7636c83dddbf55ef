"""Emissions of real attempts, from the section CodeCarbon to the table beside the experiments."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.project import Project

both = pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)

OFFLINE = {"offline_mode": True, "country_iso_code": "DEU", "measure_power_secs": 1}
FUNCTION = """
import time


def measured(keyfields, rp, custom):
    time.sleep(0.06)
    print("hello", flush=True)
    if keyfields["x"] == 1:
        raise ValueError("no such luck")
    return {"y": keyfields["x"] * 2.0}
"""


def make(make_project: Callable[..., Project], **options: Any) -> Project:
    project = make_project(function="measured", **options)
    with (project.folder / "experiments.py").open("a") as functions:
        functions.write(FUNCTION)
    project.fill()
    return project


def rows(project: Project) -> list[tuple[Any, ...]]:
    return project.database.query(
        "SELECT experiment_id, country_iso_code, duration_seconds, emissions_kg, energy_consumed_kw,"
        " cpu_energy_kw + gpu_energy_kw + ram_energy_kw, tracking_mode, offline_mode FROM exp_codecarbon ORDER BY ID"
    )


def check_nothing_is_left(project: Project) -> None:
    assert not list(project.folder.rglob("*codecarbon*"))
    assert not list(project.folder.rglob("emissions*"))


@both
def test_each_attempt_has_a_row(make_project: Callable[..., Project]) -> None:
    """Those that failed and were tried again, too; in two slots, in children that are used again."""
    project = make(make_project, rows=6, codecarbon=OFFLINE, limits={"tries": {"error": 2}})
    ran = project.pyexpd("run", "--until-empty", "--slots", "2")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert project.statuses() == {"done": 5, "error": 1}
    found = rows(project)
    assert sorted(row[0] for row in found) == sorted(attempt[0] for attempt in project.attempts())
    assert len(found) == 7
    for _, country, duration, emissions, energy, parts, mode, offline in found:
        assert (country, mode, offline) == ("DEU", "machine", 1)
        assert 0.05 < duration < 30
        assert emissions > 0
        assert energy == pytest.approx(parts)
        assert energy > emissions / 2  # some hundred grams for each kWh
    assert len(set(project.database.query("SELECT run_id FROM exp_codecarbon"))) == 7
    check_nothing_is_left(project)
    logs = sorted((project.folder / ".pyexpd" / "exp").glob("*-*.log"))
    assert {path.read_text() for path in logs if path.name[0].isdigit()} == {"hello\n"}
    assert [event for event in project.events() if event["event"] == "emissions.incomplete"] == []


@both
def test_one_experiment_here_has_a_row(make_project: Callable[..., Project]) -> None:
    project = make(make_project, rows=3, codecarbon={**OFFLINE, "tracking_mode": "process"})
    ran = project.pyexpd("run", "3", "--here")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "codecarbon" not in ran.stdout + ran.stderr
    ((experiment, country, _, _, energy, parts, mode, _),) = rows(project)
    assert (experiment, country, mode) == (3, "DEU", "process")
    assert energy == pytest.approx(parts)
    check_nothing_is_left(project)


@both
def test_without_the_section_nothing_is_tracked(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=2, function="noop")
    with (project.folder / "experiments.py").open("a") as functions:
        functions.write("\n\ndef noop(keyfields):\n    assert 'codecarbon' not in sys.modules\n")
    project.fill()
    assert project.pyexpd("run", "--until-empty").returncode == 0
    assert project.statuses() == {"done": 2}
    names = project.database.query(
        "SELECT name FROM sqlite_master WHERE name LIKE '%codecarbon%'"
        if project.database.provider == "sqlite"
        else "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()"
        " AND table_name LIKE '%codecarbon%'"
    )
    assert names == []


@both
def test_where_codecarbon_is_missing_experiments_run_all_the_same(make_project: Callable[..., Project]) -> None:
    """One warning for the daemon, whatever the number of slots."""
    project = make(make_project, rows=4, codecarbon=OFFLINE, daemon={"python": "bare/bin/python"})
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "bare"], cwd=project.folder, check=True)
    ran = project.pyexpd("run", "--until-empty", "--slots", "2")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert project.statuses() == {"done": 3, "error": 1}
    assert rows(project) == []
    warnings = [event for event in project.events() if event["event"] == "emissions.incomplete"]
    assert warnings[0]["level"] == "warning"
    assert "bare/bin/python cannot import codecarbon" in warnings[0]["reason"]
    assert sum(event.get("repeated", 1) for event in warnings) <= 2
    assert len(warnings) <= 2
