"""Rows that people, other programs and the schema of the user make difficult; and what races with a person's wish."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.project import PYEXPD, Project
from tests.faults.conftest import both, on_mariadb
from tests.faults.fleet import check_project, node, stop
from tests.helpers import wait_until

Make = Callable[..., Project]

FUNCTIONS = """
def slow_first(keyfields, rp, custom):
    \"\"\"The first attempt does not end before a file is there.\"\"\"
    note(custom, "start", rp)
    while rp.attempt == 1 and not os.path.exists(custom["journal"] + ".go"):
        time.sleep(0.02)
    note(custom, "end", rp)
    return result(keyfields, rp)


def talkative(keyfields, rp, custom):
    \"\"\"A log row each few milliseconds, to two tables in turn.\"\"\"
    note(custom, "start", rp)
    for number in range(30):
        rp.process_logs({"epochs": {"number": number}, "notes": {"number": number}})
        if number % 10 == 0:
            rp.process_results({"y": -1.0})
        time.sleep(0.01)
    note(custom, "end", rp)
    return result(keyfields, rp)


def unstorable(keyfields, rp, custom):
    note(custom, "start", rp)
    note(custom, "end", rp)
    bad = {"note": "far longer than ten characters" if custom["text"] else 7} if keyfields["x"] == 33 else {}
    return {**result(keyfields, rp), **bad}
