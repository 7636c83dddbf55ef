"""Writes what experiments produce, in groups: one transaction for everything that waits. What waits is spooled."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import anyio

from pyexp_daemon import exceptions
from pyexp_daemon.daemon.batches import Batch, Item, is_dear, size_of
from pyexp_daemon.daemon.errands import DiskHangs, Errands
from pyexp_daemon.daemon.ledger import Ledger
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.daemon.records import Entry, Notes, Rebound, under
from pyexp_daemon.daemon.spool import Spool, is_result
from pyexp_daemon.daemon.writer import Writer
from pyexp_daemon.log import get_logger
from pyexp_daemon.model import (
    Attempt,
    Claim,
    Incarnation,
    LogRow,
    Outcome,
    Report,
    RetryPolicy,
    SnapshotHead,
    SnapshotPart,
    Verdict,
)
from pyexp_daemon.store.tables import Table

log = get_logger()

BATCH = 64
"""A flush begins at the latest when so many reports wait."""

BATCH_BYTES = 2**20
"""What is held in memory on its way to the database, unless one report alone is larger."""

BACKLOG_BYTES = 2**18
"""What is read back from the spool at once."""

GATHER_S = 0.02
"""How long a finished attempt waits for others, while there is more to run anyway."""

COMPANY_S = 0.005
"""How long at most a function that waits for its results waits for others which do the same."""

SPILL_S = 0.1
"""What is older and not stored is spooled."""

UNWRITABLE_PAUSE_S = 1.0
"""How long a spool that could not be written is left alone."""

TIDY_S = 60.0
"""How often spooled files that are not needed any more are looked for."""

MOST_WAITING = 4096
"""Reports that may wait in memory before whoever brings more has to wait too: when the spool cannot be written."""


@dataclass(slots=True)
class Totals:
    """What this daemon has written so far."""

    outcomes: dict[str, int] = field(default_factory=dict)

    @property
    def ended(self) -> int:
        return sum(self.outcomes.values())


@dataclass(frozen=True, slots=True)
class Left:
    """Of how many experiments something is not stored at the end: in the spool, or nowhere."""

    spooled: int = 0
    lost: int = 0

    def __bool__(self) -> bool:
        return bool(self.spooled or self.lost)


class Completer:
    """Takes what the pool reports and stores it under the claims' tokens, in the order in which it came.

    What is older than a moment and not stored is on local disk: in memory is only the batch on its way. Everything in
    the spool comes before everything in memory.
    """

    def __init__(
        self,
        link: Link,
        table: Table,
        ledger: Ledger,
        policy: RetryPolicy,
        *,
        spool: Spool,
        host: str,
        busy: Callable[[], bool],
        ended: Callable[[Attempt, Verdict], None],
        lost: Callable[[Claim], None],
        fenced: Callable[[Incarnation], Awaitable[bool]],
        writing: anyio.Lock,
        age_s: Callable[[Claim], float] = lambda claim: 0.0,
    ) -> None:
        """
        Args:
            busy: whether there is more to run, so that a finished attempt may wait a moment for company.
            ended: told of every attempt once its end is stored.
            lost: told of claims that turned out not to be ours any more.
            fenced: asked then whether this incarnation was declared dead; the daemon has registered anew and taken
                back what nobody took (see `rebind`) when the answer is True.
            writing: held while reports are written, so that their tokens do not change meanwhile.
            age_s: for how long an experiment has been running here.
        """
        self.spool = spool
        self._table = table
        self._ledger = ledger
        self._busy = busy
        self._ended = ended
        self._lost = lost
        self._age_s = age_s
        self._store = link.store
        self._writer = Writer(
            link,
            table,
            policy,
            host=host,
            settled=self._settled,
            unstorable=ledger.let_go,  # the audit hands it back when the database lets it
            note=spool.note,
            writing=writing,
            fenced=fenced,
        )
        self._waiting: list[Item] = []
        self._flying: list[Item] = []
        self._disk = anyio.Lock(fast_acquire=True)
        self._errands = Errands()
        self._in_backlog: Counter[tuple[int, str]] = Counter()
        self._unreadable: set[int] = set()
        self._rebound = Notes()
        self._arrived = anyio.Event()
        self._flushed = anyio.Event()
        self._brought = anyio.Event()
        self._in_haste = False
        self._company = 0
        self._flush_s = 0.0
        self._log_seq: dict[tuple[int, int], dict[str, int]] = {}
        self._not_spooled: set[tuple[int, int]] = set()
        self._unwritable_until: float | None = None
        self._is_unreadable = False
        self._tidied_at = 0.0
        self._given_up: exceptions.ConnectionLost | None = None
        self.totals = Totals()

    @property
    def me(self) -> Incarnation | None:
        return self._writer.me

    @me.setter
    def me(self, me: Incarnation) -> None:
        self._writer.me = me

    @property
    def policy(self) -> RetryPolicy:
        return self._writer.policy

    @policy.setter
    def policy(self, policy: RetryPolicy) -> None:
        self._writer.policy = policy

    async def results(self, claim: Claim, results: Mapping[str, Any]) -> None:
        """Store results of a running experiment; returns when they are durable.

        If the database takes too long they are so on local disk. A value that it refuses later ends the attempt as an
        error.

        Raises:
            InvalidResultFieldError: a name is no result field.
            RowRefused: a value cannot be stored.
            LeaseLost: the experiment is not ours any more.
        """
        unknown = [name for name in results if name not in self._table.resultfields]
        if unknown:
            raise exceptions.InvalidResultFieldError(
                f"{', '.join(map(repr, unknown))} is no result field", hint="declare it under resultfields"
            )
        await self._store_at_once(Report(claim=claim, results=dict(results)))

    async def snapshot(self, claim: Claim, part: SnapshotPart, head: SnapshotHead | None) -> None:
        """Store a part of a snapshot of a running experiment, with its head the whole of it; as `results` does.

        Raises:
            RowRefused: it cannot be stored, or parts of it are not there.
            LeaseLost: the experiment is not ours any more.
        """
        heads = () if head is None else (head,)
        await self._store_at_once(Report(claim=claim, parts=(part,), snapshots=heads))

    async def _store_at_once(self, report: Report) -> None:
        """Return when a report is durable."""
        if self._given_up is not None and self._unwritable_until is not None:
            raise self._given_up
        item = Item(report, stored=anyio.Event())
        item.is_dear = is_dear(report, age_s=self._age_s(report.claim))
        await self._put(item)
        assert item.stored is not None
        await item.stored.wait()
        if item.error is not None:
            raise item.error

    async def logs(self, claim: Claim, rows: Sequence[tuple[str, float, dict[str, Any]]]) -> None:
        """Store log rows of a running experiment soon, in their order."""
        # Numbered per attempt, so that a repeated write recognises what is there. Not by token: that may change.
        counts = self._log_seq.setdefault((claim.experiment_id, claim.attempt), {})
        numbered = []
        for logtable, moment, columns in rows:
            counts[logtable] = counts.get(logtable, 0) + 1
            numbered.append(LogRow(logtable=logtable, seq=counts[logtable], time=moment, columns=columns))
        await self._put(Item(Report(claim=claim, logs=tuple(numbered))))

    async def finished(self, attempt: Attempt) -> None:
        """Store the end of an attempt soon."""
        self._log_seq.pop((attempt.claim.experiment_id, attempt.claim.attempt), None)
        item = Item(Report(claim=attempt.claim, end=attempt))
        item.is_dear = is_dear(item.report, age_s=0.0)
        await self._put(item)

    async def release(self, claims: Sequence[Claim]) -> None:
        """Hand back claims whose function never started, uncharged and without a trace."""
        for claim in claims:
            await self._put(Item(Report(claim=claim, end=Attempt(claim=claim, outcome=Outcome.RELEASED))))

    @property
    def waiting(self) -> int:
        """Reports not stored yet, in memory and in the spool."""
        return len(self._waiting) + len(self._flying) + self.spool.backlog

    async def flush(self) -> None:
        """Return when everything that was brought so far is stored."""
        while self.waiting:
            await self._hasten()

    async def stored(self, claim: Claim) -> None:
        """Return when nothing that was brought for this claim waits any more."""
        while claim.key in self.claims:
            await self._hasten()

    async def _hasten(self) -> None:
        """Store what waits without gathering more, and return when a part of it is stored."""
        self._in_haste = True
        self._arrived.set()
        await self._flushed.wait()

    @property
    def claims(self) -> set[tuple[int, str]]:
        """What is on its way to the database, by experiment and token."""
        return {item.report.claim.key for item in (*self._flying, *self._waiting)} | self._in_backlog.keys()

    async def give_up(self) -> None:
        """Wait for the database no longer: who waits for something that cannot be spooled either gets an error."""
        self._given_up = exceptions.ConnectionLost("the daemon is stopping and the database is away")
        await self.spill()
        for item in (*self._flying, *self._waiting):
            item.release(self._given_up)

    async def left(self) -> Left:
        """What is not stored, after everything that can be is spooled."""
        await self.spill()
        items = [item for item in (*self._flying, *self._waiting) if not item.is_settled and not item.is_spooled]
        lost = {item.report.claim.experiment_id for item in items if is_result(item.report)} | self._unreadable
        async with self._disk:
            try:
                found = await self._errands.run(self.spool.left)
            except OSError as error:  # it is there all the same, for a daemon that can read it
                self._say_unwritable(error)
                found = {item.report.claim.experiment_id: True for item in self._flying if item.is_spooled}
                found |= {experiment_id: True for experiment_id, _ in self._in_backlog}
        expected = {item.report.claim.experiment_id for item in self._flying if item.is_spooled and not item.is_settled}
        expected |= {experiment_id for experiment_id, _ in self._in_backlog}
        lost |= expected - found.keys()
        spooled = {experiment_id for experiment_id, is_worth_it in found.items() if is_worth_it}
        return Left(spooled=len(spooled - lost), lost=len(lost))

    @property
    def lost(self) -> Left:
        """What is not stored although nothing waits any more."""
        return Left(lost=len(self._unreadable))

    async def close(self) -> None:
        """Let go of the spool: what is in it is for the next daemon. Nothing may be brought any more."""
        await self.spill()  # after a fault of ours something may still be in memory
        async with self._disk:
            try:
                await self._errands.run(self.spool.close)
            except DiskHangs:
                self._errands.later(self.spool.close)

    def rebind(self, old: Claim, new: Claim) -> None:
        """An experiment was taken back under a new token: what waits for it is written under that."""
        for item in (*self._flying, *self._waiting):
            if item.report.claim.key == old.key:
                item.report = under(item.report, new.token)
        if self.spool.is_open or self._disk.locked():  # an entry may be on its way to the disk just now
            note = Rebound(old.experiment_id, old.token, new.token)
            self._rebound.add(note)
            self.spool.note(note)
            self._brought.set()
        if old.key in self._in_backlog:
            self._in_backlog[new.key] += self._in_backlog.pop(old.key)

    async def run(self) -> None:
        """Flush what arrives, and spool what takes too long, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_durable)
            await self._keep_flushing()

    async def _keep_flushing(self) -> None:
        self._arrived.set()  # something may be left from a turn that failed
        while True:
            await self._arrived.wait()
            await self._gather()
            await self._flush_batch()
            if self.waiting:
                self._arrived.set()
            else:
                self._arrived = anyio.Event()
                self._in_haste = False

    async def _gather(self) -> None:
        """Let a batch grow, for as long as nobody is held up by that."""
        began = time.monotonic()
        while len(self._waiting) < BATCH and (left := began + self._patience_s() - time.monotonic()) > 0:
            self._arrived = anyio.Event()
            with anyio.move_on_after(left):
                await self._arrived.wait()
        self._arrived.set()

    def _patience_s(self) -> float:
        """How long what waits may wait for more.

        Functions that store results again and again do it in step then, as transactions that are committed in a group:
        those whose results were stored last are back soon, and one flush for all costs as much as one for each.
        """
        if self._in_haste or self._flying or self.spool.has_backlog:
            return 0.0
        held_up = self._count_held_up()
        if held_up:
            return min(self._flush_s, COMPANY_S) if held_up < self._company else 0.0
        return GATHER_S if self._busy() else 0.0

    def _count_held_up(self) -> int:
        """How many functions wait until their results are stored."""
        return sum(item.is_awaited for item in self._waiting)

    async def _put(self, item: Item) -> None:
        while len(self._waiting) + len(self._flying) >= MOST_WAITING and item.report.end is None:
            await self._flushed.wait()
        item.arrived = time.monotonic()
        item.size_bytes = size_of(item.report)
        self._waiting.append(item)
        if not 1 < len(self._waiting) < BATCH or item.is_awaited or not self._busy():
            self._arrived.set()  # else it makes no difference to `_gather`
        self._brought.set()

    async def _flush_batch(self) -> None:
        repeated = bool(self._flying)  # a turn that failed
        if not repeated:
            async with self._disk:
                repeated = self.spool.has_backlog and await self._read_back()
                if not repeated:
                    self._take_waiting()
                    await self._spool_dear()
        if not self._flying and self.spool.has_backlog:  # of which something comes before all that waits
            self._arrived = anyio.Event()
            with anyio.move_on_after(UNWRITABLE_PAUSE_S):
                await self._arrived.wait()
            return
        began, held_up = time.monotonic(), sum(item.is_awaited for item in self._flying)
        await self._writer.store(self._flying, repeated=repeated)
        self._flush_s = time.monotonic() - began
        self._company = held_up + self._count_held_up()
        async with self._disk:  # an entry that is just being spooled is either stored or waiting after this
            self._flying = []
            self.spool.stored()
            if not self.spool.count:
                self._rebound = Notes()
        self._tell_flushed()

    @property
    def _limit_bytes(self) -> int:
        return min(BATCH_BYTES, self._store.max_packet // 2)

    def _take_waiting(self) -> None:
        """Take a batch of what waits; what comes after something in a spool that cannot be read now has to wait on."""
        batch, left = Batch(self._limit_bytes), list[Item]()
        is_full = False
        first = self._come_first()
        for item in self._waiting:
            is_later = bool(first) and item.report.claim.experiment_id not in first
            is_held = is_full or is_later or item.report.claim.key in self._in_backlog
            is_full = is_full or (not is_held and not batch.add(item))
            if is_held or is_full:
                left.append(item)
        self._flying, self._waiting = batch.items, left

    def _come_first(self) -> set[int]:
        """The experiments whose functions wait, while all else may gather a little longer; empty: it may not.

        Results of running experiments are one statement for all, which ends of others would make a transaction of.
        """
        if self._in_haste or len(self._waiting) >= BATCH or not self._busy():
            return set()
        ready = (item.report.claim for item in self._waiting if item.is_awaited)
        awaited = {claim.experiment_id for claim in ready if claim.key not in self._in_backlog}
        oldest = next((item for item in self._waiting if item.report.claim.experiment_id not in awaited), None)
        return awaited if oldest is not None and time.monotonic() - oldest.arrived < GATHER_S else set()

    async def _read_back(self) -> bool:
        """Take a batch of what is in the spool; False when it cannot be read now."""
        batch = Batch(min(BACKLOG_BYTES, self._limit_bytes))
        try:
            ahead = await self._errands.run(
                lambda: self.spool.look_ahead(lambda entry, size: batch.add(_item(entry, size)))
            )
        except OSError as error:
            self._is_unreadable = True
            self._say_unwritable(error)
            return False
        if self._is_unreadable:
            self._is_unreadable = False
            self._say_writable()
        self.spool.take(ahead)
        for item in batch.items:
            item.report = under(item.report, self._rebound.token(item.report.claim.key))
            self._in_backlog[item.report.claim.key] -= 1
        self._in_backlog = +self._in_backlog
        if not self.spool.has_backlog:
            self._forget_unreadable()
        self._flying = batch.items
        return True

    def _forget_unreadable(self) -> None:
        """What was spooled and did not come back is gone: its attempts cannot succeed, and nothing waits for it."""
        for experiment_id, token in self._in_backlog:
            self._unreadable.add(experiment_id)
            claim = self._ledger.find((experiment_id, token))
            if claim is not None:
                reason = "something that it reported could not be read back from the spool"
                self._writer.spoilt.setdefault((experiment_id, claim.attempt), reason)
        self._in_backlog.clear()

    async def _spool_dear(self) -> None:
        """Put on disk, before they are sent, results that took long, with all that came before of their attempts."""
        dear = {item.attempt for item in self._flying if item.is_dear}
        if dear and time.monotonic() >= (self._unwritable_until or 0.0):
            await self._append([item for item in self._flying if item.attempt in dear], [])

    async def _keep_durable(self) -> None:
        """Spool what has waited for too long. While nothing waits, this does too."""
        while True:
            await self._tidy()
            due = self._spill_due()
            if due is None:
                self._brought = anyio.Event()
                await self._brought.wait()
            elif due > time.monotonic():
                await anyio.sleep_until(due)  # never a negative time, wherever the process was stopped
            else:
                await self.spill()

    def _spill_due(self) -> float | None:
        """When something will have waited for too long; None while nothing waits."""
        unsafe = next((item for item in (*self._flying, *self._waiting) if not item.is_safe), None)
        if unsafe is None and not self.spool.has_notes:
            return None
        due = 0.0 if unsafe is None else unsafe.arrived + SPILL_S
        return max(due, self._unwritable_until or 0.0)

    async def spill(self) -> None:
        """Spool everything that is not stored, in its order; whoever waits for it goes on."""
        async with self._disk:
            flying = [item for item in self._flying if not item.is_settled and not item.is_spooled]
            waiting = list(self._waiting)
            if (flying or waiting or self.spool.has_notes) and not await self._append(flying, waiting):
                return
            del self._waiting[: len(waiting)]
            self._in_backlog.update(item.report.claim.key for item in waiting)
            for item in (*self._flying, *waiting):
                if item.is_spooled:
                    item.release()
        if waiting:
            self._arrived.set()
            self._tell_flushed()

    async def _append(self, flying: Sequence[Item], waiting: Sequence[Item]) -> bool:
        """Write items to the spool; False when it cannot be written, which is said once."""
        entries = [self._entry(item) for item in (*flying, *waiting)]
        try:
            written = await self._errands.run(
                lambda: self.spool.write(entries, flying=len(flying)), undo=self.spool.withdraw
            )
        except OSError as error:
            self._say_unwritable(error)
            return False
        self.spool.accept(written)
        if not self._is_unreadable:
            self._say_writable()
        for item in (*flying, *waiting):
            item.is_spooled = True
        return True

    def _say_unwritable(self, error: OSError) -> None:
        """The spool is of no use now, which is said once."""
        if self._unwritable_until is None:
            log.error("spool.unwritable", folder=str(self.spool.folder or self.spool.base), error=str(error))
        self._unwritable_until = time.monotonic() + UNWRITABLE_PAUSE_S

    def _say_writable(self) -> None:
        if self._unwritable_until is not None:
            log.info("spool.writable", folder=str(self.spool.folder))
            self._unwritable_until = None

    def _entry(self, item: Item) -> Entry:
        assert self.me is not None
        whole = item.attempt not in self._not_spooled
        return Entry(report=self._writer.spoiled(item.report), daemon=self.me.id, whole=whole)

    async def _tidy(self) -> None:
        now = time.monotonic()
        if self.spool.is_open and now - self._tidied_at > TIDY_S:
            self._tidied_at = now
            async with self._disk:
                try:
                    await self._errands.run(self.spool.tidy)
                except OSError as error:
                    self._say_unwritable(error)

    def _tell_flushed(self) -> None:
        self._flushed.set()
        self._flushed = anyio.Event()

    def _settled(self, item: Item, end: Attempt | None, verdict: Verdict) -> None:
        if end is not None:
            self._end(end, verdict)
        elif verdict is Verdict.SUPERSEDED:
            self._lost(item.report.claim)
        elif item.report.results and not item.is_spooled:
            self._not_spooled.add(item.attempt)

    def _end(self, end: Attempt, verdict: Verdict) -> None:
        self._ledger.let_go(end.claim)
        self._not_spooled.discard((end.claim.experiment_id, end.claim.attempt))
        if end.started is not None:
            outcome = Outcome.SUPERSEDED if verdict is Verdict.SUPERSEDED else end.outcome
            self.totals.outcomes[outcome] = self.totals.outcomes.get(outcome, 0) + 1
            self._ended(replace(end, outcome=outcome), verdict)


def _item(entry: Entry, size_bytes: int) -> Item:
    return Item(entry.report, size_bytes=size_bytes, is_spooled=True)
