"""A node that fails at once what others can do: it stops by itself, and what it failed is given back uncharged."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from tests.e2e.project import TERM, Project
from tests.helpers import wait_until

both = pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
Make = Callable[..., Project]

FUNCTION = """
def picky(keyfields, rp, custom):
    note(custom, "start", rp)
    broken = os.environ.get("BROKEN")
    if broken and os.path.exists(broken):
        raise OSError("libgpu.so: no such file")
    if keyfields["x"] < custom.get("impossible", 0):
        raise ValueError("no such combination")
    if not os.path.exists(custom["journal"] + ".go"):  # until the gate is open, that there is enough left
        time.sleep(custom["seconds"])
    note(custom, "end", rp)
    return {"y": 1.0}
"""


def make_picky(make_project: Make, *, rows: int, canary: str = "5m", **custom: Any) -> Project:
    project = make_project(
        rows=rows,
        function="picky",
        custom={"seconds": 0.1, **custom},
        daemon={"heartbeat": "500ms", "lease": "30s", "canary": canary},
    )
    with (project.folder / "experiments.py").open("a") as file:
        file.write(FUNCTION)
    project.fill()
    return project


def named(project: Project, event: str, daemon: str = "*") -> list[dict[str, Any]]:
    return [entry for entry in project.events(daemon) if entry["event"] == event]


def receipts(project: Project, daemon: str) -> list[tuple[int, str]]:
    return project.database.query(
        "SELECT experiment_id, outcome FROM exp__pyexpd_attempts a JOIN exp__pyexpd_daemons d ON d.id = a.daemon"
        " WHERE d.name = ?",
        (daemon,),
    )


@both
def test_of_three_nodes_the_broken_one_spoils_nothing(make_project: Make) -> None:
    project = make_picky(make_project, rows=600, seconds=1.0)
    (project.folder / "broken").touch()
    with ExitStack() as fleet:
        good = [
            fleet.enter_context(project.daemon("--slots", "2", "--name", name, "--until-empty", PYEXPD_HOST_ID=name))
            for name in ("one", "two")
        ]
        wait_until(lambda: project.statuses().get("done", 0) > 0, timeout=120)
        bad = fleet.enter_context(
            project.daemon("--slots", "2", "--name", "bad", PYEXPD_HOST_ID="bad", BROKEN=str(project.folder / "broken"))
        )
        wait_until(lambda: named(project, "node.broken", "bad"), timeout=120, what="a verdict")
        project.open_gate()
        assert [project.end(daemon, timeout=90) for daemon in good] == [0, 0]
        bad.send_signal(TERM)
        assert project.end(bad) == 0
    assert project.statuses() == {"done": 600}
    assert project.database.query("SELECT COUNT(*) FROM exp WHERE pyexpd_tries IS NOT NULL OR error IS NOT NULL") == [
        (0,)
    ]
    touched = receipts(project, "bad")
    assert 10 <= len({experiment for experiment, _ in touched}) <= 10 + 2, touched
    assert {outcome for _, outcome in touched} == {"released"}
    assert len(named(project, "node.broken", "bad")) == 1
    assert not named(project, "node.suspected", "one")


@both
def test_a_repaired_node_comes_back_by_its_canary(make_project: Make) -> None:
    project = make_picky(make_project, rows=600, canary="1s", seconds=0.25)
    (project.folder / "broken").touch()
    with ExitStack() as fleet:
        good = fleet.enter_context(
            project.daemon("--slots", "1", "--name", "good", "--until-empty", PYEXPD_HOST_ID="good")
        )
        project.wait_for(done=1)  # alone, the other one would not be blamed
        bad = fleet.enter_context(
            project.daemon("--slots", "1", "--name", "bad", "--until-empty", BROKEN=str(project.folder / "broken"))
        )
        wait_until(lambda: named(project, "node.canary", "bad"), timeout=120, what="a canary")
        wait_until(lambda: "broken node: " in project.pyexpd("daemon", "list").stdout, interval=0.1)
        (project.folder / "broken").unlink()
        wait_until(lambda: named(project, "node.recovered", "bad"), timeout=120, what="recovery")
        project.open_gate()
        assert (project.end(good, timeout=90), project.end(bad, timeout=90)) == (0, 0)
    assert project.statuses() == {"done": 600}
    assert project.database.query("SELECT COUNT(*) FROM exp WHERE pyexpd_tries IS NOT NULL") == [(0,)]
    assert {outcome for _, outcome in receipts(project, "bad")} == {"released", "done"}


@both
def test_experiments_that_fail_everywhere_are_not_blamed_on_a_node(make_project: Make) -> None:
    """A stretch of impossible combinations is failed by whoever takes it, and charged."""
    project = make_picky(make_project, rows=60, impossible=40, seconds=0.05)
    with (
        project.daemon("--slots", "1", "--name", "one", "--until-empty", PYEXPD_HOST_ID="one") as one,
        project.daemon("--slots", "1", "--name", "two", "--until-empty", PYEXPD_HOST_ID="two") as two,
    ):
        assert (project.end(one, timeout=120), project.end(two, timeout=120)) == (0, 0)
    assert project.statuses() == {"done": 20, "error": 40}
    tries = project.database.query("SELECT DISTINCT pyexpd_tries FROM exp WHERE status = 'error'")
    assert tries == [('{"error": 1}',)]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_node_alone_is_never_blamed(make_project: Make) -> None:
    project = make_picky(make_project, rows=30, impossible=30)
    ran = project.pyexpd("run", "--until-empty", "--slots", "2")
    assert ran.returncode == 0
    assert project.statuses() == {"error": 30}
    assert not named(project, "node.broken")
