"""Connections that are cut, silent, slow or killed: nothing is lost, nothing is doubled, and nobody stands still."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable

import pymysql
import pytest

from tests.e2e.project import Project
from tests.faults.conftest import on_mariadb
from tests.faults.fleet import PACED, check_project, drained, for_another_queue, has_started, node
from tests.helpers import wait_until

Make = Callable[..., Project]

CLAIM = "pyexpd_attempt = pyexpd_attempt + 1"
"""In the second packet of a claim, which commits it."""

END = "INSERT INTO `exp__pyexpd_attempts`"
"""In the second packet of what is written when experiments end, which commits it."""

# What was sent and not answered


@on_mariadb
def test_a_claim_whose_reply_is_lost_is_read_back_and_runs_once(make_project: Make) -> None:
    project = make_project(rows=6)
    with node(project, "one", ready=False) as one:
        one.way.ambush(CLAIM, "cut_reply")
        (read_back,) = one.wait_for("claim.read_back")
        project.wait_for(done=6)
        drained(one)
    assert read_back["experiments"] > 0
    records = check_project(project, may_overlap=False)
    assert {row.attempt for row in records.rows.values()} == {1}


@on_mariadb
@pytest.mark.parametrize("seconds", [0.05, 1.1], ids=["in memory", "spooled"])
def test_an_end_whose_reply_is_lost_is_known_and_not_superseded(make_project: Make, seconds: float) -> None:
    project = make_project(rows=4, seconds=seconds)
    with node(project, "one", ready=False) as one:
        ambush = one.way.ambush(END, "cut_reply")
        project.wait_for(done=4)
        drained(one)
        assert one.wait_for("daemon.stopped")[0]["done"] == 4
        assert "superseded" not in one.events("daemon.stopped")[0]
    assert ambush.sprung.is_set()
    records = check_project(project, may_overlap=False)
    assert {receipt.outcome for found in records.receipts.values() for receipt in found} == {"done"}


@on_mariadb
def test_heartbeats_that_see_an_end_stored_before_its_reply_has_come_take_nothing_for_lost(make_project: Make) -> None:
    project = make_project(rows=4, daemon={"heartbeat": "50ms"})
    beats = "SELECT SUM(beat) FROM exp__pyexpd_daemons"
    with node(project, "one", ready=False) as one:
        ambush = one.way.ambush(END, "hold_reply")
        assert ambush.sprung.wait(60)
        project.wait_for(done=1)
        ((before,),) = project.database.query(beats)
        wait_until(lambda: project.database.query(beats)[0][0] >= before + 4)
        ambush.release()
        project.wait_for(done=4)
        drained(one)
        assert not one.events("lease.lost")
        assert one.events("daemon.stopped")[0]["done"] == 4
    check_project(project, may_overlap=False)


@on_mariadb
@pytest.mark.parametrize("seconds", [0.05, 1.1], ids=["in memory", "spooled"])
def test_a_daemon_killed_before_it_hears_that_its_end_was_committed(make_project: Make, seconds: float) -> None:
    project = make_project(rows=6, seconds=seconds)
    with node(project, "one", ready=False) as one:
        ambush = one.way.ambush(END, "hold_reply")
        assert ambush.sprung.wait(60)
        project.wait_for(done=1)
        one.process.kill()
        one.process.wait()
        stored = project.database.query("SELECT ID, by_pid FROM exp WHERE status = 'done'")
        ambush.release()
    with node(project, "two", "--until-empty", host="one") as two:
        assert two.process.wait(60) == 0
    records = check_project(project, may_overlap=False)
    assert [(number, records.rows[number].by_pid) for number, _ in stored] == stored
    assert all(len(records.runs[number]) == 1 for number, _ in stored)


@on_mariadb
def test_a_claim_that_would_land_after_it_was_read_back_never_does(make_project: Make) -> None:
    """Its connection is ended on the server before anybody looks."""
    project = make_project(rows=6)
    with node(project, "one", ready=False) as one:
        ambush = one.way.ambush(CLAIM, "late_request")
        (read_back,) = one.wait_for("claim.read_back")
        ambush.release()
        project.wait_for(done=6)
        drained(one)
        assert not one.events("claims.handed_back")
    assert read_back["experiments"] == 0
    records = check_project(project, may_overlap=False)
    assert {row.attempt for row in records.rows.values()} == {1}


@on_mariadb
def test_a_claim_that_lands_after_it_was_given_up_is_handed_back_by_the_audit(make_project: Make) -> None:
    """Its connection cannot be ended, so its token is retired: what it takes never runs under it."""
    project = make_project(rows=100)
    with node(project, "one", ready=False) as one:
        deaf = one.way.ambush("KILL ", "cut_request", times=10**6)
        ambush = one.way.ambush(CLAIM, "late_request")
        assert ambush.sprung.wait(60)
        assert deaf.sprung.wait(60)
        project.wait_for(done=1)  # it is given up, for there was another one; and much is left
        ambush.release()
        (handed_back,) = one.wait_for("claims.handed_back")
        project.wait_for(done=100)
        drained(one)
    assert handed_back["count"] > 0
    records = check_project(project, may_overlap=False)
    late = [row for row in records.rows.values() if row.attempt == 2]
    assert len(late) == handed_back["count"]
    assert all(row.tries == {} and len(records.runs[row.id]) == 1 for row in late)


@on_mariadb
def test_a_row_that_was_taken_between_the_commit_and_the_read_of_its_parameters_is_not_run(make_project: Make) -> None:
    """Somebody waits for the table, and gets it between COMMIT and SELECT, which travel in one packet."""
    project = make_project(rows=6)

    def edit() -> None:
        with project.database.connect() as connection, connection.cursor() as cursor:
            cursor.execute("LOCK TABLES exp WRITE")
            cursor.execute("UPDATE exp SET status = 'created', pyexpd_token = NULL, pyexpd_daemon = NULL WHERE ID = 1")

    editor = threading.Thread(target=edit)
    with node(project, "one", ready=False) as one:
        ambush = one.way.ambush(CLAIM, "hold_request")
        assert ambush.sprung.wait(60)
        editor.start()
        waits = (
            "SELECT COUNT(*) FROM information_schema.processlist WHERE db = DATABASE() AND state LIKE 'Waiting for %'"
        )
        wait_until(lambda: project.database.query(waits)[0][0] >= 1)  # the editor, then also those behind it
        ambush.release()
        editor.join()
        project.wait_for(done=6)
        drained(one)
    records = check_project(project, edited={1})
    assert [run.attempt for run in records.runs[1]] == [2]


# Transactions that nobody ends


def oldest_transaction_s(project: Project) -> float:
    """For how long the oldest transaction on the project's tables has been open."""
    found = project.database.query(
        "SELECT COALESCE(MAX(TIMESTAMPDIFF(MICROSECOND, t.trx_started, NOW(6))), 0) / 1e6"
        " FROM information_schema.innodb_trx t JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id"
        " WHERE p.db = DATABASE() AND t.trx_rows_locked > 0"
    )
    return float(found[0][0])


