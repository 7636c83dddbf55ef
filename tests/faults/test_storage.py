"""Disks that are full, files that are locked, removed and made anew: the daemon waits, says so, and goes on."""

from __future__ import annotations

import errno
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.databases import Database
from tests.e2e.project import KILL, Project, is_alive
from tests.faults import fleet
from tests.faults.conftest import both, on_mariadb, on_sqlite
from tests.faults.fleet import SHORT, check_project, node, stop
from tests.helpers import cannot_run, wait_until

Make = Callable[..., Project]

LEASE_S = float(SHORT["lease"].removesuffix("s"))
ANY_DISK = {"least_disk": 0}
"""Without it, a daemon claims nothing as soon as less than a gibibyte is free."""

FUNCTIONS = """
import subprocess, sys


def wordy(keyfields, rp, custom):
    \"\"\"Many words in its log, and a result of many.\"\"\"
    note(custom, "start", rp)
    print("word " * 20_000, flush=True)
    time.sleep(custom["seconds"])
    note(custom, "end", rp)
    return {**result(keyfields, rp), "note": "x" * 20_000}


def long(keyfields, rp, custom):
    \"\"\"Does not end before the gate is open.\"\"\"
    note(custom, "start", rp)
    time.sleep(custom["seconds"])
    while not os.path.exists(custom["journal"] + ".go"):
        time.sleep(0.02)
    note(custom, "end", rp)
    return result(keyfields, rp)


def leave_a_fork(keyfields, rp, custom):
    \"\"\"The first attempt leaves a copy of its process, in a session of its own, and waits.\"\"\"
    note(custom, "start", rp)
    if rp.attempt == 1:
        pid = os.fork()
        if pid == 0:
            os.setsid()
            time.sleep(60)
            os._exit(0)
        with open(custom["journal"] + ".left", "w") as file:
            file.write(f"{pid}\\n")
        time.sleep(60)
    note(custom, "end", rp)
    return result(keyfields, rp)
"""

WORDY: dict[str, Any] = {
    "function": "wordy",
    "code": FUNCTIONS,
    "resultfields": {"y": "DOUBLE", "note": "LONGTEXT", "by_attempt": "INT", "by_pid": "INT"},
}


class SmallDisk:
    """A file system of a few megabytes that can be filled to the last byte."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """Leave no room."""
        with (self.folder / "ballast").open("ab", buffering=0) as file:
            for size in (2**16, 2**12, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        (self.folder / "ballast").unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """Mounted at a folder, which may be in use when it goes."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "pyexpd-test", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        cannot_run("tmpfs", f"cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_under_the_database_holds_everything_up_until_there_is_room(tmp_path: Path) -> None:
    """What ends meanwhile is in the spool, on another disk."""
    with small_disk(tmp_path / "disk") as disk:
        database = Database(provider="sqlite", flavour="sqlite", name=str(disk.folder / "results"))
        project = fleet.make_project(database, tmp_path / "project", rows=60, seconds=0.2, daemon=ANY_DISK, **WORDY)
        with node(project, "one") as one:
            project.wait_for(done=6)
            disk.fill()
            one.wait_for("database.lost")
            time.sleep(3 * LEASE_S)
            done = project.statuses()["done"]
            assert done < 60
            disk.free()
            freed_at = time.monotonic()
            project.wait_for(done=done + 1, timeout=120)
            print(f"went on {time.monotonic() - freed_at:.1f} s after there was room again")
            project.wait_for(done=60, timeout=120)
            stop(one)
            lost = one.events("database.lost")
            print(f"said {len(lost)} times: {lost[0]['error']}")
            assert "full" in lost[0]["error"]
            assert len(lost) < 20
        records = check_project(project, may_overlap=False)
    assert sorted(len(runs) for runs in records.runs.values()) == [1] * 60


@both
def test_a_full_disk_under_the_spool_keeps_no_result_from_the_database(make_project: Make) -> None:
    project = make_project(rows=6, seconds=1.1, daemon=ANY_DISK)
    with small_disk(project.folder / "host-one" / "state") as disk, node(project, "one") as one:
        disk.fill()
        project.wait_for(done=2)
        one.wait_for("spool.unwritable")
        disk.free()
        one.wait_for("spool.writable")
        project.wait_for(done=6)
        stop(one)
        assert len(one.events("spool.unwritable")) == 1
    records = check_project(project, may_overlap=False)
    assert sorted(len(runs) for runs in records.runs.values()) == [1] * 6


