"""Who and where this process is, and what this host can prove about another daemon: dead, alive, or nothing."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pyexp_daemon
from pyexp_daemon import exceptions
from pyexp_daemon.model import Daemon


class Evidence(Enum):
    """What can be told about a daemon without its heartbeat."""

    DEAD = "dead"
    REBOOTED = "rebooted"
    """The host was booted since, if it is this host at all."""
    ALIVE = "alive"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Host:
    """This machine (or container) and this boot of it. `PYEXPD_HOST_ID` stands in for another machine in tests."""

    name: str
    id: str
    boot_id: str

    @classmethod
    def here(cls) -> Host:
        given = os.environ.get("PYEXPD_HOST_ID")
        return cls(
            name=socket.gethostname(),
            # Process ids mean nothing across pid namespaces, so containers of one machine are different hosts.
            id=given or f"{_read('/etc/machine-id') or socket.gethostname()}:{_pid_namespace()}",
            boot_id=_read("/proc/sys/kernel/random/boot_id"),
        )


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def start_time(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None when it is gone or only waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = stat[stat.rindex(")") + 2 :].split()
    return None if state in "ZX" else fields[18]


def evidence(daemon: Daemon, host: Host, *, lock: Path | None = None) -> Evidence:
    """What this host proves about a daemon.

    Args:
        lock: the file the daemon holds locked as long as it lives, on SQLite.
    """
    if lock is not None:
        found = _lock_evidence(lock, daemon.lock_inode)
        if found is not Evidence.NONE:
            return found
        if daemon.host_id != host.id and not os.environ.get("PYEXPD_HOST_ID"):
            return Evidence.DEAD  # a database file that was copied here: its daemon cannot be using this copy
    if daemon.host_id != host.id:
        return Evidence.NONE
    if daemon.boot_id != host.boot_id:
        return Evidence.REBOOTED if daemon.host == host.name else Evidence.NONE
    if start_time(daemon.pid) != daemon.pid_start:
        return Evidence.DEAD
    return Evidence.ALIVE


def _lock_evidence(path: Path, inode: str | None) -> Evidence:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # never made here: a new file proves nothing
    except OSError:
        return Evidence.NONE
    try:
        if inode_of(descriptor) != inode:
            return Evidence.NONE
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return Evidence.ALIVE
    finally:
        os.close(descriptor)
    return Evidence.DEAD


def inode_of(descriptor: int) -> str:
    """Device and inode of an open file, as the daemons table holds them."""
    status = os.fstat(descriptor)
    return f"{status.st_dev}:{status.st_ino}"


def put_down(daemon: Daemon, host: Host) -> bool:
    """Kill a daemon of this host and user that is alive but has been silent for too long; whether it was sent."""
    if evidence(daemon, host) is not Evidence.ALIVE:
        return False
    try:
        os.kill(daemon.pid, signal.SIGKILL)
    except OSError:
        return False  # another user's, or gone by itself
    return True


class LockFile:
    """A file held locked for as long as this process lives; the kernel lets go of it whatever happens."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            AlreadyRunning: another process holds it; its pid is in the message.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise exceptions.AlreadyRunning(f"{path.stem} is held by process {holder or 'unknown'}") from None
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        self.inode = inode_of(self._descriptor)

    def release(self, *, remove: bool = False) -> None:
        """Let go of it; with `remove` the file goes too (nobody else may be waiting for it)."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


def lease_lock_path(database: Path, incarnation: str) -> Path:
    """Where a daemon on SQLite holds its lock."""
    return database.with_name(f"{database.name}.pyexpd.{incarnation}.lock")


def make_row(host: Host, uuid: str, *, name: str, slots: int, lease_s: float, lock: LockFile | None) -> Daemon:
    """The row with which this process registers as an incarnation; the database gives `id` and the times."""
    return Daemon(
        id=0,
        incarnation=uuid,
        name=name,
        host=host.name,
        host_id=host.id,
        boot_id=host.boot_id,
        pid=os.getpid(),
        pid_start=start_time(os.getpid()) or "",
        version=pyexp_daemon.__version__,
        slots=slots,
        state="live",
        beat=0,
        lease_s=lease_s,
        started=0.0,
        beat_at=0.0,
        lock_inode=lock.inode if lock else None,
    )
