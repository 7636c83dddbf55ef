"""Daemons that die: their work is found, requeued once, and nothing of them is left."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from tests.e2e.project import INT, KILL, TERM, Project, is_alive
from tests.helpers import wait_until

both = pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
SHORT_LEASE = {"heartbeat": "500ms", "lease": "3s"}
LOST = "SELECT COUNT(*) FROM exp__pyexpd_attempts WHERE outcome = 'lost'"


@both
def test_on_the_same_host_the_work_of_a_killed_daemon_is_claimable_within_two_seconds(
    make_project: Callable[..., Project],
) -> None:
    """The quickest of three deaths counts, if need be: a machine that has much to do may be late with some."""
    project = make_project(rows=12, function="long_first_time")
    project.fill()
    took_s = list[float]()
    with project.daemon("--slots", "1", "--name", "second"):
        project.wait_for(running=1)
        while len(took_s) < 3 and min(took_s, default=9.0) >= 3.0:
            took_s.append(claimable_after_s(project, f"first{len(took_s)}", lost=3 * len(took_s)))
    print("claimable again after", ", ".join(f"{each:.2f} s" for each in took_s))
    assert min(took_s) < 3.0, took_s  # 2 s are promised; the rest is what a loaded machine may add
    lost = [experiment for experiment, _, outcome in project.attempts() if outcome == "lost"]
    assert len(lost) == len(set(lost)) == 3 * len(took_s)


def claimable_after_s(project: Project, name: str, *, lost: int) -> float:
    """Kill a daemon that runs three experiments; how long it takes until they are lost beside those before."""
    runs = f"SELECT COUNT(*) FROM exp WHERE status = 'running' AND name = '{name}' AND pyexpd_attempt = 1"
    with project.daemon("--slots", "3", "--name", name) as daemon:
        wait_until(lambda: project.database.query(runs) == [(3,)], timeout=120)
        children = project.children_of(daemon)
        killed_at = time.monotonic()
        daemon.send_signal(KILL)
        wait_until(lambda: project.database.query(LOST) == [(lost + 3,)], timeout=120, interval=0.005)
        took_s = time.monotonic() - killed_at
        assert not [pid for pid in children if is_alive(pid)]
    return took_s


@both
def test_after_a_kill_everything_ends_done_and_each_dead_attempt_is_lost(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=60, custom={"seconds": 0.2})  # the other is not to be done before it looks for the dead
    project.fill()
    with project.daemon("--slots", "2") as first, project.daemon("--slots", "2", "--until-empty") as second:
        project.wait_for(done=10)
        first.send_signal(KILL)
        assert project.end(second) == 0
    assert project.statuses() == {"done": 60}
    for experiment, times in project.runs().items():
        ended = [end for _, end in times if end is not None]
        assert ended, experiment
        for (_, end), (start, _) in itertools.pairwise(times):
            assert end is None or end <= start, f"two runs of {experiment} overlap"
    attempts = project.attempts()
    for experiment in {number for number, _, _ in attempts}:
        outcomes = [outcome for number, _, outcome in attempts if number == experiment]
        assert outcomes[-1] == "done"
        assert set(outcomes[:-1]) <= {"lost"}


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_on_another_host_the_lease_decides(make_project: Callable[..., Project]) -> None:
    """Within the lease, one turn of the rescuer and the watch it keeps."""
    project = make_project(rows=4, function="long_first_time", daemon={"heartbeat": "500ms", "lease": "9s"})
    project.fill()
    with project.daemon("--slots", "2", PYEXPD_HOST_ID="one") as first:
        wait_until(lambda: len(project.notes()) == 2, timeout=120)
        with project.daemon("--slots", "1", "--name", "other", PYEXPD_HOST_ID="two") as second:
            wait_until(lambda: [e for e in project.events("other") if e["event"] == "slot.started"], timeout=120)
            first.send_signal(KILL)
            killed_at = time.monotonic()
            wait_until(lambda: project.database.query(LOST) == [(2,)], timeout=120, interval=0.01)
            took_s = time.monotonic() - killed_at
            second.send_signal(KILL)
    print(f"requeued after {took_s:.2f} s")
    assert 4.0 < took_s < 9.0 + 2 * 4.5 + 15.0, took_s  # a loaded machine beats late, and looks late


@both
def test_term_hands_back_what_does_not_end_in_time_uncharged(make_project: Callable[..., Project]) -> None:
    project = make_project(
        rows=4, function="long_first_time", daemon={"drain_timeout": "500ms"}, limits={"grace": "200ms"}
    )
    project.fill()
    with project.daemon("--slots", "2") as daemon:
        wait_until(lambda: len(project.notes()) == 2, timeout=120)
        children = project.children_of(daemon)
        daemon.send_signal(TERM)
        assert project.end(daemon, timeout=120) == 0
    assert project.statuses() == {"created": 4}
    assert project.database.query("SELECT COUNT(*) FROM exp WHERE pyexpd_tries IS NOT NULL") == [(0,)]
    assert project.attempts() == [(1, 1, "released"), (2, 1, "released")]
    assert not [pid for pid in children if is_alive(pid)]
    assert project.database.query("SELECT state FROM exp__pyexpd_daemons") == [("stopped",)]


@both
def test_term_waits_for_what_ends_in_time(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=40, custom={"seconds": 0.4})
    project.fill()
    with project.daemon("--slots", "2") as daemon:
        wait_until(lambda: len(project.notes()) >= 2, timeout=120)
        daemon.send_signal(TERM)
        assert project.end(daemon, timeout=120) == 0
    statuses = project.statuses()
    assert set(statuses) == {"done", "created"}
    assert {outcome for _, _, outcome in project.attempts()} == {"done"}


@both
def test_ctrl_c_says_what_a_second_one_does_and_the_second_does_it(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=3, function="long_first_time", limits={"grace": "200ms"})
    project.fill()
    with project.daemon("--slots", "1") as daemon:
        wait_until(lambda: len(project.notes()) == 1, timeout=120)
        daemon.send_signal(INT)
        wait_until(lambda: [e for e in project.events() if e["event"] == "daemon.draining"], what="the first is heard")
        time.sleep(1.3)
        assert daemon.poll() is None
        daemon.send_signal(INT)
        assert project.end(daemon, timeout=40) == 0  # not after the minute that a drain may take
    assert "a second Ctrl-C" in project.last_output
    assert project.statuses() == {"created": 3}


@both
def test_children_die_with_their_daemon(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=2, function="long_first_time")
    project.fill()
    with project.daemon("--slots", "2") as daemon:
        wait_until(lambda: len(project.notes()) == 2, timeout=120)
        children = project.children_of(daemon)
        daemon.send_signal(KILL)
        wait_until(lambda: not [pid for pid in children if is_alive(pid)])


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_daemon_declared_dead_by_mistake_keeps_what_nobody_took(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=1, custom={"seconds": 4}, daemon=SHORT_LEASE)
    project.fill()
    with project.daemon("--slots", "1", "--until-empty") as daemon:
        wait_until(project.notes, timeout=120)
        with closing(project.database.connect()) as connection:
            connection.cursor().execute("UPDATE exp__pyexpd_daemons SET state = 'dead'")
        assert project.end(daemon) == 0
    assert project.statuses() == {"done": 1}
    assert len(project.notes()) == 2  # one start, one end: it was not run again
    assert project.attempts() == [(1, 1, "done")]
    assert project.database.query("SELECT pyexpd_tries FROM exp") == [(None,)]


def test_the_server_restarted_under_load_loses_and_doubles_nothing(private_mariadb, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from tests.databases import Database

    name = private_mariadb.create_database()
    database = Database(provider="mysql", flavour="mariadb", name=name, server=private_mariadb)
    project = Project(database, tmp_path / "project", options={"custom": {"seconds": 0.01}}, rows=800)
    project.fill()
    with project.daemon("--slots", "4", "--until-empty") as daemon:
        for stop in (private_mariadb.restart, private_mariadb.kill):
            project.wait_for(done=50)
            stop()
            if stop == private_mariadb.kill:
                private_mariadb.start()
        assert project.end(daemon, timeout=250) == 0
    assert project.statuses() == {"done": 800}
    assert all(len(times) == 1 for times in project.runs().values())
    assert {outcome for _, _, outcome in project.attempts()} == {"done"}
    assert [event for event in project.events() if event["event"] == "database.back"]


@both
def test_a_name_that_is_taken_is_refused_with_the_pid_of_its_daemon(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=1)
    project.fill()
    with project.daemon("--name", "node") as daemon:
        wait_until(lambda: [e for e in project.events("node") if e["event"] == "daemon.started"], timeout=120)
        second = project.pyexpd("run", "--name", "node")
        assert second.returncode == 64
        assert str(daemon.pid) in second.stderr
        daemon.terminate()
        assert project.end(daemon) == 0
