"""The heartbeat's thread, watched by the loop."""

from __future__ import annotations

import signal
import subprocess
import sys

CODE = """
import time
from typing import Any
import structlog  # as a daemon has, which logs from its first moment
from pyexp_daemon import exceptions
from pyexp_daemon.daemon.heartbeat import LONGEST_BEAT_S, Heartbeat
from pyexp_daemon.daemon.ledger import Ledger
from pyexp_daemon.daemon.mailbox import Mailbox
from pyexp_daemon.model import Incarnation


def connect() -> Any:
    time.sleep({hangs_s})
    raise exceptions.DatabaseConnectionError("nobody there")  # expected: nothing slow is printed


heart: Any = Heartbeat(connect, None, Ledger(), Mailbox(), every_s=0.01, lease_s=1.0, watchdog_s=5.0)
heart.start(Incarnation(id=1, uuid="u"))
time.sleep(0.5)
for _ in range(4):
    heart.abort_if_it_hangs(0.5 * LONGEST_BEAT_S)
    time.sleep(0.5)  # many times what a beat takes, on a loaded machine too
heart.stop()  # it writes to stdout, too
print("goes on")
"""


def run(hangs_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE.format(hangs_s=hangs_s)], capture_output=True, text=True, timeout=60
    )


def test_a_heartbeat_that_never_comes_to_its_end_aborts_the_daemon() -> None:
    done = run(600)
    assert done.returncode == -signal.SIGABRT
    assert "daemon.wedged" in done.stdout
    assert "part=heartbeat" in done.stdout
    assert "in connect" in done.stderr  # where it hangs


def test_heartbeats_that_fail_are_no_reason_to_abort() -> None:
    done = run(0.001)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "goes on"), done.stderr
