"""Daemons that die at the worst moments, and those that clear up after them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.project import KILL, Project
from tests.faults.conftest import both, on_mariadb
from tests.faults.fleet import Node, check_project, node, stop
from tests.helpers import wait_until

Make = Callable[..., Project]

FUNCTIONS = """
def until_told(keyfields, rp, custom):
    \"\"\"The first `custom["stuck"]` attempts of an experiment do not end before a file is there.\"\"\"
    note(custom, "start", rp)
    while rp.attempt <= custom.get("stuck", 1) and not os.path.exists(custom["journal"] + ".go"):
        time.sleep(0.02)
    note(custom, "end", rp)
    return result(keyfields, rp)
"""


def wait_for_death(victim: Node) -> None:
    assert victim.process.wait(60) == -signal.SIGKILL


def charged(project: Project) -> list[Any]:
    return [row[0] for row in project.database.query("SELECT pyexpd_tries FROM exp ORDER BY ID")]


@both
@pytest.mark.parametrize("heir", ["victim", "elsewhere"])
def test_what_was_claimed_and_not_begun_by_a_killed_daemon_runs_once(make_project: Make, heir: str) -> None:
    """Nobody can tell whether its function had begun: it is charged as lost."""
    project = make_project(rows=5)
    with node(project, "victim", slots=3, failpoints="claim.committed=kill") as victim:
        wait_for_death(victim)
    claimed = project.statuses()["running"]
    assert project.notes() == []
    with node(project, "heir", host=heir) as last:
        project.wait_for(done=5)
        stop(last)
    records = check_project(project, may_overlap=False)
    assert sorted(len(runs) for runs in records.runs.values()) == [1] * 5
    assert charged(project) == ['{"lost": 1}'] * claimed + [None] * (5 - claimed)


@both
@pytest.mark.parametrize(
    ("place", "seconds", "runs"),
    [
        ("attempt.ended", 1.2, 2),  # the daemon has not read to the end what its child says
        ("spool.synced", 1.2, 1),
        ("record.commit", 1.2, 1),
        ("record.commit", 0.05, 2),  # less than a second of computing: not worth a sync of the disk
        ("record.committed", 0.05, 1),
    ],
)
def test_a_result_survives_its_daemon_from_the_moment_it_is_on_disk(
    make_project: Make, place: str, seconds: float, runs: int
) -> None:
    project = make_project(rows=1, seconds=seconds)
    with node(project, "victim", failpoints=f"{place}=kill") as victim:
        wait_for_death(victim)
        assert len(project.runs()[1]) == 1
        if runs == 2 and any('"end"' in path.read_text() for path in victim.state.glob("spool/*/[!.]*/*.records")):
            runs = 1  # it was late, so it is there all the same
        with node(project, "heir", "--until-empty", host="victim", proxy=victim.proxy) as heir:
            assert heir.process.wait(60) == 0
    records = check_project(project, may_overlap=False)
    assert len(records.runs[1]) == runs
    assert records.rows[1].attempt == runs
    assert charged(project) == ([None] if runs == 1 else ['{"lost": 1}'])


@both
def test_a_torn_last_record_costs_only_itself(make_project: Make) -> None:
    """Killed amid the next append: half a line is promised to nobody."""
    project = make_project(rows=2, function="one_after_the_other", code=ONE_AFTER_THE_OTHER)
    with node(project, "victim", failpoints="record.commit=kill") as victim:
        wait_for_death(victim)
        (records,) = victim.state.glob("spool/*/[!.]*/*.records")
        line = records.read_bytes().splitlines(keepends=True)[-1]
        with records.open("ab") as file:
            file.write(line[: len(line) // 2])
        with node(project, "heir", "--until-empty", host="victim", proxy=victim.proxy) as heir:
            assert heir.process.wait(60) == 0
            assert heir.events("spool.torn")
    found = check_project(project, may_overlap=False)
    assert {number: len(runs) for number, runs in found.runs.items()} == {1: 1, 2: 2}


ONE_AFTER_THE_OTHER = """
def one_after_the_other(keyfields, rp, custom):
    note(custom, "start", rp)
    while keyfields["x"] == 0 and open(custom["journal"]).read().count("start") < 2:
        time.sleep(0.01)
    time.sleep(1.2 if keyfields["x"] == 0 else 30 if rp.attempt == 1 else 0)
    note(custom, "end", rp)
    return result(keyfields, rp)
