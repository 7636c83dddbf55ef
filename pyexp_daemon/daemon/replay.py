"""Stores what dead daemons of this host left in their spools, before anybody runs it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from pyexp_daemon import exceptions
from pyexp_daemon.daemon import spools
from pyexp_daemon.daemon.batches import Batch, Item, size_of
from pyexp_daemon.daemon.errands import DiskHangs, Errands
from pyexp_daemon.daemon.hosts import LockFile
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.daemon.records import Entry, Held, Note, under
from pyexp_daemon.daemon.spool import Spool
from pyexp_daemon.daemon.writer import Writer
from pyexp_daemon.log import get_logger
from pyexp_daemon.model import Attempt, Claim, Incarnation, RetryPolicy, Verdict
from pyexp_daemon.store import reports
from pyexp_daemon.store.tables import Table

log = get_logger()

BATCH_BYTES = 2**18
"""How much is read from a spool at once."""

EVERY_S = 60.0
"""How often is looked for spools, unless the death of a daemon is known."""


class Replay:
    """Finishes from the spools of this host what their own daemons cannot finish any more.

    Everything goes through the guards of every other write, so that it may be done twice, and be cut off anywhere.
    """

    def __init__(
        self,
        link: Link,
        table: Table,
        policy: RetryPolicy,
        *,
        own: Spool,
        host: str,
        ended: Callable[[Attempt, Verdict], None],
    ) -> None:
        """
        Args:
            own: the spool of this process; those beside it are looked at.
            ended: told of every attempt whose end was stored.
        """
        self._link = link
        self._table = table
        self.policy = policy
        self._own = own
        self._host = host
        self._ended = ended
        self._turn = anyio.Lock()
        self._errands = Errands()
        self._said: set[Path] = set()
        self._verdicts: Counter[Verdict] = Counter()

    async def run(self) -> None:
        """Look for spools now and then, until cancelled."""
        while True:
            await anyio.sleep(EVERY_S)
            await self.run_once()

    async def run_once(self) -> bool:
        """Store everything that dead processes spooled; False when another process is at it.

        What cannot be looked at is not there.
        """
        async with self._turn:
            try:
                return await self._replay_all()
            except OSError as error:
                self._say_not_replayed(self._own.base, error)
                return True

    async def _replay_all(self) -> bool:
        base, own = self._own.base, self._own.folder
        await self._errands.run(lambda: spools.remove_old(base))
        folders = await self._errands.run(lambda: spools.left_behind(base, own=own, said=self._said))
        if not folders:
            return True
        async with self._alone() as is_alone:
            if is_alone:
                for folder in folders:
                    try:
                        await self._replay(folder)
                    except OSError as error:
                        self._say_not_replayed(folder, error)
            return is_alone

    def _say_not_replayed(self, folder: Path, error: OSError) -> None:
        log.error("spool.not_replayed", folder=str(folder), error=str(error))

    async def finish(self, held: Sequence[Held]) -> list[Held]:
        """Finish experiments that the database says run, from spools that say that they have ended; the others.

        A database that was restored has forgotten the end of some; it is not computed again.
        """
        try:
            found = await self._errands.run(lambda: spools.search(self._own.base, held, said=self._said))
        except OSError as error:
            self._say_not_replayed(self._own.base, error)
            found = {}
        left = [each for each in held if each not in found]
        for (experiment_id, _), entries in found.items():
            attempt = entries[-1].report.claim.attempt
            log.warning("attempt.stored_again", experiment_id=experiment_id, attempt=attempt)
            writer = self._writer(note=lambda note: None, unstorable=lambda claim: left.append(claim.key))
            writer.me = Incarnation(id=entries[-1].daemon, uuid="")
            batch = Batch(self._limit_bytes)
            for item in (_item(entry, size_of(entry.report)) for entry in entries):
                if not batch.add(item):
                    await writer.store(batch.items, repeated=True)
                    batch = Batch(self._limit_bytes)
                    batch.add(item)
            await writer.store(batch.items, repeated=True)
        return left

    async def may_sweep(self, owner: int) -> bool:
        """Whether nothing of a dead daemon's experiments waits in a spool here any more; what did is stored then."""
        if not await self.run_once():
            return False
        held = await self._link.read(reports.held(self._table, owner=owner))
        await self.finish(held)
        return True

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[bool]:
        """Whether no other process of this host replays spools of the table, and none will meanwhile."""
        try:
            lock = await self._errands.run(lambda: LockFile(self._own.base / "replay.lock"), undo=LockFile.release)
        except exceptions.AlreadyRunning:
            yield False
            return
        except DiskHangs:
            raise
        except OSError:  # a disk that is full or read-only: the locks of the spools still keep others off
            yield True
            return
        try:
            yield True
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    await self._errands.run(lock.release)
                except DiskHangs:
                    self._errands.later(lock.release)

    async def _replay(self, folder: Path) -> None:
        spool = await self._errands.run(lambda: Spool.adopt(folder), undo=_close_if_any)
        if spool is None:
            return
        count, self._verdicts = spool.count, Counter()
        try:
            writer = self._writer(note=spool.note)
            writer.spoilt.update(spool.known.spoilt)
            while spool.has_backlog:
                await self._replay_batch(spool, writer)
        finally:
            with anyio.CancelScope(shield=True):
                await self._close(spool)
        if count:
            log.warning(
                "spool.replayed",
                folder=str(folder),
                records=count,
                accepted=self._verdicts[Verdict.ACCEPTED],
                known=self._verdicts[Verdict.KNOWN],
                superseded=self._verdicts[Verdict.SUPERSEDED],
            )

    @property
    def _limit_bytes(self) -> int:
        return min(BATCH_BYTES, self._link.store.max_packet // 2)

    async def _close(self, spool: Spool) -> None:
        try:
            await self._errands.run(spool.close)
        except DiskHangs:
            self._errands.later(spool.close)

    async def _replay_batch(self, spool: Spool, writer: Writer) -> None:
        batch = Batch(self._limit_bytes)
        ahead = await self._errands.run(
            lambda: spool.look_ahead(lambda entry, size_bytes: batch.add(_item(entry, size_bytes)))
        )
        spool.take(ahead)
        if not batch.items:
            return
        for item in batch.items:
            item.report = under(item.report, spool.known.token(item.report.claim.key))
        writer.me = Incarnation(id=batch.items[0].daemon, uuid="")
        await writer.store(batch.items, repeated=True)
        spool.stored()

    def _writer(
        self, *, note: Callable[[Note], None], unstorable: Callable[[Claim], None] = lambda claim: None
    ) -> Writer:
        return Writer(
            self._link,
            self._table,
            self.policy,
            host=self._host,
            settled=self._settled,
            unstorable=unstorable,
            note=note,
            late=True,
        )

    def _settled(self, item: Item, end: Attempt | None, verdict: Verdict) -> None:
        self._verdicts[verdict] += 1
        if end is not None and end.started is not None and verdict is not Verdict.KNOWN:
            self._ended(end, verdict)


def _item(entry: Entry, size_bytes: int) -> Item:
    return Item(entry.report, size_bytes=size_bytes, is_spooled=True, daemon=entry.daemon)


def _close_if_any(spool: Spool | None) -> None:
    if spool is not None:
        spool.close()
