"""Finding and ending the processes that an experiment left: its group, its session, its descendants, and those marked.

A process that calls setsid leaves group and session, one whose parent has ended leaves the tree; both keep the
marks in their environment. Linux only: everything is read from /proc, signals go through pidfds, so that a number
that was given to another process meanwhile hits nobody.
"""

# ruff: noqa: PTH116, PTH123, PTH208
# Paths are plain text here: thousands of small files are read.

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pyexp_daemon.worker import limits

_PR_SET_CHILD_SUBREAPER = 36
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One line of the table of processes; `born` is in clock ticks since boot, and tells numbers apart."""

    pid: int
    parent: int
    group: int
    session: int
    born: int
    rss_bytes: int
    cpu_s: float
    is_zombie: bool


def become_subreaper() -> None:
    """Inherit the orphans of our descendants, so that none of them slips away to init."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def sweep(incarnation: str, *, deadline_s: float = 10) -> list[int]:
    """Kill every process of this user on this host that bears the mark of this incarnation. Blocks.

    Returns:
        The pids that were killed; all of them are gone.

    Raises:
        ValueError: no incarnation is named.
        TimeoutError: some survive KILL; the text names them.
    """
    if not incarnation:
        raise ValueError("a sweep needs the incarnation to sweep after")
    mark = {limits.INCARNATION: incarnation}
    killed = kill_all(
        lambda: [process for process in processes() if has_mark(process.pid, mark)], deadline_s=deadline_s
    )
    for pid in killed:
        reap(pid)
    return killed


def kill_all(find: Callable[[], Iterable[Process]], *, deadline_s: float) -> list[int]:
    """KILL what `find` finds until it finds nothing more; reaping is left to the caller. Blocks.

    Returns:
        The pids that were killed, in ascending order.

    Raises:
        TimeoutError: some survive; the text names them.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + deadline_s
    pause_s = 0.001
    while targets := [process for process in find() if not process.is_zombie]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes survive KILL: {sorted(process.pid for process in targets)}")
        killed |= {process.pid for process in targets if send(process, signal.SIGKILL)}
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.05)
    return sorted(killed)


def send(process: Process, number: int) -> bool:
    """Signal exactly this process; False when it is gone, or not ours."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        now = _read_process(process.pid)
        if now is None or now.born != process.born:
            return False
        signal.pidfd_send_signal(pidfd, number)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return True


def reap(pid: int) -> None:
    """Take note of the end of this process, if it is a child of ours; never waits."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def processes() -> list[Process]:
    """Every process but this one that this user may signal."""
    mine = os.geteuid()
    found = (_read_process(int(name), owner=mine) for name in os.listdir("/proc") if name.isdecimal())
    me = os.getpid()
    return [process for process in found if process is not None and process.pid != me]


def has_mark(pid: int, mark: dict[str, str]) -> bool:
    """Whether the environment with which this process was started has all these variables."""
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return all(f"{name}={value}".encode() in environment for name, value in mark.items())


def tree(root: int, table: Iterable[Process]) -> list[Process]:
    """The processes of the session of `root`, and the descendants of them all."""
    table = list(table)
    members = {process.pid for process in table if process.pid == root or root in (process.session, process.group)}
    while grown := {p.pid for p in table if p.parent in members and p.pid not in members}:
        members |= grown
    return [process for process in table if process.pid in members]


def exact_bytes(members: Iterable[Process]) -> int:
    """What the processes hold together, pages that they share counted once (RSS where the kernel does not say)."""
    return sum(_proportional_bytes(process) for process in members)


class Family:
    """All processes that one child has brought about, found again and again while they are being ended.

    Args:
        leader: the child, leader of its group and session.
        mark: the variables that the child's environment has, and nobody else's.
    """

    def __init__(self, leader: int, mark: dict[str, str]) -> None:
        self._leader = leader
        self._mark = mark
        self._known: set[tuple[int, int]] = set()

    def members(self) -> list[Process]:
        """Those alive now. Whoever was seen once is remembered, wherever it goes. Blocks for some milliseconds."""
        table = [process for process in processes() if not process.is_zombie]
        related = {process.pid for process in tree(self._leader, table)}
        found = [
            process
            for process in table
            if process.pid in related or (process.pid, process.born) in self._known or has_mark(process.pid, self._mark)
        ]
        self._known |= {(process.pid, process.born) for process in found}
        return found

    def kill(self, *, deadline_s: float) -> list[int]:
        """KILL every member, and reap those that are ours but for the leader. Blocks.

        Raises:
            TimeoutError: some survive; the text names them.
        """
        killed = kill_all(self.members, deadline_s=deadline_s)
        for pid, _ in self._known:
            if pid != self._leader:
                reap(pid)
        return killed


def _read_process(pid: int, *, owner: int | None = None) -> Process | None:
    folder = f"/proc/{pid}"
    try:
        if owner is not None and os.stat(folder).st_uid != owner:
            return None
        with open(f"{folder}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return Process(
        pid=pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        born=int(fields[19]),
        rss_bytes=int(fields[21]) * _PAGE_BYTES,
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
        is_zombie=fields[0] in (b"Z", b"X"),
    )


def _proportional_bytes(process: Process) -> int:
    try:
        rollup = (_PROC / str(process.pid) / "smaps_rollup").read_bytes()
    except (ProcessLookupError, FileNotFoundError):  # it has ended since
        return 0
    except OSError:
        return process.rss_bytes
    _, found, rest = rollup.partition(b"\nPss:")
    return int(rest.split(None, 1)[0]) * 1024 if found else process.rss_bytes


class OrphanKeeper:
    """Reaps orphans that we inherited as subreaper, once nobody else has waited for them between two looks."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, int]] = set()

    def run_once(self, *, spare: Iterable[int]) -> None:
        """Reap our zombies of other sessions that were there at the last look already, but for those in `spare`."""
        me, session, spared = os.getpid(), os.getsid(0), set(spare)
        zombies = {
            (process.pid, process.born)
            for process in processes()
            if process.is_zombie and process.parent == me and process.session != session and process.pid not in spared
        }
        for pid, _ in zombies & self._seen:
            reap(pid)
        self._seen = zombies
