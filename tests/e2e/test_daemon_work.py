"""Daemons at work: every experiment once, whatever its function does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing

import pytest

from tests.e2e.project import KILL, Project, is_alive
from tests.helpers import wait_until

both = pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
all_three = pytest.mark.parametrize("database", ["sqlite", "mariadb", "mysql9"], indirect=True)


@all_three
def test_from_a_file_to_a_results_table(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=20)
    project.fill()
    ran = project.pyexpd("run", "--until-empty", "--slots", "2")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert project.statuses() == {"done": 20}
    assert project.database.query("SELECT x, y FROM exp ORDER BY x") == [(x, 2.0 * x) for x in range(20)]
    assert {len(times) for times in project.runs().values()} == {1}
    again = project.pyexpd("fill")
    assert "added 0, 20 already there" in again.stdout
    before = project.notes()
    assert project.pyexpd("run", "--until-empty").returncode == 0
    assert project.notes() == before


@both
def test_three_daemons_share_a_table_and_run_each_experiment_once(make_project: Callable[..., Project]) -> None:
    """2,000 experiments of 20 ms, 3 x 4 slots: none twice, no two runs of one overlap, at most 4 connections each."""
    project = make_project(rows=2000, custom={"seconds": 0.02})
    project.fill()
    with ExitStack() as stack:
        daemons = [
            stack.enter_context(project.daemon("--until-empty", "--slots", "4", "--name", f"d{n}")) for n in range(3)
        ]
        most = watch_connections(project, daemons)
        assert [project.end(daemon, timeout=100) for daemon in daemons] == [0, 0, 0]
    assert project.statuses() == {"done": 2000}
    runs = project.runs()
    assert len(runs) == 2000
    assert all(len(times) == 1 for times in runs.values())
    assert {outcome for _, _, outcome in project.attempts()} == {"done"}
    assert project.database.query("SELECT COUNT(*) FROM exp WHERE y = 2.0 * x AND pyexpd_attempt = 1") == [(2000,)]
    assert len(set(project.database.query("SELECT name FROM exp"))) == 3
    assert max(most, default=0) <= 12
    errors = [event for event in project.events() if event["level"] in ("warning", "error")]
    assert errors == []


def watch_connections(project: Project, daemons: list) -> list[int]:  # type: ignore[type-arg]
    """Sample the server's process list until the daemons have ended."""
    most: list[int] = []
    if project.database.server is None:
        return most
    server, name = project.database.server, project.database.name

    def watch() -> None:
        with closing(server.connect()) as connection, connection.cursor() as cursor:
            while any(daemon.poll() is None for daemon in daemons):
                cursor.execute("SELECT COUNT(*) FROM information_schema.processlist WHERE db = %s", (name,))
                most.append(cursor.fetchone()[0])
                time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    for daemon in daemons:
        daemon.wait(100)
    thread.join()
    assert len(most) > 50
    return most


COUNTED = """
import time

with open("imports", "a") as file:
    file.write("once more\\n")


def run(keyfields, rp, custom):
    while len(open("imports").readlines()) < 2:  # one slot could do everything before the other is there
        time.sleep(0.01)
    return {"y": 0.0}
"""


@both
def test_a_module_is_imported_once_per_slot(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=200)
    (project.folder / "counted.py").write_text(COUNTED)
    project.fill()
    assert project.pyexpd("run", "--until-empty", "--slots", "2", "--function", "counted:run").returncode == 0
    assert project.statuses() == {"done": 200}
    assert len((project.folder / "imports").read_text().splitlines()) == 2


STORE = """
import time


def load(custom):
    with open("made", "a") as file:
        file.write("once more\\n")
    return {"factor": custom["factor"]}


def run(keyfields, rp, custom):
    while keyfields["x"] > 0 and len(open("made").readlines()) < 3:  # the first runs before the others, without slots
        time.sleep(0.01)
    rp.process_results({"y": rp.store["factor"] * keyfields["x"]})
"""


@both
def test_a_store_is_made_once_per_slot_and_once_for_what_runs_here(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=201, store="stored:load", custom={"factor": 3.0})
    (project.folder / "stored.py").write_text(STORE)
    project.fill()
    here = project.pyexpd("run", "1", "--here", "--function", "stored:run")
    assert here.returncode == 0, here.stderr
    made = project.folder / "made"
    assert made.read_text().splitlines() == ["once more"]
    assert project.pyexpd("run", "--until-empty", "--slots", "2", "--function", "stored:run").returncode == 0
    assert len(made.read_text().splitlines()) == 3
    assert project.database.query("SELECT COUNT(*) FROM exp WHERE status = 'done' AND y = 3.0 * x") == [(201,)]


