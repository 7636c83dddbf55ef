"""Results of running experiments through outages and deaths: on disk when the database is away, stored once after."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.databases import Database
from tests.e2e.project import KILL, TERM, Project
from tests.helpers import wait_until
from tests.servers import PrivateServer

FUNCTIONS = '''
def talkative(keyfields, rp, custom):
    """A hundred log rows and one result each second."""
    note(custom, "start", rp)
    for number in range(int(custom["seconds"] * 100)):
        rp.process_logs({"epochs": {"number": number}})
        if number % 100 == 0:
            rp.process_results({"y": float(number)})
        time.sleep(0.01)
    note(custom, "end", rp)


def late(keyfields, rp, custom):
    """Its result comes when the gate is open: when the database may be away."""
    note(custom, "start", rp)
    time.sleep(custom["seconds"])
    while not os.path.exists(custom["journal"] + ".go"):
        time.sleep(0.02)
    rp.process_logs({"epochs": {"number": keyfields["x"]}})
    rp.process_results({"y": 2.0 * keyfields["x"]})
    note(custom, "end", rp)
'''


def make(database: Database, folder: Path, *, function: str, rows: int, seconds: float, **daemon: str) -> Project:
    project = Project(
        database,
        folder / "project",
        options={
            "function": function,
            "custom": {"seconds": seconds},
            "logtables": {"epochs": {"number": "INT"}},
            "daemon": {"drain_timeout": "2s", **daemon},
            "limits": {"grace": "200ms"},
        },
        rows=rows,
    )
    path = project.folder / "experiments.py"
    path.write_text(path.read_text() + FUNCTIONS)
    project.fill()
    return project


def on_private(server: PrivateServer) -> Database:
    return Database(provider="mysql", flavour="mariadb", name=server.create_database(), server=server)


def ended(project: Project) -> int:
    return sum(note[0] == "end" for note in project.notes())


def spooled(state: Path, word: str) -> int:
    """How often a word stands in the spools."""
    return sum(path.read_text().count(word) for path in state.glob("spool/*/[!.]*/*.records"))


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


class Peak:
    """The most memory a process has held since the beginning of the block."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.bytes = self.before = rss_bytes(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def growth_mib(self) -> float:
        return (self.bytes - self.before) / 2**20

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            try:
                self.bytes = max(self.bytes, rss_bytes(self._pid))
            except OSError:
                return


def test_an_outage_of_thirty_leases_loses_doubles_and_piles_up_nothing(
    private_mariadb: PrivateServer, tmp_path: Path
) -> None:
    lease_s, rows = 0.5, 3
    project = make(
        on_private(private_mariadb),
        tmp_path,
        function="talkative",
        rows=rows,
        seconds=20,
        heartbeat="100ms",
        lease=f"{lease_s}s",
    )
    with project.daemon("--slots", str(rows), "--until-empty") as daemon:
        wait_until(lambda: project.database.query("SELECT COUNT(*) FROM exp__epochs")[0][0] > 100 * rows, timeout=120)
        with Peak(daemon.pid) as peak:
            private_mariadb.stop()
            time.sleep(30 * lease_s)
            private_mariadb.start()
            assert project.end(daemon, timeout=150) == 0
    print(f"memory grew by {peak.growth_mib:.1f} MiB")
    assert project.statuses() == {"done": rows}
    assert {len(times) for times in project.runs().values()} == {1}
    assert project.attempts() == [(number, 1, "done") for number in range(1, rows + 1)]
    assert project.database.query("SELECT DISTINCT y FROM exp") == [(1900.0,)]
    for number in range(1, rows + 1):
        stored = project.database.query("SELECT number FROM exp__epochs WHERE experiment_id = ? ORDER BY ID", (number,))
        assert [row[0] for row in stored] == list(range(2000))
    assert peak.growth_mib <= 15


