"""What a daemon is started with beside its configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyexp_daemon.config.models import Config
from pyexp_daemon.daemon.allocation import Allocation
from pyexp_daemon.daemon.systemd import NOBODY, Notifier
from pyexp_daemon.model import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """What a daemon gets that runs inside a call of another program, and leaves that program's signals alone."""

    pickled: Path
    """The file with the function, see `worker/pickled.py`."""
    echo: Callable[[int, bytes], None]
    """Told what is printed in which slot."""
    ended: Callable[[Attempt], None]
    """Told of every attempt when its end is stored."""
    reload: Callable[[], Config]
    """The configuration as it is now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What a daemon was asked for beyond the configuration."""

    function: str | None
    """Given on the command line; None for the configuration's."""
    slots: int
    name: str
    until_empty: bool = False
    max_experiments: int | None = None
    at_random: bool = False
    credentials: Path | None = None
    allocation: Allocation | None = None
    """What a batch system has given to this process, which ends with it. None: there is none."""
    say: Callable[[str], None] = lambda text: None
    """Told, in words, what a person at the terminal should know."""
    notifier: Notifier = NOBODY
    """Told what the service manager should know."""
    guest: Guest | None = None
    """None: the process is the daemon's own."""
