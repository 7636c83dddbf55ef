"""A server that restarts, dies, refuses to write, loses tables, steps its clock or comes back from a backup."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.databases import Database
from tests.e2e.project import Project
from tests.faults import fleet
from tests.faults.checker import RESULTFIELDS
from tests.faults.conftest import both
from tests.faults.fleet import PACED, Node, check_project, drained, for_another_queue, has_started, node
from tests.helpers import cannot_run, wait_until
from tests.servers import PrivateServer, Software

Make = Callable[..., Project]

REFUSED = ("claim.refused", "results.refused", "heartbeat.failed", "rescue.failed")
FALSE_VERDICTS = ("daemon.dead", "daemon.fenced", "experiments.rescued")


@pytest.fixture
def make_private(private_database: Database, tmp_path: Path) -> Make:
    """Makes a filled project on a server of this test's own."""

    def make(**options: Any) -> Project:
        return fleet.make_project(private_database, tmp_path / "project", **options)

    return make


@contextmanager
def nodes(project: Project, *names: str) -> Iterator[list[Node]]:
    """Daemons on as many hosts."""
    with ExitStack() as stack:
        running = [stack.enter_context(node(project, name, ready=False)) for name in names]
        for each in running:
            each.wait_for("slot.started")
        yield running


def change(project: Project, *statements: str) -> None:
    """What an administrator does."""
    with closing(project.database.connect()) as connection:
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement)


def use_plain_account(project: Project) -> None:
    """Daemons log in with what they need and no more: the tests' own account may write to a read-only server."""
    change(
        project,
        "CREATE USER plain@'%' IDENTIFIED BY 'plain'",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON `{project.database.name}`.* TO plain@'%'",
    )
    credentials = project.folder / "database_credentials.yml"
    server = project.database.server
    assert server
    text = credentials.read_text()
    credentials.write_text(text.replace(f"user: {server.user}", "user: plain").replace(server.password, "plain"))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_server_that_is_away_for_longer_than_the_lease_kills_no_daemon(
    make_private: Make, private_mariadb: PrivateServer, how: str
) -> None:
    """Under load; whoever watches others begins anew after it, and what ended meanwhile is stored."""
    project = make_private(rows=80, seconds=0.2)
    with nodes(project, "one", "two", "three") as running:
        project.wait_for(done=20)
        getattr(private_mariadb, how)()
        time.sleep(4.5)
        private_mariadb.start()
        project.wait_for(done=80, timeout=120)
        for each in running:
            each.wait_for("database.back")
            drained(each)
            assert not each.events(*FALSE_VERDICTS)
    records = check_project(project, may_overlap=False)
    assert {len(runs) for runs in records.runs.values()} == {1}


def test_a_server_that_becomes_read_only_is_waited_for(make_private: Make) -> None:
    """Without closing a connection, as in a failover."""
    project = make_private(rows=400, seconds=0.1)
    use_plain_account(project)
    at_work = "SELECT DISTINCT name FROM exp WHERE status = 'done'"
    with nodes(project, "one", "two") as running:
        wait_until(lambda: len(project.database.query(at_work)) == 2, timeout=120, what="both have work")
        change(project, "SET GLOBAL read_only = 1")
        for each in running:
            lost = each.wait_for("database.lost")
            assert "read" in lost[0]["error"]
        before = project.statuses()["done"]
        time.sleep(5)
        assert project.statuses()["done"] == before
        change(project, "SET GLOBAL read_only = 0")
        project.wait_for(done=400)
        for each in running:
            drained(each)
            assert not each.events(*FALSE_VERDICTS)
            assert not each.events("claim.refused", "results.refused")
    records = check_project(project, may_overlap=False)
    assert {len(runs) for runs in records.runs.values()} == {1}


