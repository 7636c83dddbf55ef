"""Writes what experiments produce, in groups: one transaction for everything that waits."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import structlog

from pyexp_daemon import exceptions
from pyexp_daemon.daemon.ledger import Ledger
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.model import Attempt, Claim, Incarnation, LogRow, Outcome, Report, RetryPolicy, Verdict
from pyexp_daemon.store import reports
from pyexp_daemon.store.tables import Table

log = structlog.get_logger()

BATCH = 64
"""A flush begins at the latest when so many reports wait."""

GATHER_S = 0.02
"""How long a finished attempt waits for others, while there is more to run anyway."""

REFUSED_PAUSE_S = 0.1
"""The first pause after the database refused a group for a reason we do not know; it grows to a minute."""

MOST_WAITING = 4096
"""Reports that may wait before whoever brings more has to wait too."""


@dataclass(slots=True)
class _Item:
    """A report on its way, and the one who waits for it to be stored, if anybody does."""

    report: Report
    stored: anyio.Event | None = None
    error: Exception | None = None
    size: int = 0
    settled: bool = False


@dataclass(slots=True)
class Totals:
    """What this daemon has written so far."""

    outcomes: dict[str, int] = field(default_factory=dict)

    @property
    def ended(self) -> int:
        return sum(self.outcomes.values())


class Completer:
    """Takes what the pool reports and stores it under the claims' tokens."""

    def __init__(
        self,
        link: Link,
        table: Table,
        ledger: Ledger,
        policy: RetryPolicy,
        *,
        host: str,
        busy: Callable[[], bool],
        ended: Callable[[Attempt, Verdict], None],
        lost: Callable[[Claim], None],
        fenced: Callable[[Incarnation], Awaitable[bool]],
        writing: anyio.Lock,
    ) -> None:
        """
        Args:
            busy: whether there is more to run, so that a finished attempt may wait a moment for company.
            ended: told of every attempt once its end is stored.
            lost: told of claims that turned out not to be ours any more.
            fenced: asked then whether this incarnation was declared dead; the daemon has registered anew and taken
                back what nobody took (see `rebind`) when the answer is True.
            writing: held while reports are written, so that their tokens do not change meanwhile.
        """
        self._link = link
        self._table = table
        self._ledger = ledger
        self._policy = policy
        self._host = host
        self._busy = busy
        self._ended = ended
        self._lost = lost
        self._fenced = fenced
        self._writing = writing
        self._waiting: list[_Item] = []
        self._flushing: list[_Item] = []
        self._arrived = anyio.Event()
        self._flushed = anyio.Event()
        self._urgent = False
        self._log_seq: dict[tuple[int, int], dict[str, int]] = {}
        self._spoilt: dict[tuple[int, str], str] = {}
        self._given_up: exceptions.ConnectionLost | None = None
        self.me: Incarnation | None = None
        self.totals = Totals()

    async def results(self, claim: Claim, results: Mapping[str, Any]) -> None:
        """Store results of a running experiment; returns when they are durable.

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
        if self._given_up is not None:
            raise self._given_up
        item = _Item(Report(claim=claim, results=dict(results)), stored=anyio.Event())
        await self._put(item, urgent=True)
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
        await self._put(_Item(Report(claim=claim, logs=tuple(numbered))))

    async def finished(self, attempt: Attempt) -> None:
        """Store the end of an attempt soon."""
        self._log_seq.pop((attempt.claim.experiment_id, attempt.claim.attempt), None)
        await self._put(_Item(Report(claim=attempt.claim, end=attempt)))

    async def release(self, claims: Sequence[Claim]) -> None:
        """Hand back claims whose function never started, uncharged and without a trace."""
        for claim in claims:
            await self._put(_Item(Report(claim=claim, end=Attempt(claim=claim, outcome=Outcome.RELEASED))))

    @property
    def waiting(self) -> int:
        """Reports not stored yet."""
        return len(self._waiting) + len(self._flushing)

    async def flush(self) -> None:
        """Return when everything that was brought so far is stored."""
        while self.waiting:
            self._urgent = True
            self._arrived.set()
            await self._flushed.wait()

    @property
    def claims(self) -> set[tuple[int, str]]:
        """What is on its way to the database, by experiment and token."""
        return {item.report.claim.key for item in (*self._flushing, *self._waiting)}

    def give_up(self) -> None:
        """Stop trying: what waits is not stored, and who waits for it gets an error."""
        self._given_up = exceptions.ConnectionLost("the daemon is stopping and the database is away")
        items = [item for item in (*self._flushing, *self._waiting) if not item.settled]
        self._waiting = []
        for item in items:
            self._settle_item(item, self._given_up)

    def rebind(self, old: Claim, new: Claim) -> None:
        """An experiment was taken back under a new token: what waits for it is written under that."""
        for item in (*self._flushing, *self._waiting):
            if item.report.claim == old:
                end = item.report.end
                item.report = replace(item.report, claim=new, end=replace(end, claim=new) if end else None)

    async def run(self) -> None:
        """Flush what arrives, until cancelled."""
        while True:
            await self._arrived.wait()
            await self._gather()
            while self._waiting:
                batch = self._next_batch()
                self._flushing = batch
                try:
                    await self._flush(batch)
                except Exception:
                    self._waiting = [item for item in batch if not item.settled] + self._waiting
                    raise
                finally:
                    self._flushing = []
                self._flushed.set()
                self._flushed = anyio.Event()
                if len(self._waiting) < BATCH and not self._urgent:
                    break
            self._arrived = anyio.Event()
            if self._waiting:
                self._arrived.set()
            else:
                self._urgent = False

    async def _gather(self) -> None:
        """Let a batch grow while there is other work, unless somebody waits for it."""
        end = anyio.current_time() + GATHER_S
        while len(self._waiting) < BATCH and not self._urgent and self._busy():
            left = end - anyio.current_time()
            if left <= 0:
                return
            self._arrived = anyio.Event()
            with anyio.move_on_after(left):
                await self._arrived.wait()

    async def _put(self, item: _Item, *, urgent: bool = False) -> None:
        while self.waiting >= MOST_WAITING and item.report.end is None:
            await self._flushed.wait()
        item.size = _size(item.report)
        self._waiting.append(item)
        self._urgent = self._urgent or urgent
        self._arrived.set()

    def _next_batch(self) -> list[_Item]:
        """What is written together: reports in their order, of one token per experiment, within a packet."""
        limit = self._link.store.max_packet // 2
        tokens: dict[int, str] = {}
        size, number = 0, 0
        for number, item in enumerate(self._waiting):
            claim = item.report.claim
            size += item.size
            if tokens.setdefault(claim.experiment_id, claim.token) != claim.token or len(tokens) > 2 * BATCH:
                break
            if size > limit and number:
                break
        else:
            number += 1
        batch, self._waiting = self._waiting[:number], self._waiting[number:]
        return batch

    async def _flush(self, batch: list[_Item], *, repeated: bool = False) -> None:
        """Store a batch, whatever it takes: through outages, and without those that cannot be stored."""
        broken = refused = 0
        while True:
            batch = [item for item in batch if not item.settled]
            try:
                if batch:
                    await self._record(batch, repeated=repeated)
                return
            except exceptions.RowRefused as error:
                await self._without_the_bad(batch, error, repeated=repeated)
                return
            except exceptions.ConnectionLost as error:
                repeated = repeated or error.unknown
                broken = 0 if error.timed_out else broken + 1
                await self._link.restored(error)
                if error.unknown and error.session is not None:
                    await self._bury(error.session)
                if broken >= 3 and self._is_huge(batch):
                    # The server answers others and breaks off with this: it is too large for it.
                    await self._without_the_bad(batch, exceptions.RowRefused(str(error)), repeated=repeated)
                    return
            except exceptions.DatabaseError as error:
                refused += 1
                log.error("results.refused", error=str(error), reports=len(batch))
                if refused >= 3 and await self._are_tables_sound():
                    await self._without_the_bad(batch, exceptions.RowRefused(str(error)), repeated=repeated)
                    return
                await anyio.sleep(min(60.0, REFUSED_PAUSE_S * 4.0**refused))

    def _is_huge(self, batch: Sequence[_Item]) -> bool:
        return max(item.size for item in batch) > self._link.store.max_packet // 4

    async def _are_tables_sound(self) -> bool:
        """Whether it is not the tables (a migration under way, a missing grant) that keep us from writing."""
        try:
            await self._link.run(reports.check_writable(self._table))
        except exceptions.DatabaseError:
            return False
        return True

    async def _bury(self, session: object) -> None:
        try:
            await self._link.store.kill(session)
        except exceptions.DatabaseError as error:
            log.warning("connection.not_killed", error=str(error))

    async def _without_the_bad(self, batch: list[_Item], error: exceptions.RowRefused, *, repeated: bool) -> None:
        """Halve a batch with a bad row until the row is alone; then only its own experiment fails."""
        if len(batch) > 1:
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                await self._flush(half, repeated=repeated)
            return
        (item,) = batch
        claim, end = item.report.claim, item.report.end
        if item.stored is not None:
            self._settle_item(item, error)
        elif end is None:
            item.settled = True
            self._spoilt[claim.experiment_id, claim.token] = f"a log row cannot be stored: {error}"
            log.warning("logs.refused", experiment_id=claim.experiment_id, error=str(error))
        else:
            lesser = _with_less(end, error)
            if lesser is None:
                self._ledger.let_go(claim)  # the audit hands it back when the database lets it
                item.settled = True
                return
            log.error(
                "attempt.unstorable", experiment_id=claim.experiment_id, as_outcome=lesser.outcome, error=str(error)
            )
            item.report = Report(claim=claim, end=lesser)
            item.size = _size(item.report)
            await self._flush([item], repeated=repeated)

    async def _record(self, batch: list[_Item], *, repeated: bool) -> None:
        me = self.me
        assert me is not None
        written, verdicts = await self._write(batch, repeated=repeated)
        refused = {
            report.claim.experiment_id
            for report, verdict in zip(written, verdicts, strict=True)
            if verdict is Verdict.SUPERSEDED and report.end is None
        }
        again = [item for item in batch if item.report.claim.experiment_id in refused]
        self._settle([item for item in batch if item.report.claim.experiment_id not in refused], written, verdicts)
        if again and await self._fenced(me):
            # The row may be ours again under a new token: what runs is stopped only when somebody else has it.
            written, verdicts = await self._write(again, repeated=repeated)
        self._settle(again, written, verdicts)

    async def _write(self, batch: Sequence[_Item], *, repeated: bool) -> tuple[list[Report], list[Verdict]]:
        async with self._writing:
            assert self.me is not None
            merged = self._merged(batch)
            unit = reports.record(
                self._table, merged, me=self.me, host=self._host, policy=self._policy, repeated=repeated
            )
            return merged, await self._link.run(unit)

    def _settle(self, items: Sequence[_Item], written: Sequence[Report], verdicts: Sequence[Verdict]) -> None:
        """Tell everybody concerned what became of their reports."""
        answers = {report.claim.experiment_id: verdict for report, verdict in zip(written, verdicts, strict=True)}
        ends = {report.claim.experiment_id: report.end for report in written if report.end is not None}
        for item in items:
            experiment = item.report.claim.experiment_id
            lost = answers[experiment] is Verdict.SUPERSEDED
            if item.report.end is not None:
                self._end(ends[experiment], answers[experiment])
            elif lost:
                self._lost(item.report.claim)
            self._settle_item(item, exceptions.LeaseLost(experiment) if lost else None)

    @staticmethod
    def _settle_item(item: _Item, error: Exception | None) -> None:
        item.settled = True
        if item.stored is not None:
            item.error = error
            item.stored.set()

    def _merged(self, batch: Sequence[_Item]) -> list[Report]:
        """One report per experiment: what came later overwrites results, log rows add up, the end is the last."""
        merged: dict[int, Report] = {}
        for item in batch:
            report = item.report
            earlier = merged.get(report.claim.experiment_id)
            if earlier is not None:
                report = replace(
                    report, results={**earlier.results, **report.results}, logs=(*earlier.logs, *report.logs)
                )
            merged[report.claim.experiment_id] = report
        return [self._spoiled(report) for report in merged.values()]

    def _spoiled(self, report: Report) -> Report:
        reason = self._spoilt.get((report.claim.experiment_id, report.claim.token))
        if reason is None or report.end is None or report.end.outcome is not Outcome.DONE:
            return report
        return replace(report, end=replace(report.end, outcome=Outcome.ERROR, error=reason))

    def _end(self, end: Attempt, verdict: Verdict) -> None:
        self._ledger.let_go(end.claim)
        self._spoilt.pop((end.claim.experiment_id, end.claim.token), None)
        if end.started is not None:
            outcome = Outcome.SUPERSEDED if verdict is Verdict.SUPERSEDED else end.outcome
            self.totals.outcomes[outcome] = self.totals.outcomes.get(outcome, 0) + 1
            self._ended(replace(end, outcome=outcome), verdict)


def _with_less(end: Attempt, error: Exception) -> Attempt | None:
    """What to store of an end that the database refuses: the cause; if that is refused too, only that it paused."""
    if end.outcome is Outcome.PAUSED and end.error is None and not end.results:
        return None
    if end.outcome is not Outcome.ERROR or end.results:
        return replace(end, outcome=Outcome.ERROR, error=f"its result cannot be stored: {error}", results={})
    return replace(end, outcome=Outcome.PAUSED, error=None, log_tail=None)


def _size(report: Report) -> int:
    """About how many bytes a report needs in a statement."""
    size = 512 + sum(_bytes(value) for value in report.results.values())
    for row in report.logs:
        size += 256 + sum(_bytes(value) for value in row.columns.values())
    if report.end is not None:
        size += sum(_bytes(value) for value in (*report.end.results.values(), report.end.error, report.end.log_tail))
    return size


def _bytes(value: Any) -> int:
    if isinstance(value, str | bytes):
        return 2 * len(value)
    return len(json.dumps(value, default=str)) if isinstance(value, dict | list) else 32


class AttemptLog:
    """One full line per attempt; above `most` in a second, one line for all of them. Failures are never left out."""

    def __init__(self, *, most: int = 20) -> None:
        self._most = most
        self._second = 0
        self._said = 0
        self._left_out: dict[str, int] = {}

    def ended(self, attempt: Attempt, verdict: Verdict) -> None:
        second = int(time.monotonic())
        if second != self._second:
            self.close()
            self._second, self._said = second, 0
        good = attempt.outcome in (Outcome.DONE, Outcome.PAUSED, Outcome.RELEASED)
        self._said += 1
        if good and self._said > self._most:
            self._left_out[attempt.outcome] = self._left_out.get(attempt.outcome, 0) + 1
            return
        say = log.info if good else log.warning
        say("attempt.finished", **_facts(attempt))

    def close(self) -> None:
        """Say what was left out so far."""
        if self._left_out:
            log.info("attempts.finished", **self._left_out)
            self._left_out = {}


def _facts(attempt: Attempt) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "experiment_id": attempt.claim.experiment_id,
        "attempt": attempt.claim.attempt,
        "outcome": attempt.outcome.value,
        "duration_s": round((attempt.ended or 0) - (attempt.started or 0), 3),
        "exit_code": attempt.exit_code,
        "signal": attempt.signal,
        "error": attempt.error.strip().splitlines()[-1][:500] if attempt.error and attempt.error.strip() else None,
    }
    return {name: value for name, value in facts.items() if value is not None}
