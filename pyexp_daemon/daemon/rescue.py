"""Finds daemons that died and requeues what they held. A verdict rests on watching, never on comparing clocks."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import anyio

from pyexp_daemon import exceptions
from pyexp_daemon.daemon.fleet import Fleet
from pyexp_daemon.daemon.hosts import (
    Evidence,
    Host,
    alive_here,
    evidence,
    is_stopped,
    lease_lock_path,
    put_down,
    start_time,
)
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.log import get_logger
from pyexp_daemon.model import Daemon, RetryPolicy
from pyexp_daemon.store import daemons
from pyexp_daemon.store.tables import Table
from pyexp_daemon.worker.strays import sweep as sweep_processes

log = get_logger()

LOOK_S = 1.0
"""How often daemons of this host are looked at: their death is proved by the kernel, so it is seen within a second."""

WATCHERS = 4
"""So many daemons, the oldest, look at the table as often as that; the others look at this host, which asks nobody."""


@dataclass(slots=True)
class _Watch:
    """When a daemon's beat counter last moved, and since when we see its process stopped; by our monotonic clock."""

    beat: int
    since: float
    stopped_since: float | None = None


async def _always(_: int) -> bool:
    return True


class Rescue:
    """Watches every other daemon of the table."""

    def __init__(
        self,
        link: Link,
        table: Table,
        host: Host,
        policy: RetryPolicy,
        *,
        blind_until: Callable[[], float],
        is_own: Callable[[Daemon], bool],
        may_sweep: Callable[[int], Awaitable[bool]] = _always,
        database: Path | None = None,
        turn_s: tuple[float, float] = (15.0, 30.0),
        dead: Callable[[Daemon], None] = lambda row: None,
        fleet: Fleet | None = None,
    ) -> None:
        """
        Args:
            blind_until: monotonic time before which our own heartbeats failed: silence before it proves nothing.
            is_own: whether a daemon row is this daemon's own.
            may_sweep: asked, before the experiments of a dead daemon row are requeued, whether all it left on this
                host is stored.
            database: the SQLite file, whose daemons hold locks.
            turn_s: shortest and longest pause between looks at daemons of other hosts.
            dead: told of every daemon that we declared dead.
            fleet: told how many daemons there are.
        """
        self._link = link
        self._table = table
        self._host = host
        self.policy = policy
        self._blind_until = blind_until
        self._is_own = is_own
        self._may_sweep = may_sweep
        self._database = database
        self._turn_s = turn_s
        self._dead = dead
        self._fleet = fleet or Fleet()
        self._others: list[Daemon] = []
        self.rescued = 0
        """How many experiments of other daemons were requeued."""
        self._watched: dict[str, _Watch] = {}
        self._all_silent_since: float | None = None
        self._unseen: set[str] = set()
        """Incarnations of this host of which it proves nothing: another user's, in a /proc that hides them."""
        self._next_turn = 0.0
        self._pid_start = start_time(os.getpid())

    async def run(self) -> None:
        """Look every second at this host, and now and then at the others, until cancelled.

        The older we are among the daemons, the more often we look at the table.
        """
        while True:
            try:
                await self.run_once()
            except exceptions.ConnectionLost as error:
                await self._link.restored(error)
            except exceptions.DatabaseError as error:
                log.error("rescue.failed", error=str(error))
                await anyio.sleep(30)
            await self._wait()

    async def _wait(self) -> None:
        """Wait for our turn to look at the table, or until this host proves that a daemon is dead."""
        end = anyio.current_time() + self._fleet.pause_by_rank_s(LOOK_S, first=WATCHERS) * random.uniform(0.8, 1.2)
        while (left := end - anyio.current_time()) > 2 * LOOK_S:
            await anyio.sleep(min(left, LOOK_S))
            if await anyio.to_thread.run_sync(lambda: any(self._is_proved_dead(row) for row in self._others)):
                return
        await anyio.sleep(max(0.0, end - anyio.current_time()))

    def _is_proved_dead(self, row: Daemon) -> bool:
        return evidence(row, self._host, lock=self._lock_of(row)) is Evidence.DEAD

    def _lock_of(self, row: Daemon) -> Path | None:
        return lease_lock_path(self._database, row.incarnation) if self._database else None

    async def run_once(self, *, everywhere: bool = False) -> int:
        """One look; how many experiments were requeued.

        Args:
            everywhere: also sweep and judge by silence now, without waiting for the turn.
        """
        rows = await self._link.read(daemons.look(self._table))
        self._others = others = [row for row in rows if not self._is_own(row)]
        self._unseen.clear()
        now = anyio.current_time()
        self._watch(others, now)
        self._take_rank(rows, now)
        dead = [row for row in others if await self._is_dead_here(row, now)]
        low, high = self._turn_s
        turn = everywhere or now >= self._next_turn
        if turn:
            self._next_turn = now + self._fleet.pause_by_rank_s(random.uniform(low, high), first=WATCHERS)
            dead += [row for row in self._silent(others, now) if row not in dead]
        else:  # those before us may have gone since it was set
            self._next_turn = min(self._next_turn, now + self._fleet.pause_by_rank_s(high, first=WATCHERS))
        for row in dead:
            await self._declare_dead(row)
        return await self._sweep() if dead or turn else 0

    @property
    def next_turn_s(self) -> float:
        """Seconds until daemons elsewhere are judged by their silence again."""
        return self._next_turn - anyio.current_time()

    def _take_rank(self, rows: list[Daemon], now: float) -> None:
        """Find our place among those that beat: nobody waits for the silent to do what they are there for."""
        awake = [row for row in rows if self._is_own(row) or self._silence_s(row, now) <= row.lease_s]
        self._fleet.size = max(1, len(awake))
        self._fleet.rank = next((rank for rank, row in enumerate(awake) if self._is_own(row)), len(awake))

    def _watch(self, others: list[Daemon], now: float) -> None:
        self._watched = {
            row.incarnation: watch
            if (watch := self._watched.get(row.incarnation)) is not None and watch.beat == row.beat
            else _Watch(row.beat, now)
            for row in others
        }

    async def _is_dead_here(self, row: Daemon, now: float) -> bool:
        """Whether this host proves it, at once; one that is alive and silent for three leases is put down."""
        if (row.pid, row.pid_start, row.host_id) == (os.getpid(), self._pid_start, self._host.id):
            # Another daemon of this process, or a former incarnation left behind by a lost reply: that beats no more.
            return row.incarnation not in alive_here
        found = await anyio.to_thread.run_sync(lambda: evidence(row, self._host, lock=self._lock_of(row)))
        if found is Evidence.NONE:
            self._unseen.add(row.incarnation)
        if found is Evidence.ALIVE:
            silent_s = max(self._silence_s(row, now), self._standstill_s(row, now))
            if silent_s > 3 * row.lease_s and put_down(row, self._host):
                log.warning("daemon.put_down", name=row.name, pid=row.pid, silent_s=round(silent_s))
        if found is Evidence.REBOOTED:
            # Machines made from one image share their machine id: what beats was not here before the boot.
            return self._silence_s(row, now) > row.lease_s / 3
        return found is Evidence.DEAD

    def _standstill_s(self, row: Daemon, now: float) -> float:
        """How long we have seen the process of a daemon stopped, and not beat.

        That we were blind meanwhile excuses nothing: on SQLite it may be the one that keeps all others from writing.
        """
        watch = self._watched[row.incarnation]
        if not (self._host.is_home_of(row) and is_stopped(row.pid)):
            watch.stopped_since = None
            return 0.0
        watch.stopped_since = watch.stopped_since or now
        return now - watch.stopped_since

    def _silence_s(self, row: Daemon, now: float) -> float:
        """How long we have watched it not beat, without ourselves having been blind."""
        since = max(self._watched[row.incarnation].since, self._blind_until(), self._link.last_trouble)
        return now - since

    def _silent(self, others: list[Daemon], now: float) -> list[Daemon]:
        """Daemons elsewhere, or hidden from us, that did not beat for their whole lease while we watched."""
        far = [row for row in others if not self._host.is_home_of(row) or row.incarnation in self._unseen]
        silent = [row for row in far if self._silence_s(row, now) > row.lease_s]
        # Those that fell silent with them are seen to do so up to a look, or a beat, later.
        falling = [row for row in far if self._silence_s(row, now) > row.lease_s / 2]
        if silent and len(others) + 1 >= 4 and len(falling) > (len(others) + 1) / 2:
            # Most of the fleet at once looks like something they share: wait for one more lease.
            self._all_silent_since = self._all_silent_since or now
            return [row for row in silent if now - self._all_silent_since > row.lease_s]
        self._all_silent_since = None
        return silent

    async def _declare_dead(self, row: Daemon) -> None:
        if not await self._link.run(daemons.declare_dead(self._table, row), role="admin"):
            return
        log.warning("daemon.dead", name=row.name, host=row.host, pid=row.pid, id=row.id)
        self._dead(row)
        if self._database is not None:
            lease_lock_path(self._database, row.incarnation).unlink(missing_ok=True)

    async def _sweep(self) -> int:
        """Requeue what dead daemons hold; on their own host only after their processes are gone."""
        requeued = 0
        for owner in await self._link.read(daemons.abandoned(self._table)):
            if not await self._may_requeue(owner) or not await self._may_sweep(owner):
                continue
            while rows := await self._link.run(
                daemons.sweep(self._table, owner=owner, policy=self.policy), role="admin"
            ):
                requeued += len(rows)
                self.rescued += len(rows)
                log.warning("experiments.rescued", owner=owner, count=len(rows), first=rows[0])
        return requeued

    async def _may_requeue(self, owner: int) -> bool:
        """Whether nothing of a dead daemon runs any more on this host; its processes are ended first."""
        row = await self._link.read(daemons.find(self._table, owner))
        if row is None or not self._host.is_home_of(row):
            return True
        if self._is_own(row):
            return False  # declared dead by mistake, we come back with the next heartbeat and take back what we run
        if evidence(row, self._host) is Evidence.DEAD:
            try:
                killed = await anyio.to_thread.run_sync(sweep_processes, row.incarnation)
            except TimeoutError as error:  # uninterruptible, on a dead mount say: looked at again next turn
                log.warning("processes.not_swept", owner=owner, error=str(error))
                return False
            if killed:
                log.warning("processes.swept", owner=owner, count=len(killed))
        return True
