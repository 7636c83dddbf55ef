"""Daemons that stand still, whole or in part, and clocks that say something else."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pyexp_daemon.daemon.hosts import start_time
from tests.e2e.project import Project
from tests.faults.conftest import both
from tests.faults.fleet import SHORT, check_project, node, stop
from tests.helpers import cannot_run, wait_until

Make = Callable[..., Project]

LEASE_S = float(SHORT["lease"].removesuffix("s"))

FUNCTIONS = """
import threading


def pause(seconds):
    threading.Event().wait(seconds)  # under libfaketime, time.sleep is an invalid argument


def slow_first(keyfields, rp, custom):
    \"\"\"The first attempt does not end before a file is there.\"\"\"
    note(custom, "start", rp)
    while rp.attempt == 1 and not os.path.exists(custom["journal"] + ".go1"):
        pause(0.02)
    note(custom, "end", rp)
    return result(keyfields, rp)


def slow(keyfields, rp, custom):
    \"\"\"No attempt of the first experiment ends before its file is there.\"\"\"
    note(custom, "start", rp)
    while keyfields["x"] == 0 and not os.path.exists(f"{custom['journal']}.go{rp.attempt}"):
        pause(0.02)
    note(custom, "end", rp)
    return result(keyfields, rp)


def careful(keyfields, rp, custom):
    note(custom, "start", rp)
    pause(custom["seconds"])
    note(custom, "end", rp)
    return result(keyfields, rp)
"""


def let_go(project: Project, attempt: int = 1) -> None:
    """Attempts of this number may end now."""
    project.journal.with_name(f"{project.journal.name}.go{attempt}").touch()


def add(project: Project, x: int) -> None:
    with closing(project.database.connect()) as connection:
        connection.cursor().execute(f"INSERT INTO exp (x, status) VALUES ({x}, 'created')")


@both
def test_a_stopped_daemon_comes_back_fenced_and_its_late_result_is_superseded(make_project: Make) -> None:
    """Even though the experiment is running again just then."""
    project = make_project(rows=1, function="slow", code=FUNCTIONS)
    with node(project, "stopped") as stopped:
        wait_until(project.notes, timeout=120, what="a start")
        project.freeze(stopped.process)
        with node(project, "other") as other:
            wait_until(lambda: len(project.notes()) == 2, timeout=120, what="another start")
            let_go(project)  # a child does not stand still with its daemon
            wait_until(lambda: len(project.notes()) == 3, timeout=120)
            stopped.process.send_signal(signal.SIGCONT)
            wait_until(lambda: project.attempts() == [(1, 1, "superseded")], timeout=120)
            assert project.database.query("SELECT status, y FROM exp") == [("running", None)]
            let_go(project, 2)
            project.wait_for(done=1)
            stop(other)
        assert stopped.wait_for("daemon.fenced")
        add(project, 50)
        project.wait_for(done=2)  # it works again
        stop(stopped)
    check_project(project, experiments=[1, 2])
    assert project.attempts() == [(1, 1, "superseded"), (1, 2, "done"), (2, 1, "done")]


@both
def test_a_daemon_whose_heartbeat_alone_stood_still_is_fenced(make_project: Make, tmp_path: Path) -> None:
    """What it still runs is superseded."""
    project = make_project(rows=1, function="slow_first", code=FUNCTIONS)
    gate = tmp_path / "gate"
    with node(project, "silent", failpoints=f"heartbeat.turn=wait:{gate}@3") as silent:
        wait_until(project.notes, timeout=120, what="a start")
        with node(project, "other") as other:
            project.wait_for(done=1)
            let_go(project)
            stop(other)
        gate.touch()
        silent.wait_for("daemon.fenced")
        add(project, 50)
        project.wait_for(done=2)
        stop(silent)
    check_project(project, experiments=[1, 2])
    assert project.attempts() == [(1, 1, "superseded"), (1, 2, "done"), (2, 1, "done")]


@pytest.mark.slow
@both
def test_a_loop_that_stands_still_for_two_leases_loses_nothing(make_project: Make) -> None:
    """The thread beats on."""
    project = make_project(rows=6, seconds=0.2)
    stall_s = 2 * LEASE_S + 1
    with node(project, "busy", slots=1, failpoints=f"loop.turn=sleep:{stall_s}@4") as busy:
        busy.wait_for("failpoint.reached")
        stalled_at = time.monotonic()
        beat = beats(project)
        with node(project, "other", slots=1) as other:
            wait_until(lambda: time.monotonic() - stalled_at > stall_s, timeout=120)
            assert beats(project) >= beat + stall_s / 2
            project.wait_for(done=6)
            stop(busy, other)
            assert not other.events("daemon.dead", "experiments.rescued")
    records = check_project(project, may_overlap=False)
    assert sorted(len(runs) for runs in records.runs.values()) == [1] * 6


def beats(project: Project) -> int:
    """How often the oldest daemon has beaten."""
    return int(project.database.query("SELECT beat FROM exp__pyexpd_daemons ORDER BY id")[0][0])


class Clock:
    """A wall clock that processes see instead of the machine's; their monotonic clock stays true."""

    def __init__(self, folder: Path, says: str) -> None:
        library = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
        if library is None:
            cannot_run("faketime", "libfaketime is not installed")
        self._file = folder / "clock"
        self.says(says)
        self.environment: dict[str, Any] = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def says(self, offset: str) -> None:
        """From now on the clock is so far off: `+1h`, `-1h`."""
        self._file.write_text(f"{offset}\n")


