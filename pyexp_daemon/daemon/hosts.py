"""Who and where this process is, and what this host can prove about another daemon: dead, alive, or nothing."""

from __future__ import annotations

import errno
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

alive_here: set[str] = set()
"""The incarnations that this process is: a script may have several daemons in it, in threads of their own."""


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

    def is_home_of(self, daemon: Daemon) -> bool:
        """Whether a daemon was started here, in this boot."""
        return (daemon.host_id, daemon.boot_id) == (self.id, self.boot_id)


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
    state, *fields = _stat(pid)
    return None if state in "ZX" else fields[18]


def is_stopped(pid: int) -> bool:
    """Whether a process does nothing until somebody lets it go on: after SIGSTOP, or under a debugger."""
    return _stat(pid)[0] in "Tt"


def _stat(pid: int) -> list[str]:
    """The fields of a process from its state on; that of one that is gone is `X`."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ["X"]
    return stat[stat.rindex(")") + 2 :].split()


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
    started = start_time(daemon.pid)
    if started is None and _is_hidden(daemon.pid):
        return Evidence.NONE
    return Evidence.ALIVE if started == daemon.pid_start else Evidence.DEAD


def _is_hidden(pid: int) -> bool:
    """Whether there is such a process, of another user, that /proc does not show (mounted with hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not Path(f"/proc/{pid}").exists()
    except OSError:
        return False
    return False


def _lock_evidence(path: Path, inode: str | None) -> Evidence:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # never made here: a new file proves nothing
    except OSError:
        return Evidence.NONE
    try:
        if inode_of(descriptor) != inode:
            return Evidence.NONE
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return Evidence.ALIVE if error.errno in _HELD else Evidence.NONE
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


_HELD = (errno.EWOULDBLOCK, errno.EAGAIN)
"""What `flock` says when another process holds the lock. All else means that there are no locks to be had here."""


class LockFile:
    """A file held locked for as long as this process lives; the kernel lets go of it whatever happens."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """
        Args:
            create: make the file, and its folder, when they are missing.

        Raises:
            AlreadyRunning: another process holds it; its pid is in the message.
            OSError: it cannot be made, or the file system has no locks.
        """
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        while True:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o644)
            try:
                self._lock()
                if self.is_there:
                    os.truncate(self._descriptor, 0)
                    os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
                    self.inode = inode_of(self._descriptor)
                    return
            except BaseException:
                os.close(self._descriptor)
                raise
            os.close(self._descriptor)  # it was removed before we held it: the next who comes makes another

    @property
    def is_there(self) -> bool:
        """Whether the file was not removed: else nobody can see that it is held."""
        return os.fstat(self._descriptor).st_nlink > 0

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD:
                raise OSError(error.errno, error.strerror, str(self.path)) from error
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            raise exceptions.AlreadyRunning(f"{self.path.stem} is held by process {holder or 'unknown'}") from None

    def release(self, *, remove: bool = False) -> None:
        """Let go of it; with `remove` the file goes too (nobody else may be waiting for it)."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


def lease_lock_path(database: Path, incarnation: str) -> Path:
    """Where a daemon on SQLite holds its lock."""
    return database.with_name(f"{database.name}.pyexpd.{incarnation}.lock")


def lock_lease(database: Path, incarnation: str) -> LockFile:
    """The lock of a daemon on SQLite.

    Raises:
        DatabaseError: there are no locks to be had beside the database, so nobody could tell who lives.
    """
    path = lease_lock_path(database, incarnation)
    try:
        return LockFile(path)
    except OSError as error:
        raise exceptions.DatabaseError(
            f"{path} cannot be locked: {error.strerror}", hint="SQLite needs a disk of this host"
        ) from error


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
