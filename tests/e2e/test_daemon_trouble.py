"""Daemons in trouble: they say so, lose nothing that was stored, and always let themselves be stopped."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from tests.databases import Database
from tests.e2e.project import HUP, KILL, PYEXPD, TERM, Project
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
        wait_until(lambda: [e for e in project.events() if e["event"] == "database.lost"], timeout=120)
        daemon.send_signal(TERM)
        assert project.end(daemon, timeout=120) == 0


def test_a_busy_daemon_stops_while_the_database_is_away_and_says_where_results_wait(
    private_mariadb: PrivateServer, tmp_path: Path
) -> None:
    project = on_private(
        private_mariadb,
        tmp_path,
        rows=2,
        function="gated",
        daemon={"drain_timeout": "10s"},
        limits={"grace": "200ms"},
    )
    project.fill()
    with project.daemon("--slots", "2") as daemon:
        wait_until(lambda: len(project.notes()) == 2, timeout=120)
        children = project.children_of(daemon)
        private_mariadb.stop()
        daemon.send_signal(TERM)
        project.open_gate()
        assert project.end(daemon, timeout=120) == 75
    assert "results of 2 experiments wait in " in project.last_output
    from tests.e2e.project import is_alive

    assert not [pid for pid in children if is_alive(pid)]


@both
def test_short_experiments_do_not_wait_behind_a_long_one(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=300, function="one_long")
    add_function(
        project,
        "def one_long(keyfields, rp, custom):\n    time.sleep(200 * (keyfields['x'] == 150))\n    return {'y': 1.0}\n",
    )
    project.fill()
    with (
        project.daemon("--slots", "1", "--name", "a") as first,
        project.daemon("--slots", "1", "--name", "b") as second,
    ):
        project.wait_for(done=299, timeout=100)
        assert project.statuses() == {"done": 299, "running": 1}
        for daemon in (first, second):
            daemon.kill()


@both
def test_until_empty_does_not_wait_for_queues_of_other_nodes(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=6)
    project.fill()
    assert project.pyexpd("set", "queue=gpu", "1-2", "--yes").returncode == 0
    assert project.pyexpd("run", "--until-empty", "--slots", "1").returncode == 0
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
        assert project.end(daemon, timeout=120) == 70
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
        assert project.end(daemon, timeout=120) == 0


def test_with_kill_on_lost_lease_nothing_runs_when_the_lease_ends(
    private_mariadb: PrivateServer, tmp_path: Path
) -> None:
    """No two runs of an experiment may overlap: what runs is stopped, and nothing begins, before others may take it."""
    project = on_private(
        private_mariadb,
        tmp_path,
        rows=400,
        custom={"seconds": 0.2},
        daemon={"heartbeat": "1s", "lease": "10s", "on_lease_lost": "kill"},
        limits={"grace": "3s"},  # so long before the end of the lease, and a second more, nothing begins
    )
    add_function(project, "def nap(keyfields, rp, custom):\n    note(custom, 'start', rp)\n    time.sleep(0.2)\n")
    project.config.write_text(project.config.read_text().replace("experiments:run", "experiments:nap"))
    project.fill()
    with project.daemon("--slots", "2") as daemon:
        project.wait_for(done=10)
        private_mariadb.freeze()
        frozen_at = time.monotonic()
        time.sleep(14)
        begun = [float(note[4]) - frozen_at for note in project.notes() if note[0] == "start"]
        private_mariadb.thaw()
        assert max(begun) < 10.0
        done = project.statuses()["done"]
        project.wait_for(done=done + 10)  # and it goes on by itself
        daemon.kill()


@sqlite
def test_a_terminal_that_goes_away_ends_nothing(make_project: Callable[..., Project]) -> None:
    """A closed tmux window or a lost ssh connection: HUP, and a terminal that answers every write with an error."""
    project = make_project(rows=30, custom={"seconds": 0.2})
    project.fill()
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(project.folder)
        os.execv(PYEXPD, [PYEXPD, "run", "--until-empty", "--slots", "2"])
    try:
        reader = threading.Thread(target=read_until_closed, args=(master,), daemon=True)
        reader.start()
        project.wait_for(done=4)
        os.close(master)
        project.wait_for(done=30)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        if Path(f"/proc/{pid}/stat").exists():
            os.kill(pid, KILL)
    assert {len(times) for times in project.runs().values()} == {1}
    assert [event["event"] for event in project.events()][-1] == "daemon.stopped"


def read_until_closed(descriptor: int) -> None:
    try:
        while select.select([descriptor], [], [], 0.1):
            os.read(descriptor, 65536)
    except OSError:
        return


@sqlite
def test_a_reader_of_stderr_that_goes_away_does_not_cut_a_drain_short(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=3, function="gated")
    project.fill()
    daemon = subprocess.Popen(
        [PYEXPD, "run", "--slots", "2"],
        cwd=project.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert daemon.stderr is not None
    wait_until(lambda: len(project.notes()) == 2, timeout=120)
    daemon.stderr.close()
    daemon.send_signal(TERM)
    wait_until(lambda: [e for e in project.events() if e["event"] == "daemon.draining"], what="a drain")
    project.open_gate()
    assert daemon.wait(60) == 0
    assert project.statuses() == {"done": 2, "created": 1}


def test_stopping_while_results_wait_for_a_frozen_database_is_bounded_and_honest(
    private_mariadb: PrivateServer, tmp_path: Path
) -> None:
    project = on_private(
        private_mariadb, tmp_path, rows=2, daemon={"drain_timeout": "500ms"}, limits={"grace": "200ms"}
    )
    add_function(
        project,
        "def late(keyfields, rp, custom):\n"
        "    gated(keyfields, rp, custom)\n    time.sleep(1.5)\n    rp.process_results({'y': 1.0})\n"
        "    note(custom, 'stored', rp)\n",
    )
    project.config.write_text(project.config.read_text().replace("experiments:run", "experiments:late"))
    project.fill()
    with project.daemon("--slots", "2") as daemon:
        wait_until(lambda: len(project.notes()) == 2, timeout=120)
        private_mariadb.freeze()
        project.open_gate()
        wait_until(lambda: [note[0] for note in project.notes()].count("stored") == 2, what="results on disk")
        time.sleep(0.5)
        daemon.send_signal(TERM)
        time.sleep(2)
        used_s = cpu_s(daemon.pid)
        time.sleep(4)
        assert cpu_s(daemon.pid) - used_s < 2  # it waits, and does not spin
        assert project.end(daemon, timeout=120) == 75
        private_mariadb.thaw()
    assert "results of 2 experiments wait in " in project.last_output


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@both
def test_an_end_that_the_table_refuses_holds_up_nobody(make_project: Callable[..., Project]) -> None:
    """A trigger of the user's own refuses results and errors of one experiment."""
    project = make_project(rows=40)
    project.fill()
    condition = "NEW.ID = 3 AND (NEW.y IS NOT NULL OR NEW.error IS NOT NULL)"
    if project.database.server is None:
        body = f"WHEN {condition} BEGIN SELECT RAISE(ABORT, 'never'); END"
    else:
        body = f"FOR EACH ROW BEGIN IF {condition} THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'never'; END IF; END"
    with closing(project.database.connect()) as connection:
        connection.cursor().execute(f"CREATE TRIGGER guard BEFORE UPDATE ON exp {body}")
    assert project.pyexpd("run", "--until-empty", "--slots", "2").returncode == 0
    assert project.statuses() == {"done": 39, "paused": 1}
    assert [event for event in project.events() if event["event"] == "attempt.unstorable"]


