"""Daemons in trouble: they say so, lose nothing that was stored, and always let themselves be stopped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.databases import Database
from tests.e2e.project import HUP, TERM, Project
from tests.helpers import wait_until
from tests.servers import PrivateServer

both = pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def add_function(project: Project, source: str) -> None:
    path = project.folder / "experiments.py"
    path.write_text(f"{path.read_text()}\n\n{source}")


def on_private(server: PrivateServer, folder: Path, **options: object) -> Project:
    name = server.create_database()
    database = Database(provider="mysql", flavour="mariadb", name=name, server=server)
    rows = options.pop("rows", 5)
    assert isinstance(rows, int)
    return Project(database, folder / "project", options=dict(options), rows=rows)


def test_an_idle_daemon_stops_while_the_database_is_away(private_mariadb: PrivateServer, tmp_path: Path) -> None:
    project = on_private(private_mariadb, tmp_path, rows=1)
    project.fill()
    with project.daemon("--slots", "1") as daemon:
        project.wait_for(done=1)
        private_mariadb.stop()
        wait_until(lambda: [e for e in project.events() if e["event"] == "database.lost"], timeout=20)
        daemon.send_signal(TERM)
        assert project.end(daemon, timeout=30) == 0


def test_a_busy_daemon_stops_while_the_database_is_away_and_says_what_was_not_stored(
    private_mariadb: PrivateServer, tmp_path: Path
) -> None:
    project = on_private(
        private_mariadb,
        tmp_path,
        rows=2,
        custom={"seconds": 2},
        daemon={"drain_timeout": "4s"},
        limits={"grace": "200ms"},
    )
    add_function(project, "def ends_later(keyfields, rp, custom):\n    note(custom, 'start', rp)\n    time.sleep(2)\n")
    project.config.write_text(project.config.read_text().replace("experiments:run", "experiments:ends_later"))
    project.fill()
    with project.daemon("--slots", "2") as daemon:
        wait_until(lambda: len(project.notes()) == 2, timeout=20)
        children = project.children_of(daemon)
        private_mariadb.stop()
        daemon.send_signal(TERM)
        assert project.end(daemon, timeout=60) == 75
    assert "2 results could not be stored" in project.last_output
    from tests.e2e.project import is_alive

    assert not [pid for pid in children if is_alive(pid)]


@both
def test_short_experiments_do_not_wait_behind_a_long_one(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=300, function="one_long")
    add_function(
        project,
        "def one_long(keyfields, rp, custom):\n    time.sleep(8 * (keyfields['x'] == 150))\n    return {'y': 1.0}\n",
    )
    project.fill()
    with (
        project.daemon("--slots", "1", "--name", "a") as first,
        project.daemon("--slots", "1", "--name", "b") as second,
    ):
        project.wait_for(done=299)
        assert project.statuses() == {"done": 299, "running": 1}
        for daemon in (first, second):
            daemon.kill()


@both
def test_until_empty_does_not_wait_for_queues_of_other_nodes(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=6)
    project.fill()
    assert project.pyexpd("set", "queue=gpu", "1-2", "--yes").returncode == 0
    assert project.pyexpd("run", "--until-empty", "--slots", "1", timeout=30).returncode == 0
    assert project.statuses() == {"created": 2, "done": 4}


@sqlite
def test_an_error_that_stdout_cannot_spell_ends_nothing(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=3, function="unspeakable")
    add_function(project, "def unspeakable(keyfields, rp, custom):\n    raise ValueError('loss → nan ∞ 🌱')\n")
    project.fill()
    ran = project.pyexpd("run", "--until-empty", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert ran.returncode == 0, ran.stderr
    assert project.statuses() == {"error": 3}
    assert "loss → nan ∞ 🌱" in project.database.query("SELECT error FROM exp WHERE ID = 1")[0][0]


@sqlite
def test_when_children_cannot_start_any_more_what_is_held_is_handed_back(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=400, custom={"seconds": 0.05}, daemon={"isolation": "fresh"})
    python = project.folder / "python"
    python.symlink_to(sys.executable)
    config = project.config.read_text()
    project.config.write_text(config.replace("isolation: fresh", f"isolation: fresh\n    python: {python}"))
    project.fill()
    with project.daemon("--slots", "2") as daemon:
        project.wait_for(done=5)
        python.unlink()
        assert project.end(daemon, timeout=30) == 70
    statuses = project.statuses()
    assert set(statuses) == {"created", "done"}
    assert project.database.query("SELECT COUNT(*) FROM exp WHERE pyexpd_tries IS NOT NULL") == [(0,)]
    assert str(python) in project.last_output


@sqlite
def test_an_import_that_hangs_after_hup_does_not_keep_a_daemon_from_stopping(
    make_project: Callable[..., Project],
) -> None:
    project = make_project(rows=1)
    project.fill()
    with project.daemon("--slots", "1") as daemon:
        project.wait_for(done=1)
        add_function(project, "time.sleep(600)\n")
        daemon.send_signal(HUP)
        time.sleep(0.5)
        daemon.send_signal(TERM)
        assert project.end(daemon, timeout=30) == 0


def test_with_kill_on_lost_lease_nothing_runs_when_the_lease_ends(
    private_mariadb: PrivateServer, tmp_path: Path
) -> None:
    """No two runs of an experiment may overlap: what runs is stopped, and nothing begins, before others may take it."""
    project = on_private(
        private_mariadb,
        tmp_path,
        rows=400,
        custom={"seconds": 0.2},
        daemon={"heartbeat": "1s", "lease": "4s", "on_lease_lost": "kill"},
        limits={"grace": "200ms"},
    )
    add_function(project, "def nap(keyfields, rp, custom):\n    note(custom, 'start', rp)\n    time.sleep(0.2)\n")
    project.config.write_text(project.config.read_text().replace("experiments:run", "experiments:nap"))
    project.fill()
    with project.daemon("--slots", "2") as daemon:
        project.wait_for(done=10)
        private_mariadb.freeze()
        frozen_at = time.monotonic()
        time.sleep(8)
        begun = [float(note[4]) - frozen_at for note in project.notes() if note[0] == "start"]
        private_mariadb.thaw()
        assert max(begun) < 4.0
        done = project.statuses()["done"]
        project.wait_for(done=done + 10)  # and it goes on by itself
        daemon.kill()
