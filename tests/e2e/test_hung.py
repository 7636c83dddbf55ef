"""Whatever hangs is noticed and dealt with by rule: experiments, event loops, whole daemons."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fuse import FuseMount
from tests.e2e.project import TERM, Project, is_alive, is_locked
from tests.helpers import cannot_run, wait_until

both = pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
one = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
"""What happens in a child has nothing to do with the database."""

Make = Callable[..., Project]

FUNCTIONS = """
def hang_once(keyfields, rp, custom):
    note(custom, "start", rp)
    if rp.attempt == 1:
        wait_for_ever()
    note(custom, "end", rp)


def wait_for_ever():
    time.sleep(600)


def compute(keyfields, rp, custom):
    \"\"\"Holds the interpreter lock for seconds at a time: no other thread of the process gets a turn.\"\"\"
    note(custom, "start", rp)
    end = time.monotonic() + custom["seconds"]
    while time.monotonic() < end:
        sum(range(10**8))
    note(custom, "end", rp)


def look_at_mount(keyfields, rp, custom):
    note(custom, "start", rp)
    os.stat(custom["mount"] + "/anything")
"""


def make(make_project: Make, function: str, *, rows: int = 1, **options: Any) -> Project:
    daemon = {"heartbeat": "500ms", "lease": "3s"} | options.pop("daemon", {})
    project = make_project(rows=rows, function=function, daemon=daemon, **options)
    with (project.folder / "experiments.py").open("a") as file:
        file.write(FUNCTIONS)
    project.fill()
    return project


def named(project: Project, event: str, daemon: str = "*") -> list[dict[str, Any]]:
    return [entry for entry in project.events(daemon) if entry["event"] == event]


@both
def test_what_sleeps_is_ended_and_requeued_with_its_stack_in_the_log(make_project: Make) -> None:
    project = make(make_project, "hang_once", limits={"stalled": "2s", "grace": "1s"})
    with project.daemon("--slots", "1", "--until-empty") as daemon:
        wait_until(project.attempts, timeout=120, what="its end")  # it would sleep for ten minutes
        took_s = time.monotonic() - float(project.notes()[0][4])
        assert project.end(daemon) == 0
    print(f"requeued {took_s:.1f} s after it began to sleep")
    assert took_s >= 1  # two since it was given to the child
    assert project.attempts() == [(1, 1, "stalled"), (1, 2, "done")]
    assert project.database.query("SELECT status, pyexpd_tries FROM exp") == [("done", '{"stalled": 1}')]
    assert "in wait_for_ever" in (project.folder / ".pyexpd/exp/1-1.log").read_text()
    (tail,) = project.database.query("SELECT log_tail FROM exp__pyexpd_attempts WHERE outcome = 'stalled'")
    assert "in wait_for_ever" in tail[0]


@one
def test_what_computes_for_twenty_seconds_without_a_word_is_left_alone(make_project: Make) -> None:
    project = make(make_project, "compute", custom={"seconds": 20}, limits={"stalled": "2s"})
    with project.daemon("--slots", "1", "--until-empty") as daemon:
        assert project.end(daemon, timeout=90) == 0
    assert project.attempts() == [(1, 1, "done")]


@one
def test_what_waits_on_a_dead_mount_is_stalled(make_project: Make, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    try:
        fuse = FuseMount(mount)
    except OSError as error:
        cannot_run("fuse", f"no file system can be mounted here: {error}")
    limits = {"stalled": "1s", "grace": "500ms", "tries": {"stalled": 1}}
    project = make(make_project, "look_at_mount", custom={"mount": str(mount)}, limits=limits)
    with project.daemon("--slots", "1", "--until-empty") as daemon:
        with fuse:
            fuse.is_mute = True
            # Nothing kills what waits in the kernel for a server that took the request: its slot waits, and says so.
            wait_until(lambda: named(project, "child.survived"), timeout=120, what="the verdict")
            assert project.attempts() == []
        assert project.end(daemon, timeout=120) == 0
    assert project.attempts() == [(1, 1, "stalled")]
    assert project.statuses() == {"error": 1}


@both
def test_without_a_limit_status_says_who_shows_no_sign_of_life(make_project: Make) -> None:
    project = make(make_project, "hang_once", rows=1)
    with project.daemon("--slots", "1") as daemon:
        said = re.compile(r"no sign of life for \d+ s from experiment 1\b")
        wait_until(lambda: said.search(project.pyexpd("status").stdout), timeout=100, interval=0.5, what="words")
        assert project.attempts() == []  # it is only said
        daemon.send_signal(TERM)
        project.stop_at_once(daemon)
        assert project.end(daemon, timeout=40) == 0


WEDGE = """
import signal, time
signal.signal(signal.SIGWINCH, lambda *_: time.sleep(600))
"""
"""Imported by the daemon's interpreter at its start: then WINCH makes its main thread, and the loop, stand still."""