@both
def test_a_store_that_fails_charges_no_experiment(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=3, store="stored:load")
    (project.folder / "stored.py").write_text(STORE)
    project.fill()
    reason = "the store stored:load failed: KeyError: 'factor'"
    here = project.pyexpd("run", "1", "--here", "--function", "stored:run")
    assert here.returncode != 0
    assert reason in here.stderr
    with project.daemon("--slots", "1", "--function", "stored:run") as daemon:
        wait_until(lambda: any(event["event"] == "slot.broken" for event in project.events()), timeout=120)
        daemon.terminate()
        project.end(daemon)
    (broken,) = (event for event in project.events() if event["event"] == "slot.broken")
    assert broken["error"].startswith(reason)
    assert project.statuses() == {"created": 3}
    assert project.attempts() == []


@both
def test_a_child_that_crashes_costs_its_own_experiment_only(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=12, function="mixed", limits={"tries": {"crash": 2}})
    project.fill()
    assert project.pyexpd("run", "--until-empty", "--slots", "3").returncode == 0
    rows = project.database.query("SELECT x, status, error, pyexpd_tries FROM exp ORDER BY x")
    assert [row[1] for row in rows] == ["error"] * 5 + ["done"] * 7
    assert [json.loads(row[3]) if row[3] else None for row in rows[:5]] == [
        {"crash": 2},
        {"crash": 2},
        {"crash": 2},
        {"error": 1},
        {"error": 1},
    ]
    assert "SIGSEGV" in rows[0][2]
    assert "code 3" in rows[1][2]
    assert "SIGKILL" in rows[2][2]
    assert "ValueError: no such luck" in rows[3][2]
    assert "SystemExit" in rows[4][2]
    ((signal_, exit_code),) = project.database.query(
        "SELECT `signal`, exit_code FROM exp__pyexpd_attempts WHERE experiment_id = 1 AND attempt = 1"
    )
    assert (signal_, exit_code) == (11, None)
    tails = project.database.query("SELECT log_tail FROM exp__pyexpd_attempts WHERE experiment_id = 6")
    assert tails == [("hello from 5\n",)]


@both
def test_a_timeout_ends_a_child_that_ignores_term_with_all_its_processes(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=1, function="stubborn", limits={"timeout": "4s", "grace": "300ms"})
    project.fill()
    assert project.pyexpd("run", "--until-empty", "--slots", "1").returncode == 0
    assert project.attempts() == [(1, 1, "timeout")]
    assert project.statuses() == {"error": 1}
    pids = [int(note[1]) for note in project.notes()]
    assert len(pids) == 3
    assert not [pid for pid in pids if is_alive(pid)]
    ((tail,),) = project.database.query("SELECT log_tail FROM exp__pyexpd_attempts")
    assert "stubborn" in tail  # the stack dump names the function


@both
def test_retries_wait_and_succeed_within_their_budget(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=3, function="flaky", limits={"tries": {"error": 3}})
    (project.folder / "experiments.py").write_text(
        (project.folder / "experiments.py").read_text()
        + "\n\ndef flaky(keyfields, rp, custom):\n    if rp.attempt < 3:\n        raise RuntimeError('not yet')\n"
    )
    project.fill()
    assert project.pyexpd("run", "--until-empty", "--slots", "2").returncode == 0
    assert project.statuses() == {"done": 3}
    assert project.attempts() == [
        (experiment, attempt, "done" if attempt == 3 else "error") for experiment in (1, 2, 3) for attempt in (1, 2, 3)
    ]


@both
def test_max_experiments_and_random_order(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=30)
    project.fill()
    assert project.pyexpd("run", "--max-experiments", "12", "--random-order", "--slots", "2").returncode == 0
    assert project.statuses() == {"done": 12, "created": 18}


@both
def test_rows_edited_and_inserted_by_hand_run(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=3)
    project.fill()
    with project.daemon("--slots", "1") as daemon:
        project.wait_for(done=3)
        with closing(project.database.connect()) as connection:
            cursor = connection.cursor()
            cursor.execute("UPDATE exp SET status = 'created' WHERE ID = 2")
            cursor.execute("INSERT INTO exp (x, status) VALUES (50, 'created')")
        wait_until(lambda: project.database.query("SELECT y FROM exp WHERE x = 50") == [(100.0,)], timeout=120)
        wait_until(lambda: len(project.runs().get(2, [])) == 2, timeout=120)
        daemon.terminate()
        assert project.end(daemon) == 0
    assert project.statuses() == {"done": 4}


@both
def test_a_running_row_set_to_created_by_hand_is_taken_from_its_daemon(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=1, function="long_first_time", daemon={"heartbeat": "200ms", "lease": "3s"})
    project.fill()
    with project.daemon("--slots", "2") as daemon:
        wait_until(project.notes, timeout=120)
        with closing(project.database.connect()) as connection:
            connection.cursor().execute("UPDATE exp SET status = 'created' WHERE ID = 1")
        project.wait_for(done=1)
        wait_until(lambda: len(project.attempts()) == 2, timeout=120)
        daemon.terminate()
        assert project.end(daemon) == 0
    assert project.attempts() == [(1, 1, "superseded"), (1, 2, "done")]


