"""A random wait before the start, so that many nodes started at once do not all ask the database together."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable

_END = {signal.SIGTERM, signal.SIGINT}
_HEARD = _END | {signal.SIGHUP}  # what a terminal that goes away sends: no reason to end


def wait_at_random(longest_s: float, *, say: Callable[[str], None]) -> bool:
    """Wait for a random time of at most so many seconds; False when TERM or INT came, which ends the wait at once.

    Args:
        say: told for how long; from then on no signal is missed.
    """
    wait_s = random.uniform(0, longest_s)
    end = time.monotonic() + wait_s
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    try:
        say(f"starting in {wait_s:.0f} s (Daemon.start_jitter)")
        while (left := end - time.monotonic()) > 0:
            came = signal.sigtimedwait(_HEARD, left)
            if came is not None and came.si_signo in _END:
                return False
        return True
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