def test_a_server_without_a_connection_to_spare_is_waited_for(
    make_private: Make, private_mariadb: PrivateServer
) -> None:
    project = make_private(rows=40, seconds=0.1)
    use_plain_account(project)
    with node(project, "one") as one:
        project.wait_for(done=5)
        change(project, "SET GLOBAL max_connections = 10")
        with ExitStack() as hogs:
            one.way.refuse()
            for _ in range(10):
                hogs.enter_context(closing(private_mariadb.connect()))
            one.way.heal()
            wait_until(lambda: [e for e in one.events("heartbeat.failed") if "many" in e["error"].lower()], timeout=120)
            time.sleep(3)
        project.wait_for(done=40, timeout=120)
        drained(one)
        assert not one.events("claim.refused", "results.refused")
    check_project(project, may_overlap=False)


@both
@pytest.mark.slow
@pytest.mark.parametrize("name", ["exp", "exp__pyexpd_attempts", "exp__pyexpd_daemons"])
def test_a_table_that_is_gone_for_a_while_is_waited_for(make_project: Make, name: str) -> None:
    """Dropped, and restored from a copy."""
    project = make_project(rows=240, seconds=0.1)
    with nodes(project, "one", "two") as running:
        project.wait_for(done=10)
        change(project, f"ALTER TABLE {name} RENAME TO away")
        gone_at = time.monotonic()
        for each in running:
            each.wait_for_any(*REFUSED)
        time.sleep(2)
        change(project, f"ALTER TABLE away RENAME TO {name}")
        back_at = time.monotonic()
        project.wait_for(done=240)
        print(f"{name} away for {back_at - gone_at:.1f} s; all done {time.monotonic() - back_at:.1f} s after that")
        for each in running:
            drained(each)
            assert not each.events(*FALSE_VERDICTS)
            assert all(len(each.events(word)) <= 2 for word in REFUSED)  # of one cause once a minute
    records = check_project(project, may_overlap=False)
    assert {len(runs) for runs in records.runs.values()} == {1}


@both
def test_a_daemon_that_idles_looks_again_soon_for_a_table_that_was_gone(make_project: Make) -> None:
    project = make_project(rows=2)
    with node(project, "one") as one:
        project.wait_for(done=2)
        change(project, "ALTER TABLE exp RENAME TO away")
        one.wait_for("claim.refused")
        change(project, "ALTER TABLE away RENAME TO exp")
        assert project.pyexpd("reset", "1", "--yes").returncode == 0
        project.wait_for(done=2, timeout=120)
        drained(one)
    check_project(project, edited={1}, may_overlap=False)


@both
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "commands"),
    [("exp", ["db drop --force --yes", "fill"]), ("exp__pyexpd_attempts", ["db upgrade --yes"])],
)
def test_a_table_that_is_dropped_and_made_anew_is_worked_on(make_project: Make, name: str, commands: list[str]) -> None:
    """Whatever was in it is lost; the daemons go on with what is there now."""
    project = make_project(rows=120, seconds=0.2)
    with nodes(project, "one", "two") as running:
        project.wait_for(done=10)
        change(project, f"DROP TABLE {name}")
        for each in running:
            each.wait_for_any(*REFUSED)
        for command in commands:
            made = project.pyexpd(*command.split())
            assert made.returncode == 0, made.stderr
        made_at = time.monotonic()
        project.wait_for(done=120)
        print(f"{name} dropped: all done {time.monotonic() - made_at:.1f} s after it was made anew")
        for each in running:
            drained(each)
    assert project.database.query("SELECT COUNT(*) FROM exp WHERE y = 2 * x") == [(120,)]


LARGE = '''
def large(keyfields, rp, custom):
    """Some results are beyond what the server takes in one packet, a little and by far."""
    note(custom, "start", rp)
    note(custom, "end", rp)
    return {**result(keyfields, rp), "text": "x" * {3: 3, 5: 40}.get(keyfields["x"], 0) * 2**20}
'''


