"""Brings back waiting experiments that are due: any daemon does it, and never as part of a claim."""

from __future__ import annotations

import random
from collections.abc import Callable

import anyio

from pyexp_daemon import exceptions
from pyexp_daemon.daemon.fleet import Fleet
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.log import get_logger
from pyexp_daemon.store import daemons
from pyexp_daemon.store.tables import Table

log = get_logger()

EVERY_S = 1.0

MOST_PER_S = 5.0
"""So often a second a fleet looks, however many they are."""

_REFUSED_S = 30.0


class Promotion:
    """A service that looks every second or so, in a large fleet more seldom."""

    def __init__(self, link: Link, table: Table, *, promoted: Callable[[], None], fleet: Fleet | None = None) -> None:
        self._link = link
        self._table = table
        self._promoted = promoted
        self._fleet = fleet or Fleet()

    async def run(self) -> None:
        """Promote, until cancelled."""
        while True:
            try:
                while await self._link.read(daemons.is_due(self._table)):
                    await self._link.run(daemons.promote(self._table), role="admin")
                    self._promoted()
            except exceptions.ConnectionLost as error:
                await self._link.restored(error)
            except exceptions.DatabaseError as error:
                log.error("promotion.failed", error=str(error))
                await anyio.sleep(_REFUSED_S)
            await anyio.sleep(self._fleet.pause_s(EVERY_S, per_s=MOST_PER_S) * random.uniform(0.75, 1.25))
