"""Each command as people and scripts use it: what it prints, what it exits with, what it leaves in the database."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyexp_daemon.store.migrations import VERSION
from tests.e2e.project import Project
from tests.helpers import wait_until

ROOT = Path(__file__).parents[2]
Make = Callable[..., Project]

both = pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
COLUMNS = ["ID", "x", "creation_date", "status", "start_date", "name", "machine", "y", "end_date", "error"]


def say(project: Project, command: str, *more: str, code: int = 0) -> str:
    """What a command prints on stdout; its first line on stderr names file and database."""
    done = project.pyexpd(*command.split(), *more)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    first = done.stderr.partition("\n")[0]
    assert first.startswith(f"configuration {project.config}, database "), done.stderr
    assert project.database.name in first
    return done.stdout


def ask(project: Project, command: str, *more: str, code: int = 0) -> Any:
    """The one JSON document that a command prints."""
    return json.loads(say(project, f"{command} --json", *more, code=code))


def snapshot(project: Project) -> list[Any]:
    """Everything the database holds for the table."""
    tables = ["exp", "exp__pyexpd_attempts", "exp__epochs"]
    return [project.database.query(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]


@pytest.fixture
def project(make_project: Make) -> Project:
    """Five experiments of which 3 ended in an error and the others are done."""
    project = make_project(function="mixed_end", logtables={"epochs": {"loss": "DOUBLE"}}, n_jobs=2)
    with (project.folder / "experiments.py").open("a") as functions:
        functions.write(
            "\n\ndef mixed_end(keyfields, rp, custom):\n"
            "    print('x is', keyfields['x'], flush=True)\n"
            "    rp.process_logs({'epochs': {'loss': 0.5}})\n"
            "    if keyfields['x'] == 2:\n"
            "        raise ValueError('no such luck')\n"
            "    return {'y': keyfields['x'] / 2}\n"
        )
    project.fill()
    return project


@pytest.fixture
def finished(project: Project) -> Project:
    done = project.pyexpd("run", "--until-empty")
    assert done.returncode == 0, done.stderr
    return project


@both
def test_fill_adds_what_is_missing_once(make_project: Make) -> None:
    project = make_project(rows=4)
    statements = say(project, "fill --dry-run")
    assert "CREATE TABLE IF NOT EXISTS `exp`" in statements
    assert statements.endswith("would add 4, 0 already there\n")
    if project.database.provider == "sqlite":
        assert not project.database.path.exists()
    else:
        assert project.database.query("SHOW TABLES") == []
    assert say(project, "fill") == "added 4, 0 already there\n"
    assert say(project, "fill") == "added 0, 4 already there\n"
    assert say(project, "fill --dry-run") == "would add 0, 4 already there\n"
    assert ask(project, "fill") == {
        "dry_run": False,
        "added": 0,
        "already_there": 4,
        "not_in_file": 0,
        "duplicates": [],
        "statements": [],
    }


@both
def test_fill_reports_rows_made_by_hand(make_project: Make) -> None:
    """A row like another keeps no fingerprint; one that the file does not have is counted."""
    project = make_project(rows=2)
    project.fill()
    project.database.query("INSERT INTO exp (x, status) VALUES (1, 'created')")
    project.database.query("INSERT INTO exp (x, status) VALUES (77, 'created')")
    for command in ("fill --dry-run", "fill"):
        done = project.pyexpd(*command.split())
        assert done.stderr.splitlines()[1:] == [
            "pyexpd: experiments 3 and 2 have equal parameters; 3 keeps no fingerprint",
            "pyexpd: 1 experiment of the table is not in the file",
        ]
    assert ask(project, "fill")["duplicates"] == [{"experiment": 3, "equal_to": 2}]
    assert ask(project, "fill")["not_in_file"] == 1


@both
def test_concurrent_fills_add_every_experiment_once(make_project: Make) -> None:
    project = make_project(rows=3000)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pyexp_daemon", "fill", "--json"]
    fills = [
        subprocess.Popen(command, cwd=project.folder, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    added = [json.loads(fill.communicate(timeout=120)[0])["added"] for fill in fills]
    assert [fill.returncode for fill in fills] == [0] * 4
    assert sum(added) == 3000
    assert project.database.query("SELECT COUNT(*), COUNT(DISTINCT x) FROM exp") == [(3000, 3000)]


@both
def test_fill_adopts_a_table_of_pyexperimenter(make_project: Make) -> None:
    project = make_project(rows=3)
    made = (
        "CREATE TABLE exp (ID INTEGER PRIMARY KEY {auto}, x INT, creation_date DATETIME, status VARCHAR(255),"
        " start_date DATETIME, name LONGTEXT, machine VARCHAR(255), y DOUBLE, end_date DATETIME, error LONGTEXT)"
    )
    auto = "AUTOINCREMENT" if project.database.provider == "sqlite" else "AUTO_INCREMENT"
    project.database.query(made.format(auto=auto))
    project.database.query("INSERT INTO exp (x, status, y) VALUES (0, 'done', 0.5), (1, 'running', NULL)")
    assert "1  done" in say(project, "status")
    assert ask(project, "status")["adopted"] is False
    assert [row["ID"] for row in ask(project, "list")] == [1, 2]
    assert ask(project, "show 1")["scheduling"] is None
    assert say(project, "fill --dry-run").endswith("would add 1, 2 already there\n")
    assert ask(project, "status")["adopted"] is False
    assert say(project, "fill") == "added 1, 2 already there\n"
    assert ask(project, "status")["running_without_token"] == [2]
    assert "without a token" in say(project, "show 2")


@both
def test_status_counts_everything(finished: Project) -> None:
    finished.database.query("UPDATE exp SET status = 'odd' WHERE ID = 5")
    text = say(finished, "status")
    assert "        3  done\n        1  error\n        1  odd (put there by hand; no daemon takes it)\n" in text
    assert "4 done in the last minute" in text
    assert "no daemon is live" in text
    document = ask(finished, "status")
    assert document["experiments"] == {"done": 3, "error": 1, "odd": 1}
    assert document["total"] == 5
    assert document["done_last_minute"] == 4
    assert document["eta_seconds"] is None
    assert list(document["code_versions"].values()) == [3]  # of the results in the table
    assert document["daemons"] == []
    assert document["table"] == "exp"
    assert document["configuration"] == str(finished.config)


@both
def test_status_shows_live_daemons(make_project: Make) -> None:
    project = make_project(rows=3, custom={"seconds": 60}, n_jobs=1, daemon={"heartbeat": "500ms", "lease": "30s"})
    project.fill()
    with project.daemon("--name", "me") as daemon:
        project.wait_for(running=1)
        (shown,) = ask(project, "status")["daemons"]
        assert (shown["name"], shown["pid"], shown["state"], shown["slots"], shown["running"]) == (
            "me",
            daemon.pid,
            "live",
            1,
            1,
        )
        assert 0 <= shown["beat_age_seconds"] < 30
        assert f"daemon me on {shown['host']} (process {daemon.pid}): live, 1 of 1 slot busy" in say(project, "status")
        text = say(project, "show 1")
        assert f"It runs under daemon me on {shown['host']} (process {daemon.pid}), which gave a sign of life" in text
        refused = project.pyexpd("run", "--name", "me")
        assert refused.returncode == 64
        assert refused.stderr.splitlines() == [
            f"pyexpd: a daemon of this name runs on this host for table exp: me is held by process {daemon.pid}",
            "  give this one another --name, or leave it out",
        ]
        project.stop_at_once(daemon)
        assert project.end(daemon, timeout=40) == 0
    assert project.statuses() == {"created": 3}


@both
def test_list_and_show(finished: Project) -> None:
    lines = [line.split("\t") for line in say(finished, "list").splitlines()]
    assert lines[0] == ["ID", "status", "x", "y"]
    assert lines[1] == ["1", "done", "0", "0.0"]
    assert lines[3] == ["3", "error", "2", ""]
    assert [row["ID"] for row in ask(finished, "list 2-4 --status done")] == [2, 4]
    assert [row["y"] for row in ask(finished, "list", "--where", "y > 1", "--where", "status = done")] == [1.5, 2.0]
    assert ask(finished, "list 99") == []
    assert [list(row) for row in ask(finished, "list --limit 1")] == [COLUMNS]
    assert say(finished, "list 1 --columns ID,queue,priority,attempt").splitlines()[1] == "1\tdefault\t0\t1"
    shown = ask(finished, "show 3")
    assert list(shown) == ["experiment", "scheduling", "attempts", "snapshots", "next"]
    assert shown["experiment"]["status"] == "error"
    assert shown["scheduling"]["tries"] == {"error": 1}
    (attempt,) = shown["attempts"]
    assert attempt["outcome"] == "error"
    assert attempt["started"].endswith("Z")
    assert "ValueError: no such luck" in attempt["error"]
    text = say(finished, "show 3")
    assert "experiment 3: error" in text
    assert "It failed for good (tries: error 1 of 1). pyexpd logs 3 shows its output, pyexpd reset 3 runs it" in text
    assert "It is done." in say(finished, "show 1")


@both
def test_logs_come_from_the_file_or_else_from_the_database(finished: Project) -> None:
    assert say(finished, "logs 2") == "x is 1\n"
    assert say(finished, "logs 2 --attempt 1 -f") == "x is 1\n"
    for file in (finished.folder / ".pyexpd" / "exp").glob("*.log"):
        file.unlink()
    assert say(finished, "logs 2") == "x is 1\n"
    done = finished.pyexpd("logs", "2", "--attempt", "7")
    assert (done.returncode, done.stderr.splitlines()[0]) == (64, "pyexpd: experiment 2 has no attempt 7")


@both
def test_wait_says_when_all_is_over(project: Project) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pyexp_daemon", "wait", "--json"]
    waiting = subprocess.Popen(command, cwd=project.folder, env=environment, stdout=subprocess.PIPE, text=True)
    time.sleep(0.5)
    assert waiting.poll() is None
    assert project.pyexpd("run", "--until-empty").returncode == 0
    document = json.loads(waiting.communicate(timeout=120)[0])
    assert document == {"experiments": {"done": 4, "error": 1}, "failed": 1}
    assert waiting.returncode == 1
    assert say(project, "delete 3 --yes") == "1 experiment deleted\n"
    assert say(project, "wait") == "all finished: 4 done\n"


@both
def test_export_writes_the_users_columns(finished: Project) -> None:
    rows = list(csv.DictReader(io.StringIO(say(finished, "export"))))
    assert list(rows[0]) == COLUMNS
    assert [row["y"] for row in rows] == ["0.0", "0.5", "", "1.5", "2.0"]
    file = finished.folder / "out.json"
    file.write_text("old")
    assert say(finished, "export all -o out.json --status done") == ""
    assert [row["y"] for row in json.loads(file.read_text())] == [0.0, 0.5, 1.5, 2.0]
    assert [path.name for path in finished.folder.glob(".out*")] == []
    assert say(finished, "export --format json 99") == "[]\n"


@both
def test_db_create_and_version(make_project: Make) -> None:
    project = make_project(rows=1)
    assert say(project, "db create").startswith("created (")
    assert say(project, "db create") == "everything was there already\n"
    assert f"schema {VERSION}" in say(project, "db version")
    document = ask(project, "db version")
    assert (document["schema"], document["known"], document["up_to_date"]) == (VERSION, VERSION, True)


@both
def test_doctor(finished: Project) -> None:
    done = finished.pyexpd("doctor")
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    for check in (
        "versions",
        "configuration",
        "experiments",
        "state",
        "logs",
        "slots",
        "database",
        "table",
        "function",
    ):
        assert f"ok      {check}: " in done.stdout
    document = json.loads(finished.pyexpd("doctor", "--json").stdout)
    assert (document["warnings"], document["errors"]) == (0, 0)
    assert {"level", "check", "text", "hint"} == set(document["findings"][0])


@on_sqlite
def test_doctor_warns_before_the_first_fill(make_project: Make) -> None:
    project = make_project(rows=1)
    done = project.pyexpd("doctor")
    assert done.returncode == 1
    assert f"warning database: database {project.database.path} does not exist\n" in done.stdout
    assert not project.database.path.exists()


@both
def test_dry_runs_and_refusals_change_nothing(finished: Project) -> None:
    before = snapshot(finished)
    changes = ("reset all", "cancel all", "delete all", "set queue=gpu priority=3 all")
    for change in changes:
        assert say(finished, f"{change} --dry-run").endswith("dry run: nothing was changed\n")
        assert say(finished, f"{change} --dry-run --yes").endswith("dry run: nothing was changed\n")
        if not change.startswith("cancel"):
            assert finished.pyexpd(*change.split()).returncode == 64
    assert snapshot(finished) == before
    assert say(finished, "reset all --dry-run").splitlines() == [
        "resets 5 experiments: 4 done, 1 error",
        "clears the results of 4 done experiments",
        "dry run: nothing was changed",
    ]
    assert say(finished, "cancel all --dry-run").splitlines() == [
        "cancels 1 experiment: 1 error",
        "leaves alone 4 done experiments",
        "dry run: nothing was changed",
    ]


@both
def test_reset_clears_and_runs_again(finished: Project) -> None:
    assert say(finished, "reset --status error --yes") == "1 experiment reset\n"
    assert say(finished, "reset 1-3 --yes").splitlines() == [
        "2 experiments reset",
        "leaves alone 1 created experiment",
    ]
    assert finished.statuses() == {"created": 3, "done": 2}
    assert finished.database.query("SELECT COUNT(*) FROM exp__epochs") == [(2,)]
    assert len(ask(finished, "show 3")["attempts"]) == 1
    assert finished.pyexpd("run", "--until-empty").returncode == 0
    assert finished.statuses() == {"done": 4, "error": 1}
    assert [attempt["attempt"] for attempt in ask(finished, "show 3")["attempts"]] == [1, 3]


@both
def test_cancel_set_and_delete(project: Project) -> None:
    assert say(project, "cancel 4,5 --yes") == "2 experiments cancelled\n"
    assert say(project, "set queue=gpu priority=-2 2 --yes") == "1 experiment changed\n"
    assert say(project, "set priority=7 3 --yes") == "1 experiment changed\n"
    rows = {row["ID"]: row for row in ask(project, "list --columns ID,status,queue,priority")}
    assert rows[2] == {"ID": 2, "status": "created", "queue": "gpu", "priority": -2}
    assert rows[3]["priority"] == 7
    assert rows[5]["status"] == "cancelled"
    assert project.database.query("SELECT pyexpd_order FROM exp WHERE ID = 3") == [(-7,)]
    assert "1 experiment of queue default come" not in say(project, "show 3")
    assert "It was cancelled" in say(project, "show 5")
    assert say(project, "delete --status cancelled --yes") == "2 experiments deleted\n"
    assert say(project, "delete 99 --yes") == "0 experiments deleted\n"
    assert project.statuses() == {"created": 3}


@both
def test_running_experiments_are_reset_and_cancelled_when_asked(make_project: Make) -> None:
    project = make_project(rows=2, custom={"seconds": 60}, n_jobs=2, daemon={"heartbeat": "500ms", "lease": "3s"})
    project.fill()
    with project.daemon() as daemon:
        project.wait_for(running=2)
        assert say(project, "reset 1 --yes").splitlines() == [
            "0 experiments reset",
            "leaves alone 1 running experiment (--running resets them, too)",
        ]
        assert say(project, "delete 1 --yes").splitlines()[0] == "0 experiments deleted"
        assert say(project, "cancel 2 --yes").splitlines() == [
            "1 experiment cancelled",
            "1 running one will be stopped by the daemon at its next heartbeat",
        ]
        project.wait_for(cancelled=1)
        assert say(project, "reset 1 --running --yes") == "1 experiment reset\n"
        wait_until(lambda: len([note for note in project.notes() if note[0] == "start"]) == 3, what="a third start")
        daemon.kill()


@both
def test_run_here_records_like_a_daemon(project: Project) -> None:
    done = project.pyexpd("run", "2", "--here")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "x is 1\n"
    assert done.stderr.splitlines()[-1] == "experiment 2: done"
    failed = project.pyexpd("run", "3", "--here")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-2:] == ["ValueError: no such luck", "experiment 3: error"]
    assert project.statuses() == {"created": 3, "done": 1, "error": 1}
    (row,) = ask(project, "list 2")
    assert (row["y"], row["name"]) == (0.5, f"{row['machine']}-here")
    assert project.attempts() == [(2, 1, "done"), (3, 1, "error")]
    assert project.database.query("SELECT experiment_id, loss, pyexpd_attempt, pyexpd_seq FROM exp__epochs") == [
        (2, 0.5, 1, 1),
        (3, 0.5, 1, 1),
    ]
    assert ask(project, "status")["daemons"] == []


@both
def test_run_here_hands_back_when_interrupted(make_project: Make) -> None:
    project = make_project(rows=1, custom={"seconds": 60}, daemon={"heartbeat": "500ms", "lease": "4s"})
    project.fill()
    with project.daemon("1", "--here") as process:
        wait_until(project.notes, what="a start")
        time.sleep(5)  # longer than the lease: the heartbeat keeps it ours
        assert ask(project, "status")["daemons"][0]["state"] == "live"
        process.send_signal(signal.SIGINT)
        assert project.end(process) == 130
    assert project.statuses() == {"created": 1}
    assert project.attempts() == [(1, 1, "released")]


@on_sqlite
def test_run_here_is_told_that_the_experiment_was_taken(make_project: Make) -> None:
    """What is left of a reset experiment stores nothing, and says so."""
    project = make_project(rows=1, function="gated", daemon={"heartbeat": "300ms", "lease": "1s"})
    project.fill()
    with project.daemon("1", "--here") as process:
        wait_until(project.notes, what="a start")
        assert say(project, "reset 1 --running --yes") == "1 experiment reset\n"
        project.open_gate()
        assert project.end(process) == 74
    assert "pyexpd: experiment 1 is no longer held by this attempt" in project.last_output
    assert project.statuses() == {"created": 1}


class Terminal:
    """A command on a pseudo-terminal, as a person sees it."""

    def __init__(self, project: Project, *arguments: str) -> None:
        self.output = ""
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pyexp_daemon", *arguments],
            cwd=project.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                return
            if not data:
                return
            self.output += data.decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self) -> int:
        code = self.process.wait(30)
        self._reader.join(10)
        os.close(self._master)
        return code


@on_sqlite
def test_terminal_is_asked_before_results_are_cleared(finished: Project) -> None:
    before = snapshot(finished)
    terminal = Terminal(finished, "reset", "all")
    wait_until(lambda: "Go on? [y/N]" in terminal.output, what="the question")
    assert "clears the results of 4 done experiments" in terminal.output
    terminal.type("n\n")
    assert terminal.end() == 130
    assert snapshot(finished) == before
    terminal = Terminal(finished, "reset", "all")
    wait_until(lambda: "Go on? [y/N]" in terminal.output, what="the question")
    terminal.type("y\n")
    assert terminal.end() == 0
    assert finished.statuses() == {"created": 5}


@on_sqlite
def test_terminal_shows_a_live_line_and_readable_events(make_project: Make) -> None:
    project = make_project(rows=3, n_jobs=2)
    project.fill()
    terminal = Terminal(project, "run")
    wait_until(lambda: "is finished; waiting for new experiments" in terminal.output, timeout=120, what="the end")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.end() == 0
    assert "running 0 of 2" in terminal.output
    assert "3 done" in terminal.output
    assert "attempt.finished" in terminal.output
    assert '"event"' not in terminal.output  # JSON goes to the file only
    assert {event["event"] for event in project.events()} >= {"daemon.started", "attempt.finished", "daemon.stopped"}


@on_sqlite
def test_terminal_lists_and_watches(finished: Project) -> None:
    terminal = Terminal(finished, "list")
    assert terminal.end() == 0
    assert "status" in terminal.output
    watching = Terminal(finished, "status", "--watch")
    wait_until(lambda: "5  in all" in watching.output, what="the counts")
    watching.process.send_signal(signal.SIGINT)
    assert watching.end() == 0


@on_sqlite
def test_daemon_logs_json_lines(make_project: Make) -> None:
    """Every line is complete and carries the same keys, on stdout as in the file."""
    project = make_project(rows=2)
    project.fill()
    done = project.pyexpd("run", "--until-empty", "--name", "node")
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines == project.events("node")
    for line in lines:
        assert list(line)[:5] == ["timestamp", "level", "event", "daemon", "table"]
        assert (line["daemon"], line["table"]) == ("node", "exp")
        assert line["timestamp"].endswith("Z")


@on_sqlite
def test_init_makes_a_project_that_runs(make_project: Make) -> None:
    project = make_project()
    assert project.pyexpd("init", "new").stdout.splitlines()[0] == "wrote new/pyexpd.yml"
    for command in ("fill", "run --until-empty"):
        done = project.pyexpd("-c", "new/pyexpd.yml", *command.split())
        assert done.returncode == 0, done.stderr
    status = project.pyexpd("status", "--json", "-c", "new/pyexpd.yml")
    assert json.loads(status.stdout)["experiments"] == {"done": 15}


@on_sqlite
def test_closed_pipe_is_no_error(finished: Project) -> None:
    """`pyexpd list | head -1`: no complaint, and the code that a program has which dies of SIGPIPE."""
    for _ in range(8):
        finished.database.query("INSERT INTO exp (x, y, status) SELECT x, y, 'done' FROM exp")
    done = subprocess.run(
        f'{sys.executable} -m pyexp_daemon list | head -1; echo "${{PIPESTATUS[0]}}"',
        shell=True,
        executable="/bin/bash",
        cwd=finished.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() in (["ID\tstatus\tx\ty", "141"], ["ID\tstatus\tx\ty", "0"])
    assert len(done.stderr.splitlines()) == 1


def test_help_loads_nothing_it_does_not_need() -> None:
    """It stays fast: click and the names of the commands are enough."""
    code = (
        "import sys\n"
        "from pyexp_daemon.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'pydantic', 'omegaconf', 'yaml', 'aiomysql', 'pymysql', 'aiosqlite', 'anyio', 'rich', 'structlog',"
        " 'asyncio', 'psutil', 'sqlite3', 'pandas'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "  fill " in done.stdout


@both
def test_status_loads_nothing_it_does_not_need(project: Project) -> None:
    """It stays fast: nothing of a daemon's loop, of its log or of other commands, and nothing of other databases."""
    code = (
        "import sys\n"
        "from pyexp_daemon.cli.main import main\n"
        "try: main(['status', '--json'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["total"]
    heavy = {"aiomysql", "aiosqlite", "anyio", "asyncio", "asyncssh", "logging", "omegaconf"}
    heavy |= {"pandas", "psutil", "rich", "structlog"}
    if project.database.provider == "sqlite":
        heavy |= {"pymysql", "ssl", "pyexp_daemon.config.credentials"}
    ours = "daemon worker events space.grid store.tunnel store.filling store.selection cli.daemon"
    heavy |= {f"pyexp_daemon.{name}" for name in ours.split()}
    assert not heavy & set(done.stderr.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_PYEXPD_COMPLETE": f"{shell}_source"}
    done = subprocess.run(
        [sys.executable, "-m", "pyexp_daemon"], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0
    assert "pyexpd" in done.stdout