@on_mariadb
def test_with_disk_and_database_away_results_wait_in_memory(make_project: Make) -> None:
    project = make_project(rows=4, function="long", code=FUNCTIONS, seconds=1.1, daemon=ANY_DISK)
    with small_disk(project.folder / "host-one" / "state") as disk, node(project, "one") as one:
        wait_until(lambda: len(project.notes()) >= 2, timeout=120)
        disk.fill()
        one.way.refuse()
        project.open_gate()
        wait_until(lambda: sum(note[0] == "end" for note in project.notes()) == 2, timeout=120)
        one.wait_for("spool.unwritable")
        assert project.statuses() == {"running": 2, "created": 2}
        one.way.heal()
        project.wait_for(done=4)
        disk.free()
        stop(one)
    records = check_project(project)
    assert {(len(runs), runs[0].attempt) for runs in records.runs.values()} == {(1, 1)}


@on_sqlite
def test_a_full_disk_under_the_logs_costs_nothing_but_logs(make_project: Make) -> None:
    project = make_project(rows=60, seconds=0.05, daemon=ANY_DISK, **WORDY)
    with small_disk(project.folder / ".pyexpd") as disk, node(project, "one") as one:
        project.wait_for(done=4)
        disk.fill()
        project.wait_for(done=40)
        disk.free()
        project.wait_for(done=60)
        stop(one)
        assert one.events("daemon.stopped")  # its own log goes on, too
    check_project(project, may_overlap=False)
    assert {attempt[1:] for attempt in project.attempts()} == {(1, "done")}


