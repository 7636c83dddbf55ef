"""The heartbeat: a plain thread with its own connection, so that nothing the daemon does can make it late."""

from __future__ import annotations

import faulthandler
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from pyexp_daemon import exceptions
from pyexp_daemon.daemon.errands import briefly
from pyexp_daemon.daemon.fleet import Fleet
from pyexp_daemon.daemon.ledger import Audit, Ledger, compare
from pyexp_daemon.daemon.mailbox import Mailbox
from pyexp_daemon.failpoint import failpoint
from pyexp_daemon.log import get_logger
from pyexp_daemon.model import Command, Incarnation
from pyexp_daemon.store import daemons

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore
    from pyexp_daemon.store.structure import AddedKeyfield
    from pyexp_daemon.store.tables import Table

log = get_logger()

MOST_PER_S = 25.0
"""So many beats a second a fleet has, as long as its leases allow."""

LONGEST_BEAT_S = 60.0
"""How long one heartbeat may take, whatever keeps it: a locked file, a name server, a server that says nothing."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What one successful heartbeat brought back for the loop."""

    me: Incarnation
    alive: bool
    audit: Audit
    commands: Sequence[Command]
    oldest: int
    """The oldest schema version of this code that may work on the table."""
    added: Sequence[AddedKeyfield]
    """The keyfields that the table got after it was made."""


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
        fleet: Fleet | None = None,
    ) -> None:
        self._connect = connect
        self._table = table
        self._ledger = ledger
        self._heard = heard
        self._least_s = every_s
        self._lease_s = lease_s
        self._fleet = fleet or Fleet()
        self._watchdog_s = watchdog_s
        self._me: Incarnation | None = None
        self._former: tuple[str, ...] = ()
        self._is_stopping = False
        self._is_stale = False
        self._wake = threading.Event()
        self._store: BlockingStore | None = None
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._last_trouble = time.monotonic()
        self.last_success = time.monotonic()
        """Monotonic time of the last beat that renewed the lease."""
        self.loop_ticked = time.monotonic()
        """Monotonic time, set by the loop, at which it last ran."""
        self.facts: str | None = None
        """JSON, set by the loop, that the next beat brings along."""
        self.last_error: str | None = None
        self._last_tick = self._woken = self.loop_ticked
        self._silent_s = 0.0
        self._turns = self._turns_seen = 0
        self._stuck_s = 0.0

    @property
    def blind_until(self) -> float:
        """Monotonic time before which our beats failed or came late (or we had not begun): others may have been kept
        from theirs by the same.
        """
        # A beat may wait for long before it fails: for the writer of a SQLite file, while all read on.
        return time.monotonic() if self._is_late else self._last_trouble

    @property
    def _is_late(self) -> bool:
        return time.monotonic() - self.last_success > self._lease_s / 2

    @property
    def _every_s(self) -> float:
        """Three beats in a lease have to be enough when very many beat."""
        return max(self._least_s, min(self._lease_s / 3, self._fleet.pause_s(self._least_s, per_s=MOST_PER_S)))

    def start(self, me: Incarnation) -> None:
        """Beat for this incarnation from now on; later calls replace it."""
        if self._me is not None:
            self._former = (*self._former, self._me.uuid)
        self._me = me
        if not self._thread.is_alive():
            self._thread.start()

    def stop(self, patience_s: float = 15.0) -> None:
        """Stop beating. Call it when nothing is held any more; a beat that is under way has so long to end."""
        self._is_stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=patience_s)

    def reconnect(self) -> None:
        """Open another connection for the next beat."""
        self._is_stale = True

    def beat_now(self) -> None:
        """Do not wait for the next beat: the database is back."""
        self._wake.set()

    def abort_if_it_hangs(self, passed_s: float) -> None:
        """The loop watches the heartbeat, as that watches the loop: a daemon without one renews and hears nothing.

        Args:
            passed_s: how long ago this was called before, by the loop's own count.
        """
        self._stuck_s = self._stuck_s + passed_s if self._turns == self._turns_seen else 0.0
        self._turns_seen = self._turns
        if self._stuck_s > self._watchdog_s + LONGEST_BEAT_S + 2 * self._every_s:
            _abort("heartbeat", self._stuck_s)

    def _run(self) -> None:
        pause = self._every_s
        failures = 0
        while not self._sleep(pause):
            self._turns += 1
            self._abort_if_the_loop_hangs()
            try:
                failpoint("heartbeat.turn")
                self._beat_once()
                failures = 0
                pause = self._every_s * random.uniform(0.9, 1.0)
            except Exception as error:
                # Whatever went wrong, the next beat may succeed, and a daemon without beats loses its work.
                self._last_trouble, self.last_error = time.monotonic(), str(error)
                expected = isinstance(error, exceptions.DatabaseError)
                log.warning("heartbeat.failed", error=str(error), exc_info=None if expected else error)
                # At once may help where a connection broke; of a server that is back the loop tells us. In a large
                # fleet too: there are fewer beats in a lease, so each that fails counts for more.
                failures += 1
                pause = self._least_s * (random.uniform(0.2, 0.6) if failures == 1 else random.uniform(0.9, 1.0))
        if self._store is not None:
            self._store.close()

    def _sleep(self, seconds: float) -> bool:
        """Wait, at most so long; whether this was the last time."""
        self._wake.wait(seconds)
        self._wake.clear()
        return self._is_stopping

    def _beat_once(self) -> None:
        me = self._me
        assert me is not None
        if self._store is not None and self._is_stale:
            self._store.close()
            self._store = None
        if self._store is None:
            self._is_stale = False
            self._store = self._connect()
        before = self._ledger.snapshot()
        began = time.monotonic()
        beat = self._store.run(
            daemons.beat(self._table, me=me, lease_s=self._lease_s, facts=self.facts, former=self._former)
        )
        if self._is_late:
            self._last_trouble = time.monotonic()
        if beat.alive:
            self.last_success = began
        audit = compare(before, beat.rows, self._ledger.snapshot())
        self._heard.put(Heard(me, beat.alive, audit, beat.commands, beat.oldest, beat.added))

    def _abort_if_the_loop_hangs(self) -> None:
        """A daemon that only beats would hold its experiments for ever: better a dead one that others can rescue."""
        tick, now = self.loop_ticked, time.monotonic()
        # Counted in beats of our own, so that a process that was stopped as a whole is not taken for a wedged one.
        self._silent_s = self._silent_s + min(now - self._woken, 2 * self._every_s) if tick == self._last_tick else 0.0
        self._last_tick, self._woken = tick, now
        if self._silent_s > self._watchdog_s:
            _abort("loop", self._silent_s)


def _abort(part: str, silent_s: float) -> NoReturn:
    def say() -> None:
        log.critical("daemon.wedged", part=part, silent_s=round(silent_s))
        faulthandler.dump_traceback(all_threads=True)

    briefly(say)  # it may be the writing of the log that hangs
    os.abort()