@on_mariadb
@pytest.mark.parametrize("text", [CLAIM, END], ids=["claim", "end"])
def test_a_transaction_that_is_cut_off_before_its_second_packet_leaves_no_lock(make_project: Make, text: str) -> None:
    project = make_project(rows=20, seconds=0.1)
    with node(project, "one", ready=False) as one:
        ambush = one.way.ambush(text, "cut_request")
        assert ambush.sprung.wait(60)
        project.wait_for(done=20)
        drained(one)
    wait_until(lambda: oldest_transaction_s(project) == 0, interval=0.2)  # it is seen a little later
    check_project(project, may_overlap=False)


@on_mariadb
@pytest.mark.slow
@pytest.mark.parametrize("text", [CLAIM, END], ids=["claim", "end"])
def test_the_server_ends_a_transaction_whose_daemon_fell_silent(make_project: Make, text: str) -> None:
    """Host and network are gone between the two packets; nobody tells the server, and the others do not wait."""
    project = make_project(rows=60, seconds=0.1)
    with node(project, "one", ready=False) as one:
        ambush = one.way.ambush(text, "hold_request")
        assert ambush.sprung.wait(60)
        one.process.kill()
        began = time.monotonic()
        with node(project, "two") as two:
            project.wait_for(done=5)
            rest_s = time.monotonic() - began
            held_s = oldest_transaction_s(project)
            assert held_s > 1 or rest_s > 8  # the others were done while the locks were held, unless all was slow
            wait_until(lambda: oldest_transaction_s(project) < 1, timeout=120, interval=0.2)
            freed_s = time.monotonic() - began
            project.wait_for(done=60)
            all_s = time.monotonic() - began
            drained(two)
    print(f"some others done after {rest_s:.1f} s, locks freed after {freed_s:.1f} s, all done after {all_s:.1f} s")
    assert freed_s < 30  # ten on the server, and what a loaded machine adds
    check_project(project)


