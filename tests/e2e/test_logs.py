"""`pyexpd logs`: of daemons and of attempts, while they run, on this node and on others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.project import INT, PYEXPD, Project
from tests.helpers import wait_until

Make = Callable[..., Project]

both = pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

FUNCTIONS = """

def twice(keyfields, rp, custom):
    print("attempt", rp.attempt, "begins", flush=True)
    if rp.attempt == 1:
        raise ValueError("no such luck")
    print("second half", flush=True)
    return {"y": 1.0}


def until_told(keyfields, rp, custom):
    print("waiting", flush=True)
    while not os.path.exists(custom["journal"] + ".go"):
        time.sleep(0.02)
    print("told", flush=True)
    return {"y": 1.0}
"""


class Watch:
    """A running `pyexpd logs`, its outputs in files."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self._folder = folder

    @property
    def out(self) -> str:
        return (self._folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self._folder / "err").read_text()

    def wait_for(self, *words: str) -> None:
        wait_until(
            lambda: all(word in self.out + self.err for word in words),
            timeout=120,
            what=f"{words} in {self.out!r} {self.err!r}",
        )

    def end(self, number: int | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(20)
        assert "Traceback" not in self.err
        return code


@contextmanager
def watching(project: Project, *arguments: str, cwd: Path | None = None) -> Iterator[Watch]:
    folder = project.folder / f"watch-{len(list(project.folder.glob('watch-*')))}"
    folder.mkdir()
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            [PYEXPD, "logs", *arguments], cwd=cwd or project.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )
        try:
            yield Watch(process, folder)
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def make(make_project: Make) -> Make:
    def make(**options: object) -> Project:
        project = make_project(**options)
        with (project.folder / "experiments.py").open("a") as functions:
            functions.write(FUNCTIONS)
        return project

    return make


@on_sqlite
def test_logs_of_daemons_need_no_database(make: Make) -> None:
    project = make(rows=3, function="mixed", n_jobs=1)
    logs = project.folder / ".pyexpd" / "exp"
    done = project.pyexpd("logs")
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr == (
        f"pyexpd: no daemon of this configuration has written a log here yet; it would be {logs}/daemon-NAME.jsonl\n"
    )
    project.fill()
    for name in ("one", "two"):
        assert project.pyexpd("run", "--until-empty", "--name", name).returncode == 0
    project.database.path.unlink()

    done = project.pyexpd("logs")
    assert done.returncode == 0
    assert done.stderr == f"configuration {project.config}, logs {logs}\n"
    shown = done.stdout.splitlines()
    assert len(shown) == len(project.events())
    assert "daemon.started" in shown[0]
    assert "daemon=one" in shown[0]
    assert "daemon.stopped" in shown[-1]
    assert "daemon=two" in shown[-1]

    events = sorted(project.events(), key=lambda event: str(event["timestamp"]))
    raw = project.pyexpd("logs", "--json", "-n", "4").stdout
    assert [json.loads(line) for line in raw.splitlines()] == events[-4:]
    raw = project.pyexpd("logs", "--json", "--level", "warning", "--lines", "100").stdout
    warnings = [json.loads(line) for line in raw.splitlines()]
    assert warnings == [event for event in events if event["level"] in ("warning", "error")]
    assert {event["event"] for event in warnings} >= {"slot.died", "attempt.finished"}
    raw = project.pyexpd("logs", "--json", "--daemon", "two").stdout
    assert [json.loads(line) for line in raw.splitlines()] == project.events("two")
    done = project.pyexpd("logs", "--daemon", "three")
    assert (done.returncode, done.stderr.splitlines()) == (
        64,
        [f"pyexpd: there is no log of a daemon 'three' in {logs}", "  there are those of one, two"],
    )
    assert project.pyexpd("logs", "-n", "0").stdout == ""


@on_sqlite
def test_logs_of_several_daemons_are_shown_by_time(make: Make) -> None:
    project = make()
    logs = project.folder / ".pyexpd" / "exp"
    logs.mkdir(parents=True)

    def event(second: int) -> str:
        moment = f"2026-01-01T00:00:0{second}.000000Z"
        return json.dumps({"timestamp": moment, "level": "info", "event": "x.said", "daemon": "d", "second": second})

    (logs / "daemon-one.jsonl.1").write_text(f"{event(1)}\n")
    (logs / "daemon-one.jsonl").write_text(f"{event(3)}\n{event(5)}\n")
    (logs / "daemon-two.jsonl").write_text(f"{event(2)}\nno JSON\n{event(4)}\n{event(6)}\n")
    (logs / "1-1.log").write_text("of an attempt\n")
    shown = project.pyexpd("logs", "--level", "info", "--json").stdout.splitlines()
    assert shown == [event(second) for second in range(1, 7)]
    shown = project.pyexpd("logs", "-n", "3").stdout.splitlines()
    assert [line.rpartition("second=")[2] for line in shown] == ["4", "5", "6"]
    assert "no JSON" in project.pyexpd("logs").stdout.splitlines()
    with watching(project, "-f", "-n", "1", "--json") as watch:
        watch.wait_for(event(6))
        (logs / "daemon-one.jsonl.1").rename(logs / "daemon-one.jsonl.2")
        (logs / "daemon-one.jsonl").rename(logs / "daemon-one.jsonl.1")
        (logs / "daemon-one.jsonl").write_text(f"{event(8)}\n")
        (logs / "daemon-three.jsonl").write_text(f"{event(7)}\n")
        watch.wait_for(event(7), event(8))
        assert watch.out.splitlines()[0] == event(6)
        assert sorted(watch.out.splitlines()[1:]) == [event(7), event(8)]
        assert watch.end(INT) == 130