"""


@on_mariadb
def test_a_spool_that_comes_too_late_is_kept_beside_the_result(make_project: Make) -> None:
    """The host is back after another one has run the experiment again."""
    project = make_project(rows=1, seconds=1.2)
    with node(project, "victim", failpoints="record.commit=kill") as victim:
        wait_for_death(victim)
        with node(project, "elsewhere") as elsewhere:
            project.wait_for(done=1)
            stop(elsewhere)
        with node(project, "again", "--until-empty", host="victim", proxy=victim.proxy) as again:
            assert again.process.wait(60) == 0
            assert [event["superseded"] for event in again.events("spool.replayed")] == [1]
    check_project(project)
    assert project.attempts() == [(1, 1, "superseded"), (1, 2, "done")]
    ((result,),) = project.database.query("SELECT result FROM exp__pyexpd_attempts WHERE attempt = 1")
    assert '"by_attempt": 1' in result


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("database", "hosts"), [("sqlite", "one"), ("mariadb", "one"), ("mariadb", "many")], indirect=["database"]
)
def test_ten_dead_nodes_in_a_row_are_not_the_fault_of_their_experiment(make_project: Make, hosts: str) -> None:
    project = make_project(rows=1, function="until_told", code=FUNCTIONS, custom={"stuck": 10})
    nodes: dict[str, Node] = {}
    with ExitStack() as stack:

        def start() -> None:
            name = f"n{len(nodes)}"
            nodes[name] = stack.enter_context(node(project, name, host=None if hosts == "many" else "h", slots=1))

        start()
        start()
        for death in range(1, 11):
            wait_until(lambda death=death: len(project.runs().get(1, ())) == death, timeout=120, what="a start")  # type: ignore[misc]
            ((name,),) = project.database.query("SELECT name FROM exp")
            nodes[name].process.send_signal(KILL)
            nodes[name].process.wait(30)
            start()
        project.wait_for(done=1, timeout=120)
        stop(*(each for each in nodes.values() if each.process.poll() is None))
    check_project(project)
    assert charged(project) == ['{"lost": 10}']
    assert project.attempts() == [*((1, attempt, "lost") for attempt in range(1, 11)), (1, 11, "done")]


@both
def test_two_who_rescue_at_once_charge_one_loss(make_project: Make, tmp_path: Path) -> None:
    project = make_project(rows=2, function="until_told", code=FUNCTIONS)
    gate = tmp_path / "gate"
    with node(project, "victim") as victim:
        wait_until(lambda: len(project.notes()) == 2, timeout=120)
        with (
            node(project, "one", failpoints=f"sweep.commit=wait:{gate}") as one,
            node(project, "two", failpoints=f"sweep.commit=wait:{gate}") as two,
        ):
            victim.process.send_signal(KILL)
            wait_until(gate.with_name("gate.reached").exists, timeout=120)
            # One of them holds the rows until it commits; the other comes upon its locks.
            wait_for_lock(project)
            gate.touch()
            project.wait_for(done=2)
            stop(one, two)
            assert sum(event["count"] for event in (*one.events(RESCUED), *two.events(RESCUED))) == 2
    check_project(project)
    assert charged(project) == ['{"lost": 1}'] * 2


RESCUED = "experiments.rescued"


def wait_for_lock(project: Project) -> None:
    """Until a session waits for a row that another has locked; on SQLite nobody can tell, all wait for who writes."""
    if project.database.server is not None:
        waits = "trx_state = 'LOCK WAIT' AND trx_query LIKE '%FOR UPDATE%'"
        sql = f"SELECT 1 FROM information_schema.innodb_trx WHERE {waits}"
        # InnoDB shows the same picture again to who asks more often than ten times a second.
        wait_until(lambda: project.database.query(sql), timeout=120, interval=0.2, what="a wait for a lock")


@both
@pytest.mark.parametrize("place", ["declare_dead.committed", "sweep.commit", "sweep.committed"])
def test_who_rescues_may_die_of_it(make_project: Make, place: str) -> None:
    project = make_project(rows=2, function="until_told", code=FUNCTIONS)
    with node(project, "victim") as victim:
        wait_until(lambda: len(project.notes()) == 2, timeout=120)
        with node(project, "rescuer", failpoints=f"{place}=kill") as rescuer:
            victim.process.send_signal(KILL)
            wait_for_death(rescuer)
    with node(project, "heir") as heir:
        project.wait_for(done=2)
        stop(heir)
    check_project(project)
    assert charged(project) == ['{"lost": 1}'] * 2


@on_mariadb
def test_an_end_that_is_being_stored_is_not_rescued(make_project: Make, tmp_path: Path) -> None:
    """The sweep finds the row locked by its owner, and looks again when it has the lock."""
    project = make_project(rows=1, function="until_told", code=FUNCTIONS)
    verdict, stored = tmp_path / "verdict", tmp_path / "stored"
    with node(project, "owner", failpoints=f"record.commit=wait:{stored}; heartbeat.turn=block@3") as owner:
        wait_until(project.notes, timeout=120, what="a start")
        with node(project, "rescuer", failpoints=f"declare_dead.commit=wait:{verdict}") as rescuer:
            wait_until(verdict.with_name("verdict.reached").exists, timeout=120)
            project.journal.with_name("journal.go").touch()
            wait_until(stored.with_name("stored.reached").exists, timeout=120)
            verdict.touch()
            wait_for_lock(project)
            stored.touch()
            project.wait_for(done=1)
            stop(rescuer)
            assert rescuer.events("daemon.dead")
            assert not rescuer.events(RESCUED)
        owner.process.send_signal(KILL)
    records = check_project(project)
    assert project.attempts() == [(1, 1, "done")]
    assert len(records.runs[1]) == 1


@both
def test_an_end_that_comes_amid_the_rescue_is_stored_once(make_project: Make, tmp_path: Path) -> None:
    """It waits for the sweep; then it counts if nobody has claimed the experiment since, else the later run does."""
    project = make_project(rows=1, seconds=0.5)
    ended, swept = tmp_path / "ended", tmp_path / "swept"
    with node(project, "owner", failpoints=f"attempt.ended=wait:{ended}; heartbeat.turn=block@3") as owner:
        wait_until(ended.with_name("ended.reached").exists, timeout=120)
        with node(project, "rescuer", failpoints=f"sweep.commit=wait:{swept}") as rescuer:
            wait_until(swept.with_name("swept.reached").exists, timeout=120)
            ended.touch()
            wait_for_lock(project)
            swept.touch()
            project.wait_for(done=1)
            wait_until(lambda: not project.database.query("SELECT 1 FROM exp WHERE status = 'running'"))
            stop(rescuer)
        wait_until(lambda: owner.events("attempt.finished"), timeout=120)
        owner.process.send_signal(KILL)
    records = check_project(project)
    outcomes = [outcome for _, _, outcome in project.attempts()]
    assert outcomes in (["done"], ["superseded", "done"]), outcomes
    assert len(records.runs[1]) == len(outcomes)