@on_mariadb
@pytest.mark.slow
def test_a_claim_that_is_stuck_does_not_stop_the_heartbeat(make_project: Make) -> None:
    """For longer than the lease, and others see it: nobody declares the daemon dead."""
    project = make_project(rows=12, seconds=0.1)
    with node(project, "watcher", *for_another_queue(project)) as watcher, node(project, "one", ready=False) as one:
        ambush = one.way.ambush(CLAIM, "hold_request")
        assert ambush.sprung.wait(60)
        wait_until(lambda: one.events("database.lost"), timeout=120)
        project.wait_for(done=12)
        ambush.release()
        for running in (one, watcher):
            drained(running)
        assert not watcher.events("daemon.dead")
        assert not one.events("daemon.fenced")
    check_project(project, may_overlap=False)


# Silence


@on_mariadb
@pytest.mark.parametrize(
    ("cut_s", "lease_s", "late"),
    [
        pytest.param(12, 3, True, marks=pytest.mark.slow),
        pytest.param(30, 3, False, marks=pytest.mark.slow),
        pytest.param(
            70,
            20,
            True,
            marks=[
                pytest.mark.slow,
                pytest.mark.timeout(300),
                pytest.mark.skipif("PYEXPD_TEST_LONG" not in os.environ, reason="PYEXPD_TEST_LONG is not set"),
            ],
        ),
    ],
)
def test_what_nobody_took_during_a_cut_of_several_leases_is_not_run_again(
    make_project: Make, cut_s: int, lease_s: int, late: bool
) -> None:
    """One node is cut off and declared dead; what it runs goes on, and what it finished meanwhile is stored after.

    Args:
        late: what was sent into the silence arrives after it.
    """
    project = make_project(
        rows=5,
        function="paced",
        code=PACED,
        custom={"pace": [cut_s + 5, 6, 6, 0.1, 0.1]},
        daemon={"lease": f"{lease_s}s", "heartbeat": f"{lease_s / 6}s"},
    )
    with node(project, "rescuer", *for_another_queue(project)) as rescuer, node(project, "one", slots=3) as one:
        wait_until(lambda: has_started(project, 3), timeout=120)
        one.way.black_hole()
        began = time.monotonic()
        wait_until(lambda: project.statuses() == {"created": 5}, timeout=120, what="everything is requeued")
        print(f"requeued after {time.monotonic() - began:.1f} s")
        time.sleep(max(0.0, cut_s - (time.monotonic() - began)))
        spooled = "".join(path.read_text() for path in one.state.glob("spool/*/[!.]*/*.records"))
        one.way.heal(cut=not late)
        project.wait_for(done=5, timeout=120)
        print(f"all done {time.monotonic() - began - cut_s:.1f} s after the cut of {cut_s} s")
        for running in (one, rescuer):
            drained(running)
        assert rescuer.events("daemon.dead")
        assert one.events("daemon.back")
    assert spooled.count('"end"') >= 2
    records = check_project(project, may_overlap=False)
    assert {len(runs) for runs in records.runs.values()} == {1}
    assert all(row.tries == {} for row in records.rows.values())


