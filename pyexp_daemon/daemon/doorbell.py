"""Tells the daemons of this host that there is something to claim, so that they need not find out by asking.

A signal that every process ignores unless it listens: nothing happens to a daemon of an older version, or to one that
is a guest in another program. Daemons on other hosts look as often as `Daemon.poll` says.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from pyexp_daemon import exceptions
from pyexp_daemon.daemon.hosts import Evidence, Host, evidence
from pyexp_daemon.store import daemons

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore
    from pyexp_daemon.store.tables import Table

SIGNAL = signal.SIGURG


def ring(store: BlockingStore, table: Table) -> None:
    """Wake the table's daemons on this host; those of other users are left to themselves."""
    host = Host.here()
    try:
        found = store.read(daemons.look(table, states=("live",)))
    except exceptions.DatabaseError:  # what there is to claim is stored: they find it a little later
        return
    for daemon in found:
        if host.is_home_of(daemon) and evidence(daemon, host) is Evidence.ALIVE:
            with suppress(OSError):
                os.kill(daemon.pid, SIGNAL)


def ringing(
    store: BlockingStore, table: Table, advanced: Callable[[int], None] = lambda rows: None
) -> Callable[[int], None]:
    """`advanced`, told of every chunk that was inserted, which rings when the first one is there."""
    has_rung = False

    def told(rows: int) -> None:
        nonlocal has_rung
        advanced(rows)
        if not has_rung:
            has_rung = True
            ring(store, table)

    return told