@both
def test_a_wall_clock_that_jumps_takes_nothing_from_anybody(make_project: Make, tmp_path: Path) -> None:
    """Nobody is declared dead by it or for it, claims stay claims, and results are stored."""
    project = make_project(rows=80, seconds=0.4, code=FUNCTIONS)
    clock = Clock(tmp_path, "+1h")
    with node(project, "off", **clock.environment) as off, node(project, "true") as true:
        for offset in ("-1h", "+1h", "+0"):
            done = project.statuses().get("done", 0)
            clock.says(offset)
            project.wait_for(done=min(80, done + 10))
        project.wait_for(done=80, timeout=120)
        stop(off, true)
        for each in (off, true):
            assert not each.events("daemon.dead", "daemon.fenced", "lease.lost", "experiments.rescued")
    records = check_project(project, may_overlap=False)
    assert sorted(len(runs) for runs in records.runs.values()) == [1] * 80
    names = dict(project.database.query("SELECT name, COUNT(*) FROM exp GROUP BY name"))
    assert set(names) == {"off", "true"}
    started = project.database.query("SELECT MAX(start_date), MIN(start_date) FROM exp WHERE name = 'off'")
    print(f"by the clock that jumped, experiments began between {started[0][1]} and {started[0][0]}")
    assert str(started[0][0])[:13] != str(started[0][1])[:13], "the clock did not jump"


@pytest.mark.slow
@both
@pytest.mark.parametrize("offset", ["+1h", "-1h"])
def test_a_daemon_whose_clock_is_an_hour_off_rescues_only_the_dead(
    make_project: Make, tmp_path: Path, offset: str
) -> None:
    project = make_project(rows=1, function="slow_first", code=FUNCTIONS)
    with node(project, "victim") as victim:
        wait_until(project.notes, timeout=120, what="a start")
        with node(project, "off", **Clock(tmp_path, offset).environment) as off:
            time.sleep(2 * LEASE_S)
            assert not off.events("daemon.dead")
            victim.process.kill()
            project.wait_for(done=1)
            stop(off)
    check_project(project)
    assert project.attempts() == [(1, 1, "lost"), (1, 2, "done")]


@both
def test_a_long_result_is_spooled_although_the_clock_went_back(make_project: Make, tmp_path: Path) -> None:
    """How long it took is not the difference of two wall clocks."""
    project = make_project(rows=1, function="slow_first", code=FUNCTIONS)
    clock = Clock(tmp_path, "+1h")
    with node(project, "victim", failpoints="record.commit=kill", **clock.environment) as victim:
        wait_until(project.notes, timeout=120, what="a start")
        time.sleep(1.2)
        clock.says("+0")
        let_go(project)
        assert victim.process.wait(30) == -signal.SIGKILL
        with node(project, "heir", "--until-empty", host="victim", proxy=victim.proxy) as heir:
            assert heir.process.wait(60) == 0
    check_project(project, may_overlap=False)
    assert project.attempts() == [(1, 1, "done")]


@pytest.mark.slow
@both
@pytest.mark.parametrize("boot", ["before", "same"])
def test_a_daemon_of_before_the_boot_is_dead_soon_and_its_pid_is_no_sign_of_life(make_project: Make, boot: str) -> None:
    """A reboot, or a container that was started again: another process has its number, this one's too."""
    project = make_project(rows=1, function="slow_first", code=FUNCTIONS, daemon={"heartbeat": "5s", "lease": "30s"})
    with node(project, "victim", host="machine") as victim:
        wait_until(project.notes, timeout=120, what="a start")
        victim.process.kill()
        victim.process.wait()
    for lock in project.database.path.parent.glob("*.lock") if project.database.server is None else ():
        lock.unlink()
    with closing(project.database.connect()) as connection:
        was = f"boot_id = 'b', pid_start = '{start_time(os.getpid())}'" if boot == "before" else "pid_start = '1'"
        connection.cursor().execute(f"UPDATE exp__pyexpd_daemons SET pid = {os.getpid()}, {was}")
    began = time.monotonic()
    with node(project, "heir", host="machine") as heir:
        project.wait_for(done=1, timeout=120)  # who is taken for alive is put down after three leases, 90 s
        print(f"done again after {time.monotonic() - began:.1f} s; the lease is 30 s")
        stop(heir)
    check_project(project)
    assert project.attempts() == [(1, 1, "lost"), (1, 2, "done")]
