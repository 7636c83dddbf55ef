"""The heartbeat: a plain thread with its own connection, so that nothing the daemon does can make it late."""

from __future__ import annotations

import faulthandler
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from pyexp_daemon import exceptions
from pyexp_daemon.daemon.ledger import Audit, Ledger, compare
from pyexp_daemon.daemon.mailbox import Mailbox
from pyexp_daemon.model import Incarnation
from pyexp_daemon.store import daemons

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore
    from pyexp_daemon.store.tables import Table

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Heard:
    """What one successful heartbeat brought back for the loop."""

    me: Incarnation
    alive: bool
    audit: Audit


class Heartbeat:
    """Renews the lease of the current incarnation until stopped; the last thing in a daemon to stop."""

    def __init__(
        self,
        connect: Callable[[], BlockingStore],
        table: Table,
        ledger: Ledger,
        heard: Mailbox[Heard],
        *,
        every_s: float,
        lease_s: float,
        watchdog_s: float,
    ) -> None:
        self._connect = connect
        self._table = table
        self._ledger = ledger
        self._heard = heard
        self._every_s = every_s
        self._lease_s = lease_s
        self._watchdog_s = watchdog_s
        self._me: Incarnation | None = None
        self._stop = threading.Event()
        self._store: BlockingStore | None = None
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.last_trouble = time.monotonic()
        """Monotonic time of the last beat that failed (or of our start): before it we were blind."""
        self.last_success = time.monotonic()
        """Monotonic time of the last beat that renewed the lease."""
        self.loop_ticked = time.monotonic()
        """Monotonic time, set by the loop, at which it last ran."""
        self._last_tick = self._woken = self.loop_ticked
        self._silent_s = 0.0

    def start(self, me: Incarnation) -> None:
        """Beat for this incarnation from now on; later calls replace it."""
        self._me = me
        if not self._thread.is_alive():
            self._thread.start()

    def stop(self) -> None:
        """Stop beating. Call it when nothing is held any more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=15)

    def _run(self) -> None:
        pause = self._every_s
        while not self._stop.wait(pause):
            self._abort_if_the_loop_hangs()
            try:
                self._beat_once()
                pause = self._every_s * random.uniform(0.9, 1.0)
            except Exception as error:
                # Whatever went wrong, the next beat may succeed, and a daemon without beats loses its work.
                self.last_trouble = time.monotonic()
                expected = isinstance(error, exceptions.DatabaseError)
                log.warning("heartbeat.failed", error=str(error), exc_info=None if expected else error)
                pause = self._every_s * random.uniform(0.2, 0.6)
        if self._store is not None:
            self._store.close()

    def _beat_once(self) -> None:
        me = self._me
        assert me is not None
        if self._store is None:
            self._store = self._connect()
        before = self._ledger.snapshot()
        began = time.monotonic()
        beat = self._store.run(daemons.beat(self._table, me=me, lease_s=self._lease_s))
        if beat.alive:
            self.last_success = began
        audit = compare(before, beat.rows, self._ledger.snapshot())
        self._heard.put(Heard(me, beat.alive, audit))

    def _abort_if_the_loop_hangs(self) -> None:
        """A daemon that only beats would hold its experiments for ever: better a dead one that others can rescue."""
        tick, now = self.loop_ticked, time.monotonic()
        # Counted in beats of our own, so that a process that was stopped as a whole is not taken for a wedged one.
        self._silent_s = self._silent_s + min(now - self._woken, 2 * self._every_s) if tick == self._last_tick else 0.0
        self._last_tick, self._woken = tick, now
        if self._silent_s > self._watchdog_s:
            log.critical("daemon.wedged", silent_s=round(self._silent_s))
            faulthandler.dump_traceback(all_threads=True)
            os.abort()
