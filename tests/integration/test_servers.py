"""The fixtures themselves: real servers start, answer, survive what tests do to them, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import psutil
import pymysql
import pytest
import yaml

from tests import servers
from tests.databases import Database
from tests.e2e.project import is_alive
from tests.helpers import FIXTURES, load_dump, wait_until, wait_until_async
from tests.servers import PrivateServer, Server, Software

PROJECT = Path(__file__).parents[2]


@pytest.fixture(params=["mariadb", "mysql9"])
def private(request: pytest.FixtureRequest) -> PrivateServer:
    server: PrivateServer = request.getfixturevalue(f"private_{request.param}")
    return server


@pytest.fixture(params=["mariadb", "mysql9"])
def software(request: pytest.FixtureRequest) -> Software:
    answer: Software = request.getfixturevalue(f"{request.param}_software")
    return answer


def test_shared_servers_are_what_they_are_called(mariadb: Server, mysql9: Server) -> None:
    assert "MariaDB" in mariadb.query("SELECT VERSION()")[0][0]
    assert mysql9.query("SELECT VERSION()")[0][0].startswith("9.")


def test_url_leads_back_to_the_server(mariadb: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYEXPD_TEST_MYSQL_URL", mariadb.url)
    with servers.running("mariadb") as same:
        assert (same.host, same.port, same.user, same.password) == (
            "127.0.0.1",
            mariadb.port,
            mariadb.user,
            mariadb.password,
        )
        assert same.query("SELECT 1") == [(1,)]


def test_private_server_starts_quickly(software: Software) -> None:
    """A fault test can afford a server of its own."""
    began = time.monotonic()
    with software.server() as server:
        assert server.query("SELECT 1") == [(1,)]
    assert time.monotonic() - began < 60  # a second or two on a machine that has nothing else to do


def test_committed_rows_survive_stop_and_kill_at_the_same_port(private: PrivateServer) -> None:
    name, port = private.create_database(), private.port
    private.query("CREATE TABLE t (a INT)", database=name)
    for end in (private.stop, private.kill):
        private.query("INSERT INTO t VALUES (1)", database=name)
        end()
        assert private.pid is None
        with pytest.raises(pymysql.OperationalError):
            private.connect()
        private.start()
    assert private.query("SELECT COUNT(*) FROM t", database=name) == [(2,)]
    assert private.port == port


def test_frozen_server_answers_after_thaw(private: PrivateServer) -> None:
    private.freeze()
    assert private.pid
    wait_until(lambda: psutil.Process(private.pid).status() == psutil.STATUS_STOPPED)
    private.thaw()
    assert private.query("SELECT 1") == [(1,)]


def test_server_outlives_the_thread_that_restarted_it(private: PrivateServer) -> None:
    """The parent-death signal follows a thread; the tests' threads come and go."""
    thread = threading.Thread(target=private.restart)
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert private.query("SELECT 1") == [(1,)]


def test_closed_server_leaves_no_process_and_no_file(software: Software) -> None:
    with software.server() as server:
        pid = server.pid
        assert pid
    assert not psutil.pid_exists(pid)
    assert not server.folder.exists()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_servers_end_with_the_tests(mariadb: Server, end: signal.Signals) -> None:
    """However a test run ends, its servers end with it, and the next run removes what they left."""
    script = (
        "import time; from tests import servers; server = servers.mariadb().server(); server.start();"
        " print(server.pid, server.folder.parent, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as run:
        assert run.stdout
        pid, scratch = run.stdout.readline().split()
        run.send_signal(end)
        run.wait(20)
    wait_until(lambda: not is_alive(int(pid)))
    servers.remove_abandoned(Path(scratch).parent)
    assert not Path(scratch).exists()


def test_databases_of_tests_are_their_own(database: Database) -> None:
    with closing(database.connect()) as connection:
        connection.cursor().execute("CREATE TABLE mine (a INT)")
    database.query("INSERT INTO mine VALUES (?)", (7,))
    assert database.query("SELECT a FROM mine") == [(7,)]


def test_database_is_dropped_although_a_session_still_holds_it(mariadb: Server) -> None:
    name = mariadb.create_database()
    with closing(mariadb.connect(name)) as session:
        session.cursor().execute("CREATE TABLE t (a INT) ENGINE=InnoDB")
        session.begin()
        session.cursor().execute("SELECT * FROM t")
        mariadb.drop_database(name)
    assert (name,) not in mariadb.query("SHOW DATABASES")


def test_write_config_says_where_the_database_is(database: Database, tmp_path: Path) -> None:
    path = database.write_config(tmp_path / "project", n_jobs=2, daemon={"heartbeat": "0.5s", "lease": "3s"})
    section = yaml.safe_load(path.read_text())["PY_EXPERIMENTER"]
    assert list(section) == ["n_jobs", "Database", "Daemon"]
    assert section["Database"]["provider"] == database.provider
    assert section["Database"]["database"] == database.name
    if database.server:
        credentials = path.with_name("database_credentials.yml")
        assert stat.S_IMODE(credentials.stat().st_mode) == 0o600
        standard = yaml.safe_load(credentials.read_text())["CREDENTIALS"]["Connection"]["Standard"]
        assert standard == {"server": database.server.host, "port": database.server.port}


def test_dumps_of_the_real_py_experimenter_load(database: Database) -> None:
    """What `adopt` is tested with: every status, duplicates, a log table, result timestamps."""
    name = "sqlite.sql" if database.provider == "sqlite" else "mariadb.sql"
    with closing(database.connect()) as connection:
        load_dump(connection, FIXTURES / "pyexperimenter-1.4.2" / name)
    statuses = dict(database.query("SELECT status, COUNT(*) FROM mixed GROUP BY status"))
    assert set(statuses) == {"created", "running", "done", "error", "paused"}
    assert database.query("SELECT COUNT(*) FROM mixed__steps")[0][0] > 0
    assert database.query("SELECT COUNT(accuracy_timestamp) FROM stamped")[0][0] > 0


def test_wait_until_says_what_did_not_happen() -> None:
    assert wait_until(lambda: "yes") == "yes"
    with pytest.raises(TimeoutError, match="the moon"):
        wait_until(lambda: 0, timeout=0.05, what="the moon")


async def test_async_wait_until_takes_plain_and_async_questions() -> None:
    async def question() -> str:
        return "yes"

    assert await wait_until_async(question) == "yes"
    with pytest.raises(TimeoutError, match="last answer: 0"):
        await wait_until_async(lambda: 0, timeout=0.05)