"""


def let_go(project: Project) -> None:
    """The first attempts may end now."""
    project.journal.with_name(f"{project.journal.name}.go").touch()


def by_hand(project: Project, *statements: str) -> None:
    with closing(project.database.connect()) as connection:
        for statement in statements:
            connection.cursor().execute(statement)


SIGNAL = "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no'"
SCHEMAS = [
    # what a result must not be inserted for: SQLite has no way to add such a column
    ("mariadb", "ALTER TABLE exp ADD COLUMN mine INT NOT NULL", []),
    ("mariadb", "ALTER TABLE exp ADD CONSTRAINT sane CHECK (y IS NULL OR y <> 66)", [33]),
    ("mariadb", f"CREATE TRIGGER t BEFORE UPDATE ON exp FOR EACH ROW IF NEW.y = 66 THEN {SIGNAL}; END IF", [33]),
    ("sqlite", "CREATE TRIGGER t BEFORE UPDATE ON exp WHEN NEW.y = 66 BEGIN SELECT RAISE(ABORT, 'no'); END", [33]),
    ("sqlite", "CREATE TRIGGER t BEFORE UPDATE ON exp WHEN NEW.y = 66 BEGIN SELECT RAISE(ROLLBACK, 'no'); END", [33]),
]


@pytest.mark.parametrize(("database", "statement", "refused"), SCHEMAS, indirect=["database"])
def test_what_the_users_schema_refuses_fails_alone_with_its_cause(
    make_project: Make, statement: str, refused: list[int]
) -> None:
    project = make_project(rows=64)
    by_hand(project, statement)
    with node(project, "one", "--until-empty") as one:
        assert one.process.wait(60) == 0
    check_project(project)
    errors = project.database.query("SELECT x, error FROM exp WHERE status = 'error'")
    assert [x for x, _ in errors] == refused
    assert all("its result cannot be stored" in error for _, error in errors)
    assert project.statuses()["done"] == 64 - len(refused)


@both
def test_one_result_among_sixty_four_that_cannot_be_stored_fails_alone(make_project: Make) -> None:
    fields = {"y": "DOUBLE", "note": "VARCHAR(10)", "by_attempt": "INT", "by_pid": "INT"}
    project = make_project(rows=64, function="unstorable", code=FUNCTIONS, custom={"text": True}, resultfields=fields)
    if project.database.server is None:  # where a column takes whatever it gets
        action = "BEGIN SELECT RAISE(ABORT, 'long'); END"
        by_hand(project, f"CREATE TRIGGER short BEFORE UPDATE ON exp WHEN LENGTH(NEW.note) > 10 {action}")
    with node(project, "one", "--until-empty") as one:
        assert one.process.wait(60) == 0
    check_project(project)
    assert project.statuses() == {"done": 63, "error": 1}
    ((x, error),) = project.database.query("SELECT x, error FROM exp WHERE status = 'error'")
    assert x == 33
    assert "its result cannot be stored" in error
    assert {attempt[1] for attempt in project.attempts()} == {1}


@both
def test_what_a_row_was_left_with_by_hand_means_nothing_to_the_next_claim(make_project: Make) -> None:
    """Set to `created` with an old wish to cancel, a token, an owner and a back-off in it, it simply runs."""
    project = make_project(rows=3, seconds=1.5)
    by_hand(
        project,
        f"UPDATE exp SET pyexpd_cancel = 1, pyexpd_token = '{'a' * 32}', pyexpd_daemon = 77, error = 'old'",
        "UPDATE exp SET pyexpd_not_before = '2031-01-01 00:00:00'"
        if project.database.server
        else "UPDATE exp SET pyexpd_not_before = 9e9",
    )
    with node(project, "one", slots=3) as one:  # beats several times while they run
        project.wait_for(done=3)
        stop(one)
        assert not one.events("lease.lost", "claims.handed_back")
    check_project(project)
    assert project.database.query("SELECT DISTINCT status, error, pyexpd_not_before FROM exp") == [("done", None, None)]


@both
def test_a_row_that_another_program_claims_under_our_token_is_not_ours(make_project: Make) -> None:
    """PyExperimenter knows no tokens: after an edit by hand it leaves ours in the row, and the start date tells."""
    project = make_project(rows=1, function="slow_first", code=FUNCTIONS, daemon={"heartbeat": "20s", "lease": "60s"})
    with node(project, "one") as one:
        wait_until(project.notes, timeout=120, what="a start")
        by_hand(
            project,
            "UPDATE exp SET status = 'created' WHERE ID = 1",
            "UPDATE exp SET status = 'running', start_date = '2031-01-01 00:00:00' WHERE ID = 1",
        )
        let_go(project)
        wait_until(project.attempts, timeout=120)
        assert project.attempts() == [(1, 1, "superseded")]
        assert project.database.query("SELECT status, y FROM exp") == [("running", None)]
        by_hand(project, "UPDATE exp SET status = 'done', y = 0, by_attempt = 0 WHERE ID = 1")  # by the other program
        stop(one)
    assert project.database.query("SELECT status, y FROM exp") == [("done", 0.0)]


@pytest.mark.slow
@pytest.mark.timeout(180)
@both
def test_resets_and_log_rows_at_the_same_time_neither_deadlock_nor_mix(make_project: Make) -> None:
    """Log rows lock their experiment, as resets do; each attempt has its own, whole and once."""
    logtables = {"epochs": {"number": "INT"}, "notes": {"number": "INT"}}
    project = make_project(rows=24, function="talkative", code=FUNCTIONS, logtables=logtables)
    resets = []
    over = threading.Event()

    def reset() -> None:
        while not over.is_set():
            done = project.pyexpd("reset", "1-12", "--running", "--yes")
            resets.append(done.returncode)
            time.sleep(0.1)

    thread = threading.Thread(target=reset)
    with node(project, "one", slots=3) as one, node(project, "two", slots=3) as two:
        thread.start()
        try:
            wait_until(lambda: len(resets) >= 8, timeout=200)
        finally:
            over.set()
            thread.join()
        project.wait_for(done=24, timeout=120)
        stop(one, two)
        for each in (one, two):
            assert not each.events("service.failed", "results.refused", "logs.refused", "attempt.unstorable")
    assert set(resets) == {0}
    check_project(project, edited=range(1, 13))
    for logtable in logtables:
        stored = project.database.query(f"SELECT experiment_id, number FROM exp__{logtable} ORDER BY experiment_id, ID")
        assert stored == [(number, epoch) for number in range(1, 25) for epoch in range(30)]


def cancel(project: Project) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PYEXPD, "cancel", "all", "--yes"],
        cwd=project.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@both
@pytest.mark.parametrize("place", ["attempt.ended", "record.commit"])
def test_a_cancel_amid_the_end_leaves_it_done_and_nothing_to_cancel(
    make_project: Make, place: str, tmp_path: Path
) -> None:
    """The wish comes after the function has returned: the result is there, and no flag is left for the next claim."""
    project = make_project(rows=1)
    gate = tmp_path / "gate"
    with node(project, "one", failpoints=f"{place}=wait:{gate}") as one:
        wait_until(gate.with_name("gate.reached").exists, timeout=120)
        asked = cancel(project)
        if place == "record.commit":
            time.sleep(1)  # it waits for the row
        else:
            assert asked.wait(60) == 0
        gate.touch()
        assert asked.wait(60) == 0
        project.wait_for(done=1)
        time.sleep(1.2)  # two beats
        stop(one)
    check_project(project)
    assert project.attempts() == [(1, 1, "done")]


@both
def test_a_cancel_before_the_end_cancels_and_ends_the_child(make_project: Make) -> None:
    project = make_project(rows=1, function="slow_first", code=FUNCTIONS)
    with node(project, "one") as one:
        wait_until(project.notes, timeout=120, what="a start")
        assert cancel(project).wait(60) == 0
        project.wait_for(cancelled=1)
        let_go(project)
        stop(one)
    records = check_project(project)
    assert project.attempts() == [(1, 1, "cancelled")]
    assert [run.ended for run in records.runs[1]] == [None]


@on_mariadb
@pytest.mark.parametrize("ends", [False, True])
def test_a_cancel_during_an_outage_is_heard_after_it(make_project: Make, ends: bool) -> None:
    """What has ended meanwhile is done; what runs is stopped."""
    project = make_project(rows=1, function="slow_first", code=FUNCTIONS)
    with node(project, "one") as one:
        wait_until(project.notes, timeout=120, what="a start")
        one.way.refuse()
        one.wait_for("heartbeat.failed")
        assert cancel(project).wait(60) == 0
        if ends:
            let_go(project)
            wait_until(lambda: len(project.notes()) == 2, timeout=120)
            time.sleep(0.5)  # its result waits in the spool
        one.way.heal()
        project.wait_for(**({"done": 1} if ends else {"cancelled": 1}))
        let_go(project)
        stop(one)
    records = check_project(project)
    assert project.attempts() == [(1, 1, "done" if ends else "cancelled")]
    assert [run.ended is not None for run in records.runs[1]] == [ends]