@contextmanager
def locked(database: Database) -> Iterator[None]:
    """Another process writes."""
    with closing(sqlite3.connect(database.path, isolation_level=None, timeout=120)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@pytest.mark.slow
@on_sqlite
@pytest.mark.parametrize("hosts", ["one", "two"])
def test_while_nobody_can_write_nobody_is_declared_dead(make_project: Make, hosts: str) -> None:
    """All can read on and see that nobody beats; each of them knows that its own beat waits, too."""
    project = make_project(rows=12, seconds=1.2)
    with node(project, "one", host="a") as one, node(project, "two", host="a" if hosts == "one" else "b") as two:
        project.wait_for(done=2)
        with locked(project.database):
            time.sleep(4 * LEASE_S)  # who is silent for three leases is put down by its neighbours
        project.wait_for(done=12)
        stop(one, two)
        for each in (one, two):
            assert not each.events("daemon.dead", "daemon.put_down", "daemon.fenced", "lease.lost")
    records = check_project(project, may_overlap=False)
    assert sorted(len(runs) for runs in records.runs.values()) == [1] * 12


@pytest.mark.slow
@on_sqlite
def test_a_database_that_stays_locked_for_longer_than_our_patience_is_an_outage(make_project: Make) -> None:
    project = make_project(rows=4, seconds=1.2)
    with node(project, "one") as one:
        project.wait_for(done=2)
        with locked(project.database):
            one.wait_for("database.lost", timeout=120)
        project.wait_for(done=4)
        stop(one)
        assert "stayed locked" in one.events("database.lost")[0]["error"]
        assert not one.events("service.failed")
    records = check_project(project, may_overlap=False)
    assert sorted(len(runs) for runs in records.runs.values()) == [1] * 4


@on_sqlite
def test_a_daemon_that_is_stopped_while_the_database_is_locked_leaves_no_transaction(make_project: Make) -> None:
    project = make_project(rows=4, seconds=0.5, daemon={"drain_timeout": "10s"}, limits={"grace": "200ms"})
    with node(project, "one") as one:
        wait_until(lambda: len(project.notes()) >= 2, timeout=120)
        with locked(project.database):
            one.process.terminate()
            time.sleep(1)  # what runs ends, and its end waits for the lock
            assert one.process.poll() is None
        assert one.process.wait(60) in (0, 75)
        with closing(sqlite3.connect(project.database.path, isolation_level=None, timeout=0)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        with node(project, "next", "--until-empty", host="one") as after:
            assert after.process.wait(60) == 0
    records = check_project(project, may_overlap=False)
    assert sorted(len(runs) for runs in records.runs.values()) == [1] * 4


@on_sqlite
def test_a_reader_that_never_ends_holds_nobody_up(make_project: Make) -> None:
    """No checkpoint can come past it: the write-ahead log only grows."""
    project = make_project(rows=100, seconds=0, **WORDY)
    with closing(project.database.connect()) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT COUNT(*) FROM exp WHERE status = 'done'").fetchone() == (0,)
        with node(project, "one", "--until-empty") as one:
            assert one.process.wait(60) == 0
        wal = project.database.path.with_name(f"{project.database.path.name}-wal")
        assert wal.stat().st_size > 100 * 20_000
        assert reader.execute("SELECT COUNT(*) FROM exp WHERE status = 'done'").fetchone() == (0,)
    check_project(project, may_overlap=False)
    assert project.statuses() == {"done": 100}


def lock_files(project: Project) -> list[Path]:
    return list(project.database.path.parent.glob(f"{project.database.path.name}.pyexpd.*.lock"))


@on_sqlite
@pytest.mark.parametrize("made_anew", [False, True])
def test_a_lock_file_that_was_removed_proves_no_death(make_project: Make, made_anew: bool) -> None:
    """Not even when somebody made another of its name, which nobody holds."""
    project = make_project(rows=2, seconds=2.5 * LEASE_S)
    with node(project, "one") as one:
        wait_until(lambda: len(project.notes()) == 2, timeout=120)
        (lock,) = lock_files(project)
        lock.unlink()
        if made_anew:
            lock.touch()
        with node(project, "two") as two:
            project.wait_for(done=2)
            stop(one, two)
            assert not two.events("daemon.dead", "experiments.rescued")
    check_project(project, may_overlap=False)
    assert project.attempts() == [(1, 1, "done"), (2, 1, "done")]


@on_sqlite
def test_a_process_that_outlives_its_daemon_does_not_hold_the_lock_of_it(make_project: Make) -> None:
    """A lock is inherited by fork: then the death of the daemon would be proved by its lease alone."""
    project = make_project(rows=1, function="leave_a_fork", code=FUNCTIONS, daemon={"heartbeat": "20s", "lease": "60s"})
    left = Path(f"{project.journal}.left")
    with node(project, "victim") as victim, node(project, "other") as other:
        wait_until(lambda: left.exists() and left.read_text().endswith("\n"), timeout=120)
        if project.database.query("SELECT name FROM exp") != [("victim",)]:
            victim, other = other, victim
        victim.process.send_signal(KILL)
        victim.process.wait()
        killed_at = time.monotonic()
        project.wait_for(done=1, timeout=120)
        print(f"done elsewhere {time.monotonic() - killed_at:.1f} s after the death; the lease is 60 s")
        stop(other)
    pid = int(left.read_text())
    if is_alive(pid):
        subprocess.run(["kill", "-9", str(pid)], check=False)
    check_project(project)
    assert project.attempts() == [(1, 1, "lost"), (1, 2, "done")]


@on_sqlite
def test_numbers_that_come_back_with_a_new_database_file_mean_nothing(make_project: Make) -> None:
    """Of the old one a lock file is left, and a spool, of a daemon that had the same number."""
    project = make_project(rows=2, seconds=1.2)
    with node(project, "old", failpoints="record.commit=kill") as old:
        assert old.process.wait(30) == -KILL
    assert len(lock_files(project)) == 1
    for path in project.database.path.parent.glob("results.db*"):
        if path.suffix != ".lock":
            path.unlink()
    project.journal.unlink()
    project.fill()
    with node(project, "new", "--until-empty", host="old") as new:
        assert new.process.wait(60) == 0
    records = check_project(project, edited=[1, 2])  # to these, what the spool says of attempt 1 is superseded
    assert project.database.query("SELECT id, name FROM exp__pyexpd_daemons") == [(1, "new")]
    assert sorted(len(runs) for runs in records.runs.values()) == [1, 1]
