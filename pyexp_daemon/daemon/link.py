"""The daemon's way to its database through outages: who loses it waits here, and one of them probes."""

from __future__ import annotations

import random
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import structlog

from pyexp_daemon import exceptions
from pyexp_daemon.store.unit import Do, Step, Unit

if TYPE_CHECKING:
    from pyexp_daemon.store import Store

T = TypeVar("T")
log = structlog.get_logger()

LONGEST_PAUSE_S = 30.0


def _ask() -> Generator[Step, Any, bool]:
    yield Do("SELECT 1")
    return True


_PROBE = Unit("probe", _ask)


class Link:
    """Runs units; after a loss `restored` returns once the database answers again, however long that takes."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._probing = anyio.Lock()
        self._answers = 0
        self.last_trouble = float("-inf")
        """Loop time when the database was last lost."""

    async def run(self, unit: Unit[T], *, role: str = "write") -> T:
        """Run a unit that writes; see the store's `run`."""
        try:
            return await self.store.run(unit, role=role)
        except exceptions.DatabaseError:
            self.last_trouble = anyio.current_time()
            raise

    async def read(self, unit: Unit[T], *, role: str = "admin") -> T:
        """Run a unit that only reads."""
        try:
            return await self.store.read(unit, role=role)
        except exceptions.DatabaseError:
            self.last_trouble = anyio.current_time()
            raise

    async def restored(self, error: Exception) -> None:
        """Wait until the database answers; only one task of the daemon asks it, with growing, jittered pauses."""
        seen = self._answers
        async with self._probing:
            if self._answers != seen:
                return  # another task saw it answer while this one waited for its turn
            await self._probe(error)
            self._answers += 1

    async def _probe(self, error: Exception) -> None:
        lost_at = said_at = anyio.current_time()
        pause = random.uniform(0.02, 0.1)
        log.warning("database.lost", error=str(error))
        while True:
            await anyio.sleep(pause)
            try:
                await self.store.read(_PROBE)
                break
            except exceptions.DatabaseError as still:
                error = still
            pause = min(LONGEST_PAUSE_S, random.uniform(0.2, 3 * max(pause, 0.1)))
            if anyio.current_time() - said_at > 60:
                said_at = anyio.current_time()
                log.warning("database.lost", error=str(error), away_s=round(said_at - lost_at, 1))
        log.info("database.back", away_s=round(anyio.current_time() - lost_at, 3))