def test_a_password_may_be_changed_while_a_daemon_works(private_mariadb: PrivateServer, tmp_path: Path) -> None:
    """Each new connection logs in by the credentials as they are then: no restart is needed."""
    project = on_private(private_mariadb, tmp_path, rows=40, function="gated")
    project.fill()
    credentials = project.folder / "database_credentials.yml"
    old = yaml.safe_load(credentials.read_text())

    def log_in_as(password: str) -> None:
        old["CREDENTIALS"]["Database"] = {"user": "worker", "password": password}
        credentials.write_text(yaml.safe_dump(old))

    private_mariadb.query("CREATE USER worker@'%' IDENTIFIED BY 'first'")
    private_mariadb.query(f"GRANT ALL ON `{project.database.name}`.* TO worker@'%'")
    log_in_as("first")
    with project.daemon("--slots", "1", "--until-empty") as daemon:
        wait_until(project.notes, timeout=120, what="a start")
        private_mariadb.query("ALTER USER worker@'%' IDENTIFIED BY 'second'")
        log_in_as("second")
        private_mariadb.query("KILL CONNECTION USER worker")
        project.open_gate()
        assert project.end(daemon, timeout=120) == 0
    assert project.statuses() == {"done": 40}
    assert {outcome for _, _, outcome in project.attempts()} == {"done"}
    assert [entry for entry in project.events() if entry["event"] == "database.back"]
