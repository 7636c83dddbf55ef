"""Experiments that behave badly: each costs itself, with the cause in its row, and nobody beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.e2e.project import Project, is_alive
from tests.faults.conftest import both, on_sqlite
from tests.faults.fleet import check_project, node, stop
from tests.helpers import wait_until

Make = Callable[..., Project]

FUNCTIONS = '''
import ctypes, signal, subprocess, sys, threading


class Unspeakable(Exception):
    """Cannot be pickled, and has no text."""

    def __init__(self, lock):
        self.lock = lock

    def __str__(self):
        raise RuntimeError("no words")

    def __reduce__(self):
        raise TypeError("not to be pickled")


def leave_a_daemon(custom):
    """A process in a session of its own that ignores TERM, and whose parent is gone."""
    code = "import os, signal, sys, time\\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\\n"
    code += "if os.fork(): os._exit(0)\\nos.setsid()\\nprint(os.getpid(), flush=True)\\ntime.sleep(600)"
    out = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with open(custom["journal"] + ".left", "a") as file:
        file.write(out.stdout.readline().decode())


def close_output(custom):
    os.closerange(1, 3)


def close_files(custom):
    sys.stdout.close()
    sys.stderr.close()


def replace_output(custom):
    sys.stdout = sys.stderr = None


def devour(custom):
    hoard = []
    while True:
        hoard.append(bytearray(64 * 2**20))
        time.sleep(0.01)


def spin(custom):
    """Holds the interpreter's lock, in C, and hears no signal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sum(range(10**12))


BAD = [
    lambda custom: ctypes.string_at(0),
    lambda custom: os.abort(),
    lambda custom: os._exit(0),
    lambda custom: threading.Thread(target=os._exit, args=(0,)).run(),
    lambda custom: sys.exit(0),
    lambda custom: os.closerange(3, 4096) or time.sleep(600),
    lambda custom: {"y": threading.Lock()},
    lambda custom: {"y": lambda: 1},
    lambda custom: {"note": "x" * 300_000_000},
    lambda custom: (_ for _ in ()).throw(Unspeakable(threading.Lock())),
    lambda custom: os.kill(os.getppid(), 0) or leave_a_daemon(custom) or os.abort(),
    devour,
]
HARMLESS = [close_output, close_files, replace_output, leave_a_daemon]


def misbehave(keyfields, rp, custom):
    """Every fourth experiment does something bad, after some words like all others."""
    note(custom, "start", rp)
    print("hello from", keyfields["x"], flush=True)
    print("hello from", keyfields["x"], file=sys.stderr, flush=True)
    number, rest = divmod(keyfields["x"], 4)
    deeds = BAD + HARMLESS
    if rest == 1 and number < len(deeds):
        returned = deeds[number](custom)
        if deeds[number] not in HARMLESS and returned is not None:
            return returned
    note(custom, "end", rp)
    return result(keyfields, rp)
