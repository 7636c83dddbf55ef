"""What is added or reset on a host is claimed there at once, however seldom its daemons ask."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import yaml

from tests.e2e.project import Project

SELDOM = {"poll": {"shortest": "10m", "longest": "10m"}}


def add_row(project: Project) -> None:
    content = yaml.safe_load(project.config.read_text())
    content["PY_EXPERIMENTER"]["Database"]["table"]["keyfields"]["x"]["values"].append(77)
    project.config.write_text(yaml.safe_dump(content))
    assert "added 1, 1 already there" in project.pyexpd("fill").stdout


@pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
def test_an_idle_daemon_of_the_host_is_woken(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=1, daemon=SELDOM)
    project.fill()
    with project.daemon("--slots", "1"):
        project.wait_for(done=1)
        add_row(project)
        project.wait_for(done=2)
        assert project.pyexpd("reset", "--yes", "1").returncode == 0
        project.wait_for(done=2)
        assert project.attempts() == [(1, 1, "done"), (1, 3, "done"), (2, 1, "done")]


def test_a_daemon_of_another_host_is_left_alone(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=1, daemon=SELDOM)
    project.fill()
    with project.daemon("--name", "there", PYEXPD_HOST_ID="there"):
        project.wait_for(done=1)
        time.sleep(2)  # it looks once more, and finds nothing
        add_row(project)
        with project.daemon("--until-empty", "--name", "here") as here:
            assert here.wait(60) == 0
        assert {entry["daemon"] for entry in project.events() if entry["event"] == "attempt.finished"} == {
            "there",
            "here",
        }
        assert project.statuses() == {"done": 2}