@both
def test_a_loop_that_stands_still_is_aborted_by_the_heartbeat_and_its_work_rescued(make_project: Make) -> None:
    project = make(make_project, "hang_once", daemon={"watchdog": "5s"})
    (project.folder / "site").mkdir()
    (project.folder / "site" / "sitecustomize.py").write_text(WEDGE)
    with project.daemon("--slots", "1", "--name", "stuck", PYTHONPATH=str(project.folder / "site")) as stuck:
        wait_until(project.notes, timeout=120, what="a start")
        children = project.children_of(stuck)
        stuck.send_signal(signal.SIGWINCH)
        assert project.end(stuck) == -signal.SIGABRT
        wait_until(lambda: not [pid for pid in children if is_alive(pid)], what="the end of its children")
        with project.daemon("--slots", "1", "--name", "other", "--until-empty") as other:
            assert project.end(other) == 0
    assert named(project, "daemon.wedged", "stuck")
    assert project.attempts() == [(1, 1, "lost"), (1, 2, "done")]


@both
def test_a_daemon_of_this_host_that_is_frozen_is_put_down_after_three_leases(make_project: Make) -> None:
    project = make(make_project, "hang_once", daemon={"heartbeat": "500ms", "lease": "2s"})
    with (
        project.daemon("--slots", "1", "--name", "frozen") as frozen,
        project.daemon("--slots", "1", "--name", "other") as other,
    ):
        wait_until(project.notes, timeout=120, what="a start")
        # Whoever has not got the one experiment is the other.
        if project.database.query("SELECT name FROM exp") != [("frozen",)]:
            frozen, other = other, frozen
        children = project.children_of(frozen)
        project.freeze(frozen)
        frozen_at = time.monotonic()
        project.wait_for(done=1, timeout=120)
        took_s = time.monotonic() - frozen_at
        assert frozen.wait(timeout=120) == -signal.SIGKILL
        assert not [pid for pid in children if is_alive(pid)]
        other.send_signal(TERM)
        assert project.end(other) == 0
    print(f"put down, and its work done elsewhere, {took_s:.1f} s after it froze; the lease is 2 s")
    assert took_s > 2 * 2 + 0.5  # three leases, but for how late its last beat was, and was seen
    assert project.attempts() == [(1, 1, "lost"), (1, 2, "done")]
    assert named(project, "daemon.put_down")


@one
def test_one_that_is_frozen_within_a_transaction_locks_nobody_out_for_long(make_project: Make) -> None:
    project = make_project(rows=1, function="gated", daemon={"heartbeat": "500ms", "lease": "2s"})
    project.fill()
    gate = project.folder / "gate"
    with project.daemon("--slots", "1", "--name", "frozen", PYEXPD_FAILPOINTS=f"record.commit=wait:{gate}") as frozen:
        wait_until(project.notes, what="a start")
        with project.daemon("--slots", "1", "--name", "other") as other:
            wait_until(lambda: named(project, "slot.started", "other"), what="the other")
            project.open_gate()
            wait_until(Path(f"{gate}.reached").exists, what="a transaction")
            frozen.send_signal(signal.SIGSTOP)
            assert is_locked(project.database.path)
            assert frozen.wait(timeout=120) == -signal.SIGKILL
            project.wait_for(done=1)
            other.send_signal(TERM)
            assert project.end(other) == 0
    assert named(project, "daemon.put_down", "other")