@on_sqlite
@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        ("logs --attempt 2", "--attempt needs the number of an experiment"),
        ("logs 1 --json", "--lines, --daemon, --level and --json are for the logs of daemons"),
        ("logs 1 -n 3", "--lines, --daemon, --level and --json are for the logs of daemons"),
    ],
)
def test_options_that_do_not_go_together(make: Make, arguments: str, first: str) -> None:
    done = make().pyexpd(*arguments.split())
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.splitlines()[0] == f"pyexpd: {first}"
    assert len(done.stderr.splitlines()) == 2


@on_sqlite
def test_daemons_that_start_later_are_followed_until_ctrl_c(make: Make) -> None:
    project = make(rows=2, n_jobs=1)
    project.fill()
    with watching(project, "-f") as watch:
        watch.wait_for("waiting for it")
        assert project.pyexpd("run", "--until-empty", "--name", "one").returncode == 0
        watch.wait_for("daemon.stopped")
        assert project.pyexpd("run", "--until-empty", "--name", "two").returncode == 0
        wait_until(lambda: watch.out.count("daemon.stopped") == 2, what="the second daemon")
        assert len(watch.out.splitlines()) == len(project.events())
        assert watch.end(INT) == 130


@both
def test_following_an_experiment_waits_for_it_and_goes_through_its_retry(make: Make) -> None:
    project = make(rows=1, function="twice", n_jobs=1, limits={"tries": {"error": 2}})
    project.fill()
    with watching(project, "1", "-f") as watch:
        watch.wait_for("experiment 1 is created; waiting for its next attempt")
        assert project.pyexpd("run", "--until-empty").returncode == 0
        assert watch.end() == 0
        assert watch.out == "attempt 1 begins\nattempt 2 begins\nsecond half\n"
        assert f"{project.folder}/.pyexpd/exp/1-1.log" in watch.err
        assert f"{project.folder}/.pyexpd/exp/1-2.log" in watch.err
    done = project.pyexpd("logs", "1", "-f", "--attempt", "1")
    assert done.stdout == "attempt 1 begins\n"
    done = project.pyexpd("logs", "1", "-f", "--attempt", "3")
    assert (done.returncode, done.stderr.splitlines()[1]) == (64, "pyexpd: experiment 1 has no attempt 3")


@both
def test_attempt_that_runs_is_followed_to_its_end(make: Make) -> None:
    project = make(rows=1, function="until_told", n_jobs=1)
    project.fill()
    with project.daemon(), watching(project, "1", "-f") as watch:
        project.wait_for(running=1)
        watch.wait_for("waiting\n")
        Path(f"{project.journal}.go").touch()
        assert watch.end() == 0
        assert watch.out == "waiting\ntold\n"


@both
def test_attempt_on_another_node_is_named_and_its_end_shown_when_it_is_over(make: Make, tmp_path: Path) -> None:
    """The other node: the same table, a folder of logs that this one does not see."""
    project = make(rows=1, function="until_told", n_jobs=1, daemon={"heartbeat": "500ms", "lease": "60s"})
    project.fill()
    here = tmp_path / "here"
    here.mkdir()
    for file in ("pyexpd.yml", "database_credentials.yml"):
        if (project.folder / file).exists():
            shutil.copy(project.folder / file, here)
    (here / "database_credentials.yml").chmod(0o600) if (here / "database_credentials.yml").exists() else None
    log = here / ".pyexpd" / "exp" / "1-1.log"
    with project.daemon("--name", "far"):
        project.wait_for(running=1)
        project.database.query("UPDATE exp__pyexpd_daemons SET host = 'node7'")
        where = f"attempt 1 of experiment 1 runs on node7 (daemon far); its log is there, in {log}"
        done = subprocess.run([PYEXPD, "logs", "1"], cwd=here, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr.splitlines()) == (
            64,
            [f"pyexpd: {where}", "  pyexpd logs 1 -f waits for the end of it"],
        )
        with watching(project, "1", "-f", cwd=here) as watch:
            watch.wait_for(f"pyexpd: {where}; the end of it is shown here when it is over")
            assert watch.out == ""
            Path(f"{project.journal}.go").touch()
            assert watch.end() == 0
            assert watch.out == "waiting\ntold\n"
            assert f"the end of the log; all of it is on {os.uname().nodename}, there in {log}" in watch.err
    done = subprocess.run([PYEXPD, "logs", "1"], cwd=here, capture_output=True, text=True, timeout=120)
    assert done.stdout == "waiting\ntold\n"
    assert f"there in {log}" in done.stderr


@on_sqlite
def test_cause_that_repeats_is_said_once_and_counted_to_the_end(make: Make) -> None:
    """Children that die while they import: the slot dies three times in the same way, and is given up."""
    project = make(rows=1, n_jobs=1)
    (project.folder / "experiments.py").write_text("import os\nos._exit(3)\n")
    project.fill()
    assert project.pyexpd("run").returncode == 70
    died = [event for event in project.events() if event["event"] == "slot.died"]
    assert [event.get("repeated") for event in died] == [None, 1]
