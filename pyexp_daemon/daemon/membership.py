"""This daemon among the others of its table: registered, beating, and back again after it was declared dead."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from pyexp_daemon import exceptions
from pyexp_daemon.config.models import Config
from pyexp_daemon.daemon.fleet import Fleet
from pyexp_daemon.daemon.heartbeat import Heard, Heartbeat
from pyexp_daemon.daemon.hosts import Host, LockFile, alive_here, lock_lease, make_row
from pyexp_daemon.daemon.ledger import Audit, Held, Ledger
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.daemon.mailbox import Mailbox
from pyexp_daemon.log import get_logger
from pyexp_daemon.model import Claim, Daemon, Incarnation, make_token
from pyexp_daemon.store import commands, daemons, leases, open_blocking_store
from pyexp_daemon.store.tables import Table

log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reactions:
    """What the daemon does about what its membership finds out."""

    registered: Callable[[Incarnation], None]
    """A new incarnation begins."""
    rebound: Callable[[Claim, Claim], None]
    """An experiment was taken back: it is held by another claim now."""
    lost: Callable[[Claim], None]
    """An experiment is not ours any more."""
    cancelled: Callable[[Claim], None]
    """Somebody asked for the end of an experiment that we hold."""
    forgotten: Callable[[Sequence[Claim]], None]
    """We hold these and nobody here knows of them."""
    owned: Callable[[], set[Held]]
    """What runs, waits to run, or waits to be written."""
    unknown: Callable[[Sequence[Held]], Awaitable[Sequence[Held]]]
    """Rows are ours under tokens that we do not hold: the answer is of which we know nothing, to hand them back."""
    told: Callable[[Heard], None]
    """A heartbeat has come back: with it what others ask of us."""


@dataclass(frozen=True, slots=True)
class _Coming:
    """An incarnation on its way: its row, the lock it holds, and the token under which it takes back."""

    row: Daemon
    lock: LockFile | None
    token: str


class Membership:
    """The row of this daemon in the daemons table, and everything that keeps it true."""

    def __init__(
        self,
        config: Config,
        table: Table,
        link: Link,
        ledger: Ledger,
        *,
        name: str,
        slots: int,
        credentials: Path | None,
        reactions: Reactions,
        fleet: Fleet | None = None,
    ) -> None:
        self._config = config
        self._table = table
        self._link = link
        self._ledger = ledger
        self._name = name
        self._slots = slots
        self._reactions = reactions
        self._lock_file: LockFile | None = None
        self._heard: Mailbox[Heard] = Mailbox()
        self._missing: set[Held] = set()
        self._coming: _Coming | None = None
        self.host = Host.here()
        self.me: Incarnation | None = None
        self.ids: set[int] = set()
        """The ids of all incarnations of this process."""
        self.uuids: set[str] = set()
        self.writing = anyio.Lock(fast_acquire=True)
        """Held by whoever writes under a token; coming back holds it, so that no token changes under a write."""
        self.heartbeat = Heartbeat(
            lambda: open_blocking_store(
                config, credentials=credentials, deadline_s=min(10.0, config.daemon.lease_s / 3), daemon=True
            ),
            table,
            ledger,
            self._heard,
            every_s=config.daemon.heartbeat_s,
            lease_s=config.daemon.lease_s,
            watchdog_s=config.daemon.watchdog_s,
            # Where experiments end before the lease does, it must not run low between two beats.
            fleet=fleet if config.daemon.on_lease_lost != "kill" else None,
        )

    @property
    def current(self) -> Incarnation:
        """The incarnation that was registered last."""
        assert self.me is not None
        return self.me

    def is_own(self, row: Daemon) -> bool:
        """Whether a row of the daemons table is ours: the present one, or one that is just being registered."""
        return row.me == self.me or (self._coming is not None and row.incarnation == self._coming.row.incarnation)

    @property
    def lease_left_s(self) -> float:
        """Seconds until others may declare us dead."""
        return self._config.daemon.lease_s - (time.monotonic() - self.heartbeat.last_success)

    async def register(self) -> None:
        """Begin the first incarnation.

        Raises:
            DatabaseError: the database could not be used; nothing is left behind.
        """
        row, lock = self._new_row()
        try:
            self._begin(await self._link.run(daemons.register(self._table, row), role="admin"), lock)
        except BaseException:
            alive_here.discard(row.incarnation)
            if lock is not None:
                lock.release(remove=True)
            raise

    async def listen(self) -> None:
        """Act on what the heartbeat hears, until cancelled."""
        while True:
            heard = await self._heard.take()
            self._link.seen_alive()
            if heard.me != self.me:
                continue
            self._reactions.told(heard)
            if heard.alive:
                await self._reconcile(heard.audit)
            else:
                log.warning("daemon.fenced", id=heard.me.id)
                await self._come_back(heard.me)

    async def fenced(self, seen: Incarnation) -> bool:
        """Whether the incarnation `seen` was declared dead; if so we are back as another one when this returns."""
        if self.me == seen:
            try:
                beat = await self._link.run(
                    daemons.beat(self._table, me=seen, lease_s=self._config.daemon.lease_s), role="admin"
                )
            except exceptions.DatabaseError:
                return False
            if not beat.alive:
                log.warning("daemon.fenced", id=seen.id)
                await self._come_back(seen)
        return self.me != seen

    async def renew(self) -> None:
        """Become a new incarnation, of our own will; what we hold goes along."""
        former = self.current
        await self._come_back(former)
        await self._show(former, "stopped")

    async def show_draining(self) -> None:
        """Let others see that we claim nothing more."""
        await self._show(self.current, "draining")

    async def _show(self, me: Incarnation, state: str) -> None:
        """Write a state for others to see; nothing depends on it."""
        try:
            await self._link.run(daemons.change_state(self._table, me=me, state=state), role="admin")
        except exceptions.DatabaseError as error:
            log.warning("daemon.state_not_shown", error=str(error))

    async def leave(self, *, patience_s: float = 15) -> None:
        """Sign off, and stop the heartbeat: the last thing a daemon does. Nothing stays running under it."""
        with anyio.move_on_after(patience_s):
            try:
                beat = await self._link.run(
                    daemons.beat(self._table, me=self.current, lease_s=self._config.daemon.lease_s), role="admin"
                )
                if beat.rows:  # of a claim that was given up, and committed after all
                    left = [(row[0], row[1]) for row in beat.rows]
                    await self._link.run(leases.release_unknown(self._table, me=self.current, held=left), role="admin")
                await self._link.run(daemons.change_state(self._table, me=self.current, state="stopped"), role="admin")
                await self._link.run(commands.close(self._table, incarnations=self.uuids), role="admin")
            except exceptions.DatabaseError as error:
                log.warning("daemon.not_signed_off", error=str(error))
        await anyio.to_thread.run_sync(self.heartbeat.stop, patience_s)
        for lock in (self._lock_file, self._coming.lock if self._coming else None):
            if lock is not None:
                lock.release(remove=True)
        self._heard.close()
        alive_here.difference_update(self.uuids, {self._coming.row.incarnation} if self._coming else ())

    def _new_row(self) -> tuple[Daemon, LockFile | None]:
        uuid, lock = make_token(), None
        alive_here.add(uuid)
        if self._config.database.provider == "sqlite":  # locked before the row exists: nobody may see it unlocked
            lock = lock_lease(self._config.database_path, uuid)
        lease_s = self._config.daemon.lease_s
        return make_row(self.host, uuid, name=self._name, slots=self._slots, lease_s=lease_s, lock=lock), lock

    def _begin(self, me: Incarnation, lock: LockFile | None) -> None:
        self._lock_file, former = lock, self._lock_file
        if former is not None:
            former.release(remove=True)
        if self.me is not None:
            alive_here.discard(self.me.uuid)
        self.me = me
        self.ids.add(me.id)
        self.uuids.add(me.uuid)
        self._reactions.registered(me)
        self.heartbeat.start(me)

    async def _reconcile(self, audit: Audit) -> None:
        """Bring what we do in line with what the database says we hold."""
        if audit.unknown:
            try:
                if unknown := await self._reactions.unknown(audit.unknown):
                    unit = leases.release_unknown(self._table, me=self.current, held=unknown)
                    if count := await self._link.run(unit, role="admin"):  # else they have ended meanwhile
                        log.warning("claims.handed_back", count=count)
            except exceptions.DatabaseError as error:
                log.warning("claims.not_handed_back", error=str(error))  # the next heartbeat sees them again
        for held in audit.taken:
            if claim := self._ledger.find(held):
                self._reactions.lost(claim)
        for held in audit.cancelled:
            if claim := self._ledger.find(held):
                self._reactions.cancelled(claim)
        self._hand_back_forgotten()

    def _hand_back_forgotten(self) -> None:
        """A backstop: what is held at two heartbeats in a row, and known to nobody here, would be held for ever."""
        owned = self._reactions.owned()
        missing = {claim.key for claim in self._ledger.claims()} - owned
        forgotten = [claim for key in missing & self._missing if (claim := self._ledger.find(key))]
        self._missing = missing
        if forgotten:
            log.error("claims.forgotten", experiments=[claim.experiment_id for claim in forgotten])
            self._reactions.forgotten(forgotten)

    async def _come_back(self, former: Incarnation) -> None:
        """Register anew, and get hold again of the experiments that nobody took since we were declared dead."""
        async with self.writing:
            if self.me != former:
                return  # two of us noticed
            if self._coming is None:  # else an earlier call was cancelled: what it may have committed is repeated
                self._coming = _Coming(*self._new_row(), token=make_token())
            coming = self._coming
            self._ledger.sending(coming.token)  # a heartbeat may see the rows before we have heard of them
            while True:
                try:
                    await self._register_and_take_back(coming)
                    break
                except exceptions.DatabaseError as error:
                    await self._link.restored(error)
            self._coming = None
            self._ledger.answered(coming.token)

    async def _register_and_take_back(self, coming: _Coming) -> None:
        # The same incarnation and the same token in every turn: a turn whose reply was lost is then only repeated.
        old = self._ledger.claims()
        me = await self._link.run(daemons.register(self._table, coming.row), role="admin")
        unit = leases.take_back(self._table, old, me=me, token=coming.token)
        taken = await self._link.run(unit) if old else []
        back = {(claim.experiment_id, claim.attempt): claim for claim in taken}
        self._begin(me, coming.lock)
        for claim in old:
            new = back.get((claim.experiment_id, claim.attempt))
            if new is None:
                self._reactions.lost(claim)
            elif self._ledger.rebind(claim, new):
                self._reactions.rebound(claim, new)
        log.info("daemon.back", id=me.id, taken_back=len(back), lost=len(old) - len(back))
