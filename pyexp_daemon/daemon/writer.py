"""Stores batches of reports, whatever it takes: through outages, and without those that cannot be stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import anyio

from pyexp_daemon import exceptions
from pyexp_daemon.daemon.batches import Item, size_of
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.daemon.records import Note, Spoilt
from pyexp_daemon.log import get_logger
from pyexp_daemon.model import Attempt, Claim, Incarnation, Outcome, Report, RetryPolicy, Verdict
from pyexp_daemon.store import reports
from pyexp_daemon.store.tables import Table

log = get_logger()

REFUSED_PAUSE_S = 0.1
"""The first pause after the database refused a group for a reason we do not know; it grows to a minute."""


async def _never(_: Incarnation) -> bool:
    return False


class Writer:
    """Writes reports under their claims' tokens and tells what the database said to each.

    `me` is the daemon row under which they are written, `spoilt` why an attempt will end as an error although its
    function may say otherwise, by experiment and attempt.
    """

    def __init__(
        self,
        link: Link,
        table: Table,
        policy: RetryPolicy,
        *,
        host: str,
        settled: Callable[[Item, Attempt | None, Verdict], None],
        unstorable: Callable[[Claim], None],
        note: Callable[[Note], None],
        writing: anyio.Lock | None = None,
        fenced: Callable[[Incarnation], Awaitable[bool]] = _never,
        late: bool = False,
    ) -> None:
        """
        Args:
            settled: told of every item with its verdict, an end as it was written.
            unstorable: told of claims for which not even a pause can be written: they stay `running`.
            note: writes down what has to outlive this process.
            writing: held while reports are written, so that their tokens do not change meanwhile.
            fenced: asked after a refusal whether `me` was declared dead; the daemon has registered anew and taken back
                what nobody took when the answer is True.
            late: they are reports of a daemon that is dead.
        """
        self._link = link
        self._table = table
        self.policy = policy
        self._host = host
        self._settled = settled
        self._unstorable = unstorable
        self._note = note
        self._writing = writing or anyio.Lock(fast_acquire=True)
        self._fenced = fenced
        self._late = late
        self.me: Incarnation | None = None
        self.spoilt: dict[tuple[int, int], str] = {}

    async def store(self, batch: Sequence[Item], *, repeated: bool = False) -> None:
        """Return when all items of the batch are settled.

        Args:
            repeated: an earlier write of them may have been committed.
        """
        broken = refused = 0
        while batch := [item for item in batch if not item.is_settled]:
            try:
                await self._record(batch, repeated=repeated)
            except exceptions.RowRefused as error:
                await self._without_the_bad(batch, error, repeated=repeated)
            except exceptions.ConnectionLost as error:
                repeated = repeated or error.unknown
                broken = 0 if error.timed_out else broken + 1
                await self._link.restored(error)
                if error.unknown and error.session is not None:
                    await self._bury(error.session)
                if broken >= 3 and self._is_huge(batch):
                    # The server answers others and breaks off with this: it is too large for it.
                    await self._without_the_bad(batch, exceptions.RowRefused(str(error)), repeated=repeated)
            except exceptions.DatabaseError as error:
                refused += 1
                log.error("results.refused", error=str(error), reports=len(batch))
                if refused >= 3 and await self._are_tables_sound():
                    await self._without_the_bad(batch, exceptions.RowRefused(str(error)), repeated=repeated)
                else:
                    await anyio.sleep(min(60.0, REFUSED_PAUSE_S * 4.0**refused))

    def spoiled(self, report: Report) -> Report:
        """The report as it may be stored: an attempt of which something is missing did not succeed."""
        reason = self.spoilt.get((report.claim.experiment_id, report.claim.attempt))
        if reason is None or report.end is None or report.end.outcome is not Outcome.DONE:
            return report
        return replace(report, end=replace(report.end, outcome=Outcome.ERROR, error=reason))

    def _is_huge(self, batch: Sequence[Item]) -> bool:
        return max(item.size_bytes for item in batch) > self._link.store.max_packet // 4

    async def _are_tables_sound(self) -> bool:
        """Whether it is not the tables (a migration under way, a missing grant) that keep us from writing."""
        try:
            await self._link.run(reports.check_writable(self._table))
        except exceptions.DatabaseError:
            return False
        return True

    async def _bury(self, session: object) -> None:
        """Return when nothing can come of what was sent before; what is written next must not be overwritten by it."""
        while True:
            try:
                await self._link.store.kill(session)
                return
            except exceptions.ConnectionLost as error:
                log.warning("connection.not_killed", error=str(error))
                await self._link.restored(error)
            except exceptions.DatabaseError as error:
                log.warning("connection.not_killed", error=str(error))
                return

    async def _without_the_bad(self, batch: Sequence[Item], error: exceptions.RowRefused, *, repeated: bool) -> None:
        """Halve a batch with a bad row until the row is alone; then only its own experiment fails."""
        if len(batch) > 1:
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                await self.store(half, repeated=repeated)
            return
        (item,) = batch
        if item.report.end is not None:
            await self._store_less(item, item.report.end, error, repeated=repeated)
        elif item.is_awaited:
            item.settle(error)
        else:
            self._spoil(item, error)

    def _spoil(self, item: Item, error: exceptions.RowRefused) -> None:
        """What nobody waits for any more cannot be stored: the attempt goes on, and will end as an error."""
        experiment_id, attempt = item.attempt
        if item.report.parts:  # one snapshot less, which is the fault of no result
            log.warning("snapshot.unstorable", experiment_id=experiment_id, attempt=attempt, error=str(error))
            item.settle()
            return
        if item.report.results:
            reason = f"a result cannot be stored: {error}"
            log.warning("result.unstorable", experiment_id=experiment_id, attempt=attempt, error=str(error))
        else:
            reason = f"a log row cannot be stored: {error}"
            log.warning("logs.refused", experiment_id=experiment_id, attempt=attempt, error=str(error))
        self.spoilt.setdefault(item.attempt, reason)
        if item.is_spooled:  # its end may be on disk already, as a success
            self._note(Spoilt(experiment_id, attempt, reason))
        item.settle()

    async def _store_less(self, item: Item, end: Attempt, error: exceptions.RowRefused, *, repeated: bool) -> None:
        lesser = _with_less(end, error)
        if lesser is None:
            self._unstorable(end.claim)
            item.settle()
            return
        experiment_id, attempt = item.attempt
        log.error(
            "attempt.unstorable",
            experiment_id=experiment_id,
            attempt=attempt,
            as_outcome=lesser.outcome,
            error=str(error),
        )
        item.report = Report(claim=end.claim, end=lesser)
        item.size_bytes = size_of(item.report)
        await self.store([item], repeated=repeated)

    async def _record(self, batch: Sequence[Item], *, repeated: bool) -> None:
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

    async def _write(self, batch: Sequence[Item], *, repeated: bool) -> tuple[list[Report], list[Verdict]]:
        async with self._writing:
            assert self.me is not None
            merged = self._merged(batch)
            if not self._late and reports.are_results(merged):
                are_stored = await self._link.run(reports.store_results(self._table, merged))
                if are_stored:
                    return merged, [Verdict.ACCEPTED] * len(merged)
            unit = reports.record(
                self._table,
                merged,
                me=self.me,
                host=self._host,
                policy=self.policy,
                repeated=repeated,
                late=self._late,
            )
            return merged, await self._link.run(unit)

    def _merged(self, batch: Sequence[Item]) -> list[Report]:
        """One report per experiment: what came later overwrites results, log rows add up, the end is the last."""
        by_experiment: dict[int, list[Report]] = {}
        for item in batch:
            by_experiment.setdefault(item.report.claim.experiment_id, []).append(item.report)
        return [self.spoiled(_as_one(reports)) for reports in by_experiment.values()]

    def _settle(self, items: Sequence[Item], written: Sequence[Report], verdicts: Sequence[Verdict]) -> None:
        """Tell everybody concerned what became of their reports."""
        answers = {report.claim.experiment_id: verdict for report, verdict in zip(written, verdicts, strict=True)}
        ends = {report.claim.experiment_id: report.end for report in written if report.end is not None}
        for item in items:
            experiment = item.report.claim.experiment_id
            verdict = answers[experiment]
            if item.report.end is not None:
                self.spoilt.pop(item.attempt, None)
            self._settled(item, ends[experiment] if item.report.end is not None else None, verdict)
            item.settle(exceptions.LeaseLost(experiment) if verdict is Verdict.SUPERSEDED else None)


def _as_one(reports: Sequence[Report]) -> Report:
    if len(reports) == 1:
        return reports[0]
    results = {name: value for report in reports for name, value in report.results.items()}
    # By number: what a failing disk kept of a group, and was spooled again, is there twice.
    logs = {(row.logtable, row.seq): row for report in reports for row in report.logs}
    parts = {(part.state_id, part.part): part for report in reports for part in report.parts}
    heads = {head.state_id: head for report in reports for head in report.snapshots}
    return replace(
        reports[-1],
        results=results,
        logs=tuple(logs.values()),
        parts=tuple(parts.values()),
        snapshots=tuple(heads.values()),
    )


def _with_less(end: Attempt, error: Exception) -> Attempt | None:
    """What to store of an end that the database refuses: the cause; if that is refused too, only that it paused."""
    if end.outcome is Outcome.PAUSED and end.error is None and not end.results:
        return None
    if end.outcome is not Outcome.ERROR or end.results:
        return replace(end, outcome=Outcome.ERROR, error=f"its result cannot be stored: {error}", results={})
    return replace(end, outcome=Outcome.PAUSED, error=None, log_tail=None)
