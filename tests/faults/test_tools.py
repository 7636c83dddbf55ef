"""The tools of these tests do what they say: else what they are used for proves nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest

from pyexp_daemon import failpoint as failpoints
from pyexp_daemon.failpoint import Failpoints, failpoint
from tests.e2e.project import Project
from tests.faults.conftest import both
from tests.faults.fleet import check_project, node
from tests.faults.proxy import Proxy
from tests.helpers import wait_until
from tests.servers import Server


@pytest.fixture
def proxy(mariadb: Server) -> Iterator[Proxy]:
    with Proxy(mariadb) as proxy:
        yield proxy


def connect(proxy: Proxy, mariadb: Server, **options: Any) -> pymysql.connections.Connection[Any]:
    timeouts = {"connect_timeout": 30, "read_timeout": 30, **options}
    return pymysql.connect(
        host="127.0.0.1", port=proxy.port, user=mariadb.user, password=mariadb.password, autocommit=True, **timeouts
    )


def ask(connection: pymysql.connections.Connection[Any], sql: str = "SELECT 7") -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()


def test_it_carries(proxy: Proxy, mariadb: Server) -> None:
    with connect(proxy, mariadb) as connection:
        assert ask(connection) == (7,)
        assert ask(connection, f"SELECT REPEAT('x', {200_000})") == ("x" * 200_000,)
        assert proxy.open == proxy.accepted == 1
    wait_until(lambda: proxy.open == 0)


def test_a_black_hole_is_silent_and_delivers_late(proxy: Proxy, mariadb: Server, mariadb_database: str) -> None:
    with connect(proxy, mariadb, read_timeout=2) as connection:
        mariadb.query(f"CREATE TABLE {mariadb_database}.t (a INT)")
        proxy.black_hole()
        with pytest.raises(pymysql.err.OperationalError, match="timed out"):
            ask(connection, f"INSERT INTO {mariadb_database}.t VALUES (1)")
        with pytest.raises((pymysql.err.OperationalError, TimeoutError)):
            connect(proxy, mariadb, connect_timeout=1, read_timeout=1)
    assert mariadb.query("SELECT COUNT(*) FROM t", database=mariadb_database) == [(0,)]
    proxy.heal()
    wait_until(lambda: mariadb.query("SELECT COUNT(*) FROM t", database=mariadb_database) == [(1,)])


def test_a_refusal_and_a_cut_break_what_is_open(proxy: Proxy, mariadb: Server) -> None:
    for how in (proxy.cut, proxy.refuse):
        with connect(proxy, mariadb) as connection:
            how()
            with pytest.raises(pymysql.err.OperationalError):
                ask(connection)
    with pytest.raises(pymysql.err.OperationalError):
        connect(proxy, mariadb)
    proxy.heal()
    with connect(proxy, mariadb) as connection:
        assert ask(connection) == (7,)


def test_it_delays_what_the_server_sends(proxy: Proxy, mariadb: Server) -> None:
    with connect(proxy, mariadb) as connection:
        proxy.delay_s = 0.3
        began = time.monotonic()
        assert ask(connection) == (7,)
        assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize("direction", ["request", "reply"])
def test_it_cuts_amid_the_bytes_of_a_direction(proxy: Proxy, mariadb: Server, direction: Any) -> None:
    with connect(proxy, mariadb) as connection:
        proxy.cut_after(500, direction)
        with pytest.raises(pymysql.err.OperationalError):
            ask(connection, f"SELECT '{'x' * 1000}'")
    with connect(proxy, mariadb) as connection:
        assert ask(connection) == (7,)


@pytest.mark.parametrize(("what", "arrives"), [("cut_request", 0), ("cut_reply", 1)])
def test_an_ambush_cuts_before_or_after_the_server(
    proxy: Proxy, mariadb: Server, mariadb_database: str, what: Any, arrives: int
) -> None:
    with connect(proxy, mariadb) as connection:
        ask(connection, f"CREATE TABLE {mariadb_database}.t (a INT)")
        ambush = proxy.ambush("INSERT INTO", what)
        with pytest.raises(pymysql.err.OperationalError):
            ask(connection, f"INSERT INTO {mariadb_database}.t VALUES (1)")
        assert ambush.sprung.is_set()
    assert mariadb.query("SELECT COUNT(*) FROM t", database=mariadb_database) == [(arrives,)]


def test_an_ambush_holds_a_request_that_its_client_gave_up(
    proxy: Proxy, mariadb: Server, mariadb_database: str
) -> None:
    with connect(proxy, mariadb, read_timeout=2) as connection:
        mariadb.query(f"CREATE TABLE {mariadb_database}.t (a INT)")
        ambush = proxy.ambush("INSERT INTO", "hold_request")
        with pytest.raises(pymysql.err.OperationalError):
            ask(connection, f"INSERT INTO {mariadb_database}.t VALUES (1)")
    assert mariadb.query("SELECT COUNT(*) FROM t", database=mariadb_database) == [(0,)]
    ambush.release()
    wait_until(lambda: mariadb.query("SELECT COUNT(*) FROM t", database=mariadb_database) == [(1,)])


def test_a_late_request_arrives_after_its_client_lost_the_connection(
    proxy: Proxy, mariadb: Server, mariadb_database: str
) -> None:
    with connect(proxy, mariadb) as connection:
        ask(connection, f"CREATE TABLE {mariadb_database}.t (a INT)")
        ambush = proxy.ambush("INSERT INTO", "late_request")
        with pytest.raises(pymysql.err.OperationalError):
            ask(connection, f"INSERT INTO {mariadb_database}.t VALUES (1)")
    with connect(proxy, mariadb) as connection:
        assert ask(connection, f"SELECT COUNT(*) FROM {mariadb_database}.t") == (0,)
        ambush.release()
        wait_until(lambda: ask(connection, f"SELECT COUNT(*) FROM {mariadb_database}.t") == (1,))


def test_what_is_half_open_is_silent_and_new_connections_work(proxy: Proxy, mariadb: Server) -> None:
    with connect(proxy, mariadb, read_timeout=2) as connection:
        proxy.half_open()
        with connect(proxy, mariadb) as new:
            assert ask(new) == (7,)
        with pytest.raises(pymysql.err.OperationalError, match="timed out"):
            ask(connection)


def test_an_ambush_holds_a_reply(proxy: Proxy, mariadb: Server) -> None:
    with connect(proxy, mariadb) as connection:
        ambush = proxy.ambush("SELECT 'slow'", "hold_reply")
        began = time.monotonic()
        threading.Timer(0.3, ambush.release).start()
        assert ask(connection, "SELECT 'slow'") == ("slow",)
        assert time.monotonic() - began >= 0.3
        assert ask(connection) == (7,)


def test_a_failpoint_that_nobody_asked_for_is_nothing() -> None:
    assert failpoint is failpoints._nothing
    failpoint("claim", "committed")


def test_a_fault_happens_at_its_turn() -> None:
    armed = Failpoints("a.b=raise:OSError@2; c=raise:ConnectionLost@2+")
    armed.reach("a", "b")
    with pytest.raises(OSError, match="a failpoint"):
        armed.reach("a", "b")
    armed.reach("a.b")
    armed.reach("c")
    for _ in range(2):
        with pytest.raises(Exception, match="a failpoint"):
            armed.reach("c")
    armed.reach("elsewhere")


def test_a_fault_can_sleep_and_wait(tmp_path: Path) -> None:
    armed = Failpoints(f"a=sleep:0.2; b=wait:{tmp_path / 'go'}")
    began = time.monotonic()
    armed.reach("a")
    assert time.monotonic() - began >= 0.2
    thread = threading.Thread(target=armed.reach, args=("b",))
    thread.start()
    wait_until((tmp_path / "go.reached").exists)
    assert thread.is_alive()
    (tmp_path / "go").touch()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize("text", ["a", "a=explode", "a=raise:Nothing", "a=sleep:long", "a=wait", "a=kill@x"])
def test_a_fault_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"PYEXPD_FAILPOINTS|could not convert"):
        Failpoints(text)


def test_a_fault_can_kill() -> None:
    code = "from pyexp_daemon.failpoint import failpoint; failpoint('a', 'b'); print('alive')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYEXPD_FAILPOINTS": "a.b=kill"}, capture_output=True, check=False
    )
    assert done.returncode == -9
    assert b"failpoint.reached" in done.stdout
    assert b"alive" not in done.stdout


@both
def test_a_fleet_without_faults_passes_the_check(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=30)
    with node(project, "one") as one, node(project, "two", "--until-empty") as two:
        assert two.process.wait(60) == 0
        project.wait_for(done=30)
        one.process.terminate()
        assert one.process.wait(30) == 0
    records = check_project(project, may_overlap=False)
    assert sum(map(len, records.runs.values())) == 30
