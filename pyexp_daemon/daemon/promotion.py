"""Brings back waiting experiments that are due: any daemon does it, and never as part of a claim."""

from __future__ import annotations

import random
from collections.abc import Callable

import anyio
import structlog

from pyexp_daemon import exceptions
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.store import daemons
from pyexp_daemon.store.tables import Table

log = structlog.get_logger()

EVERY_S = 1.0
_REFUSED_S = 30.0


class Promotion:
    """A service that looks every second or so."""

    def __init__(self, link: Link, table: Table, *, promoted: Callable[[], None]) -> None:
        self._link = link
        self._table = table
        self._promoted = promoted

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
            await anyio.sleep(EVERY_S * random.uniform(0.75, 1.25))