'''

CAUSES = [
    ("crash", "SIGSEGV"),
    ("crash", "SIGABRT"),
    ("crash", "exited with code 0"),
    ("crash", "exited with code 0"),
    ("error", "SystemExit"),
    ("crash", "SIGTERM"),
    ("error", "cannot hold a value of type lock"),
    ("error", "cannot hold a value of type function"),
    ("error", "result field note is too long"),
    ("error", "Unspeakable"),
    ("crash", "SIGABRT"),
    ("error", "memory limit"),
]
"""How the bad ones end, and what is said of it."""


@pytest.mark.slow
@both
def test_a_table_full_of_misbehaviour_ends_with_every_cause_named(make_project: Make) -> None:
    project = make_project(
        rows=80,
        function="misbehave",
        code=FUNCTIONS,
        resultfields={"y": "DOUBLE", "note": "LONGTEXT", "by_attempt": "INT", "by_pid": "INT"},
        limits={"tries": {"crash": 1}, "grace": "500ms", "memory": "1536MiB"},
    )
    with node(project, "one", slots=2) as one:
        wait_until(lambda: sum(project.statuses().get(s, 0) for s in ("done", "error")) == 80, timeout=200)
        assert one.process.poll() is None
        stop(one)
        assert not one.events("service.failed", "slot.broken", "function.broken")
    check_project(project, tries={"crash": 1})
    bad = {4 * number + 1 for number in range(len(CAUSES))}
    rows = project.database.query("SELECT x, status, error FROM exp ORDER BY x")
    outcomes = dict(
        project.database.query("SELECT x, outcome FROM exp JOIN exp__pyexpd_attempts ON experiment_id = ID")
    )
    assert {x for x, status, _ in rows if status == "error"} == bad
    seen = [(outcomes[x], error) for x, _, error in rows if x in bad]
    for number, ((outcome, error), (expected, text)) in enumerate(zip(seen, CAUSES, strict=True)):
        assert outcome == expected, (number, error)
        assert text in error, number
    tails = project.database.query(
        "SELECT x, log_tail FROM exp JOIN exp__pyexpd_attempts ON experiment_id = ID WHERE exp.status = 'done'"
    )
    assert [x for x, tail in tails if (tail or "").count(f"hello from {x}\n") != 2] == []
    left = [int(line) for line in Path(f"{project.journal}.left").read_text().split()]
    assert len(left) == 2
    assert not [pid for pid in left if is_alive(pid)]


@both
def test_a_poison_experiment_is_an_error_after_three_crashes(make_project: Make) -> None:
    project = make_project(rows=64, function="poison", code=POISON)
    with node(project, "one", "--until-empty") as one:
        assert one.process.wait(60) == 0
    check_project(project)
    assert project.statuses() == {"done": 63, "error": 1}
    ((error, tries),) = project.database.query("SELECT error, pyexpd_tries FROM exp WHERE x = 20")
    assert "SIGSEGV" in error
    assert tries == '{"crash": 3}'
    assert [attempt for attempt in project.attempts() if attempt[2] != "done"] == [(21, n, "crash") for n in (1, 2, 3)]
    assert {attempt[1] for attempt in project.attempts() if attempt[0] != 21} == {1}


POISON = """
import signal


def poison(keyfields, rp, custom):
    note(custom, "start", rp)
    if keyfields["x"] == 20:
        os.kill(os.getpid(), signal.SIGSEGV)
    note(custom, "end", rp)
    return result(keyfields, rp)
"""


@pytest.mark.slow
@on_sqlite
def test_a_child_that_holds_the_interpreter_for_ever_disturbs_no_heartbeat(make_project: Make) -> None:
    """And its timeout ends it. What computes is not silent, so it is no stall."""
    project = make_project(rows=2, function="misbehave", code=FUNCTIONS + ONLY_SPIN, limits={"timeout": "7s"})
    with node(project, "one", slots=2) as one, node(project, "other", slots=1) as other:
        wait_until(lambda: len(project.notes()) >= 3, timeout=120)
        began = time.monotonic()
        assert project.pyexpd("status").returncode == 0
        project.wait_for(error=1, done=1)
        assert time.monotonic() - began > 2
        stop(one, other)
        for each in (one, other):
            assert not each.events("heartbeat.failed", "daemon.dead", "daemon.fenced")
    check_project(project, tries={})
    assert (2, 1, "timeout") in project.attempts()


ONLY_SPIN = "\n\nBAD[0] = spin\n"


@both
def test_a_grandchild_in_a_session_of_its_own_outlives_neither_attempt_nor_daemon(make_project: Make) -> None:
    project = make_project(rows=1, function="leave_and_wait", code=FUNCTIONS + LEAVE_AND_WAIT)
    left = Path(f"{project.journal}.left")
    with node(project, "victim", host="machine") as victim:
        wait_until(lambda: left.exists() and left.read_text().endswith("\n"), timeout=120)
        (pid,) = map(int, left.read_text().split())
        assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        victim.process.kill()
        victim.process.wait()
        assert is_alive(pid)  # nobody is there who could end it
        with node(project, "heir", host="machine") as heir:
            project.wait_for(done=1)
            assert not is_alive(pid)  # before its experiment was given to anybody
            stop(heir)
    check_project(project, may_overlap=False)
    assert project.attempts() == [(1, 1, "lost"), (1, 2, "done")]


LEAVE_AND_WAIT = """

def leave_and_wait(keyfields, rp, custom):
    note(custom, "start", rp)
    if rp.attempt == 1:
        leave_a_daemon(custom)
        time.sleep(600)
    note(custom, "end", rp)
    return result(keyfields, rp)
"""