@both
def test_cancel_stops_a_running_experiment_at_the_next_heartbeat(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=3, function="long_first_time", daemon={"heartbeat": "200ms", "lease": "3s"})
    project.fill()
    with project.daemon("--slots", "1") as daemon:
        wait_until(project.notes, timeout=120)
        cancelled = project.pyexpd("cancel", "all", "--yes")
        assert cancelled.returncode == 0, cancelled.stderr
        project.wait_for(cancelled=3)
        wait_until(lambda: project.attempts() == [(1, 1, "cancelled")])
        daemon.terminate()
        assert project.end(daemon) == 0


@both
def test_a_fresh_isolation_uses_a_process_per_experiment(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=6, daemon={"isolation": "fresh"})
    project.fill()
    assert project.pyexpd("run", "--until-empty", "--slots", "2").returncode == 0
    assert len({note[3] for note in project.notes()}) == 6


@both
def test_a_function_that_cannot_be_imported_changes_no_row(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=3)
    project.fill()
    working = (project.folder / "experiments.py").read_text()
    (project.folder / "experiments.py").write_text("import nothing_of_this_name\n")
    with project.daemon("--slots", "2") as daemon:
        wait_until(lambda: [e for e in project.events() if e["event"] == "function.broken"], timeout=120)
        time.sleep(0.5)
        assert project.statuses() == {"created": 3}
        assert project.database.query("SELECT MAX(pyexpd_attempt) FROM exp") == [(0,)]
        (project.folder / "experiments.py").write_text(working)
        daemon.send_signal(1)
        project.wait_for(done=3)
        daemon.terminate()
        assert project.end(daemon) == 0
    broken = [event for event in project.events() if event["event"] == "function.broken"]
    assert len(broken) == 1
    assert "nothing_of_this_name" in broken[0]["error"]


HALF_BROKEN = """
import os, pathlib, time
try:
    os.close(os.open("first", os.O_CREAT | os.O_EXCL))
except FileExistsError:
    pathlib.Path("second").touch()
    while not os.path.exists("go"):
        time.sleep(0.02)
raise ImportError("not yet")
"""


@both
def test_a_reload_while_another_slot_still_imports_the_broken_code_repairs_that_too(
    make_project: Callable[..., Project],
) -> None:
    project = make_project(rows=3)
    project.fill()
    code = project.folder / "experiments.py"
    working = code.read_text()
    code.write_text(HALF_BROKEN)
    with project.daemon("--slots", "2") as daemon:
        wait_until(lambda: [e for e in project.events() if e["event"] == "slot.broken"])
        wait_until((project.folder / "second").exists)
        code.write_text(working)
        daemon.send_signal(1)
        wait_until(lambda: [e for e in project.events() if e["event"] == "slot.started"], what="the repaired slot")
        (project.folder / "go").touch()
        project.wait_for(done=3)
        wait_until(lambda: len([e for e in project.events() if e["event"] == "slot.started"]) == 2, what="the other")
        daemon.terminate()
        assert project.end(daemon) == 0


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_no_password_anywhere(make_project: Callable[..., Project]) -> None:
    """Not in a log, an argument list, a child's environment or what a command says."""
    project = make_project(rows=4, function="long_first_time")
    assert project.database.server is not None
    password = project.database.server.password
    project.fill()
    with project.daemon("--slots", "2", PYEXPD_MYSQL_PASSWORD=password) as daemon:
        wait_until(lambda: len(project.notes()) == 2, timeout=120)
        pids = project.children_of(daemon)
        assert len(pids) >= 2
        for pid in pids:
            with open(f"/proc/{pid}/environ", "rb") as environ:  # noqa: PTH123
                assert password.encode() not in environ.read()
        for pid in (*pids, daemon.pid):
            with open(f"/proc/{pid}/cmdline", "rb") as cmdline:  # noqa: PTH123
                assert password.encode() not in cmdline.read()
        daemon.send_signal(KILL)
    (project.folder / "database_credentials.yml").chmod(0o600)
    said = project.pyexpd("status").stdout + project.pyexpd("doctor").stdout + project.last_output
    wrong = (project.folder / "database_credentials.yml").read_text().replace(password, password + "x")
    (project.folder / "database_credentials.yml").write_text(wrong)
    refused = project.pyexpd("status")
    assert refused.returncode == 74
    said += refused.stdout + refused.stderr
    logs = "".join(path.read_text() for path in (project.folder / ".pyexpd").rglob("*") if path.is_file())
    assert password not in said
    assert password not in logs