@on_mariadb
@pytest.mark.slow
def test_after_an_outage_for_all_who_is_back_first_declares_nobody_dead(make_project: Make) -> None:
    """The others are silent for longer than their lease, and may be: they could not beat either."""
    project = make_project(rows=30, seconds=0.3, daemon={"lease": "5s"})
    with (
        node(project, "first", *for_another_queue(project)) as first,
        node(project, "one") as one,
        node(project, "two") as two,
    ):
        project.wait_for(done=4)
        first.way.refuse()
        for each in (one, two):  # stopped, not cut off: they beat at once when they go on, however long it took
            each.process.send_signal(signal.SIGSTOP)
        time.sleep(6)
        first.way.heal()
        healed = time.monotonic()
        first.wait_for("database.back")
        # It looks at the others, and its turn to judge them comes. Its heart may have been back before its loop.
        time.sleep(max(0.0, healed + 3 - time.monotonic()))
        for each in (one, two):
            each.process.send_signal(signal.SIGCONT)
        project.wait_for(done=30)
        assert not first.events("daemon.dead")
        for each in (first, one, two):
            drained(each)
    records = check_project(project, may_overlap=False)
    assert {len(runs) for runs in records.runs.values()} == {1}


@on_mariadb
@pytest.mark.slow
def test_half_open_connections_are_replaced_within_ten_seconds(make_project: Make) -> None:
    """Counted from the first statement that is sent into one of them."""
    project = make_project(rows=400, seconds=0.2)
    with node(project, "one") as one:
        project.wait_for(done=20)
        one.way.half_open()
        began = time.monotonic()
        project.wait_for(done=project.statuses()["done"] + 3, timeout=120)  # what runs, and what is claimed after it
        stored_s = time.monotonic() - began
        print(f"results are stored again after {stored_s:.2f} s")
        assert stored_s <= 10 + 5  # the rest is what a loaded machine may add
        one.process.kill()


@on_mariadb
@pytest.mark.slow
def test_with_a_second_before_each_reply_work_goes_on_and_the_lease_is_kept(make_project: Make) -> None:
    project = make_project(rows=6, seconds=0.2, daemon={"heartbeat": "2s", "lease": "12s"})
    with node(project, "watcher", *for_another_queue(project)) as watcher, node(project, "one", ready=False) as one:
        one.way.delay_s = 1.0
        project.wait_for(done=6, timeout=100)
        one.way.heal()
        for running in (one, watcher):
            drained(running)
        assert not watcher.events("daemon.dead")
        assert not one.events("daemon.fenced")
    check_project(project, may_overlap=False)


@on_mariadb
@pytest.mark.slow
def test_with_replies_too_slow_to_work_with_it_waits_and_keeps_its_lease(make_project: Make) -> None:
    """The heartbeat has one reply to wait for, a claim several, and a new connection more than that."""
    project = make_project(rows=40, seconds=0.2, daemon={"heartbeat": "5s", "lease": "30s"})
    with node(project, "watcher", *for_another_queue(project)) as watcher, node(project, "one") as one:
        project.wait_for(done=10)
        one.way.delay_s = 4.0
        one.wait_for("database.lost")
        time.sleep(8)
        one.way.heal()
        project.wait_for(done=40)
        for running in (one, watcher):
            drained(running)
        assert not watcher.events("daemon.dead")
        assert not one.events("daemon.fenced", "heartbeat.failed")
    check_project(project, may_overlap=False)


# Connections killed, rows locked


NO_SUCH_THREAD, LOCK_WAIT, DEADLOCK = 1094, 1205, 1213


