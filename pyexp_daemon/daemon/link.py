"""The daemon's way to its database through outages: who loses it waits here, and one of them probes."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from pyexp_daemon import exceptions
from pyexp_daemon.log import get_logger
from pyexp_daemon.store.unit import Do, Step, Unit

if TYPE_CHECKING:
    from pyexp_daemon.store import Store

T = TypeVar("T")
log = get_logger()

LONGEST_PAUSE_S = 30.0


def _ask() -> Generator[Step, Any, bool]:
    yield Do("SELECT 1")
    return True


_PROBE = Unit("probe", _ask)


FIRST_PAUSE_S = 0.05
"""A connection that broke is often replaced at once …"""

SECOND_PAUSE_S = 0.5
"""… and a server that does not answer then is down for a while."""


class Link:
    """Runs units; after a loss `restored` returns once the database answers again, however long that takes."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._probing = anyio.Lock()
        self._answers = 0
        self._pauses: dict[str, float] = {}
        self._seen_alive = anyio.Event()
        self._failed_role = "admin"
        self.last_trouble = float("-inf")
        """Loop time when the database was last lost, or did not let us in."""
        self.is_away = False
        """Whether the database was lost and does not answer yet."""
        self.last_error: str | None = None
        self.reconnects = 0
        """How often the database was lost and found again."""
        self.on_restored: Callable[[], None] = lambda: None
        """Called when it was found again."""

    async def run(self, unit: Unit[T], *, role: str = "write") -> T:
        """Run a unit that writes; see the store's `run`."""
        return await self._noted(role, lambda: self.store.run(unit, role=role))

    async def read(self, unit: Unit[T], *, role: str = "admin") -> T:
        """Run a unit that only reads."""
        return await self._noted(role, lambda: self.store.read(unit, role=role))

    async def _noted(self, role: str, call: Callable[[], Awaitable[T]]) -> T:
        """What the store gives; trouble and success of the role are remembered for `restored`."""
        if self.is_away:  # one task asks whether it is back; a server that comes up must not be stormed by all
            raise exceptions.ConnectionLost(f"the database is away: {self.last_error}", timed_out=True)
        try:
            answer = await call()
        except exceptions.DatabaseError as error:
            self.last_error = str(error)
            if isinstance(error, exceptions.DatabaseConnectionError):  # else it has answered, as it answers others
                self.last_trouble, self._failed_role = anyio.current_time(), role
            raise
        self._pauses.pop(role, None)
        return answer

    async def restored(self, error: Exception) -> None:
        """Wait until the database answers; only one task of the daemon asks it, with growing, jittered pauses."""
        seen, role = self._answers, self._failed_role
        async with self._probing:
            if self._answers != seen:
                return  # another task saw it answer while this one waited for its turn
            # Not the lock says so: those who waited for it hold it for a moment when the database is back.
            self.is_away = True
            try:
                await self._probe(error, role)
            finally:
                self.is_away = False
            self._answers += 1

    def seen_alive(self) -> None:
        """Somebody else of this daemon has reached the database: it need not be waited for any longer."""
        self._seen_alive.set()

    async def _probe(self, error: Exception, role: str) -> None:
        lost_at = said_at = anyio.current_time()
        log.warning("database.lost", error=str(error))
        while True:
            # The pause goes on growing until a unit succeeds: a probe may be answered where the units are refused.
            pause = self._pauses.get(role, FIRST_PAUSE_S)
            self._pauses[role] = min(LONGEST_PAUSE_S, max(SECOND_PAUSE_S, random.uniform(pause, 3 * pause)))
            self._seen_alive = anyio.Event()
            with anyio.move_on_after(pause * random.uniform(0.5, 1.5)):
                await self._seen_alive.wait()
            try:
                await self.store.read(_PROBE, role=role)
                break
            except exceptions.DatabaseError as still:
                error = still
            if anyio.current_time() - said_at > 60:
                said_at = anyio.current_time()
                log.warning("database.lost", error=str(error), away_s=round(said_at - lost_at, 1))
        self.reconnects += 1
        self.on_restored()
        log.info("database.back", away_s=round(anyio.current_time() - lost_at, 3))