@contextmanager
def away(project: Project, server: PrivateServer | None) -> Iterator[None]:
    """The database cannot be used: its server is stopped, or another process keeps the file locked."""
    if server is not None:
        server.stop()
        yield
        server.start()
        return
    with closing(sqlite3.connect(project.database.path, isolation_level=None, timeout=10)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@pytest.fixture(params=["sqlite", "mariadb"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Database, PrivateServer | None]:
    """A database that can be taken away, with its server."""
    if request.param == "sqlite":
        return Database(provider="sqlite", flavour="sqlite", name=str(tmp_path / "results")), None
    server = request.getfixturevalue("private_mariadb")
    return on_private(server), server


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    return tmp_path / "state"


Place = tuple[Database, PrivateServer | None]


def test_what_was_finished_during_an_outage_outlives_a_killed_daemon(place: Place, state: Path, tmp_path: Path) -> None:
    project = make(place[0], tmp_path, function="late", rows=4, seconds=1.5)
    with project.daemon("--slots", "2") as daemon:
        wait_until(lambda: len(project.notes()) == 2, timeout=120)
        with away(project, place[1]):
            project.open_gate()
            wait_until(lambda: spooled(state, '"end"') == 2, timeout=120)
            assert ended(project) == 2
            daemon.send_signal(KILL)
            daemon.wait()
    assert project.statuses() == {"created": 2, "running": 2}
    assert project.pyexpd("run", "--until-empty", "--slots", "2").returncode == 0
    assert project.statuses() == {"done": 4}
    assert {len(times) for times in project.runs().values()} == {1}
    assert project.attempts() == [(number, 1, "done") for number in (1, 2, 3, 4)]
    assert project.database.query("SELECT x, y FROM exp ORDER BY ID") == [(x, 2.0 * x) for x in range(4)]
    assert sorted(project.database.query("SELECT number FROM exp__epochs")) == [(0,), (1,), (2,), (3,)]
    daemons = project.database.query("SELECT DISTINCT daemon FROM exp__pyexpd_attempts WHERE experiment_id < 3")
    assert daemons == [(1,)]
    assert [event["records"] for event in project.events() if event["event"] == "spool.replayed"]


def test_another_daemon_of_the_host_finishes_what_a_killed_one_spooled(
    place: Place, state: Path, tmp_path: Path
) -> None:
    """Before it would requeue the experiments."""
    project = make(place[0], tmp_path, function="late", rows=2, seconds=1.5)
    with project.daemon("--slots", "2", "--name", "first") as first:
        wait_until(lambda: len(project.notes()) == 2, timeout=120)
        with project.daemon("--slots", "1", "--name", "second") as second:
            wait_until(lambda: [e for e in project.events("second") if e["event"] == "slot.started"], timeout=120)
            with away(project, place[1]):
                project.open_gate()
                wait_until(lambda: spooled(state, '"end"') == 2, timeout=120)
                first.send_signal(KILL)
                first.wait()
            project.wait_for(done=2)
            second.send_signal(TERM)
            assert project.end(second) == 0
    assert {len(times) for times in project.runs().values()} == {1}
    assert project.attempts() == [(1, 1, "done"), (2, 1, "done")]
    assert project.database.query("SELECT COUNT(*) FROM exp WHERE pyexpd_tries IS NOT NULL") == [(0,)]


def test_a_drain_without_database_exits_75_and_the_next_run_stores_the_results(
    private_mariadb: PrivateServer, state: Path, tmp_path: Path
) -> None:
    project = make(on_private(private_mariadb), tmp_path, function="late", rows=2, seconds=1.5)
    with project.daemon("--slots", "2") as daemon:
        wait_until(lambda: len(project.notes()) == 2, timeout=120)
        private_mariadb.stop()
        project.open_gate()
        wait_until(lambda: ended(project) == 2, timeout=120)
        daemon.send_signal(TERM)
        assert project.end(daemon, timeout=120) == 75
    assert f"results of 2 experiments wait in {state}/spool/" in project.last_output
    assert "the next `pyexpd run`" in project.last_output
    assert [event["count"] for event in project.events() if event["event"] == "results.spooled"] == [2]
    private_mariadb.start()
    assert project.pyexpd("run", "--until-empty", "--slots", "2").returncode == 0
    assert project.statuses() == {"done": 2}
    assert {len(times) for times in project.runs().values()} == {1}


def test_a_drain_without_database_that_only_hands_back_is_no_failure(
    private_mariadb: PrivateServer, state: Path, tmp_path: Path
) -> None:
    project = make(on_private(private_mariadb), tmp_path, function="late", rows=2, seconds=60, drain_timeout="500ms")
    with project.daemon("--slots", "2") as daemon:
        wait_until(lambda: len(project.notes()) == 2, timeout=120)
        private_mariadb.stop()
        daemon.send_signal(TERM)
        assert project.end(daemon, timeout=120) == 0
    private_mariadb.start()
    with project.daemon("--slots", "1") as daemon:
        wait_until(lambda: (1, 1, "released") in project.attempts(), timeout=120)
        daemon.kill()
    assert project.database.query("SELECT COUNT(*) FROM exp WHERE pyexpd_tries IS NOT NULL") == [(0,)]


def test_results_that_cannot_be_spooled_either_are_said_to_be_lost(
    private_mariadb: PrivateServer, state: Path, tmp_path: Path
) -> None:
    project = make(on_private(private_mariadb), tmp_path, function="late", rows=2, seconds=1.5)
    (state / "spool").mkdir(parents=True)
    with project.daemon("--slots", "2") as daemon:
        wait_until(lambda: len(project.notes()) == 2, timeout=120)
        (state / "spool").rmdir()
        (state / "spool").touch()
        private_mariadb.stop()
        project.open_gate()
        wait_until(lambda: [e for e in project.events() if e["event"] == "spool.unwritable"], timeout=120)
        daemon.send_signal(TERM)
        assert project.end(daemon, timeout=120) == 75
    assert "results of 2 experiments are lost" in project.last_output
    assert [event["count"] for event in project.events() if event["event"] == "results.lost"] == [2]


@pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
def test_short_experiments_never_touch_the_disk(make_project: Callable[..., Project], state: Path) -> None:
    """Unless the database does not take them within a tenth of a second, as happens where others work, too.

    Here it has a minute.
    """
    project = make_project(rows=300, function="noop")
    project.fill()
    (project.folder / "site").mkdir()
    patient = "from pyexp_daemon.daemon import completer\n\ncompleter.SPILL_S = 60.0\n"
    (project.folder / "site" / "sitecustomize.py").write_text(patient)
    path = str(project.folder / "site")
    assert project.pyexpd("run", "--until-empty", "--slots", "2", PYTHONPATH=path).returncode == 0
    assert project.statuses() == {"done": 300}
    spooled = sum(len(file.read_bytes().splitlines()) for file in state.rglob("*.records"))
    assert spooled < 150, "most of them were written to disk first"


TROUBLE = """
import errno, fcntl, os, threading

trouble = os.environ.get("TROUBLE", "")
sync, flock = os.fdatasync, fcntl.flock


def hang(descriptor):
    if os.path.exists(trouble + ".on") and threading.current_thread() is not threading.main_thread():
        os.open(trouble, os.O_RDONLY)  # a pipe at whose other end nobody is: waits in the kernel, for ever
    sync(descriptor)


def refuse(descriptor, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


if trouble == "no locks":
    fcntl.flock = refuse
elif trouble:
    os.fdatasync = hang
"""
"""Imported by the daemon's interpreter at its start: a disk that hangs, or has no locks."""


def with_trouble(project: Project) -> dict[str, str]:
    """What makes the disk of a daemon hang, from the moment on in which `hang` is called."""
    folder = project.folder / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(TROUBLE)
    os.mkfifo(project.folder / "disk")
    return {"PYTHONPATH": str(folder), "TROUBLE": str(project.folder / "disk")}


def hang(project: Project) -> None:
    (project.folder / "disk.on").touch()


@pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
def test_a_disk_that_hangs_keeps_no_result_from_the_database_and_no_daemon_from_its_end(
    database: Database, state: Path, tmp_path: Path
) -> None:
    project = make(database, tmp_path, function="late", rows=6, seconds=1.1)
    project.open_gate()
    environment = with_trouble(project)
    hang(project)
    with project.daemon("--slots", "2", "--until-empty", **environment) as daemon:
        assert project.end(daemon) == 0
    assert project.statuses() == {"done": 6}
    assert {len(times) for times in project.runs().values()} == {1}
    assert [event["error"] for event in project.events() if event["event"] == "spool.unwritable"] == [
        "[Errno 110] the disk does not answer"
    ]
    assert project.events()[-1]["event"] == "daemon.stopped"


def test_with_disk_and_database_away_a_drain_ends_with_75(
    private_mariadb: PrivateServer, state: Path, tmp_path: Path
) -> None:
    project = make(on_private(private_mariadb), tmp_path, function="late", rows=2, seconds=1.5)
    environment = with_trouble(project)
    with project.daemon("--slots", "2", **environment) as daemon:
        wait_until(lambda: len(project.notes()) == 2, timeout=120)
        hang(project)
        private_mariadb.stop()
        project.open_gate()
        wait_until(lambda: [e for e in project.events() if e["event"] == "spool.unwritable"], timeout=120)
        daemon.send_signal(TERM)
        assert project.end(daemon, timeout=120) == 75
    assert "results of 2 experiments are lost" in project.last_output
    assert [event["count"] for event in project.events() if event["event"] == "results.lost"] == [2]
    private_mariadb.start()
    assert project.pyexpd("run", "--until-empty", "--slots", "2").returncode == 0
    assert project.statuses() == {"done": 2}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_file_system_without_locks_is_named_in_one_line(database: Database, state: Path, tmp_path: Path) -> None:
    project = make(database, tmp_path, function="late", rows=1, seconds=0)
    refused = project.pyexpd("run", PYTHONPATH=with_trouble(project)["PYTHONPATH"], TROUBLE="no locks")
    assert refused.returncode == 64
    first, second = refused.stderr.splitlines()
    assert f"{state}/" in first
    assert first.endswith(".lock cannot be made or locked: No locks available")
    assert second == "  Daemon.state in the configuration"
