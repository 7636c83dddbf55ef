"""What the daemon tells the service manager that started it, as sd_notify does. Source: man 3 sd_notify.

By hand, because it is one datagram: the library of that name for Python (sdnotify) was last released in 2017, and knows
neither the watchdog nor what to do when systemd does not listen for a moment.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping

import anyio

TURN_S = 2.0
"""How often the manager hears of us, or three times in its watchdog's time if that is more often."""

EXTEND_S = 60.0
"""While we drain, every turn asks for so much more time; a drain that hangs is killed when it has passed."""

_LONGEST_STATUS = 400
_MOST_OWED = 16


class Notifier:
    """Speaks to the service manager; when there is none, says nothing.

    Nothing here blocks or raises: a manager that is gone or busy costs the daemon nothing. What it must hear
    (ready, reloading, stopping) and could not take is said again in the next turn of `run`.

    Args:
        environment: what the process was started with; NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are read.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._watchdog_s = _watchdog_s(environment)
        self._owed: deque[str] = deque(maxlen=_MOST_OWED)
        self._is_stopping = False
        self._said = ""

    def ready(self, status: str) -> None:
        """The daemon is in service, or is so again after `reloading`.

        In service means registered: the database knows this daemon, its heart beats, its slots start. It does not
        mean that the function was imported: that may take minutes, and a function that cannot be imported is
        repaired while the daemon waits, with a status that says so.
        """
        self._said = _status(status)
        self._tell("READY=1", self._said)

    def reloading(self) -> None:
        """The configuration is read again; `ready` ends that."""
        # CLOCK_MONOTONIC, as Type=notify-reload demands it; a Type=notify unit makes nothing of it.
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The end is in sight: from here on TimeoutStopSec counts, as far as `run` does not ask for more time.

        Not to be said in a drain without a deadline as long as experiments run: the manager takes a unit that stops
        for one that was told to, and `systemctl stop` would send no TERM any more.
        """
        if not self._is_stopping:
            self._is_stopping = True
            self._tell("STOPPING=1", _EXTEND)

    async def run(self, describe: Callable[[], str], *, is_draining: Callable[[], bool]) -> None:
        """Until cancelled: in every turn of the event loop the status, a sign of life, and in a drain more time.

        An event loop that hangs says none of these, so the manager's watchdog notices it.
        """
        turn_s = TURN_S if self._watchdog_s is None else min(TURN_S, self._watchdog_s / 3)
        while self._address is not None:
            status = _status(describe())
            lines = [] if self._watchdog_s is None else ["WATCHDOG=1"]
            if is_draining():
                lines.append(_EXTEND)
            if status != self._said:
                lines.append(status)
            if self._pay() and lines and self._send("\n".join(lines)):
                self._said = status
            await anyio.sleep(turn_s)

    def _tell(self, *lines: str) -> None:
        """Say something that must be heard."""
        if self._address is not None:
            self._owed.append("\n".join(lines))
            self._pay()

    def _pay(self) -> bool:
        """Say what the manager could not take before, in its order; whether that is all said."""
        while self._owed and self._send(self._owed[0]):
            self._owed.popleft()
        return not self._owed

    def _send(self, text: str) -> bool:
        assert self._address is not None
        try:
            # A socket for each datagram: there is none to be inherited, and none that points to a manager that is gone.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
                line.setblocking(False)
                line.sendto(text.encode(), self._address)
        except OSError:
            return False
        return True


def describe(*, running: int, slots: int, ended: Mapping[str, int], state: str | None) -> str:
    """What the daemon does, in one line: `draining: running 1 of 4, 118 done, 2 error`.

    Args:
        ended: how many attempts of each outcome were stored.
        state: what is out of the ordinary, if anything.
    """
    facts = [f"running {running} of {slots}", *(f"{count} {outcome}" for outcome, count in ended.items())]
    return f"{state}: {', '.join(facts)}" if state else ", ".join(facts)


def _status(text: str) -> str:
    """One line, whatever the text: every line of a datagram is a variable of its own, and errors are the user's."""
    return f"STATUS={' '.join(text.split())[:_LONGEST_STATUS]}"


_EXTEND = f"EXTEND_TIMEOUT_USEC={EXTEND_S * 1e6:.0f}"


def _address(name: str) -> str | None:
    """Where the manager listens: a path, or a name in the kernel's own ("abstract") space, written with an @."""
    if name.startswith("@"):
        return f"\0{name[1:]}"
    return name if name.startswith("/") else None


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """In which time the manager wants a sign of life; None when it does not, or not from this process."""
    interval, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not interval.isdecimal() or int(interval) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(interval) / 1e6


NOBODY = Notifier({})
"""For a daemon that no service manager started."""
