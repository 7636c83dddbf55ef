"""What this host proves about other daemons."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.daemon.hosts import Evidence, Host, LockFile, evidence, lock_lease, start_time
from pyexp_daemon.model import Daemon
from tests.helpers import cannot_run


def daemon(**changes: object) -> Daemon:
    here = Host.here()
    row = Daemon(
        id=1,
        incarnation="u",
        name="d",
        host=here.name,
        host_id=here.id,
        boot_id=here.boot_id,
        pid=os.getpid(),
        pid_start=start_time(os.getpid()) or "",
        version="",
        slots=1,
        state="live",
        beat=0,
        lease_s=60,
        started=0,
        beat_at=0,
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def test_a_process_that_runs_is_alive() -> None:
    assert evidence(daemon(), Host.here()) is Evidence.ALIVE


def test_another_boot_of_this_host_is_no_proof_by_itself() -> None:
    """Machines made from one image share their machine id."""
    assert evidence(daemon(boot_id="another boot"), Host.here()) is Evidence.REBOOTED
    assert evidence(daemon(boot_id="another boot", host="elsewhere"), Host.here()) is Evidence.NONE


@pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"pid_start": "1"}])
def test_gone_or_with_a_reused_number_is_dead(change: dict[str, object]) -> None:
    assert evidence(daemon(**change), Host.here()) is Evidence.DEAD


def test_of_another_host_nothing_is_known() -> None:
    assert evidence(daemon(host_id="elsewhere", pid=2**22 + 1), Host.here()) is Evidence.NONE


def test_a_process_that_only_waits_to_be_reaped_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_time(child.pid) is None
    child.wait()


def test_a_lock_proves_life_and_its_absence_death(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = LockFile(path)
    row = daemon(pid=2**22 + 1, lock_inode=lock.inode)
    assert evidence(row, Host.here(), lock=path) is Evidence.ALIVE
    lock.release()
    assert evidence(row, Host.here(), lock=path) is Evidence.DEAD


def test_a_lock_file_made_anew_proves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = LockFile(path)
    row = daemon(lock_inode=lock.inode)
    path.rename(tmp_path / "moved")
    path.touch()
    assert evidence(row, Host.here(), lock=path) is Evidence.ALIVE  # by its pid
    assert evidence(row, Host.here(), lock=tmp_path / "missing") is Evidence.ALIVE
    lock.release()


def test_a_second_holder_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    lock = LockFile(tmp_path / "node-1.lock")
    with pytest.raises(exceptions.AlreadyRunning, match=str(os.getpid())):
        LockFile(tmp_path / "node-1.lock")
    lock.release()


def test_a_file_system_without_locks_is_not_another_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    path = tmp_path / "node-1.lock"
    held = LockFile(path)
    row = daemon(pid=2**22 + 1, lock_inode=held.inode)
    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(OSError, match="No locks available") as raised:
        LockFile(path)
    assert raised.value.filename == str(path)
    assert evidence(row, Host.here(), lock=path) is Evidence.DEAD  # by its pid: the lock proves nothing
    with pytest.raises(exceptions.DatabaseError, match="cannot be locked: No locks available"):
        lock_lease(tmp_path / "results", "u")
    held.release()


HIDDEN = """
import os, sys
from pyexp_daemon.daemon.hosts import Host, evidence
from tests.unit.daemon.test_hosts import daemon
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
print(evidence(daemon(pid=int(sys.argv[1]), pid_start="7"), Host.here()).value)
"""


def test_a_process_that_proc_hides_from_us_is_not_taken_for_dead() -> None:
    """With hidepid, /proc shows the processes of other users to root alone."""
    mounted = "mount -t proc -o hidepid=2 proc /proc && exec "
    command = [sys.executable, "-c", HIDDEN, str(os.getpid())]
    ran = subprocess.run(
        ["unshare", "--mount", "--", "sh", "-c", mounted + '"$@"', "sh", *command],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    if "unshare" in ran.stderr or "mount:" in ran.stderr:
        cannot_run("namespaces", ran.stderr.strip())
    assert ran.stdout == "none\n", ran.stderr