def kill_at_random(project: Project, count: int) -> None:
    """End so many connections to the project's database on its server."""
    killed = 0
    with project.database.connect() as connection, connection.cursor() as cursor:
        while killed < count:
            cursor.execute(
                "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
            )
            for (number,) in random.sample(found := list(cursor.fetchall()), k=min(2, len(found))):
                try:
                    cursor.execute(f"KILL {number}")
                    killed += 1
                except pymysql.OperationalError as error:
                    if error.args[0] != NO_SUCH_THREAD:
                        raise
            time.sleep(random.uniform(0, 0.03))


@on_mariadb
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_connections_killed_at_random(make_project: Make) -> None:
    project = make_project(rows=600, seconds=0.05)
    with node(project, "one") as one, node(project, "two") as two, node(project, "three") as three:
        began = time.monotonic()
        kill_at_random(project, 1000)
        during = project.statuses().get("done", 0)
        print(f"1000 connections killed in {time.monotonic() - began:.0f} s, {during} experiments done meanwhile")
        project.wait_for(done=600, timeout=300)
        for running in (one, two, three):
            running.wait_for("database.back")
            assert not running.events("claim.refused", "results.refused")
            drained(running)
    assert during > 0
    check_project(project)


@on_mariadb
@pytest.mark.slow
def test_rows_locked_in_the_wrong_order_by_others_cost_nothing_but_time(make_project: Make) -> None:
    """Deadlocks and lock waits in whatever a daemon writes, for as long as it works."""
    project = make_project(rows=300, seconds=0.02, daemon={"lease": "30s"})
    before = deadlocks(project)
    over = threading.Event()
    lockers = [threading.Thread(target=lock_at_random, args=(project, over)) for _ in range(3)]
    with node(project, "one") as one, node(project, "two") as two:
        for locker in lockers:
            locker.start()
        try:
            project.wait_for(done=300, timeout=100)
            wait_until(lambda: deadlocks(project) > before, timeout=120, what="a deadlock")
        finally:
            over.set()
            for locker in lockers:
                locker.join()
        for running in (one, two):
            assert not running.events("database.lost", "claim.refused", "results.refused", "heartbeat.failed")
            drained(running)
    met = deadlocks(project) - before
    print(f"{met} deadlocks")
    assert met > 0
    check_project(project)


def deadlocks(project: Project) -> int:
    """How many the server has ended since it started."""
    return int(project.database.query("SHOW GLOBAL STATUS LIKE 'Innodb_deadlocks'")[0][1])


def lock_at_random(project: Project, over: threading.Event) -> None:
    """Lock rows of all tables against the order of locks, again and again; who is in the way gives way."""
    statements = [
        "SELECT * FROM exp__pyexpd_attempts WHERE experiment_id > {} LIMIT 20 FOR UPDATE",
        "SELECT * FROM exp WHERE ID BETWEEN {0} AND {0} + 20 ORDER BY ID DESC FOR UPDATE",
        "SELECT * FROM exp__pyexpd_daemons ORDER BY id DESC FOR UPDATE",
        "SELECT * FROM exp FORCE INDEX (pyexpd_owner) WHERE pyexpd_daemon > 0 AND status = 'running' FOR UPDATE",
    ]
    with project.database.connect() as connection, connection.cursor() as cursor:
        while not over.is_set():
            try:
                cursor.execute("BEGIN")
                for statement in random.sample(statements, k=3):
                    cursor.execute(statement.format(random.randrange(project.rows)))
                    time.sleep(random.uniform(0, 0.02))
            except pymysql.OperationalError as error:
                if error.args[0] not in (LOCK_WAIT, DEADLOCK):
                    raise
            cursor.execute("ROLLBACK")
            time.sleep(random.uniform(0, 0.05))


@on_mariadb
@pytest.mark.slow
def test_an_idle_daemon_holds_two_connections(make_project: Make) -> None:
    """Its heartbeat's, and the one it looks with: hundreds of them are no burden to a server."""
    project = make_project(rows=4)
    with node(project, "one") as one:
        project.wait_for(done=4)
        assert one.way.open > 2
        wait_until(lambda: one.way.open == 2, timeout=40)
        drained(one)
    wait_until(lambda: one.way.open == 0)