@pytest.mark.slow
def test_results_too_large_for_the_server_cost_their_own_experiments_only(make_private: Make) -> None:
    """Some are refused with an error, others with a broken connection, as if the network had failed."""
    project = make_private(rows=12, function="large", code=LARGE, resultfields={**RESULTFIELDS, "text": "LONGTEXT"})
    change(project, f"SET GLOBAL max_allowed_packet = {2**20}")
    with node(project, "one") as one:
        project.wait_for(done=10, error=2, timeout=120)
        drained(one)
    check_project(project, may_overlap=False)
    failed = project.database.query("SELECT x, error FROM exp WHERE status = 'error' ORDER BY x")
    assert [x for x, _ in failed] == [3, 5]
    assert all("cannot be stored" in error for _, error in failed)


FAKETIME = [Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"), Path("/usr/lib/faketime/libfaketimeMT.so.1")]


@pytest.mark.slow
def test_a_clock_of_the_server_that_steps_kills_nobody(mariadb_software: Software, tmp_path: Path) -> None:
    """Five minutes forward, and back: by `lease_until` and the time now all others would be dead."""
    library = next((path for path in FAKETIME if path.exists()), None)
    if library is None:
        cannot_run("faketime", "libfaketime is not installed")
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    environment = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    with mariadb_software.server(environment) as server:
        database = Database(provider="mysql", flavour="mariadb", name=server.create_database(), server=server)
        project = fleet.make_project(
            database,
            tmp_path / "project",
            rows=60,
            function="paced",
            code=PACED,
            custom={"pace": [14] * 3 + [0.5] * 57},
            daemon={"heartbeat": "1s", "lease": "12s"},
        )
        with nodes(project, "one", "two", "three") as running:
            wait_until(lambda: has_started(project, 6), timeout=120)
            for step_s in (300, 0):
                # One of them does not beat just then, for less than its lease: nothing tells its row from a dead one's.
                running[2].process.send_signal(signal.SIGSTOP)
                clock.write_text(f"{step_s:+d}\n")
                time.sleep(3.2)
                running[2].process.send_signal(signal.SIGCONT)
                assert abs(offset_s(project) - step_s) < 60
                time.sleep(2)
            project.wait_for(done=60, timeout=120)
            for each in running:
                drained(each)
                assert not each.events(*FALSE_VERDICTS)
        records = check_project(project, may_overlap=False)
    assert {len(runs) for runs in records.runs.values()} == {1}


def offset_s(project: Project) -> float:
    """How far the server's clock is ahead of ours."""
    return float(project.database.query("SELECT UNIX_TIMESTAMP(NOW(6))")[0][0]) - time.time()


@pytest.mark.slow
def test_a_daemon_whose_number_came_back_with_a_backup_is_not_mistaken_for_another(
    make_private: Make, private_mariadb: PrivateServer
) -> None:
    """Nobody renews the lease of a stranger; what ran when the backup was made goes on."""
    project = make_private(
        rows=8, function="paced", code=PACED, custom={"pace": [12, 12, *[0.2] * 6]}, daemon={"lease": "12s"}
    )
    idle = for_another_queue(project)
    data, backup = private_mariadb.folder / "data", private_mariadb.folder / "backup"
    with node(project, "one") as one:
        wait_until(lambda: has_started(project, 2), timeout=120)
        private_mariadb.stop()
        shutil.copytree(data, backup)
        private_mariadb.start()
        with node(project, "two", *idle) as two:
            number = two.wait_for("daemon.started")[0]["id"]
            two.process.send_signal(signal.SIGSTOP)
            private_mariadb.stop()
            shutil.rmtree(data)
            backup.rename(data)
            private_mariadb.start()
            with node(project, "three", *idle) as three:
                assert three.wait_for("daemon.started")[0]["id"] == number
                two.process.send_signal(signal.SIGCONT)
                two.wait_for("daemon.fenced")
                assert two.wait_for("daemon.back")[0]["id"] != number
                change(project, "UPDATE exp SET pyexpd_queue = 'another' WHERE ID > 4")
                project.wait_for(done=8, timeout=120)
                for each in (one, two, three):
                    drained(each)
                    assert not each.events("daemon.dead", "experiments.rescued")
    records = check_project(project, may_overlap=False)
    assert {len(runs) for runs in records.runs.values()} == {1}
