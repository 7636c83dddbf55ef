"""Faults at named places of the code, for tests: they do nothing unless the environment asks for one.

    PYEXPD_FAILPOINTS="claim.committed=kill; heartbeat.turn=sleep:4@3; record.committed=raise:ConnectionLost@1+"

A fault is `kill` (SIGKILL to this process), `raise:NAME` (an exception of `exceptions` or a built-in one),
`sleep:SECONDS`, `block` (for ever), or `wait:PATH` (until that file exists; `PATH.reached` is made before). It happens
when the place is passed for the first time, or for the n-th with `@n`; from then on each time with `@n+`. Whoever
passes is held: the event loop, or the thread, as a real fault at this place would do it.

`<unit>.commit` is passed before a unit of work commits, `<unit>.committed` after; docs/reliability.md lists the rest.
"""

from __future__ import annotations

import builtins
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyexp_daemon import exceptions
from pyexp_daemon.log import get_logger

VARIABLE = "PYEXPD_FAILPOINTS"
_FAULT = re.compile(r"(?P<place>[\w.]+)=(?P<action>\w+)(?::(?P<argument>[^@]+))?(?:@(?P<turn>\d+)(?P<again>\+)?)?")
_FOR_EVER_S = 10.0**8

log = get_logger()


@dataclass(slots=True)
class _Fault:
    """What happens at a place, and at which of its passings."""

    happen: Callable[[], None]
    text: str
    turn: int
    again: bool
    passed: int = 0

    def is_due(self) -> bool:
        self.passed += 1
        return self.passed == self.turn or (self.again and self.passed > self.turn)


class Failpoints:
    """The faults that a text in the form of PYEXPD_FAILPOINTS names.

    Raises:
        ValueError: the text is not in that form.
    """

    def __init__(self, text: str) -> None:
        self._lock = threading.Lock()
        self._faults: dict[str, _Fault] = {}
        for part in filter(None, map(str.strip, text.split(";"))):
            found = _FAULT.fullmatch(part)
            if found is None:
                raise ValueError(f"{VARIABLE}: {part!r} is no place=action[:argument][@turn[+]]")
            happen = _action(found["action"], found["argument"] or "")
            turn = int(found["turn"] or 1)
            self._faults[found["place"]] = _Fault(happen, part, turn, again=bool(found["again"]))

    def reach(self, place: str, step: str = "") -> None:
        """Let happen what was asked for at this place, if anything."""
        fault = self._faults.get(f"{place}.{step}" if step else place)
        if fault is None:
            return
        with self._lock:
            due = fault.is_due()
        if due:
            log.warning("failpoint.reached", fault=fault.text)
            fault.happen()


def _action(name: str, argument: str) -> Callable[[], None]:
    match name:
        case "kill":
            return lambda: os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            error = getattr(exceptions, argument, None) or getattr(builtins, argument, None)
            if not (isinstance(error, type) and issubclass(error, Exception)):
                raise ValueError(f"{VARIABLE}: {argument!r} is no exception")
            return lambda: _raise(error)
        case "sleep":
            seconds = float(argument)
            return lambda: time.sleep(seconds)
        case "block":
            return lambda: time.sleep(_FOR_EVER_S)
        case "wait" if argument:
            return lambda: _wait(Path(argument))
    raise ValueError(f"{VARIABLE}: {name!r} is none of kill, raise:NAME, sleep:SECONDS, block, wait:PATH")


def _raise(error: type[Exception]) -> None:
    raise error("a failpoint")


def _wait(path: Path) -> None:
    path.with_name(f"{path.name}.reached").touch()
    while not path.exists():
        time.sleep(0.002)


def _nothing(place: str, step: str = "") -> None:
    """What a failpoint is when nobody asked for a fault: a call and no more."""


failpoint: Callable[..., None] = Failpoints(os.environ[VARIABLE]).reach if os.environ.get(VARIABLE) else _nothing
"""`failpoint("place")` or `failpoint("unit", "commit")`: here something may go wrong."""
